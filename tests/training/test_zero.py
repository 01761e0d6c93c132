"""DeepSpeed's ZeRO: the same weights as one process, checkpoints of every other run, and settings that it refuses."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from launched_runs import assert_close, launch, log, run
from safetensors.torch import load_file

from diffusers_ucgm.training import zero
from diffusers_ucgm.training.config import UCGMTrainingConfig


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


@pytest.mark.parametrize("stage", [0, 4])
def test_other_stages_are_refused(stage):
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage)))
    with pytest.raises(ValueError, match=rf"`zero_stage` must be one of \[1, 2, 3\] with DeepSpeed, got {stage}"):
        zero.configure(accelerator, UCGMTrainingConfig("run", **ZERO))


def test_deepspeed_is_given_what_it_would_read_from_a_file_of_its_own():
    plugin = SimpleNamespace(
        zero_stage=2, deepspeed_config={"zero_optimization": {"stage": 2}, "gradient_clipping": 9}
    )
    config = UCGMTrainingConfig(
        "run", **ZERO, train_batch_size=3, gradient_accumulation_steps=5, max_grad_norm=0.25, optimizer="radam"
    )
    zero.configure(SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)), config)
    assert plugin.deepspeed_config == {
        "zero_optimization": {"stage": 2},
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 5,
        "gradient_clipping": 0.25,
    }


@pytest.mark.parametrize("kind", DistributedType)
def test_deepspeed_alone_runs_zero(kind):
    assert zero.uses_zero(SimpleNamespace(distributed_type=kind)) == (kind == DistributedType.DEEPSPEED)
