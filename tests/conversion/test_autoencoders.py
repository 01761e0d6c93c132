"""Original autoencoders are converted exactly and strictly."""

import logging
from contextlib import contextmanager

import class_pipelines
import pytest
import torch
from checkpoint_files import FULL_KL, assert_every_key_counts, checkpoint_with, write
from diffusers import AutoencoderDC, AutoencoderKL
from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers
from networks import TINY_DC, TOLERANCE, error, golden, original_dc, tiny_dc
from safetensors.torch import load_file, save_file

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.cli import main
from diffusers_ucgm.conversion import autoencoders
from diffusers_ucgm.conversion.autoencoders import DC_AE, convert_autoencoder, describe_autoencoder, load_autoencoder


@torch.no_grad()
def test_the_autoencoder_encodes_and_decodes_as_published(vae):
    cases = golden("vae").cases
    posterior = vae.encode(cases["encode.image"]).latent_dist
    for part in ("mean", "logvar", "std"):
        assert error(getattr(posterior, part), cases[f"encode.{part}"]) < TOLERANCE
    assert error(vae.decode(cases["decode.latent"]).sample, cases["decode.output"]) < TOLERANCE
    assert type(vae) is AutoencoderKL
    assert vae.config.down_block_types == ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")


@torch.no_grad()
def test_dc_ae_is_converted_from_its_own_keys():
    model = tiny_dc()
    found = convert_autoencoder(original_dc(model), **TINY_DC)
    assert type(found) is AutoencoderDC
    x = torch.randn(1, 3, 16, 16)
    latent = model.encode(x).latent
    assert torch.equal(found.encode(x).latent, latent)
    assert torch.equal(found.decode(latent).sample, model.decode(latent).sample)


def test_the_names_of_dc_ae_are_those_that_diffusers_converter_reads():
    with torch.device("meta"):
        model = AutoencoderDC(**DC_AE)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    found = convert_autoencoder_dc_checkpoint_to_diffusers(original_dc(model))
    assert {key: value.shape for key, value in found.items()} == expected
    tiny = tiny_dc()
    found = convert_autoencoder_dc_checkpoint_to_diffusers(original_dc(tiny))
    assert all(torch.equal(found[key], value) for key, value in tiny.state_dict().items())


def test_the_release_of_va_vae_is_read_without_what_only_trained_it(tmp_path, capsys):
    weights = golden("vae").weights
    others = {"loss.logvar": torch.ones(1), "loss.discriminator.main.0.weight": torch.ones(2)}
    others |= {"foundation_model.model.cls_token": torch.ones(3), "linear_proj.weight": torch.ones(4)}
    path = write(tmp_path / "vae.ckpt", {"state_dict": weights | others, "epoch": 3})
    with caught_log(autoencoders.logger) as records:
        found = load_autoencoder(path).state_dict()
    expected = convert_autoencoder(golden("vae").weights).state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    told = "loss.* (2 tensors), foundation_model.* (1 tensors), linear_proj.* (1 tensors)"
    assert [told in record.getMessage() for record in records] == [True]
    with pytest.raises(ValueError, match=r"not known: model_ema\.x"):
        convert_autoencoder({**weights, "model_ema.x": torch.ones(1)})


@contextmanager
def caught_log(logger):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@torch.no_grad()
def test_the_groups_of_an_autoencoders_norms_are_given_where_they_are_not_32(tmp_path, capsys):
    case = golden("vae")
    vae = write(tmp_path / "vae.ckpt", case.weights)
    checkpoint = checkpoint_with(tmp_path, 4, 8)
    words = ["convert", "--checkpoint", checkpoint, "--vae", vae, "--output", tmp_path / "out"]
    assert main([*map(str, words), "--norm-num-groups", "24"]) == 2
    told = "`norm_num_groups` must divide the widths [32, 64] of this autoencoder, got 24"
    assert told in capsys.readouterr().err
    assert main([*map(str, words), "--norm-num-groups", "16"]) == 0
    other = UCGMPipeline.from_pretrained(tmp_path / "out").vae
    norms = [module for module in other.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {each.num_groups for each in norms} == {other.config.norm_num_groups} == {16}
    assert error(other.decode(case.cases["decode.latent"]).sample, case.cases["decode.output"]) > 1e-3
    assert main([*map(str, words[:3]), "--dry-run", "--norm-num-groups", "16"]) == 2
    assert "`norm_num_groups` must be left out without `vae`" in capsys.readouterr().err
    with pytest.raises(ValueError, match="`norm_num_groups` must be left out but for the original file of a VA-VAE"):
        load_autoencoder(write(tmp_path / "dc.ckpt", original_dc(tiny_dc())), norm_num_groups=16)
    with pytest.raises(ValueError, match="`norm_num_groups` must be left out but for the original file of a VA-VAE"):
        load_autoencoder(tmp_path / "out" / "vae", norm_num_groups=16)


def test_published_autoencoders_have_as_many_parameters_and_keys():
    with torch.device("meta"):
        dc, kl = AutoencoderDC(**DC_AE), AutoencoderKL(**FULL_KL)
    # shared/spec/networks.md, section 7
    assert sum(each.numel() for each in dc.parameters()) == 323_356_460
    assert len(dc.state_dict()) == 362
    assert sum(each.numel() for each in kl.parameters()) == 69_836_067
    assert len(kl.state_dict()) == 342


@pytest.mark.parametrize("kind", ["kl", "dc"])
def test_every_key_of_an_autoencoder_is_used_or_named(kind):
    settings = {} if kind == "kl" else TINY_DC
    weights = golden("vae").weights if kind == "kl" else original_dc(tiny_dc())
    assert_every_key_counts(weights, lambda weights: convert_autoencoder(weights, **settings))
    with pytest.raises(ValueError, match="must be of VA-VAE, E2E-VAVAE or DC-AE"):
        convert_autoencoder({"a": torch.ones(1)})


@pytest.mark.parametrize("use", [load_autoencoder, describe_autoencoder])
def test_a_missing_file_is_named_as_the_argument(use):
    with pytest.raises(FileNotFoundError, match=r"`vae` must be a file, a folder .*, got 'nope\.safetensors'"):
        use("nope.safetensors")


def test_a_folder_that_lacks_weights_is_refused(tmp_path):
    class_pipelines.autoencoder("kl").save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    load_autoencoder(tmp_path / "vae")
    save_file({name: value for name, value in tensors.items() if "decoder" not in name}, file)
    with pytest.raises(ValueError, match=r"must hold all weights of its config.json, got \d+ missing"):
        load_autoencoder(tmp_path / "vae")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="whole safetensors file"):
        load_autoencoder(tmp_path / "vae")
