"""Several processes: the same weights as one, and checkpoints that any number of processes goes on from."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file


SCRIPT = Path(__file__).parent / "distributed_run.py"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(output, processes, **settings):
    """The weights of a run in so many processes, and the averaged ones that it saved."""
    words = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={free_port()}"]
    result = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), str(output), *words],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    kind, number = json.loads((output / "how.json").read_text())
    assert number == processes
    saved = DiTTransformer2DModel.from_pretrained(output / "transformer").state_dict()
    return load_file(output / "last.safetensors"), saved, kind


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    return *run(folder, 1), folder


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "DistributedType.MULTI_CPU"),
        ({"train_batch_size": 2, "gradient_accumulation_steps": 2}, "DistributedType.MULTI_CPU"),
        ({"shard": True}, "DistributedType.FSDP"),
    ],
    ids=["ddp", "ddp with accumulation", "fsdp2"],
)
def test_two_processes_give_the_weights_of_one(tmp_path, single, settings, kind):
    last, saved, found = run(tmp_path, 2, **settings)
    assert found == kind
    torch.testing.assert_close(last, single[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(saved, single[1], rtol=0, atol=1e-5)
    lines, expected = ((folder / "log.jsonl").read_text().splitlines() for folder in (tmp_path, single[3]))
    assert [json.loads(line)["step"] for line in lines] == [json.loads(line)["step"] for line in expected]


def test_a_sharded_run_resumes_from_its_checkpoint_and_from_that_of_one_process(tmp_path, single):
    run(tmp_path, 2, shard=True)
    sharded = tmp_path / "checkpoint-3"
    for i, source in enumerate((sharded, single[3] / "checkpoint-3")):
        last, saved, _ = run(tmp_path / str(i), 2, shard=True, resume_from_checkpoint=str(source))
        torch.testing.assert_close(last, single[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(saved, single[1], rtol=0, atol=1e-5)
    # And one process goes on from what two have written.
    last, _, _ = run(tmp_path / "one", 1, resume_from_checkpoint=str(sharded))
    torch.testing.assert_close(last, single[0], rtol=0, atol=1e-5)
