"""`ucgm convert`, and the commands that read what it writes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from checkpoint_files import checkpoint_with, golden_config, reference, write
from class_pipelines import autoencoder
from networks import NAMES, SETTINGS, TINY_DC, golden, original_dc, synthetic, tiny_dc
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusers_ucgm import PRESETS, UCGMPipeline, UCGMScheduler, UCGMTrainingConfig
from diffusers_ucgm.cli import main, parser_for
from diffusers_ucgm.conversion import autoencoders, sizes
from diffusers_ucgm.conversion.autoencoders import AUTOENCODERS, convert_autoencoder
from diffusers_ucgm.conversion.commands import read_id2label
from diffusers_ucgm.conversion.convert import convert_checkpoint, recipe_from
from diffusers_ucgm.conversion.networks import ARCHITECTURES, convert_network
from diffusers_ucgm.conversion.reference import read_reference_config
from diffusers_ucgm.conversion.sizes import published_settings
from diffusers_ucgm.pipeline import normalize_latents


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
    text = (Path(__file__).parents[2] / "docs" / "paper-models.md").read_text()
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


@pytest.mark.parametrize("names", [[[1], [2]], {"a": "b"}, {"0": 1}, "Bag", 5])
def test_names_of_classes_are_texts(names, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps(names))
    with pytest.raises(ValueError, match="`--id2label` must hold a name for each class id, got .*names.json"):
        read_id2label(tmp_path / "names.json")


@pytest.mark.parametrize("content", [None, "[1, 2]", "a: [1", "sample: 3"])
def test_a_reference_file_that_holds_no_settings_is_named_with_its_option(content, tmp_path, capsys):
    file = tmp_path / "a.yaml"
    if content is None:
        file.mkdir()
    else:
        file.write_text(content)
    assert main(["convert", "--reference-config", str(file), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert str(file) in said
    assert "`path`" not in said


def test_damaged_names_of_classes_are_named_with_their_option(tmp_path):
    (tmp_path / "names.json").write_text("[")
    with pytest.raises(ValueError, match="`--id2label` '.*names.json' must hold a value in JSON, got a truncated"):
        read_id2label(tmp_path / "names.json")
    with pytest.raises(ValueError, match="`--id2label` must be a JSON file .*, got the folder"):
        read_id2label(tmp_path)
