"""The trainer: it learns, repeats itself bitwise, resumes, and leaves only whole and safe files."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from accelerate.state import GradientState
from diffusers import DiTTransformer2DModel
from safetensors import SafetensorError
from tiny_dit import dit, mixture
from torch import nn

from diffusers_ucgm import Teacher
from diffusers_ucgm.second_time import add_second_time
from diffusers_ucgm.training.adapters import adapter_for
from diffusers_ucgm.training.config import UCGMTrainingConfig
from diffusers_ucgm.training.trainer import MAX_BAD_STEPS, UCGMTrainer


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def begin(trainer):
    """What `train` does before its first step."""
    with trainer.run_folder as folder:
        trainer._begin(folder)


MULTI_STEP = {
    "consistency_ratio": 0.0,
    "enhancement_ratio": 0.5,
    "cosine_term": True,
    "cosine_weighting": True,
    "teacher_decay": 0.99,
    "optimizer": "adamw",
}


FEW_STEP = {
    "consistency_ratio": 1.0,
    "enhancement_ratio": 1.3,
    "huber_c": 5.0,
    "teacher_decay": 1.0,
    "optimizer": "radam",
    "max_grad_norm": 0.1,
}


ANY_STEP = {
    "consistency_ratio": 1.0,
    "second_time": "any",
    "time_pairs": "sorted",
    "end_share": 0.25,
    "chain_order": 2,
    "chain_network": "ema",
    "teacher_decay": 0.99,
    "huber_c": 1e-3,
    "optimizer": "adamw",
}


def settings(folder, **options):
    return UCGMTrainingConfig(
        str(folder),
        **{
            "max_train_steps": 8,
            "train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "checkpointing_steps": 3,
            "learning_rate": 1e-3,
            "lr_scheduler": "cosine",
            "lr_warmup_steps": 2,
            "ema_decay": 0.9,
            "logging_steps": 2,
            "seed": 3,
            **options,
        },
    )


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(mine, theirs):
    torch.testing.assert_close(mine, theirs, rtol=0.0, atol=0.0)


def everything(trainer):
    """All tensors that a run carries on."""
    return {
        "model": weights(trainer.transformer),
        "ema": [] if trainer.ema is None else [value.clone() for value in trainer.ema.shadow_params],
        "teacher": weights(trainer.teacher.model),
        "decay": trainer.teacher.decay,
        "rate": trainer.lr_scheduler.get_last_lr()[0],
        "step": trainer.step,
    }


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# --- what a run does -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [MULTI_STEP, FEW_STEP, ANY_STEP], ids=["multi-step", "few-step", "any-step"])
def test_every_parameter_changes_and_the_loss_is_logged(tmp_path, recipe):
    # The first step of a warm-up has a learning rate of 0, and AdaLN-Zero opens its gates one step later.
    model = dit()
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape))
    frozen = {"pos_embed.proj.weight"}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if "second_time" in recipe:
        add_second_time(model)
    before = weights(model)
    UCGMTrainer(settings(tmp_path, label_dropout=0.3, **recipe), model, mixture()).train()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name
        assert parameter.isfinite().all(), name
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert all(0.0 < line["loss"] < 20.0 for line in lines)
    assert lines[0]["learning_rate"] == pytest.approx(1e-3)
    assert lines[-1]["learning_rate"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("recipe", [MULTI_STEP, FEW_STEP, ANY_STEP], ids=["multi-step", "few-step", "any-step"])
def test_two_runs_are_bitwise_equal_whatever_the_global_seed(tmp_path, recipe):
    results = []
    for run in range(2):
        trainer = UCGMTrainer(settings(tmp_path / str(run), **recipe), dit(), mixture())
        torch.manual_seed(run)
        state = torch.get_rng_state()
        trainer.train()
        assert torch.equal(torch.get_rng_state(), state)
        results.append(everything(trainer))
    assert_equal(*results)
    first, second = (log(tmp_path / str(run)) for run in range(2))
    for line in (*first, *second):
        del line["images_per_second"]  # which is the machine's
    assert first == second


@pytest.mark.parametrize("recipe", [MULTI_STEP, FEW_STEP, ANY_STEP], ids=["multi-step", "few-step", "any-step"])
def test_the_loop_gives_the_losses_and_weights_of_the_loss_function_to_the_bit(tmp_path, recipe):
    config = settings(tmp_path, max_train_steps=3, ema_decay=0.0, lr_scheduler="constant", lr_warmup_steps=0, **recipe)
    trainer = UCGMTrainer(config, dit(dropout=0.0), mixture())
    steps = []
    for batches in trainer._batches():
        steps.append(batches)
    losses = [trainer.training_step(batches) for batches in steps]
    # The same by hand, from the loss and torch alone.
    model = dit(dropout=0.0).train()
    if config.is_any_step:
        add_second_time(model)
    adapter = adapter_for(model)
    teacher = Teacher(model, config.teacher_decay)
    settings_of = {"lr": 1e-3, "betas": (0.9, 0.95)}
    optimizer = (
        torch.optim.AdamW(model.parameters(), weight_decay=0.0, **settings_of)
        if recipe["optimizer"] == "adamw"
        else torch.optim.RAdam(model.parameters(), decoupled_weight_decay=True, **settings_of)
    )
    expected = []
    for batches in steps:
        teacher.update(model)
        optimizer.zero_grad()
        total = torch.zeros(())
        for batch in batches:
            output = config.loss()(
                partial(adapter, model),
                batch["latents"],
                batch["condition"],
                adapter.null_condition,
                teacher=partial(adapter, teacher.model),
                averaged=partial(adapter, teacher.model) if config.chain_network == "ema" else None,
                t=batch["t"],
                target_time=batch.get("target_time"),
                noise=batch["noise"],
                dropped=batch["dropped"],
            )
            (output.loss / 2).backward()
            total += output.loss.detach() / 2
        nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        expected.append(total)
    assert_equal(losses, expected)
    assert_equal(weights(trainer.transformer), weights(model))


def test_another_seed_gives_another_run(tmp_path):
    results = []
    for seed in (3, 4):
        trainer = UCGMTrainer(settings(tmp_path / str(seed), seed=seed), dit(), mixture())
        trainer.train()
        results.append(weights(trainer.transformer)["proj_out_2.weight"])
    assert not torch.equal(*results)


def test_toy_mixture_is_learnt(tmp_path):
    # Predicting 0 costs sqrt(E[z^2 + x^2]), about 1.3; the exact field of this mixture costs about 0.1.
    config = settings(
        tmp_path,
        max_train_steps=300,
        train_batch_size=32,
        gradient_accumulation_steps=1,
        learning_rate=1e-2,
        lr_scheduler="constant",
        lr_warmup_steps=0,
        label_dropout=0.0,
        checkpointing_steps=1000,
        logging_steps=100,
    )
    UCGMTrainer(config, dit(dropout=0.0), mixture(256)).train()
    losses = [line["loss"] for line in log(tmp_path)]
    assert losses[-1] < 0.4
    assert losses == sorted(losses, reverse=True)


# --- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "recipe",
    [MULTI_STEP, FEW_STEP, {"teacher_decay": 0.0, "enhancement_ratio": 0.5, "ema_decay": 0.0}],
    ids=["multi-step", "few-step", "self-teacher"],
)
def test_resume_equals_an_uninterrupted_run_bitwise(tmp_path, recipe, accumulation):
    config = settings(tmp_path, gradient_accumulation_steps=accumulation, resume_from_checkpoint="latest", **recipe)
    whole = UCGMTrainer(config, dit(), mixture())
    whole.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}
    expected = everything(whole)
    # Another start shows that all weights, those of a frozen teacher too, come from the checkpoint.
    resumed = UCGMTrainer(config, dit(seed=9), mixture())
    begin(resumed)
    assert resumed.step == 6
    # Six updates of the warm-up towards 0.99, from 0.
    assert resumed.teacher.decay == pytest.approx(0.795338 if recipe["teacher_decay"] == 0.99 else 0.0, abs=1e-6)
    resumed.train()
    assert_equal(everything(resumed), expected)


def test_resume_from_a_named_checkpoint(tmp_path):
    config = settings(tmp_path, **MULTI_STEP)
    whole = UCGMTrainer(config, dit(), mixture())
    whole.train()
    source = str(tmp_path / "checkpoint-3")
    resumed = UCGMTrainer(
        replace(config, output_dir=str(tmp_path / "other"), resume_from_checkpoint=source), dit(seed=9), mixture()
    )
    resumed.train()
    assert_equal(everything(resumed), everything(whole))


def test_a_resumed_run_writes_each_line_of_the_log_once(tmp_path):
    UCGMTrainer(settings(tmp_path, logging_steps=1), dit(), mixture()).train()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 9, "los')  # killed while writing
    shutil.rmtree(tmp_path / "transformer")
    again = settings(tmp_path, logging_steps=1, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    UCGMTrainer(again, dit(), mixture()).train()
    assert [line["step"] for line in log(tmp_path)] == list(range(1, 9))


def test_without_a_checkpoint_latest_starts_anew(tmp_path):
    trainer = UCGMTrainer(settings(tmp_path, resume_from_checkpoint="latest"), dit(), mixture())
    begin(trainer)
    assert trainer.step == 0


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    config = settings(tmp_path, max_train_steps=5, resume_from_checkpoint="latest")
    UCGMTrainer(config, dit(), mixture()).train()
    half = tmp_path / ".checkpoint-6.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half of a file")
    trainer = UCGMTrainer(config, dit(), mixture())
    begin(trainer)
    assert trainer.step == 3


def test_a_write_that_fails_leaves_the_last_checkpoint_to_resume_from(tmp_path, monkeypatch):
    config = settings(tmp_path, resume_from_checkpoint="latest", **MULTI_STEP)
    save_file = safetensors.torch.save_file

    def full_disk(tensors, path, metadata=None):
        if "checkpoint-6" in str(path) and "teacher" in str(path):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full_disk)
        # The run goes on: it is worth more than one checkpoint.
        UCGMTrainer(config, dit(), mixture()).train()
    assert [path.name for path in tmp_path.glob("*checkpoint-*")] == ["checkpoint-3"]
    resumed = UCGMTrainer(config, dit(seed=9), mixture())
    resumed.train()
    whole = UCGMTrainer(replace(config, output_dir=str(tmp_path / "whole")), dit(), mixture())
    whole.train()
    assert_equal(everything(resumed), everything(whole))


def test_a_full_disk_costs_a_line_of_the_log_and_not_the_run(tmp_path, monkeypatch):
    opened = Path.open

    class Full:
        """A file that takes half of what is written."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, line):
            self.file.write(line[: len(line) // 2])
            self.file.flush()
            raise OSError("No space left on device")

    def open_(path, mode="r", **options):
        file = opened(path, mode, **options)
        return Full(file) if mode == "a" and trainer.step == 4 else file

    monkeypatch.setattr(Path, "open", open_)
    trainer = UCGMTrainer(settings(tmp_path), dit(), mixture())
    assert trainer.train() == tmp_path / "transformer"
    assert [line["step"] for line in log(tmp_path)] == [2, 6, 8]


def test_resume_with_other_settings_lists_them(tmp_path):
    config = settings(tmp_path, max_train_steps=4)
    UCGMTrainer(config, dit(), mixture()).train()
    changed = replace(config, resume_from_checkpoint="latest", learning_rate=0.5, seed=9, logging_steps=1)
    message = r"same settings, got learning_rate: 0.001 is now 0.5, seed: 3 is now 9\. Resume with the saved settings"
    with pytest.raises(ValueError, match=message):
        UCGMTrainer(changed, dit(), mixture()).train()


def test_resume_from_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    config = settings(tmp_path, resume_from_checkpoint=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"`resume_from_checkpoint` must be .* where no state\.json is"):
        UCGMTrainer(config, dit(), mixture()).train()


# --- files -----------------------------------------------------------------------------------------------------------


def test_old_checkpoints_are_deleted_and_no_file_holds_a_pickle(tmp_path):
    config = settings(tmp_path, checkpointing_steps=2, checkpoints_total_limit=2, **MULTI_STEP)
    UCGMTrainer(config, dit(), mixture()).train()
    plots = {"loss.png", "by_time.png"}  # where matplotlib is installed
    names = {path.name for path in tmp_path.iterdir()}
    assert names - plots == {"checkpoint-4", "checkpoint-6", "log.jsonl", "run.json", "transformer"}
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in plots]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl", ".md"}
    assert {path.name for path in (tmp_path / "checkpoint-6").iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "teacher.safetensors",
        "ema.safetensors",
        "state.json",
    }


@pytest.mark.parametrize("ema_decay", [0.9, 0.0])
def test_saved_transformer_holds_the_averaged_weights_and_the_student_keeps_its_own(tmp_path, ema_decay):
    model = dit()
    trainer = UCGMTrainer(settings(tmp_path, ema_decay=ema_decay, **MULTI_STEP), model, mixture())
    folder = trainer.train()
    assert folder == tmp_path / "transformer"
    loaded = DiTTransformer2DModel.from_pretrained(folder)
    assert dict(loaded.config)["num_embeds_ada_norm"] == 2
    expected = trainer.ema.shadow_params if ema_decay else list(model.parameters())
    assert_equal([value.detach() for value in loaded.parameters()], [value.detach() for value in expected])
    if ema_decay:
        # Saving put the student's last weights back.
        assert not torch.equal(loaded.proj_out_2.weight, model.proj_out_2.weight)
        before = weights(model)
        trainer.save_model()
        assert_equal(weights(model), before)


def test_averaged_weights_are_the_recursive_mean_of_the_student(tmp_path):
    model = dit()
    trainer = UCGMTrainer(settings(tmp_path, lr_warmup_steps=0, ema_decay=0.5), model, mixture())
    history = []
    for batches in trainer._batches():
        history.append(model.proj_out_2.weight.detach().clone())
        trainer.training_step(batches)
        if trainer.step == 6:
            break
    history.append(model.proj_out_2.weight.detach().clone())
    # diffusers' warm-up: decay (1 + n) / (10 + n) of the n-th update but the first, at most 0.5.
    mean = history[1]
    for n, value in enumerate(history[2:], start=1):
        decay = min((1 + n) / (10 + n), 0.5)
        mean = decay * mean + (1 - decay) * value
    index = [name for name, _ in model.named_parameters()].index("proj_out_2.weight")
    torch.testing.assert_close(trainer.ema.shadow_params[index], mean)


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [MULTI_STEP, FEW_STEP, ANY_STEP], ids=["multi-step", "few-step", "any-step"])
@pytest.mark.parametrize(("batch_size", "calls"), [(4, 2), (2, 4), (1, 8)])
def test_accumulation_equals_one_batch_with_the_same_noise(tmp_path, recipe, batch_size, calls):
    def run(batch_size, calls):
        GradientState._reset_state()
        config = settings(
            tmp_path / f"{calls}",
            train_batch_size=batch_size,
            gradient_accumulation_steps=calls,
            max_train_steps=3,
            **{**recipe, "label_dropout": 0.5, "optimizer": "adamw", "adam_epsilon": 1e-3},
        )
        model = dit(dropout=0.0)
        trainer = UCGMTrainer(config, model, mixture())
        gradients, step = [], trainer.optimizer.step

        def record():
            gradients.append(
                {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}
            )
            step()

        trainer.optimizer.step = record
        trainer.train()
        return gradients, everything(trainer)

    torch.testing.assert_close(run(batch_size, calls), run(8, 1), rtol=1e-5, atol=1e-6)


def test_every_place_of_a_step_draws_its_own_noise_and_sample(tmp_path):
    trainer = UCGMTrainer(settings(tmp_path, train_batch_size=5), dit(), mixture())
    batches = trainer._batches()
    first, second = next(batches)
    later, _ = next(batches)
    assert first["latents"].shape == (5, 4, 2, 2)
    latents = torch.cat([each["latents"] for each in (first, second, later)]).flatten(1)
    assert len(latents.unique(dim=0)) == 15
    assert len(torch.cat([each["noise"] for each in (first, second, later)]).flatten(1).unique(dim=0)) == 15
    assert len(torch.cat([each["t"] for each in (first, second, later)]).unique()) == 15


def test_gradients_are_clipped_to_the_norm(tmp_path, monkeypatch):
    norms = {}
    for limit in (1e-3, 0.0):
        trainer = UCGMTrainer(settings(tmp_path, max_grad_norm=limit), dit(), mixture())
        step = trainer.optimizer.step

        def record(step=step, trainer=trainer, limit=limit):
            grads = [parameter.grad for parameter in trainer.transformer.parameters() if parameter.grad is not None]
            norms[limit] = torch.nn.utils.get_total_norm(grads)
            step()

        monkeypatch.setattr(trainer.optimizer, "step", record)
        trainer.training_step(next(trainer._batches()))
    assert norms[1e-3].item() == pytest.approx(1e-3, rel=1e-2)
    assert norms[0.0].item() > 0.01


def poisoned(trainer, steps):
    """Make the gradient NaN in these steps."""
    loss = trainer._loss

    def spoil(batch, micro):
        return loss(batch, micro) * (torch.nan if trainer.step in steps else 1.0)

    trainer._loss = spoil


@pytest.mark.parametrize("bad", [{0}, {3}, {2, 3, 4}])
def test_a_step_without_a_finite_gradient_changes_no_weight_and_the_run_goes_on(tmp_path, bad):
    model = dit()
    trainer = UCGMTrainer(settings(tmp_path, lr_warmup_steps=0, logging_steps=1), model, mixture())
    poisoned(trainer, bad)
    seen = []
    step = trainer.training_step

    def training_step(batches):
        before = weights(model)
        loss = step(batches)
        seen.append(all(torch.equal(before[name], value) for name, value in model.state_dict().items()))
        return loss

    trainer.training_step = training_step
    folder = trainer.train()
    assert {i for i, same in enumerate(seen) if same} == bad
    assert trainer.step == 8
    assert trainer.bad_steps == 0
    assert all(value.isfinite().all() for value in DiTTransformer2DModel.from_pretrained(folder).parameters())
    # One bad step must not hide the loss of all later ones.
    assert log(tmp_path)[-1]["loss"] == pytest.approx(1.3, abs=0.8)


def test_ten_steps_in_a_row_without_a_finite_gradient_end_the_run(tmp_path):
    trainer = UCGMTrainer(settings(tmp_path, max_train_steps=40), dit(), mixture())
    poisoned(trainer, {1, 2, 3, *range(5, 40)})
    message = r"The gradient was not finite in 10 steps in a row, up to step 14\. Lower `learning_rate`"
    with pytest.raises(RuntimeError, match=message):
        trainer.train()
    assert MAX_BAD_STEPS == 10
    assert all(value.isfinite().all() for value in trainer.transformer.parameters())


def test_latents_with_nan_end_the_run_at_their_item(tmp_path):
    data = mixture()
    data.latents[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"`latents` must be finite, got NaN .* in item 0 of the data set"):
        UCGMTrainer(settings(tmp_path, max_train_steps=20), dit(), data).train()


def test_bf16_run_keeps_float32_weights_and_a_finite_loss(tmp_path):
    model = dit()
    trainer = UCGMTrainer(settings(tmp_path, mixed_precision="bf16", **MULTI_STEP), model, mixture())
    seen = set()
    model.transformer_blocks[0].ff.register_forward_hook(lambda _m, _i, output: seen.add(output.dtype))
    trainer.train()
    assert seen == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(0.0 < line["loss"] < 10.0 for line in log(tmp_path))


def test_teacher_is_asked_for_the_enhanced_target(tmp_path):
    trainer = UCGMTrainer(settings(tmp_path, **FEW_STEP), dit(), mixture())
    calls = []
    trainer.teacher.model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    trainer.training_step(next(trainer._batches()))
    assert calls == [False, False]
    assert all(parameter.grad is None for parameter in trainer.teacher.model.parameters())


class Mix(nn.Module):
    """A network that is no transformer of diffusers, for vectors of one number."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x, t, feature):
        return self.layer(torch.cat([x, t[:, None], feature], 1))


class MixAdapter:
    null_condition = {"feature": torch.zeros(1, 2)}

    def __call__(self, network, x_t, t, *, feature):
        return network(x_t, t, feature)


def test_another_network_trains_through_its_own_adapter(tmp_path):
    data = [{"latents": torch.randn(1), "feature": torch.randn(2)} for _ in range(12)]
    model = Mix()
    before = weights(model)
    trainer = UCGMTrainer(settings(tmp_path, **MULTI_STEP), model, data, adapter=MixAdapter())
    trainer.training_step(next(trainer._batches()))
    trainer.training_step(next(trainer._batches()))
    assert not torch.equal(model.layer.weight, before["layer.weight"])


def test_an_empty_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`dataset` must not be empty, got no items\."):
        UCGMTrainer(settings(tmp_path), dit(), [])


def test_a_network_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`network` must take one of .*got Linear with \['input'\]"):
        UCGMTrainer(settings(tmp_path), nn.Linear(2, 2), mixture())


def test_a_streaming_dataset_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"must have a length, got generator\. .*`ucgm cache`"):
        UCGMTrainer(settings(tmp_path), dit(), ({} for _ in range(3)))


def test_a_dataset_smaller_than_a_batch_is_repeated(tmp_path):
    trainer = UCGMTrainer(settings(tmp_path, train_batch_size=8, gradient_accumulation_steps=1), dit(), mixture(3))
    (batch,) = next(trainer._batches())
    assert batch["latents"].shape == (8, 4, 2, 2)
