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
from distributed_run import data, network
from safetensors.torch import load_file

from diffusers_ucgm.training.checkpoints import checkpoints_in
from diffusers_ucgm.training.collapse import MAX_COLLAPSES
from diffusers_ucgm.training.config import UCGMTrainingConfig
from diffusers_ucgm.training.trainer import UCGMTrainer


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


FOLDER = Path(__file__).parent


def trainer(folder, **settings):
    config = UCGMTrainingConfig(
        str(folder),
        **{
            "max_train_steps": 12,
            "train_batch_size": 4,
            "checkpointing_steps": 4,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            "teacher_decay": 0.99,
            "ema_decay": 0.9,
            **settings,
        },
    )
    return UCGMTrainer(config, network(), data())


def weights(run):
    return {name: value.clone() for name, value in run.transformer.state_dict().items()}


def lines(folder):
    """The log but for its speed, which is that of the machine."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in found:
        del line["images_per_second"]
    return found


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


# --- collapse --------------------------------------------------------------------------------------------------------


def collapse(run, *steps):
    """Multiply the loss that is seen from these steps on, each time the run reaches them."""
    step = run.training_step
    left = list(steps)

    def training_step(batches):
        if left and run.step == left[0]:
            left.pop(0)
            run.broken = True
        loss = step(batches)
        return loss * 1000.0 if getattr(run, "broken", False) else loss

    run.training_step = training_step
    run.broken = False
    load = run.load_checkpoint

    def load_checkpoint(folder):
        run.broken = False
        load(folder)

    run.load_checkpoint = load_checkpoint


def test_a_collapse_rolls_back_to_the_checkpoint_before_it_at_half_the_rate(tmp_path):
    run = trainer(tmp_path, on_collapse="roll_back", checkpoints_total_limit=9)
    collapse(run, 9)
    run.train()
    assert run.step == 12
    assert run.guard.collapses == 1
    # Lines 10 and 11 were high; the checkpoint of step 8 is from before.
    steps = [line["step"] for line in lines(tmp_path)]
    assert steps == list(range(1, 13))
    rates = {line["step"]: line["learning_rate"] for line in lines(tmp_path)}
    assert rates[8] == pytest.approx(1e-3)
    assert rates[9] == pytest.approx(5e-4)
    assert rates[12] == pytest.approx(5e-4)


def test_checkpoints_of_the_collapse_go_with_it(tmp_path):
    run = trainer(tmp_path, on_collapse="roll_back", checkpoints_total_limit=2, checkpointing_steps=3, logging_steps=2)
    collapse(run, 8)
    # Lines 8 and 10 are from before and of the collapse, 12 is the second high one; checkpoint 9 lies between.
    left = []
    load = run.load_checkpoint

    def load_checkpoint(folder):
        load(folder)
        left.append(folder.name)

    run.load_checkpoint = load_checkpoint
    drawn = run._batches
    run._batches = lambda: left.append([each.name for each in checkpoints_in(tmp_path)]) or drawn()
    run.train()
    assert left == [[], "checkpoint-6", ["checkpoint-6"]]


def test_a_collapse_backs_off_or_is_only_told(tmp_path):
    for choice, rate in (("back_off", 5e-4), ("warn", 1e-3), ("ignore", 1e-3)):
        run = trainer(tmp_path / choice, on_collapse=choice)
        collapse(run, 9)
        run.train()
        assert run.guard.collapses == (choice != "ignore")
        assert run.lr_scheduler.get_last_lr() == [pytest.approx(rate)]
        assert lines(tmp_path / choice)[-1]["loss"] > 10.0


def test_a_run_that_collapses_again_and_again_ends(tmp_path):
    run = trainer(tmp_path, on_collapse="roll_back", checkpoints_total_limit=9, max_train_steps=30)
    collapse(run, *[9] * (MAX_COLLAPSES + 1))
    with pytest.raises(RuntimeError, match=r"collapsed 6 times, .*Lower `learning_rate`"):
        run.train()


def test_a_rolled_back_run_resumes_bitwise(tmp_path):
    run = trainer(tmp_path, on_collapse="roll_back", checkpoints_total_limit=9, max_train_steps=20)
    collapse(run, 9)
    run.train()
    resumed = trainer(
        tmp_path,
        on_collapse="roll_back",
        checkpoints_total_limit=9,
        max_train_steps=20,
        resume_from_checkpoint=str(tmp_path / "checkpoint-16"),
    )
    resumed.train()
    assert resumed.guard.collapses == 1
    torch.testing.assert_close(weights(resumed), weights(run), rtol=0, atol=0)
