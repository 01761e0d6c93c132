"""Whose checkpoint it is: a used folder is refused, resumed by its own run only, or overwritten on demand."""

import json
import shutil

import pytest
import torch
from diffusers.utils import logging
from distributed_run import data, network
from full_disk import assert_named_and_gone, full_disk
from safetensors.torch import load_file, save_file

from diffusers_ucgm.cli import main
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.training.config import UCGMTrainingConfig
from diffusers_ucgm.training.runs import data_identity
from diffusers_ucgm.training.trainer import UCGMTrainer


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def trainer(folder, dataset=None, *, base=None, **settings):
    defaults = {
        "max_train_steps": 6,
        "train_batch_size": 4,
        "checkpointing_steps": 2,
        "logging_steps": 1,
        "teacher_decay": 0.99,
        "ema_decay": 0.9,
    }
    config = UCGMTrainingConfig(str(folder), **{**defaults, **settings})
    return UCGMTrainer(config, base or network(), dataset or data())


def entries(folder):
    plots = {"loss.png", "by_time.png"}  # where matplotlib is installed
    return {path.name for path in folder.iterdir()} - plots


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def other_data():
    generator = torch.Generator().manual_seed(1)
    return LatentDataset(torch.randn(40, 4, 2, 2, generator=generator), torch.arange(40) % 2)


def stopped_at(run, step):
    """Let a run end as if it were killed, in the middle of a step."""
    training_step = run.training_step

    def until(batches):
        if run.step == step:
            raise KeyboardInterrupt
        return training_step(batches)

    run.training_step = until
    with pytest.raises(KeyboardInterrupt):
        run.train()


def test_a_short_run_does_not_overwrite_a_finished_one(tmp_path):
    trainer(tmp_path).train()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    message = (
        r"`output_dir` must be a new folder or of the same run, got '.*', which holds a run with checkpoint-2, "
        r"checkpoint-4, transformer\. Resume it by `resume_from_checkpoint='latest'` \(`--resume-from-checkpoint "
        r"latest`\), choose another folder, or replace .* `overwrite_output_dir=True` \(`--overwrite-output-dir`\)\."
    )
    elsewhere = tmp_path.parent / "elsewhere" / "checkpoint-4"
    shutil.copytree(tmp_path / "checkpoint-4", elsewhere)
    for changes in ({"max_train_steps": 2}, {}, {"resume_from_checkpoint": str(elsewhere)}):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, **changes).train()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_finished_run_without_a_checkpoint_is_not_lost_either(tmp_path):
    short = {"max_train_steps": 2, "resume_from_checkpoint": "latest"}
    trainer(tmp_path, **short).train()
    assert entries(tmp_path) == {"log.jsonl", "run.json", "transformer"}
    for changes in ({"learning_rate": 0.1}, {"max_train_steps": 1}):
        with pytest.raises(ValueError, match=rf"other settings \({next(iter(changes))}: .* is now"):
            trainer(tmp_path, **{**short, **changes}).train()
    # The same run ends in the same weights.
    trainer(tmp_path, **short, logging_steps=2).train()
    assert steps(tmp_path) == [2]


def test_overwriting_takes_the_whole_run_and_nothing_of_others(tmp_path):
    trainer(tmp_path).train()
    (tmp_path / "notes.txt").touch()
    first = json.loads((tmp_path / "run.json").read_text())["id"]
    trainer(tmp_path, max_train_steps=3, overwrite_output_dir=True, seed=1).train()
    assert entries(tmp_path) == {"checkpoint-2", "log.jsonl", "notes.txt", "run.json", "transformer"}
    assert steps(tmp_path) == [1, 2, 3]
    run = json.loads((tmp_path / "run.json").read_text())["id"]
    assert run != first
    assert json.loads((tmp_path / "checkpoint-2" / "state.json").read_text())["run"] == run
    for source in ("latest", str(tmp_path / "checkpoint-2")):
        with pytest.raises(ValueError, match="`overwrite_output_dir` must be False where `resume_from_checkpoint`"):
            trainer(tmp_path, overwrite_output_dir=True, resume_from_checkpoint=source).train()


def test_a_run_looks_at_its_own_checkpoints_only(tmp_path):
    trainer(tmp_path / "other", max_train_steps=9, checkpointing_steps=8).train()
    stopped_at(trainer(tmp_path / "run"), 5)
    shutil.copytree(tmp_path / "other" / "checkpoint-8", tmp_path / "run" / "checkpoint-8")
    longer = {"checkpoints_total_limit": 1, "max_train_steps": 8}
    resumed = trainer(tmp_path / "run", resume_from_checkpoint="latest", **longer)
    resumed.train()
    assert entries(tmp_path / "run") == {"checkpoint-6", "checkpoint-8", "log.jsonl", "run.json", "transformer"}
    whole = trainer(tmp_path / "whole", **longer)
    whole.train()
    torch.testing.assert_close(resumed.backend.whole_weights(), whole.backend.whole_weights(), rtol=0, atol=0)


def test_other_data_are_refused_by_name(tmp_path):
    stopped_at(trainer(tmp_path), 5)
    message = r"`output_dir` must be .* whose run has other data \(data: items: .* is now .*\)\. Choose another folder"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, other_data(), resume_from_checkpoint="latest").train()
    with pytest.raises(ValueError, match=r"other data \(data: .*samples: 40 is now 20\)"):
        trainer(tmp_path, [data()[i] for i in range(20)], resume_from_checkpoint="latest").train()
    # In a folder of its own a run may go on with other data, as it always could.
    source = str(tmp_path / "checkpoint-4")
    trainer(tmp_path / "new", other_data(), resume_from_checkpoint=source).train()
    assert steps(tmp_path / "new") == [5, 6]


def test_another_base_of_a_lora_is_refused(tmp_path):
    lora = {"lora_rank": 2, "teacher_decay": 1.0}
    stopped_at(trainer(tmp_path, **lora), 5)
    other = network()
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    with pytest.raises(ValueError, match=r"whose run has other network \(network: weights: .* is now"):
        trainer(tmp_path, base=other, resume_from_checkpoint="latest", **lora).train()
    trainer(tmp_path, resume_from_checkpoint="latest", **lora).train()
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("resume", [None, "latest"])
def test_a_run_stopped_before_its_first_checkpoint_begins_its_log_anew(tmp_path, resume):
    stopped_at(trainer(tmp_path, checkpointing_steps=4), 3)
    assert steps(tmp_path) == [1, 2, 3]
    trainer(tmp_path, checkpointing_steps=4, logging_steps=2, resume_from_checkpoint=resume, seed=5).train()
    assert steps(tmp_path) == [2, 4, 6]


def test_a_folder_of_version_0_1_0_is_resumed_and_a_foreign_one_is_not_touched(tmp_path):
    stopped_at(trainer(tmp_path / "run"), 5)
    (tmp_path / "run" / "run.json").unlink()
    for state in (tmp_path / "run").glob("checkpoint-*/state.json"):
        state.write_text(json.dumps({**json.loads(state.read_text()), "run": None}))
    with pytest.raises(ValueError, match="which holds a run with checkpoint-2"):
        trainer(tmp_path / "run").train()
    with pytest.raises(ValueError, match="seed: 0 is now 1"):
        trainer(tmp_path / "run", seed=1, resume_from_checkpoint="latest").train()
    longer = {"checkpoints_total_limit": 1, "max_train_steps": 8}
    trainer(tmp_path / "run", resume_from_checkpoint="latest", **longer).train()
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert entries(tmp_path / "run") == {"checkpoint-6", "log.jsonl", "run.json", "transformer"}
    # A pretrained pipeline's own folder, for example.
    (tmp_path / "pipeline" / "transformer").mkdir(parents=True)
    for changes in ({}, {"overwrite_output_dir": True}, {"resume_from_checkpoint": "latest"}):
        with pytest.raises(
            ValueError, match=r"has no run\.json, but \['transformer'\], which `ucgm train` would over"
        ):
            trainer(tmp_path / "pipeline", **changes).train()
    assert entries(tmp_path / "pipeline") == {"transformer"}


def test_going_back_to_an_earlier_checkpoint_keeps_the_later_ones_until_there_is_a_new_one(tmp_path):
    trainer(tmp_path, checkpoints_total_limit=9, max_train_steps=9).train()
    assert {"checkpoint-2", "checkpoint-8"} < entries(tmp_path)
    source = str(tmp_path / "checkpoint-2")
    run = trainer(tmp_path, checkpoints_total_limit=2, max_train_steps=9, resume_from_checkpoint=source)
    save = run.save_checkpoint
    seen = []
    run.save_checkpoint = lambda: seen.append(entries(tmp_path)) or save()
    stopped_at(run, 5)
    assert {"checkpoint-2", "checkpoint-8"} < seen[0]
    assert entries(tmp_path) == {"checkpoint-2", "checkpoint-4", "log.jsonl", "run.json", "transformer"}
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


def test_items_that_are_random_do_not_tell_data_sets_apart():
    class Random(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"latents": torch.randn(2), "class_labels": index}

    assert data_identity(Random()) == {"samples": 3, "items": "random"}
    items = [{"latents": torch.ones(2), "caption": "a"}]
    assert data_identity(items) == data_identity([{"caption": "a", "latents": torch.ones(2)}])
    assert data_identity(items) != data_identity([{"latents": torch.ones(2), "caption": "b"}])


@pytest.mark.parametrize("name", ["transformer", r"run\.json"])
def test_a_full_disk_at_the_last_save_is_named_and_the_run_goes_on(tmp_path, name):
    folder = assert_named_and_gone(tmp_path, name, lambda: trainer(tmp_path, resume_from_checkpoint="latest").train())
    assert (folder / "diffusion_pytorch_model.safetensors").is_file()
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_two_runs_do_not_share_a_folder(tmp_path):
    first, second = trainer(tmp_path), trainer(tmp_path, resume_from_checkpoint="latest")
    training_step = first.training_step

    def meanwhile(batches):
        if first.step == 3:
            with pytest.raises(
                RuntimeError, match=r"`output_dir` must not be in use, got .*, where process \d+ has been"
            ):
                second.train()
        return training_step(batches)

    first.training_step = meanwhile
    first.train()
    assert entries(tmp_path) == {"checkpoint-2", "checkpoint-4", "log.jsonl", "run.json", "transformer"}


def test_a_command_keeps_its_folder_until_its_last_file_is_written(tmp_path, monkeypatch, capsys):
    save_file({"latents": torch.randn(4, 4, 8, 8), "class_labels": torch.arange(4)}, tmp_path / "data.safetensors")
    save_pipeline, refusals = UCGMTrainer.save_pipeline, []

    def meanwhile(run, folder=None):
        with pytest.raises(RuntimeError, match="`output_dir` must not be in use"):
            trainer(tmp_path / "run", resume_from_checkpoint="latest").train()
        refusals.append(run.step)
        return save_pipeline(run, folder)

    monkeypatch.setattr(UCGMTrainer, "save_pipeline", meanwhile)
    words = ["train", "--pipeline", "fashion-mnist", "--data", str(tmp_path / "data.safetensors"), "--output-dir"]
    assert main([*words, str(tmp_path / "run"), "--max-train-steps", "1", "--train-batch-size", "2"]) == 0
    assert refusals == [1]
    assert not list((tmp_path / "run").glob(".run*"))


@pytest.mark.parametrize("text", ["my notes\n", '{"event": "mine"}\n', "[1]\n"])
def test_a_log_that_no_run_wrote_is_not_deleted(tmp_path, text):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(
        ValueError, match=r"`output_dir` must be .*, which holds a log\.jsonl that no run of `ucgm train`"
    ):
        trainer(tmp_path).train()
    assert (tmp_path / "log.jsonl").read_text() == text


def test_new_weights_follow_from_the_seed(tmp_path):
    network().save_config(tmp_path)
    latents, labels = torch.randn(8, 4, 2, 2), torch.arange(8) % 2
    save_file({"latents": latents, "class_labels": labels}, tmp_path / "data.safetensors")
    words = ["train", "--model", str(tmp_path / "config.json"), "--data", str(tmp_path / "data.safetensors")]
    words += ["--max-train-steps", "1", "--train-batch-size", "4", "--output-dir"]
    for name in ("once", "again"):
        assert main([*words, str(tmp_path / name)]) == 0
    other = [*words, str(tmp_path / "other"), "--seed", "1"]
    state = torch.get_rng_state()
    assert main(other) == 0
    assert torch.equal(torch.get_rng_state(), state)
    once, again, other = (
        load_file(tmp_path / name / "transformer" / "diffusion_pytorch_model.safetensors")
        for name in ("once", "again", "other")
    )
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not all(torch.equal(once[name], other[name]) for name in once)


def test_an_older_run_stays_where_the_new_one_cannot_begin(tmp_path):
    trainer(tmp_path / "other", learning_rate=0.1).train()
    run = tmp_path / "run"
    trainer(run).train()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    checkpoint = str(tmp_path / "other" / "checkpoint-4")
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a run with the same settings"):
        trainer(run, overwrite_output_dir=True, resume_from_checkpoint=checkpoint).train()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a run with the same settings"):
        trainer(tmp_path / "new", resume_from_checkpoint=checkpoint).train()
    assert entries(tmp_path / "new") == set()
    # With one that fits, the run goes on from there and has its own log.
    trainer(run, overwrite_output_dir=True, resume_from_checkpoint=checkpoint, learning_rate=0.1).train()
    assert steps(run) == [5, 6]


def test_overwriting_leaves_what_the_run_is_made_from(tmp_path):
    run = tmp_path / "run"
    base = trainer(run).train()
    before = entries(run)
    with pytest.raises(ValueError, match=r"`output_dir` must not hold what the run is made from .*transformer'"):
        trainer(run, base=type(network()).from_pretrained(base), overwrite_output_dir=True).train()
    assert entries(run) == before


def test_a_checkpoint_may_be_named_as_it_is_called_in_the_folder(tmp_path):
    trainer(tmp_path).train()
    resumed = trainer(tmp_path, resume_from_checkpoint="checkpoint-2")
    resumed.train()
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    message = r"got 'checkpoint-9', where no state\.json is\. `output_dir` has checkpoint-2, checkpoint-4\."
    with pytest.raises(FileNotFoundError, match=message):
        trainer(tmp_path, resume_from_checkpoint="checkpoint-9")


def test_a_plot_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    pytest.importorskip("matplotlib")
    logging.enable_propagation()
    with full_disk(r"loss\.png"):
        assert trainer(tmp_path).train() == tmp_path / "transformer"
    assert "No plot was written: " in caplog.text
    logging.disable_propagation()
