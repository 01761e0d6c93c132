"""Original checkpoints are read in every form, and no code that they hold is run."""

from pathlib import Path

import pytest
import torch
from checkpoint_files import write
from networks import golden
from safetensors.torch import save_file

from diffusers_ucgm.cli import main
from diffusers_ucgm.conversion.convert import convert_checkpoint
from diffusers_ucgm.conversion.files import read_latent_statistics, read_state_dict


@pytest.mark.parametrize("wrapped", ["bare", "ema", "model", "prefixed", "old format", "safetensors"])
def test_every_form_of_a_checkpoint_is_read(wrapped, tmp_path):
    weights = golden("tit").weights
    other = {key: value + 1 for key, value in weights.items()}
    path, asked = tmp_path / "file.pt", None
    if wrapped == "safetensors":
        path = tmp_path / "file.safetensors"
        save_file(weights, path)
    elif wrapped == "old format":
        torch.save(weights, path, _use_new_zipfile_serialization=False)  # noqa: TID251
    else:
        content = {
            "bare": weights,
            "ema": {"model": other, "ema": weights, "opt": {"step": torch.ones(3)}, "config": {"a": [1, "b"]}},
            "model": {"ema": other, "model": weights},
            "prefixed": {"model": {f"module.module.{key}": value for key, value in weights.items()}},
        }[wrapped]
        asked = "model" if wrapped == "model" else None
        write(path, content)
    found = read_state_dict(path, asked)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    marker = tmp_path / "was-run"
    path = write(tmp_path / "file.pt", {"model": golden("tit").weights, "extra": Payload(marker)})
    with pytest.raises(ValueError, match="asks for code to be run: .* It was not run"):
        read_state_dict(path)
    assert main(["convert", "--checkpoint", str(path), "--output", str(tmp_path / "out")]) == 2
    assert "asks for code to be run" in capsys.readouterr().err
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.97])
def test_a_torn_file_is_named(kept, tmp_path):
    path = write(tmp_path / "file.pt", golden("tit").weights)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="`checkpoint` must be a whole file of tensors"):
        convert_checkpoint(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("argument", ["vae", "latent_statistics"])
def test_a_torn_file_beside_the_checkpoint_is_named_by_its_argument(argument, tmp_path):
    checkpoint = write(tmp_path / "file.pt", golden("tit").weights)
    torn = tmp_path / "torn.pt"
    torn.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"`{argument}` must be a whole file of tensors, got '.*torn\.pt'"):
        convert_checkpoint(checkpoint, tmp_path / "out", **{argument: torn})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "tensors by name, got list"),
        ({"a": 1}, "tensors by name, got a mapping of a: int"),
        ({"a": torch.ones(2)}, "must be of one of"),
        ({}, "tensors by name"),
    ],
)
def test_other_content_is_refused(content, message, tmp_path):
    path = write(tmp_path / "file.pt", content)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(path, tmp_path / "out")


def test_a_missing_file_and_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` must be a file"):
        read_state_dict(tmp_path / "file.pt")
    with pytest.raises(FileNotFoundError, match="`checkpoint` must be a file"):
        convert_checkpoint(tmp_path / "file.pt", tmp_path / "out")
    path = write(tmp_path / "file.pt", {"model": golden("tit").weights})
    with pytest.raises(ValueError, match=r"`weights` must be one of \['model'\], got 'ema'"):
        read_state_dict(path, "ema")


@pytest.mark.parametrize("content", [{"mean": torch.ones(4)}, {"mean": torch.ones(4), "std": torch.ones(3)}, [1]])
def test_bad_statistics_are_refused(content, tmp_path):
    with pytest.raises(ValueError, match="must hold `mean` and a positive `std`"):
        read_latent_statistics(write(tmp_path / "stat.pt", content))
