"""The options of `ucgm convert`."""

import json

import pytest
import torch
from command_calls import arguments_of, parsed
from networks import SETTINGS

from diffusers_ucgm import PRESETS
from diffusers_ucgm.conversion.options import NETWORK_OPTIONS


CONVERT = "conversion.commands:convert_checkpoint"


@pytest.fixture
def files(tmp_path):
    for name in ("network.pt", "vae.pt", "statistics.pt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "names.json").write_text(json.dumps(["tench", "goldfish"]))
    return tmp_path


def test_each_option_reaches_the_conversion(files, monkeypatch):
    words = ["--checkpoint", files / "network.pt", "--output", files / "out", "--preset", "edm2-s-512"]
    words += ["--vae", files / "vae.pt", "--latent-statistics", files / "statistics.pt", "--norm-num-groups", "16"]
    words += ["--weights", "model", "--torch-dtype", "bf16", "--id2label", files / "names.json"]
    sizes = {name: i for i, name in enumerate(NETWORK_OPTIONS, start=2)}
    words += [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    found = arguments_of(monkeypatch, CONVERT, "convert", *words, "--overwrite-output-dir")
    assert found.pop("recipe").network == PRESETS["edm2-s-512"].network
    assert found.pop("note") is print
    assert {name: str(value) if "pt" in str(value) else value for name, value in found.items()} == {
        "checkpoint": str(files / "network.pt"),
        "output": str(files / "out"),
        "vae": str(files / "vae.pt"),
        "latent_statistics": str(files / "statistics.pt"),
        "norm_num_groups": 16,
        "weights": "model",
        "dtype": torch.bfloat16,
        "id2label": {0: "tench", 1: "goldfish"},
        "overwrite_output_dir": True,
        **sizes,
    }


def test_sizes_that_nobody_gives_are_left_to_the_keys(files, monkeypatch):
    words = ["--checkpoint", files / "network.pt", "--output", files / "out"]
    found = arguments_of(monkeypatch, CONVERT, "convert", *words)
    assert [found[name] for name in (*NETWORK_OPTIONS, "norm_num_groups", "weights", "dtype", "vae")] == [None] * 9


def test_the_sizes_to_give_are_those_that_keys_do_not_tell():
    assert set(NETWORK_OPTIONS) == {name for settings in SETTINGS.values() for name in settings}


def test_presets_are_those_of_published_networks(capsys):
    assert parsed("convert", "--preset", "repa-e-256").preset == "repa-e-256"
    with pytest.raises(SystemExit):
        parsed("convert", "--preset", "few-step")
    error = capsys.readouterr().err
    assert "argument --preset: must be one of repa-e-256, " in error
    assert "got 'few-step'" in error
