"""Several processes: the same weights as one, and checkpoints that any number of processes goes on from."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file

from diffusers_ucgm.training import zero
from diffusers_ucgm.training.config import UCGMTrainingConfig


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
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, other in zip(lines, expected, strict=True):
        for name, value in line.items():
            assert value == pytest.approx(other[name], abs=1e-4), name


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
    assert_close(log(tmp_path), log(single[3]))


def test_a_full_disk_costs_all_processes_the_checkpoint_and_none_the_run(tmp_path, single):
    last, _, _ = run(tmp_path, 2, full_disk=True)
    torch.testing.assert_close(last, single[0], rtol=0, atol=1e-5)
    assert not list(tmp_path.glob("*checkpoint*"))


def test_a_sharded_run_resumes_from_its_checkpoint_and_from_that_of_one_process(tmp_path, single):
    run(tmp_path, 2, shard=True)
    sharded = tmp_path / "checkpoint-3"
    for i, source in enumerate((sharded, single[3] / "checkpoint-3")):
        last, saved, _ = run(tmp_path / str(i), 2, shard=True, resume_from_checkpoint=str(source))
        torch.testing.assert_close(last, single[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(saved, single[1], rtol=0, atol=1e-5)
        # The checkpoint lies between two lines: what it has of the second is of all processes, and counts once.
        assert_close(log(tmp_path / str(i)), log(single[3])[1:])
    # And one process goes on from what two have written.
    last, _, _ = run(tmp_path / "one", 1, resume_from_checkpoint=str(sharded))
    torch.testing.assert_close(last, single[0], rtol=0, atol=1e-5)


# --- DeepSpeed -------------------------------------------------------------------------------------------------------

# It steps before the trainer sees the gradient, and holds no averages.
ZERO = {"nonfinite_gradients": "stop", "ema_decay": 0.0}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("plain")
    return *run(folder, 1, **ZERO), folder


@pytest.mark.parametrize(("stage", "from_its_own"), [(1, True), (2, False), (3, True)])
def test_zero_gives_the_weights_of_one_process_and_goes_on_from_any_checkpoint(tmp_path, plain, stage, from_its_own):
    whole = tmp_path / "whole"
    settings = {**ZERO, "zero_stage": stage}
    last, saved, kind = run(whole, 2, train_batch_size=2, gradient_accumulation_steps=2, **settings)
    assert kind == "DistributedType.DEEPSPEED"
    torch.testing.assert_close(last, plain[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(saved, plain[1], rtol=0, atol=1e-5)
    assert_close(log(whole), log(plain[3]))
    assert {file.suffix for file in (whole / "checkpoint-3").iterdir()} == {".safetensors", ".json"}
    source = (whole if from_its_own else plain[3]) / "checkpoint-3"
    last, _, _ = run(tmp_path / "resumed", 2, resume_from_checkpoint=str(source), **settings)
    torch.testing.assert_close(last, plain[0], rtol=0, atol=1e-5)
    last, _, _ = run(tmp_path / "one", 1, resume_from_checkpoint=str(whole / "checkpoint-3"), **ZERO)
    torch.testing.assert_close(last, plain[0], rtol=0, atol=1e-5)


def test_zero_trains_an_adapter_that_resumes(tmp_path):
    pytest.importorskip("deepspeed")
    settings = {**ZERO, "lora_rank": 2, "optimizer": "radam"}
    expected = adapter(tmp_path / "one", 1, **settings)
    whole = adapter(tmp_path / "whole", 2, zero_stage=3, **settings)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)
    source = str(tmp_path / "whole" / "checkpoint-3")
    resumed = adapter(tmp_path / "resumed", 2, zero_stage=3, resume_from_checkpoint=source, **settings)
    torch.testing.assert_close(resumed, expected, rtol=0, atol=1e-5)


def adapter(folder, processes, **settings):
    launch(folder, processes, **settings)
    return load_file(folder / "lora" / "pytorch_lora_weights.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("ema_decay", 0.9, "0.0"), ("nonfinite_gradients", "skip", "'stop'"), ("optimizer", "adamw_8bit", "'adamw'")],
)
def test_settings_that_deepspeed_does_not_allow_are_refused(name, value, allowed):
    config = UCGMTrainingConfig("run", **{**ZERO, name: value})
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=2)))
    with pytest.raises(ValueError, match=rf"`{name}` must be one of \[{allowed}.*\] with DeepSpeed, got {value!r}"):
        zero.configure(accelerator, config)
