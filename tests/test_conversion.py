"""Original checkpoints into saved pipelines: exact, strict, and without running what they hold."""

import json
import logging
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from class_pipelines import autoencoder
from diffusers import AutoencoderDC, AutoencoderKL
from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers
from full_disk import assert_named_and_gone
from networks import NAMES, SETTINGS, TINY_DC, TOLERANCE, error, golden, original_dc, synthetic, tiny_dc
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusers_ucgm import PRESETS, UCGMPipeline, UCGMScheduler, UCGMTrainingConfig
from diffusers_ucgm.cli import main, parser_for
from diffusers_ucgm.conversion import autoencoders, networks, sizes
from diffusers_ucgm.conversion.autoencoders import AUTOENCODERS, DC_AE, convert_autoencoder, load_autoencoder
from diffusers_ucgm.conversion.convert import convert_checkpoint, recipe_from
from diffusers_ucgm.conversion.files import read_latent_statistics, read_state_dict
from diffusers_ucgm.conversion.networks import ARCHITECTURES, convert_network, network_plan
from diffusers_ucgm.conversion.reference import LEFT_OUT, SPELLINGS, read_reference_config
from diffusers_ucgm.conversion.sizes import published_settings
from diffusers_ucgm.data.images import prepare_image
from diffusers_ucgm.loading import DTYPE
from diffusers_ucgm.locks import Lock
from diffusers_ucgm.network_calls import guide
from diffusers_ucgm.pipeline import denormalize_latents, normalize_latents
from diffusers_ucgm.training.encoding import encode_pixels


def write(path, content):
    torch.save(content, path)  # noqa: TID251 - what is published
    return path


@pytest.fixture(scope="module", params=NAMES)
def converted(request, tmp_path_factory):
    """A golden network, converted, saved and loaded again by the pipeline."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    case = golden(name)
    checkpoint = write(folder / "0000000.pt", {"ema": case.weights, "model": {"x": torch.zeros(1)}, "steps": 3})
    convert_checkpoint(checkpoint, folder / "pipeline", **SETTINGS[name])
    pipe = UCGMPipeline.from_pretrained(folder / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return name, case, pipe


@torch.no_grad()
def predicted(pipe, x, t, y):
    return pipe.transformer(x, t, y).sample


def test_a_converted_network_gives_the_published_ones_outputs(converted):
    name, case, pipe = converted
    found = [key.removesuffix(".output") for key in case.cases if key.endswith(".output") and "forward" in key]
    assert "forward" in found
    for each in found:
        source = "forward" if each == "forward_uncond" else each
        x, t, y = (case.cases[f"{source}.{part}"] for part in "xty")
        output = predicted(pipe, x, t, None if each == "forward_uncond" else y)
        assert error(output, case.cases[f"{each}.output"]) < TOLERANCE, each


def guided_case(case, each):
    x, t, y = (case.cases[f"{each['name']}.{part}"] for part in "xty")
    half = len(x) // 2
    return torch.cat([x[:half]] * 2), t, y, case.cases[f"{each['name']}.output"][:half]


def test_guidance_is_the_published_one(converted):
    name, case, pipe = converted
    assert pipe.config.guided_channels == (3 if name == "lightningdit" else None)
    for each in case.config["cfg_cases"]:
        x, t, y, expected = guided_case(case, each)
        both = predicted(pipe, x, t, y)
        output = both.chunk(2)[0]
        if each["guidance_active"]:
            output = guide(*both.chunk(2), each["cfg_scale"], pipe.config.guided_channels)
        assert error(output, expected) < TOLERANCE, each["name"]


def test_a_call_of_the_pipeline_guides_within_the_interval_of_canonical_times(converted):
    name, case, pipe = converted
    checked = 0
    for each in case.config["cfg_cases"]:
        x, t, y, expected = guided_case(case, each)
        if len(set(t.tolist())) > 1:
            continue
        half, (start, stop) = len(x) // 2, each["cfg_interval"]
        # The reference gives bounds in the network's own time.
        interval = (1.0 - stop, 1.0 - start) if ARCHITECTURES[name].transport == "relinear" else (start, stop)
        seen = []
        step = pipe.scheduler.step

        def record(output, *args, seen=seen, step=step, **kwargs):
            seen.append(output)
            return step(output, *args, **kwargs)

        pipe.scheduler.step = record
        if t[0].item() not in (0.0, 1.0):  # the last of a schedule's times
            latents = x[:half] / pipe.scheduler.init_noise_sigma
            arguments = {"guidance_scale": each["cfg_scale"], "guidance_interval": interval, "output_type": "latent"}
            pipe(y[:half], timesteps=[t[0].item()], latents=latents, **arguments)
            assert error(seen[0], expected) < TOLERANCE, each["name"]
            checked += 1
        del pipe.scheduler.step
    assert checked


def test_guidance_in_bf16_stays_close(converted, tmp_path):
    name, case, pipe = converted
    pipe.save_pretrained(tmp_path)
    half = UCGMPipeline.from_pretrained(tmp_path, **{DTYPE: torch.bfloat16})
    half.set_progress_bar_config(disable=True)
    for each in case.config["cfg_cases"]:
        if not each["guidance_active"]:
            continue
        x, t, y, expected = guided_case(case, each)
        both = predicted(half, x.to(torch.bfloat16), t, y).float()
        output = guide(*both.chunk(2), each["cfg_scale"], pipe.config.guided_channels)
        assert error(output, expected) < 0.08, each["name"]  # measured: 0.012 to 0.052
    arguments = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "latent"}
    exact, found = (
        each([1, 2], generator=torch.Generator().manual_seed(0), **arguments).images for each in (pipe, half)
    )
    assert error(found, exact) < 0.14  # measured: 0.014 (TiT, LightningDiT, EDM2), 0.064 (SiT), 0.090 (DDT)


def test_a_guided_call_of_scale_below_1_leans_to_the_null_class(converted):
    _, _, pipe = converted
    arguments = {"num_inference_steps": 2, "output_type": "latent"}
    plain, leaning, off = (
        pipe([1], guidance_scale=scale, generator=torch.Generator().manual_seed(0), **arguments).images
        for scale in (1.0, 0.5, 0.0)
    )
    assert torch.equal(plain, off)
    assert error(leaning, plain) > 1e-4


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


WRAPPERS = [
    "_orig_mod.",
    "module.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.",
    "model.module._orig_mod.",
    "_orig_mod.model.module.",
    "_fsdp_wrapped_module._orig_mod.",
    "module.model.diffusion_model.",
    "state_dict.model.",
    "ema.",
    "ema_model._orig_mod.",
    "model_ema.module.",
    "shadow.",
    "shadow_params.module.",
]


@pytest.mark.parametrize("prefix", WRAPPERS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_wrapped_the_network_in_training_is_taken_off(tmp_path, prefix, suffix):
    weights = golden("tit").weights
    wrapped = {f"{prefix}{key}": value for key, value in weights.items()}
    path = tmp_path / f"file{suffix}"
    if suffix == ".pt":
        write(path, {"model": wrapped, "epoch": 3})
    else:
        save_file(wrapped, path)
    found = read_state_dict(path)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_wrappers_of_single_blocks_are_taken_off(tmp_path):
    weights = golden("tit").weights
    wrapped = {
        key.replace(".attn.", "._orig_mod.attn.").replace(".mlp.", "._checkpoint_wrapped_module.mlp."): value
        for key, value in weights.items()
    }
    assert wrapped.keys() != weights.keys()
    save_file(wrapped, tmp_path / "file.safetensors")
    assert read_state_dict(tmp_path / "file.safetensors").keys() == weights.keys()


@pytest.mark.parametrize(("asked", "shift"), [(None, 0), ("ema", 0), ("model", 1)])
@pytest.mark.parametrize("averages", ["ema", "ema_model", "shadow"])
def test_groups_in_the_names_of_one_file_are_told_apart(tmp_path, asked, shift, averages):
    weights = golden("tit").weights
    content = {f"{averages}.module.{key}": value for key, value in weights.items()}
    content |= {f"model._orig_mod.{key}": value + 1 for key, value in weights.items()}
    content |= {f"{averages}.n_averaged": torch.tensor(3), "optimizer.step": torch.tensor(3)}
    save_file(content, tmp_path / "file.safetensors")
    found = read_state_dict(tmp_path / "file.safetensors", asked)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], value + shift) for key, value in weights.items())


def test_weights_that_are_not_there_and_names_that_meet_are_refused(tmp_path):
    weights = golden("tit").weights
    for prefix in ("", "model."):
        save_file({f"{prefix}{key}": value for key, value in weights.items()}, tmp_path / "file.safetensors")
        with pytest.raises(ValueError, match=r"`weights` must be one of .*, got 'ema'"):
            read_state_dict(tmp_path / "file.safetensors", "ema")
    name = next(iter(weights))
    save_file({**weights, f"_orig_mod.{name}": weights[name] + 1}, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=r"`path` must hold each tensor once, got two named"):
        read_state_dict(tmp_path / "file.safetensors")


@pytest.mark.parametrize("prefix", ["", "module._orig_mod.", "model."])
def test_heads_of_training_are_left_out_by_name(tmp_path, capsys, prefix):
    weights = golden("tit").weights
    heads = {f"projectors.0.{i}.{part}": torch.ones(2, 2) for i in (0, 2) for part in ("weight", "bias")}
    path = tmp_path / "file.safetensors"
    save_file({f"{prefix}{key}": value for key, value in {**weights, **heads}.items()}, path)
    arguments = ["convert", "--checkpoint", str(path)]
    said = "Left out, as only training needs them: projectors.* (4 tensors)."
    assert main([*arguments, "--dry-run"]) == 0
    assert said in capsys.readouterr().out
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert said in capsys.readouterr().out
    plain = tmp_path / "plain.safetensors"
    save_file(weights, plain)
    convert_checkpoint(plain, tmp_path / "plain")
    files = [tmp_path / each / "transformer" / "diffusion_pytorch_model.safetensors" for each in ("out", "plain")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_heads_beside_the_network_are_left_out_and_others_still_refused(tmp_path):
    weights = golden("tit").weights
    content = {f"model.{key}": value for key, value in weights.items()} | {"projectors.0.weight": torch.ones(2)}
    save_file(content, tmp_path / "file.safetensors")
    notes = []
    convert_checkpoint(tmp_path / "file.safetensors", tmp_path / "out", note=notes.append)
    assert notes == ["Left out, as only training needs them: projectors.* (1 tensors)."]
    save_file({**weights, "extra.weight": torch.ones(2)}, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=r"not known: extra\.weight"):
        convert_checkpoint(tmp_path / "file.safetensors", tmp_path / "other")


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/ucgm-was-run"),))


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    marker = Path("/tmp/ucgm-was-run")
    marker.unlink(missing_ok=True)
    path = write(tmp_path / "file.pt", {"model": golden("tit").weights, "extra": Payload()})
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
    with pytest.raises(ValueError, match="`path` must be a whole file of tensors"):
        convert_checkpoint(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


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
    path = write(tmp_path / "file.pt", {"model": golden("tit").weights})
    with pytest.raises(ValueError, match=r"`weights` must be one of \['model'\], got 'ema'"):
        read_state_dict(path, "ema")


# Another number of classes is another model, and as good as this one.
CLASSES = ("y_embedder.embedding_table.weight", "emb_label.weight")


def assert_every_key_counts(weights, plan):
    """Each key by itself missing, misshapen in two ways, or there twice: the message names it, and few others."""
    for key, value in weights.items():
        doubled = torch.cat([torch.atleast_1d(value)] * 2)
        faults = {"missing": None, "one axis more": value[None], "twice as long": doubled}
        for fault, other in faults.items():
            changed = {each: tensor for each, tensor in weights.items() if each != key}
            if other is not None:
                changed[key] = other
            if key in CLASSES and fault == "twice as long":
                continue
            with pytest.raises(ValueError, match=rf"`checkpoint`.*\b{re.escape(key)}\b") as caught:
                plan(changed)
            named = sum(rf"{each} " in f"{caught.value} " for each in weights)
            assert named <= 2, (key, fault, str(caught.value))
        with pytest.raises(ValueError, match=rf"not known: {re.escape(key)}\.1$|not known: {re.escape(key)}\.1\."):
            plan({**weights, f"{key}.1": value})


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_used_or_named(name, monkeypatch):
    # Of one configuration for most faults: making the model takes longer than all the rest.
    empty, models = networks._empty, {}

    def once(architecture, config):
        if str(config) not in models:
            models[str(config)] = empty(architecture, config)
        return models[str(config)]

    monkeypatch.setattr(networks, "_empty", once)
    assert_every_key_counts(golden(name).weights, lambda weights: network_plan(weights, **SETTINGS[name]))


@pytest.mark.parametrize(
    ("name", "given", "asked"),
    [
        ("sit", {}, "`num_attention_heads` must be given: .* a width of 48"),
        ("ddt", {}, "`num_encoder_layers`, `patch_size`, `sample_size` must be given: .* 5 layers of width 48 and 16"),
        ("ddt", {"num_encoder_layers": 3}, r"`patch_size`, `sample_size` must be given: .* is one of \[1, 2, 4\]"),
        ("ddt", {"num_encoder_layers": 3, "patch_size": 2}, "^`sample_size` must be given"),
        ("edm2", {}, "`attention_head_dim` must be given: .* base width 8"),
    ],
)
def test_what_keys_do_not_tell_must_be_given(name, given, asked):
    with pytest.raises(ValueError, match=asked):
        network_plan(golden(name).weights, **given)


def test_what_is_given_must_fit_the_keys():
    with pytest.raises(ValueError, match="`num_layers` must be 3 for this checkpoint, got 4"):
        network_plan(golden("tit").weights, num_layers=4)
    with pytest.raises(ValueError, match="`layers_per_block` must be left out for tit"):
        network_plan(golden("tit").weights, layers_per_block=4)
    with pytest.raises(ValueError, match="`num_attention_heads` must divide the width 48 of this checkpoint, got 5"):
        network_plan(golden("sit").weights, num_attention_heads=5)
    with pytest.raises(ValueError, match=r"`patch_size` must be one of \[1, 2, 4\] for this checkpoint, got 3"):
        network_plan(golden("ddt").weights, **(SETTINGS["ddt"] | {"patch_size": 3}))
    with pytest.raises(ValueError, match="`in_channels` must be 4 for this checkpoint, got 1"):
        network_plan(golden("ddt").weights, **(SETTINGS["ddt"] | {"in_channels": 1}))


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("sit", {"attention_head_dim": 12}, {"num_attention_heads": 4}),
        ("ddt", {"num_encoder_layers": 3, "sample_size": 8, "in_channels": 4}, {"patch_size": 2}),
    ],
)
def test_what_follows_from_what_is_given_is_not_asked_for(name, given, told):
    config = network_plan(golden(name).weights, **given)[1]
    assert told.items() <= config.items()


def test_a_patch_of_one_value_and_a_network_without_attention_tell_what_others_do_not():
    config = golden_config("ddt") | {"in_channels": 6, "out_channels": 6, "patch_size": 1}
    weights = synthetic("ddt", config)
    assert network_plan(weights, num_encoder_layers=3, sample_size=8)[1]["patch_size"] == 1
    config = golden_config("edm2") | {"attention_levels": (), "attention_head_dim": 64}
    assert network_plan(synthetic("edm2", config))[1]["attention_levels"] == ()


def test_published_sizes_of_ddt_and_edm2_need_no_more():
    config = golden_config("ddt") | {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72}
    config |= {"num_encoder_layers": 22, "ff_inner_dim": 4, "num_classes": 2}
    found = network_plan(on_meta("ddt", config))[1]
    assert [found[name] for name in ("num_encoder_layers", "patch_size", "sample_size")] == [22, 2, 32]
    config = golden_config("edm2") | {"block_out_channels": (192, 384), "attention_head_dim": 64, "num_classes": 2}
    config |= {"layers_per_block": 1, "attention_levels": (1,)}
    assert network_plan(on_meta("edm2", config))[1]["attention_head_dim"] == 64


def on_meta(name, config):
    return {key: value.to("meta") for key, value in synthetic(name, config).items()}


def test_a_patch_of_four_is_asked_for_and_given_by_the_command_line(tmp_path, capsys):
    config = golden_config("ddt") | {"patch_size": 4, "sample_size": 16}
    checkpoint = write(tmp_path / "file.pt", synthetic("ddt", config))
    words = ["convert", "--checkpoint", checkpoint, "--output", tmp_path / "out", "--num-encoder-layers", 3]
    words += ["--sample-size", 16]
    assert main([*map(str, words)]) == 2
    assert "`patch_size` must be given" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*map(str, words), "--patch-size", "4"]) == 0
    found = UCGMPipeline.from_pretrained(tmp_path / "out").transformer.config
    assert [found[name] for name in ("patch_size", "in_channels", "out_channels", "sample_size")] == [4, 4, 4, 16]


def test_another_rotation_is_refused():
    weights = golden("tit").weights
    weights["feat_rope.freqs_cos"] = weights["feat_rope.freqs_cos"].roll(1, 0)
    with pytest.raises(ValueError, match="the rotation of the published networks in feat_rope.freqs_cos"):
        network_plan(weights)


@pytest.mark.parametrize("name", NAMES)
def test_conversion_frees_the_checkpoint_and_keeps_or_casts_weights(name):
    weights = golden(name).weights
    model = convert_network(weights, torch.bfloat16, **SETTINGS[name])
    assert not weights
    dtypes = {key: value.dtype for key, value in model.state_dict().items()}
    # EDM2's frequencies, of up to 30 and more, would turn the features.
    kept = {"time_proj.freqs", "time_proj.phases"} if name == "edm2" else set()
    assert {key for key, dtype in dtypes.items() if dtype == torch.float32} == kept
    assert set(dtypes.values()) <= {torch.float32, torch.bfloat16}
    if kept:
        assert torch.equal(model.time_proj.freqs, golden(name).weights["emb_fourier.freqs"])
    assert {each.device.type for each in [*model.parameters(), *model.buffers()]} == {"cpu"}


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


def golden_config(name):
    return network_plan(golden(name).weights, **SETTINGS[name])[1]


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


# Autoencoders


@pytest.fixture(scope="module")
def vae():
    return convert_autoencoder(golden("vae").weights)


@torch.no_grad()
def test_the_autoencoder_encodes_and_decodes_as_published(vae):
    cases = golden("vae").cases
    posterior = vae.encode(cases["encode.image"]).latent_dist
    for part in ("mean", "logvar", "std"):
        assert error(getattr(posterior, part), cases[f"encode.{part}"]) < TOLERANCE
    assert error(vae.decode(cases["decode.latent"]).sample, cases["decode.output"]) < TOLERANCE
    assert type(vae) is AutoencoderKL
    assert vae.config.down_block_types == ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")


def checkpoint_with(folder, channels, size, name="tit"):
    config = golden_config(name)
    sizes = {"in_channels": channels, "out_channels": channels, "sample_size": size}
    return write(folder / f"{name}-{channels}-{size}.pt", synthetic(name, config | sizes))


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


def test_cropped_pictures_are_the_published_ones():
    case = golden("vae")
    for each in case.config["crop_cases"]:
        picture = Image.fromarray(case.cases[f"{each['name']}.image"].numpy())
        pixels = prepare_image(picture, each["size"])
        found = ((pixels + 1.0) * 127.5).round().permute(1, 2, 0)
        assert (found - case.cases[f"{each['name']}.output"].float()).abs().max() <= 1.0


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


FULL_KL = {
    "block_out_channels": (128, 128, 256, 256, 512),
    "layers_per_block": 2,
    "latent_channels": 32,
    "sample_size": 256,
    "down_block_types": ("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
}


@pytest.mark.parametrize("kind", ["kl", "dc"])
def test_every_key_of_an_autoencoder_is_used_or_named(kind):
    settings = {} if kind == "kl" else TINY_DC
    weights = golden("vae").weights if kind == "kl" else original_dc(tiny_dc())
    assert_every_key_counts(weights, lambda weights: convert_autoencoder(weights, **settings))
    with pytest.raises(ValueError, match="must be of VA-VAE, E2E-VAVAE or DC-AE"):
        convert_autoencoder({"a": torch.ones(1)})


@pytest.mark.parametrize("content", [{"mean": torch.ones(4)}, {"mean": torch.ones(4), "std": torch.ones(3)}, [1]])
def test_bad_statistics_are_refused(content, tmp_path):
    with pytest.raises(ValueError, match="must hold `mean` and a positive `std`"):
        read_latent_statistics(write(tmp_path / "stat.pt", content))


# End to end


@pytest.mark.parametrize("kind", ["kl", "dc", "folder"])
@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_drawn_from_originals_by_the_command_line(name, kind, tmp_path, capsys, monkeypatch):
    channels = {"kl": 4, "dc": 8, "folder": 4}[kind]
    checkpoint = checkpoint_with(tmp_path, channels, 16 if name == "edm2" else 8, name)
    words = ["convert", "--checkpoint", checkpoint, "--output", tmp_path / "out"]
    words += [f"--{key.replace('_', '-')}={value}" for key, value in SETTINGS[name].items()]
    if kind == "kl":
        words += ["--vae", write(tmp_path / "vae.ckpt", golden("vae").weights)]
    elif kind == "dc":
        monkeypatch.setattr(autoencoders, "DC_AE", TINY_DC)
        words += ["--vae", write(tmp_path / "vae.ckpt", original_dc(tiny_dc()))]
    else:
        autoencoder("kl").save_pretrained(tmp_path / "vae")
        words += ["--vae", tmp_path / "vae"]
    statistics = {"mean": torch.linspace(-1, 1, channels)[None, :, None, None], "std": torch.full((channels,), 2.0)}
    words += ["--latent-statistics", write(tmp_path / "stat.pt", statistics)]
    (tmp_path / "names.json").write_text(json.dumps([f"class {i}" for i in range(10)]))
    assert main([*map(str, words), "--id2label", str(tmp_path / "names.json")]) == 0
    assert "Pipeline: " in capsys.readouterr().out
    names = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {".safetensors", ".json", ".md", ".py"}
    pipe = UCGMPipeline.from_pretrained(tmp_path / "out")
    expected = torch.tensor(0.5 * pipe.vae.config.scaling_factor)
    assert torch.allclose(normalize_latents(pipe.vae, torch.zeros(1, channels, 2, 2))[0, 0], expected)
    picture = tmp_path / "picture.png"
    command = ["sample", "--model", tmp_path / "out", "--labels", "class 3", "--steps", 2, "--output", picture]
    assert main([*map(str, command), "--samples-per-label", "2", "--guidance-scale", "2"]) == 0
    assert np.asarray(Image.open(picture)).std() > 1


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


def test_presets_belong_to_networks_that_can_be_converted():
    for name, preset in PRESETS.items():
        if preset.network is None:
            with pytest.raises(ValueError, match="`preset` must be one of a published model"):
                recipe_from(name)
            continue
        recipe = recipe_from(name)
        architecture = ARCHITECTURES[preset.network.split("-")[0].lower()]
        assert published_settings(preset.network)
        assert recipe.scheduler["transport"] == architecture.transport, name
        assert preset.image_size % AUTOENCODERS[preset.autoencoder].downsample == 0
    with pytest.raises(ValueError, match="`network` must be"):
        published_settings("UNet+")


def test_the_docs_have_a_command_for_each_published_checkpoint():
    text = (Path(__file__).parents[1] / "docs" / "paper-models.md").read_text()
    commands = re.findall(r"^\| .* \| `ucgm (convert [^`]*)` \| ([^|]*) \|", text, re.MULTILINE)
    told = {}
    for words, figures in commands:
        args = parser_for(words.split()).parse_args(words.split())
        recipe = recipe_from(args.preset)
        assert AUTOENCODERS[recipe.autoencoder].origin == args.vae
        assert AUTOENCODERS[recipe.autoencoder].needs_statistics == (args.latent_statistics is not None)
        told[args.preset] = figures
    # The same file with another number of steps.
    told["ddt-512-100"] = told["ddt-512"]
    published = {name: preset for name, preset in PRESETS.items() if preset.network is not None}
    assert told.keys() == published.keys()
    for name, preset in published.items():
        assert f"{preset.fid:.2f} at {preset.num_inference_steps}" in told[name]


def test_a_converted_model_draws_by_its_own_defaults_and_any_preset(tmp_path, capsys):
    case = golden("ddt")
    config = tmp_path / "reference.yaml"
    config.write_text(yaml.safe_dump(reference(transport={"type": "ReLinear"}, optimizer=None)))
    recipe = read_reference_config(config)
    recipe = type(recipe)(recipe.scheduler, recipe.call)
    checkpoint = write(tmp_path / "file.pt", case.weights)
    folder = convert_checkpoint(checkpoint, tmp_path / "out", recipe, **SETTINGS["ddt"])
    pipe = UCGMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator
    own = pipe([1], output_type="latent", generator=generator().manual_seed(0))
    assert own.num_network_calls == recipe.call["num_inference_steps"] == 7
    told = pipe([1], output_type="latent", generator=generator().manual_seed(0), **recipe.call)
    assert torch.equal(own.images, told.images)
    off = pipe([1], output_type="latent", generator=generator().manual_seed(0), guidance_scale=1.0)
    assert not torch.equal(own.images, off.images)


@pytest.mark.parametrize("name", NAMES)
def test_a_converted_model_is_drawn_by_a_preset_of_the_command_line(name, tmp_path, capsys):
    checkpoint = checkpoint_with(tmp_path, 4, 16 if name == "edm2" else 8, name)
    vae = write(tmp_path / "vae.ckpt", golden("vae").weights)
    folder = convert_checkpoint(checkpoint, tmp_path / "out", vae=vae, **SETTINGS[name])
    own = {"sit": "repa-e-256-2-step", "tit": "tit-256-2-step", "ddt": "ddt-256-2-step"}
    own |= {"lightningdit": "lightningdit-256-2-step", "edm2": "few-step"}
    command = ["sample", "--model", folder, "--labels", 3, "--samples-per-label", 1, "--output", tmp_path / "x.png"]
    assert main([*map(str, command), "--preset", own[name]]) == 0
    printed = capsys.readouterr().out
    assert "2 network calls" in printed
    assert "note: " not in printed
    assert main([*map(str, command), "--preset", "repa-256-2-step"]) == 0
    # The network sees and predicts what it was trained for, whatever the preset was published for.
    assert ("note: " in capsys.readouterr().out) == (name not in ("sit", "tit"))


def test_dry_run_prints_the_map_and_writes_nothing(tmp_path, capsys):
    checkpoint = write(tmp_path / "file.pt", golden("ddt").weights)
    words = ["convert", "--checkpoint", str(checkpoint), "--num-encoder-layers", "3", "--dry-run"]
    words += ["--patch-size", "2", "--sample-size", "8"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "blocks.0.attn.qkv.weight [144, 48] -> transformer_blocks.0.attn.to_q.weight" in printed
    assert '"num_encoder_layers": 3' in printed
    assert all(key in printed for key in golden("ddt").weights)
    assert list(tmp_path.iterdir()) == [checkpoint]


@pytest.mark.parametrize("kind", ["original", "folder"])
def test_dry_run_tells_what_becomes_of_the_autoencoder(kind, tmp_path, capsys):
    checkpoint = checkpoint_with(tmp_path, 4, 8)
    weights = golden("vae").weights
    vae = tmp_path / "vae.ckpt"
    if kind == "original":
        write(vae, weights | {"loss.logvar": torch.ones(1)})
    else:
        convert_autoencoder(weights).save_pretrained(vae)
    statistics = write(tmp_path / "stat.pt", {"mean": torch.full((4,), 0.5), "std": torch.ones(4)})
    words = ["convert", "--checkpoint", checkpoint, "--vae", vae, "--latent-statistics", statistics, "--dry-run"]
    assert main([*map(str, words)]) == 0
    printed = capsys.readouterr().out
    assert "AutoencoderKL" in printed
    assert "latents: mean [0.5, 0.5, 0.5, 0.5]" in printed
    if kind == "original":
        mapped = "encoder.mid.attn_1.q.weight [64, 64, 1, 1] -> encoder.mid_block.attentions.0.to_q.weight (linear)"
        assert mapped in printed
        assert all(f"{key} " in printed for key in golden("vae").weights)
        assert "loss.* (1 tensors)" in printed
    words[4] = tmp_path / "none.ckpt"
    assert main([*map(str, words)]) == 2
    assert "none.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_what_is_pushed_is_the_folder_as_it_was_written(dtype, tmp_path, monkeypatch):
    pushed = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private=None, exist_ok=False):
            pushed["repository"] = repo_id

        def upload_folder(self, repo_id, folder_path, commit_message, ignore_patterns):
            files = [
                path for path in Path(folder_path).rglob("*") if path.is_file() and path.name not in ignore_patterns
            ]
            pushed["files"] = {path.relative_to(folder_path).as_posix() for path in files}
            weights = load_file(Path(folder_path) / "transformer" / "diffusion_pytorch_model.safetensors")
            pushed["dtypes"] = {value.dtype for value in weights.values()}

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    config = tmp_path / "reference.yaml"
    config.write_text(yaml.safe_dump(reference(transport={"type": "ReLinear"}, model={"type": "DDT-S/2"})))
    checkpoint = write(tmp_path / "file.pt", golden("ddt").weights)
    monkeypatch.setitem(sizes.PUBLISHED_SIZES, "S", (5, 48, 4))
    words = ["convert", "--checkpoint", checkpoint, "--reference-config", config, "--output", tmp_path / "out"]
    words += ["--num-encoder-layers", 3, "--push-to-hub", "me/model", *(["--torch-dtype", dtype] if dtype else [])]
    assert main([*map(str, words)]) == 0
    assert pushed["repository"] == "me/model"
    assert pushed["files"] == {
        "README.md",
        "model_index.json",
        "pipeline.py",
        "scheduler/README.md",
        "scheduler/scheduler_config.json",
        "training.yaml",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    }
    assert pushed["dtypes"] == {torch.bfloat16 if dtype else torch.float32}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "x"], "`--checkpoint` must be given"),
        (["--checkpoint", "x.pt"], "`--output` must name the folder"),
        (["--checkpoint", "x.pt", "--output", "x", "--preset", "ddt-256", "--reference-config", "y"], "left out with"),
        (["--checkpoint", "none.pt", "--output", "x"], "`--checkpoint` must be a path that exists"),
    ],
)
def test_bad_command_lines_are_told(words, message, capsys):
    assert main(["convert", *words]) == 2
    assert message in capsys.readouterr().err


# The reference's files of settings


def reference(**changes):
    """Sections of a file with every entry that the reference knows."""
    sections = {
        "output_dir": "./outputs",
        "data": {"data_path": "a", "fid_reference_file": "b", "image_size": 256, "num_classes": 1000, "num_workers": 8}
        | {"latent_norm": True, "latent_multiplier": 0.5},
        "vae": {"type": "vavae_f16d32", "downsample_ratio": 16},
        "model": {"type": "LightningDiT-XL/1", "in_chans": 32},
        "train": {"ckpt": "c", "no_reopt": True, "no_reuni": True, "no_buffer": False, "max_steps": 500}
        | {"global_batch_size": 64, "global_seed": 3, "log_every": 7, "ckpt_every": 70, "ema_decay": 0.99},
        "optimizer": {"type": "RAdam", "lr": "1e-4", "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.99}
        | {"max_grad_norm": 0.2},
        "transport": {"type": "Linear", "lab_drop_ratio": 0.2, "consistc_ratio": 1.0, "enhanced_ratio": 1.3}
        | {"scaled_cbl_eps": 5.0, "ema_decay_rate": 1.0, "enhanced_range": [0.1, 0.7], "wt_cosine_loss": False}
        | {"time_dist_ctrl": [0.8, 1.0, 1.0], "weight_funcion": "Cosine"},
        "sample": {"ckpt": "d", "type": "UNI", "cfg_scale": 2.0, "cfg_interval": [0.25, 1.0], "sampling_steps": 7}
        | {"stochast_ratio": 0.5, "extrapol_ratio": 0.3, "sampling_order": 2, "time_dist_ctrl": [1.1, 0.7, 1.2]}
        | {"rfba_gap_steps": [0.001, 0.3], "per_batch_size": 5, "fid_sample_num": 10},
    }
    for section, entries in changes.items():
        if entries is None:
            del sections[section]
        else:
            sections[section] = sections[section] | entries
    return sections


def read(tmp_path, sections):
    path = tmp_path / "reference.yaml"
    path.write_text(yaml.safe_dump(sections))
    return read_reference_config(path)


def test_every_entry_of_the_reference_has_its_place(tmp_path):
    sections = reference()
    named = {(section, key) for section, entries in sections.items() if section != "output_dir" for key in entries}
    assert named == set(SPELLINGS) | LEFT_OUT
    recipe = read(tmp_path, sections)
    assert recipe.scheduler == {
        "transport": "linear",
        "stochasticity": 0.5,
        "extrapolation_ratio": 0.3,
        "solver_order": 2,
        "solver_type": "noise",
        "time_warp": (1.1, 0.7, 1.2),
        "time_gaps": (0.001, 0.3),
        "num_train_timesteps": 1,
    }
    assert recipe.call == {"num_inference_steps": 7, "guidance_scale": 2.0, "guidance_interval": (0.25, 1.0)}
    assert (recipe.network, recipe.autoencoder) == ("LightningDiT-XL/1", "vavae_f16d32")
    assert (recipe.image_size, recipe.scaling_factor) == (256, 0.5)
    config = UCGMTrainingConfig(output_dir="run", **recipe.training)
    expected = {
        "consistency_ratio": 1.0,
        "enhancement_ratio": 1.3,
        "enhancement_range": (0.1, 0.7),
        "huber_c": 5.0,
        "cosine_term": False,
        "cosine_weighting": True,
        "label_dropout": 0.2,
        "time_distribution": (0.8, 1.0, 1.0),
        "teacher_decay": 1.0,
        "optimizer": "radam",
        "learning_rate": 1e-4,
        "adam_weight_decay": 0.1,
        "adam_beta1": 0.8,
        "adam_beta2": 0.99,
        "max_grad_norm": 0.2,
        "max_train_steps": 500,
        "train_batch_size": 64,
        "seed": 3,
        "logging_steps": 7,
        "checkpointing_steps": 70,
        "ema_decay": 0.99,
        "nonfinite_gradients": "zero",
    }
    assert {name: getattr(config, name) for name in expected} == expected


def test_reversed_networks_get_a_canonical_interval(tmp_path):
    recipe = read(tmp_path, reference(transport={"type": "ReLinear"}, sample={"cfg_interval": [0.125, 1.0]}))
    assert recipe.call["guidance_interval"] == (0.0, 0.875)
    assert recipe.scheduler["transport"] == "relinear"


def test_files_that_only_sample_have_no_training_and_no_guidance_no_interval(tmp_path):
    recipe = read(tmp_path, reference(optimizer=None, sample={"cfg_scale": 0.0}))
    assert recipe.training == {}
    assert recipe.call == {"num_inference_steps": 7, "guidance_scale": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": {"steps": 3}}, r"`sample\.steps` must be an entry that the reference knows"),
        ({"sample": {"type": "ODE"}}, r"`sample\.type` must be 'UNI', got 'ODE'"),
        ({"optimizer": {"type": "Lion"}}, r"`optimizer\.type` must be one of \['AdamW', 'RAdam'\], got 'Lion'"),
        ({"data": {"image_size": "large"}}, r"`data\.image_size`"),
    ],
)
def test_unknown_entries_are_named(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, reference(**changes))


def test_a_converted_model_is_checked_tuned_and_drawn_by_the_command_line(tmp_path, capsys):
    checkpoint = checkpoint_with(tmp_path, 4, 8, "ddt")
    vae = write(tmp_path / "vae.ckpt", golden("vae").weights)
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump(reference(train={"max_steps": 2, "ckpt_every": 2})))
    recipe = read_reference_config(tmp_path / "reference.yaml")
    recipe = type(recipe)({**recipe.scheduler, "transport": "relinear"}, recipe.call, recipe.training)
    folder = convert_checkpoint(checkpoint, tmp_path / "pipeline", recipe, vae=vae, **SETTINGS["ddt"])
    data = tmp_path / "data.safetensors"
    save_file({"latents": torch.randn(8, 4, 8, 8), "class_labels": torch.arange(8)}, data)
    settings = ["--data", data, "--config", folder / "training.yaml", "--train-batch-size", 4]
    # Nothing is wrong but that random weights predict nothing.
    assert main([*map(str, ["doctor", "--pipeline", folder, *settings])]) == 1
    printed = capsys.readouterr().out
    assert "predicting nothing" in printed
    assert "1 errors" in printed
    run = tmp_path / "run"
    assert main([*map(str, ["train", "--pipeline", folder, *settings, "--output-dir", run])]) == 0
    assert main([*map(str, ["train", "--model", run / "transformer", *settings, "--output-dir", run / "more"])]) == 0
    config = run / "transformer" / "config.json"
    assert main([*map(str, ["train", "--model", config, *settings, "--output-dir", run / "new"])]) == 0
    picture = tmp_path / "picture.png"
    assert main(["sample", "--model", str(run / "pipeline"), "--labels", "3", "--output", str(picture)]) == 0
    assert np.asarray(Image.open(picture)).std() > 1
    assert (
        main([*map(str, ["train", "--pipeline", folder, "--data", data, "--config", folder / "training.yaml"])]) == 2
    )
    assert "`--output-dir` must be given" in capsys.readouterr().err


def test_settings_alone_are_written_and_read_by_what_they_are_for(tmp_path, capsys):
    path = tmp_path / "reference.yaml"
    path.write_text(yaml.safe_dump(reference()))
    words = ["convert", "--reference-config", str(path), "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert "guidance_scale=2.0" in capsys.readouterr().out
    config = UCGMTrainingConfig.from_file(tmp_path / "out" / "training.yaml", output_dir="run")
    assert config.huber_c == 5.0
    call = json.loads((tmp_path / "out" / "call_defaults.json").read_text())
    assert call == {"num_inference_steps": 7, "guidance_scale": 2.0, "guidance_interval": [0.25, 1.0]}
    UCGMPipeline(convert_network(golden("tit").weights), None, UCGMScheduler(), call_defaults=call)
    assert main(["info", str(tmp_path / "out" / "scheduler")]) == 0
    assert "linear" in capsys.readouterr().out
