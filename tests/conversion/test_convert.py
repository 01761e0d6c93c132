"""Original checkpoints become saved pipelines."""

import subprocess
import sys

import pytest
import torch
from checkpoint_files import FULL_KL, checkpoint_with, golden_config, write
from diffusers import AutoencoderKL
from full_disk import assert_named_and_gone
from networks import TOLERANCE, error, golden, synthetic

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.conversion import autoencoders
from diffusers_ucgm.conversion.autoencoders import AUTOENCODERS
from diffusers_ucgm.conversion.convert import convert_checkpoint, recipe_from
from diffusers_ucgm.locks import Lock
from diffusers_ucgm.pipeline import denormalize_latents, normalize_latents
from diffusers_ucgm.training.encoding import encode_pixels


# A script of its own, so that the peak is the conversion's.
MEASURE = """
import resource, sys
from pathlib import Path
import diffusers_ucgm.conversion.convert as conversion

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
conversion.convert_checkpoint(
    sys.argv[1], sys.argv[2], num_attention_heads=8, num_encoder_layers=3, patch_size=2, sample_size=8
)
print((peak() - before) / Path(sys.argv[1]).stat().st_size)
"""


@pytest.mark.parametrize("training", [False, True])
def test_conversion_needs_little_more_memory_than_the_file(training, tmp_path):
    config = golden_config("ddt") | {"num_layers": 4, "num_attention_heads": 8, "attention_head_dim": 128}
    state_dict = synthetic("ddt", config | {"num_encoder_layers": 3, "ff_inner_dim": 2730, "num_classes": 1000})
    content = {"ema": state_dict, "model": {key: value + 1 for key, value in state_dict.items()}}
    path = write(tmp_path / "file.pt", content if training else state_dict)
    assert path.stat().st_size > 3e8
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1.35


def test_a_conversion_replaces_itself_and_others_only_on_demand(tmp_path):
    path, out = write(tmp_path / "file.pt", golden("tit").weights), tmp_path / "out" / "model"
    assert_named_and_gone(tmp_path, "model", lambda: convert_checkpoint(path, out))
    assert [entry.name for entry in out.parent.iterdir()] == ["model"]
    convert_checkpoint(path, out)
    other = {"id2label": {0: "cat"}}
    with pytest.raises(FileExistsError, match=r"of another conversion, where \['id2label'\] differ\. Choose another"):
        convert_checkpoint(path, out, **other)
    (out / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"which also holds \['notes.txt'\]"):
        convert_checkpoint(path, out, overwrite_output_dir=True, **other)
    (out / "notes.txt").unlink()
    convert_checkpoint(path, out, overwrite_output_dir=True, **other)
    assert [*UCGMPipeline.from_pretrained(out).config.id2label.values()] == ["cat"]
    with (
        Lock(out.with_name(".model.lock"), "output", out),
        pytest.raises(RuntimeError, match="`output` must not be in use"),
    ):
        convert_checkpoint(path, out, **other)


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    path = write(tmp_path / "file.pt", golden("tit").weights)
    with pytest.raises(FileExistsError, match="`output` must be a new folder"):
        convert_checkpoint(path, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_a_conversion_does_not_replace_the_working_folder(tmp_path, monkeypatch):
    path = write(tmp_path / "file.pt", golden("tit").weights)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(ValueError, match="`output` must be a folder that can be written as a whole, got '.'"):
        convert_checkpoint(path, ".")
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["file.pt", "out"]


@torch.no_grad()
@pytest.mark.parametrize("unit_range", [False, True])
def test_latents_and_pictures_are_normalised_as_published(unit_range, tmp_path, monkeypatch):
    case = golden("vae")
    monkeypatch.setitem(
        AUTOENCODERS,
        "tiny",
        autoencoders.Autoencoder(
            2, case.config["latent_multiplier"], needs_statistics=True, do_normalize=not unit_range
        ),
    )
    statistics = {part: case.cases[f"latents.{part}"] for part in ("mean", "std")}
    recipe = recipe_from()
    recipe = type(recipe)(autoencoder="tiny")
    channels = len(case.cases["latents.mean"].flatten())
    folder = convert_checkpoint(
        checkpoint_with(tmp_path, channels, 8),
        tmp_path / "out",
        recipe,
        vae=write(tmp_path / "vae.ckpt", {"state_dict": case.weights}),
        latent_statistics=write(tmp_path / "stat.pt", statistics),
    )
    pipe = UCGMPipeline.from_pretrained(folder)
    encoded, sampled = case.cases["latents.encoded"], case.cases["latents.sampled"]
    assert error(normalize_latents(pipe.vae, encoded), case.cases["latents.normalised"]) < TOLERANCE
    assert error(denormalize_latents(pipe.vae, sampled), case.cases["latents.denormalised"]) < TOLERANCE
    picture = pipe.decode(sampled, "pt")
    expected = case.cases["latents.image_unit" if unit_range else "latents.image_symmetric"]
    assert (picture - expected).abs().max() < TOLERANCE
    # What training encodes is in the range that decoding gives.
    seen = []
    encode = pipe.vae.encode
    pipe.vae.encode = lambda pixels: seen.append(pixels) or encode(pixels)
    encode_pixels(pipe, torch.tensor([-1.0, 1.0]).expand(1, 3, 16, 2).repeat(1, 1, 1, 8))
    assert seen[0].min() == (0.0 if unit_range else -1.0)
    assert seen[0].max() == 1.0


def test_a_preset_brings_everything_that_is_known(tmp_path, monkeypatch):
    config = golden_config("lightningdit") | {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28}
    config |= {"in_channels": 32, "out_channels": 32, "sample_size": 16, "ff_inner_dim": 32, "num_classes": 2}
    # As wide and deep as the published one, but for the feed-forward and the classes.
    narrow = {key: value.to(torch.bfloat16) for key, value in synthetic("lightningdit", config).items()}
    checkpoint = write(tmp_path / "file.pt", narrow)
    statistics = write(tmp_path / "stat.pt", {"mean": torch.arange(32.0), "std": torch.ones(32)})
    with torch.device("meta"):
        full = AutoencoderKL(**FULL_KL)
    widths = {key: torch.zeros(value.shape) for key, value in full.state_dict().items()}
    del widths
    recipe = recipe_from("lightningdit-256")
    with pytest.raises(ValueError, match="`latent_statistics` must be given for vavae_f16d32"):
        convert_checkpoint(checkpoint, tmp_path / "out", recipe, vae="somewhere")
    folder = convert_checkpoint(checkpoint, tmp_path / "out", recipe, latent_statistics=statistics)
    pipe = UCGMPipeline.from_pretrained(folder)
    assert pipe.scheduler.config.transport == "relinear"
    assert pipe.scheduler.config.extrapolation_ratio == 0.5
    assert pipe.config.guided_channels == 3
    assert pipe.config.call_defaults["guidance_scale"] == 6.7
    assert list(pipe.config.call_defaults["guidance_interval"]) == [0.0, 0.875]
    with pytest.raises(ValueError, match="must be of SiT-XL/1"):
        convert_checkpoint(checkpoint, tmp_path / "other", recipe_from("repa-e-256"))
