"""The options of every command that reads images."""

import pytest
from command_calls import arguments_of, default_of, parsed

from diffusers_ucgm.data.arguments import BACKGROUND
from diffusers_ucgm.data.images import ImageItems, load_image_dataset


COMMANDS = {
    "cache": ["cache", "--pipeline", "p", "--source", "s", "--output", "o", "--size", "32"],
    "evaluate": ["evaluate", "--model", "m", "--reference", "r"],
    "compare": ["compare", "--model", "m"],
    "tune-sampler": ["tune-sampler", "--model", "m", "--steps", "4"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_images_are_read_as_the_library_reads_them_unless_told_otherwise(name):
    args = parsed(*COMMANDS[name])
    assert args.background == default_of(ImageItems, "background")
    BACKGROUND.check("background", args.background)
    assert args.allow_remote_files is default_of(load_image_dataset, "allow_remote_files") is False
    args = parsed(*COMMANDS[name], "--background", "#102030", "--allow-remote-files")
    assert (args.background, args.allow_remote_files) == ("#102030", True)


@pytest.mark.parametrize("words", [[], ["--allow-remote-files"]])
def test_remote_files_are_allowed_to_the_source_alone_that_is_read(words, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    command = ["cache", "--pipeline", "fashion-mnist", "--source", tmp_path / "photos", "--size", "32"]
    found = arguments_of(
        monkeypatch, "training.commands:load_image_dataset", *command, "--output", tmp_path / "out", *words
    )
    assert found["allow_remote_files"] is bool(words)
