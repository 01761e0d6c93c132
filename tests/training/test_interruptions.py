"""Runs that are killed, told to stop, or meet NaN or a collapse: nothing is lost and nothing is silent."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import GradientState
from interrupted_runs import lines, trainer, weights
from safetensors.torch import load_file

from diffusers_ucgm.training.checkpoints import checkpoints_in


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


FOLDER = Path(__file__).parent


# --- killed and stopped ----------------------------------------------------------------------------------------------


def test_ten_kills_at_random_moments_change_no_bit(tmp_path):
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    results = {}
    for kills in (0, 10):
        output = tmp_path / str(kills)
        words = [str(FOLDER / "killed_run.py"), str(output), str(kills), "1"]
        result = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        starts = json.loads(result.stdout)
        assert len(starts) == kills
        assert starts == sorted(set(starts))  # every attempt got further
        files = ("last.safetensors", "transformer/diffusion_pytorch_model.safetensors")
        results[kills] = [load_file(output / file) for file in files], lines(output)
    torch.testing.assert_close(results[10][0], results[0][0], rtol=0, atol=0)
    assert results[10][1] == results[0][1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint_that_goes_on_bitwise(tmp_path, number):
    stopped = trainer(tmp_path / "stopped", resume_from_checkpoint="latest")
    step = stopped.training_step

    def training_step(batches):
        if stopped.step == 5:
            signal.raise_signal(number)
        return step(batches)

    stopped.training_step = training_step
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    assert stopped.train() is None
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert stopped.interrupted_by == number
    assert checkpoints_in(tmp_path / "stopped")[-1].name == "checkpoint-6"
    resumed = trainer(tmp_path / "stopped", resume_from_checkpoint="latest")
    assert resumed.train() == tmp_path / "stopped" / "transformer"
    whole = trainer(tmp_path / "whole")
    whole.train()
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")


def test_a_longer_run_goes_on_where_the_shorter_ended(tmp_path):
    trainer(tmp_path / "short", max_train_steps=9, checkpointing_steps=8).train()
    longer = trainer(tmp_path / "short", resume_from_checkpoint="latest")
    longer.train()
    whole = trainer(tmp_path / "whole")
    whole.train()
    torch.testing.assert_close(weights(longer), weights(whole), rtol=0, atol=0)
    # The learning rates of a cosine depend on its end.
    cosine = {"lr_scheduler": "cosine", "resume_from_checkpoint": "latest"}
    trainer(tmp_path / "cosine", **cosine).train()
    longer = trainer(tmp_path / "cosine", max_train_steps=20, **cosine)
    with pytest.raises(ValueError, match="max_train_steps: 12 is now 20"):
        longer.train()


def test_a_step_of_another_size_is_refused(tmp_path):
    trainer(tmp_path).train()
    other = trainer(tmp_path, train_batch_size=8, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="must be a run with 8 samples per step, got 4"):
        other.train()
    # The same samples in two calls are the same step.
    GradientState._reset_state()
    trainer(tmp_path, train_batch_size=2, gradient_accumulation_steps=2, resume_from_checkpoint="latest").train()


# --- NaN -------------------------------------------------------------------------------------------------------------


def spoil_gradients(run, steps):
    """Make one gradient's first entry NaN in these steps."""
    first = next(iter(run.trainable.values()))

    def spoil(gradient):
        if run.step not in steps:
            return gradient
        gradient = gradient.clone()
        gradient.view(-1)[0] = torch.nan
        return gradient

    first.register_hook(spoil)


@pytest.mark.parametrize("choice", ["skip", "zero"])
def test_steps_without_a_finite_gradient_are_counted_and_survived(tmp_path, choice):
    run = trainer(tmp_path, nonfinite_gradients=choice)
    spoil_gradients(run, {3, 7})
    before = {}
    step = run.training_step

    def training_step(batches):
        before[run.step] = weights(run)
        return step(batches)

    run.training_step = training_step
    run.train()
    assert run.nonfinite_steps == 2
    assert [line["nonfinite_steps"] for line in lines(tmp_path)] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2]
    assert all(value.isfinite().all() for value in weights(run).values())
    moved = not torch.equal(before[3]["proj_out_2.weight"], before[4]["proj_out_2.weight"])
    assert moved == (choice == "zero")


def test_a_run_that_must_not_go_on_stops_at_the_first(tmp_path):
    run = trainer(tmp_path, nonfinite_gradients="stop")
    spoil_gradients(run, {3})
    with pytest.raises(RuntimeError, match=r"not finite in 1 steps in a row, up to step 3"):
        run.train()
