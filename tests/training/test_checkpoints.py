"""Checkpoints: whole or absent, safetensors and JSON only."""

import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from diffusers_ucgm import files
from diffusers_ucgm.training import checkpoints
from diffusers_ucgm.training.checkpoints import (
    drop_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_state,
    optimizer_state,
    prune_checkpoints,
    save_checkpoint,
)


TENSORS = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}, "empty": {}}


def test_round_trip_gives_the_same_tensors_and_values(tmp_path):
    values = {"teacher": {"decay": 0.1 + 0.2}, "list": [1, None, "x"]}
    folder = save_checkpoint(tmp_path / "run", 7, TENSORS, values)
    assert folder == tmp_path / "run" / "checkpoint-7"
    tensors, loaded = load_checkpoint(folder)
    sizes = {file.name: file.stat().st_size for file in folder.glob("*.safetensors")}
    assert loaded == {"step": 7, "files": sizes, **values}
    assert tensors.get("empty", {}) == {}
    assert torch.equal(tensors["model"]["weight"], TENSORS["model"]["weight"])
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}


def test_tensors_that_share_storage_and_views_are_saved(tmp_path):
    shared = torch.arange(12.0).reshape(3, 4)
    group = {"one": shared, "same": shared, "transposed": shared.T, "slice": shared[:, 1:2]}
    tensors, _ = load_checkpoint(save_checkpoint(tmp_path, 1, {"model": group}, {}))
    for name, value in group.items():
        assert torch.equal(tensors["model"][name], value), name


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.RAdam], ids=["adamw", "radam"])
def test_optimizer_goes_on_bitwise_from_files(make, tmp_path):
    def start():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, make(model.parameters(), 0.1, (0.9, 0.95), weight_decay=0.1)

    def step(model, optimizer, seed):
        optimizer.zero_grad()
        model(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimizer.step()

    model, optimizer = start()
    for seed in range(8):
        step(model, optimizer, seed)
    tensors, values = optimizer_state(optimizer)
    folder = save_checkpoint(tmp_path, 8, {"model": model.state_dict(), "optimizer": tensors}, {"optimizer": values})
    resumed_model, resumed = start()
    tensors, values = load_checkpoint(folder)
    resumed_model.load_state_dict(tensors["model"])
    load_optimizer_state(resumed, tensors["optimizer"], values["optimizer"])
    for seed in range(8, 12):
        step(model, optimizer, seed)
        step(resumed_model, resumed, seed)
    for mine, theirs in zip(model.parameters(), resumed_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_state_of_another_number_of_parameters_is_refused():
    optimizer = torch.optim.AdamW(torch.nn.Linear(3, 2).parameters())
    tensors, values = optimizer_state(torch.optim.AdamW(torch.nn.Linear(3, 2, bias=False).parameters()))
    with pytest.raises(ValueError, match="parameter group"):
        load_optimizer_state(optimizer, tensors, values)


def test_latest_is_the_highest_number_not_the_last_word(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "none") is None
    for step in (9, 10, 100, 20):
        save_checkpoint(tmp_path, step, TENSORS, {})
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_pruning_keeps_the_newest(tmp_path):
    for step in (9, 10, 100, 20):
        save_checkpoint(tmp_path, step, TENSORS, {})
    (tmp_path / "checkpoint-notes").mkdir()
    (tmp_path / "log.jsonl").write_text("")
    prune_checkpoints(tmp_path, 2)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint-20", "checkpoint-100", "checkpoint-notes", "log.jsonl"}
    prune_checkpoints(tmp_path, 5)
    assert {path.name for path in tmp_path.iterdir()} == names


def test_checkpoints_after_a_step_are_dropped(tmp_path):
    for step in (9, 10, 100, 20):
        save_checkpoint(tmp_path, step, TENSORS, {})
    drop_checkpoints(tmp_path, after=10)
    assert [path.name for path in checkpoints.checkpoints_in(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


@pytest.mark.parametrize("failing", ["save_file", "json"])
def test_an_interrupted_write_leaves_no_checkpoint_and_the_older_one_whole(tmp_path, monkeypatch, failing):
    save_checkpoint(tmp_path, 3, TENSORS, {"value": 1})

    def fail(*_args, **_kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((safetensors.torch, "save_file") if failing == "save_file" else (json, "dumps")), fail)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, 6, TENSORS, {"value": 2})
    assert not (tmp_path / "checkpoint-6").exists()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    # What a killed process of the same number left lying about does not stop the next write, nor get into it.
    half = tmp_path / f".checkpoint-6.{os.getpid()}.tmp"
    half.mkdir()
    (half / "half.safetensors").write_bytes(b"half")
    tensors, values = load_checkpoint(save_checkpoint(tmp_path, 6, TENSORS, {"value": 2}))
    assert values["value"] == 2
    assert "half" not in tensors
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-3", "checkpoint-6"}


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    save_checkpoint(tmp_path, 3, {"old": {"x": torch.ones(1)}}, {"value": 1})
    tensors, values = load_checkpoint(save_checkpoint(tmp_path, 3, {"new": {"x": torch.zeros(1)}}, {"value": 2}))
    assert set(tensors) == {"new"}
    assert values["value"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_a_folder_without_state_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`folder` must be a checkpoint with a state\.json, got '"):
        load_checkpoint(tmp_path)


# --- damage ----------------------------------------------------------------------------------------------------------


def cut(file):
    file.write_bytes(file.read_bytes()[:-3])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder / "model.safetensors"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(bytes(96)),
        lambda folder: cut(folder / "state.json"),
    ],
    ids=["cut", "missing", "zeros", "cut state"],
)
def test_a_torn_checkpoint_is_passed_over_and_named(tmp_path, damage):
    save_checkpoint(tmp_path, 3, TENSORS, {})
    torn = save_checkpoint(tmp_path, 6, TENSORS, {})
    damage(torn)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    with pytest.raises(ValueError, match=r"`folder` must be a whole checkpoint, got .*checkpoint-6.*earlier one"):
        load_checkpoint(torn)
    # Were it counted, the last good one would be deleted.
    prune_checkpoints(tmp_path, 1)
    assert checkpoints.checkpoints_in(tmp_path) == [tmp_path / "checkpoint-3"]


def test_a_kill_between_two_renames_loses_nothing(tmp_path):
    save_checkpoint(tmp_path, 3, TENSORS, {"value": 1})
    code = (
        "import os, sys; from diffusers_ucgm.training.checkpoints import save_checkpoint; rename = os.rename\n"
        "os.rename = lambda old, new: os._exit(9) if str(old).endswith('.tmp') else rename(old, new)\n"
        "save_checkpoint(sys.argv[1], 3, {}, {'value': 2})"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == 9
    assert latest_checkpoint(tmp_path) is None
    files.remove_leftovers(tmp_path)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    assert load_checkpoint(tmp_path / "checkpoint-3")[1]["value"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_the_latest_checkpoint_before_a_step(tmp_path):
    for step in (3, 6, 9):
        save_checkpoint(tmp_path, step, TENSORS, {})
    assert latest_checkpoint(tmp_path, before=8) == tmp_path / "checkpoint-6"
    assert latest_checkpoint(tmp_path, before=6) == tmp_path / "checkpoint-6"
    assert latest_checkpoint(tmp_path, before=2) is None


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"other": torch.zeros(2)}, r"2 names on one side only: \['other', 'weight'\]"),
        ({"weight": torch.zeros(3)}, r"got \(3,\) for 'weight' of shape \(2,\)"),
    ],
)
def test_tensors_of_another_model_are_refused(saved, message):
    with pytest.raises(ValueError, match=message):
        checkpoints.copy_tensors({"weight": torch.zeros(2)}, saved)
