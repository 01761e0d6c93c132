"""Runs of `distributed_run.py` in one or several processes, and what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file


SCRIPT = Path(__file__).parent / "distributed_run.py"
ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu"}


def launch(output, processes, **settings):
    """Run in so many processes; gives how accelerate calls that."""
    words = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    # Standalone: the launcher takes a free port itself, so that tests at the same time do not take the same.
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    result = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), str(output), *words],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    kind, number = json.loads((output / "how.json").read_text())
    assert number == processes
    return kind


def run(output, processes, **settings):
    """The weights of a run in so many processes, and the averaged ones that it saved."""
    kind = launch(output, processes, **settings)
    saved = DiTTransformer2DModel.from_pretrained(output / "transformer").state_dict()
    return load_file(output / "last.safetensors"), saved, kind


def log(folder):
    """The numbers of every line of a run's log but its speed, those by time beside the others."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(line.pop("images_per_second") > 0.0 for line in lines)
    rows = [{**line, **line.pop("by_time")} for line in lines]
    return [{name: value for name, value in row.items() if name != "by_time"} for row in rows]


def assert_close(lines, expected):
    """The lines of a log are those of another one but for rounding."""
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, other in zip(lines, expected, strict=True):
        for name, value in line.items():
            assert value == pytest.approx(other[name], abs=1e-4), name
