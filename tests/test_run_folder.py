"""A folder holds one run: another is refused, or overwritten on demand, and two processes never share it."""

import json
from pathlib import Path

import pytest
from folder_entries import entries

from diffusers_ucgm.cli import main
from diffusers_ucgm.run_folder import RunFolder


def begin(folder, identity, **options):
    with RunFolder(folder, "cache") as run:
        return run.begin(identity, **options), run.run["id"]


def test_a_run_goes_on_in_its_own_folder_only(tmp_path):
    folder = tmp_path / "new"
    begun, name = begin(folder, {"seed": 0, "size": (1, 2)})
    assert not begun
    found = json.loads((folder / "run.json").read_text())
    assert {**found, "created": "", "version": ""} == {
        "kind": "cache",
        "id": name,
        "version": "",
        "created": "",
        "identity": {"seed": 0, "size": [1, 2]},
    }
    assert begin(folder, {"seed": 0, "size": (1, 2)}) == (True, name)
    message = (
        r"`output` must be a new folder or of the same run, got '.*new', where \['seed'\] differ "
        r"\(seed: 0 is now 1\)\. Choose another folder, or replace .* \(`--overwrite-output-dir`\)\."
    )
    with pytest.raises(ValueError, match=message):
        begin(folder, {"seed": 1, "size": [1, 2]})
    with RunFolder(folder, "evaluate") as run, pytest.raises(ValueError, match="holds a run of `ucgm cache`"):
        run.begin({"seed": 0, "size": [1, 2]})
    assert entries(folder) == ["run.json"]


def test_overwriting_removes_what_the_run_wrote_and_nothing_else(tmp_path):
    begin(tmp_path, {"seed": 0})
    own = ["cache.json", "shard-00000.safetensors", "shard-00001.safetensors"]
    foreign = ["notes.txt", "samples", "shards.txt", "checkpoint-notes"]
    for name in own + foreign:
        (tmp_path / name).touch()
    assert not begin(tmp_path, {"seed": 1}, overwrite=True)[0]
    assert entries(tmp_path) == sorted([*foreign, "run.json"])
    # A run of another command goes as a whole too.
    (tmp_path / "shard-00000.safetensors").touch()
    with RunFolder(tmp_path, "evaluate") as run:
        run.begin({}, overwrite=True)
        (tmp_path / "samples").unlink()
        (tmp_path / "samples").mkdir()
        for name in ("samples-00000.safetensors", "mine.png"):
            (tmp_path / "samples" / name).touch()
        run.begin({}, overwrite=True)
    left = ["checkpoint-notes", "notes.txt", "run.json", "samples", "samples/mine.png", "shards.txt"]
    assert entries(tmp_path) == left


def test_only_own_checkpoints_are_overwritten(tmp_path):
    with RunFolder(tmp_path, "train", argument="output_dir") as run:
        run.start({})
        for name, state in (("1", {"run": run.run["id"]}), ("2", {"run": None}), ("3", {"run": "other"}), ("4", None)):
            (tmp_path / f"checkpoint-{name}").mkdir()
            if state is not None:
                (tmp_path / f"checkpoint-{name}" / "state.json").write_text(json.dumps(state))
        run.clear()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_without_a_run_is_refused_where_it_holds_what_would_be_overwritten(tmp_path, overwrite):
    (tmp_path / "notes.txt").touch()
    with RunFolder(tmp_path, "train", argument="output_dir") as run:
        run.check_free()
        (tmp_path / "transformer").mkdir()
        (tmp_path / "model_index.json").touch()
        message = r"`output_dir` must be .*which has no run\.json, but \['transformer'\], which `ucgm train` would"
        with pytest.raises(ValueError, match=message):
            run.begin({}, overwrite=overwrite)
    assert entries(tmp_path) == ["model_index.json", "notes.txt", "transformer"]


def test_a_folder_of_version_0_1_0_is_a_run(tmp_path):
    (tmp_path / "plan.json").write_text('{"seed": 0}')
    (tmp_path / "shard-00000.safetensors").touch()
    with pytest.raises(ValueError, match=r"where \['seed'\] differ"):
        begin(tmp_path, {"seed": 1}, earlier="plan.json")
    assert begin(tmp_path, {"seed": 0}, earlier="plan.json")[0]
    assert (tmp_path / "run.json").is_file()
    (tmp_path / "run.json").unlink()
    assert not begin(tmp_path, {"seed": 1}, earlier="plan.json", overwrite=True)[0]
    assert entries(tmp_path) == ["run.json"]


@pytest.mark.parametrize("content", ["", '{"kind": ', "[]", '{"kind": "cache"}', '{"kind": 3, "identity": {}}'])
def test_a_damaged_run_file_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json' must .*Delete it to go on with what the folder holds"):
        begin(tmp_path, {})


def test_a_folder_that_cannot_be_used_is_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", *([Path("/proc/x")] if Path("/proc/self").exists() else [])):
        with pytest.raises(OSError, match="`output` must be a folder that can be written"), RunFolder(path, "cache"):
            pass


def test_overwriting_does_not_remove_what_the_run_is_made_from(tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with RunFolder(folder, "train") as run:
        run.start({})
    (folder / "pipeline" / "unet").mkdir(parents=True)
    (folder / "notes").mkdir()
    (tmp_path / "link").symlink_to(folder)
    run = RunFolder(folder, "train", argument="output_dir")
    for kept in (elsewhere, folder / "notes", tmp_path, "owner/name", "~nobody-of-this-name", "x" * 5000):
        run.check_inputs_stay([kept])
    for lost in (folder / "pipeline", folder / "pipeline" / "unet", tmp_path / "link" / "pipeline", folder):
        message = r"`output_dir` must not hold what the run is made from where its files are overwritten, got '.*run'"
        with pytest.raises(ValueError, match=message):
            run.check_inputs_stay([elsewhere, lost])
    # What an evaluation wrote into a model's folder is no part of the model.
    with RunFolder(elsewhere, "evaluate") as run:
        run.start({})
        (elsewhere / "results.json").touch()
        run.check_inputs_stay([elsewhere])


def test_every_command_refuses_to_overwrite_its_inputs(tmp_path, capsys):
    folder = tmp_path / "cache"
    with RunFolder(folder, "cache") as run:
        run.start({})
    (folder / "cache.json").write_text("{}")
    for words in (
        ["cache", "--pipeline", "fashion-mnist", "--source", str(folder), "--size", "32"],
        ["evaluate", "--model", str(folder), "--reference", "x"],
        ["compare", "--model", "fashion-mnist", "--scheduler", f"own={folder}/cache.json"],
        ["tune-sampler", "--model", "fashion-mnist", "--steps", "2", "--reference", str(folder)],
        ["convert", "--checkpoint", str(folder)],
    ):
        assert main([*words, "--output", str(folder), "--overwrite-output-dir"]) == 2
        assert "`output` must not hold what the run is made from" in capsys.readouterr().err, words
    assert entries(folder) == ["cache.json", "run.json"]


def test_a_folder_that_is_held_stays_locked_from_its_first_entry_to_the_end(tmp_path):
    folder = tmp_path / "out"
    with RunFolder(folder, "compare").hold() as run:
        assert not folder.exists()
        for _ in range(2):
            with RunFolder.of(run, "compare") as entered:
                assert entered is run
            with pytest.raises(RuntimeError, match="`output` must not be in use"), RunFolder.of(folder, "compare"):
                pass
    with RunFolder.of(folder, "compare"):
        pass
    assert not list(folder.iterdir())


def test_a_folder_that_is_held_is_let_go_by_an_error(tmp_path):
    run = RunFolder(tmp_path, "compare")
    with pytest.raises(KeyboardInterrupt), run.hold(), run:
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with run, RunFolder.of(run, "compare"):
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
