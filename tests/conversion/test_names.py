"""The names in original checkpoints: wrappers, groups of weights and heads of training."""

import pytest
import torch
from checkpoint_files import write
from networks import golden
from safetensors.torch import save_file

from diffusers_ucgm.cli import main
from diffusers_ucgm.conversion.convert import convert_checkpoint
from diffusers_ucgm.conversion.files import read_state_dict


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
