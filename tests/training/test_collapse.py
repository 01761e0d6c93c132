"""A run whose loss collapses goes back to a checkpoint before the collapse, or ends."""

import pytest
import torch
from interrupted_runs import lines, trainer, weights

from diffusers_ucgm.training.checkpoints import checkpoints_in
from diffusers_ucgm.training.collapse import MAX_COLLAPSES


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


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
