"""A conversion refuses arguments by name before it opens the checkpoint."""

import inspect

import pytest
from refused_arguments import refuse

from diffusers_ucgm.conversion.arguments import CONVERT_ARGUMENTS
from diffusers_ucgm.conversion.convert import convert_checkpoint


def test_every_argument_has_a_check():
    # The sizes of a network are checked by the checkpoint's keys.
    assert set(inspect.signature(convert_checkpoint).parameters) == {*CONVERT_ARGUMENTS, "note", "settings"}


@pytest.mark.parametrize("name", CONVERT_ARGUMENTS)
def test_conversions_refuse_arguments_by_name(name, tmp_path):
    base = {"checkpoint": tmp_path / "a.safetensors", "output": tmp_path / "out"}
    refuse(name, lambda **given: convert_checkpoint(**{**base, **given}))
    assert not any(tmp_path.iterdir())


def test_names_of_classes_are_texts_by_their_ids(tmp_path):
    for names in ({"0": "tench"}, {-1: "tench"}, {True: "tench"}, {0: 3}, ["tench"]):
        with pytest.raises(ValueError, match="`id2label` must be a mapping of class ids to names"):
            convert_checkpoint(tmp_path / "a.safetensors", tmp_path / "out", id2label=names)
    # These are taken, and the next thing that is missed is the file.
    with pytest.raises(FileNotFoundError, match=r"must be a file, got .*a\.safetensors"):
        convert_checkpoint(tmp_path / "a.safetensors", tmp_path / "out", id2label={0: "tench"})
