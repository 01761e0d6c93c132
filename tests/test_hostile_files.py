"""Files that are damaged or of another form: every command names the file, and shows no traceback."""

import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from class_pipelines import autoencoder, pipeline
from PIL import Image
from safetensors.torch import save_file

from diffusers_ucgm.cli import main
from diffusers_ucgm.info import commands


DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    pipeline(autoencoder("kl", channels=1)).save_pretrained(root / "model")
    latents = {"latents": torch.randn(8, 4, 8, 8), "class_labels": torch.arange(8) % 5}
    save_file(latents, root / "latents.safetensors")
    for name in ("Bag", "Coat"):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("L", (32, 32), 60 * i).save(root / "photos" / name / f"{i}.png")
    assert (
        main(
            [
                *"cache --size 16 --pipeline".split(),
                str(root / "model"),
                "--source",
                str(root / "photos"),
                "--output",
                str(root / "cache"),
            ]
        )
        == 0
    )
    return root


@pytest.fixture
def root(originals, tmp_path, monkeypatch):
    """A copy, in the present folder, to be damaged."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(originals, tmp_path / "all")
    monkeypatch.chdir(tmp_path / "all")
    return tmp_path / "all"


TRAIN = "train --pipeline model --data latents.safetensors --output-dir run --max-train-steps 1 --train-batch-size 2"
SAMPLE = "sample --model model --num-images 1 --steps 1 --output grid.png"
EVALUATE = "evaluate --model model --reference photos --num-samples 2 --steps 1 --features fashion-mnist-classifier"
CACHE = "cache --pipeline model --size 16 --output new --source photos"
DOCTOR = "doctor --pipeline model --data cache"


def torn(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def written(text):
    return lambda path: path.write_text(text)


def changed(**changes):
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


JSON_DAMAGES = {
    "empty": written(""),
    "torn": torn,
    "list": written("[1, 2]"),
    "null": written("null"),
    "number": written("3"),
    "text": written('"a"'),
    "deep": written(DEEP),
    "bytes": lambda path: path.write_bytes(bytes(range(128, 256))),
    "huge number": written('{"a": ' + "9" * 5000 + "}"),
}
FILES_OF_JSON = [
    (SAMPLE, "model/model_index.json"),
    (SAMPLE, "model/transformer/config.json"),
    (SAMPLE, "model/vae/config.json"),
    (SAMPLE, "model/scheduler/scheduler_config.json"),
    (f"{SAMPLE} --scheduler model/scheduler", "model/scheduler/scheduler_config.json"),
    (TRAIN.replace("--pipeline model", "--model model/transformer"), "model/transformer/config.json"),
    (TRAIN.replace("--pipeline model", "--model model/transformer/config.json"), "model/transformer/config.json"),
    (DOCTOR, "cache/cache.json"),
    ("info model", "model/model_index.json"),
    ("info model/transformer", "model/transformer/config.json"),
    ("info model/scheduler", "model/scheduler/scheduler_config.json"),
    ("info cache", "cache/cache.json"),
    (f"{TRAIN} --config settings.json", "settings.json"),
    (f"{CACHE} --label-map settings.json", "settings.json"),
]


def test_what_is_whole_is_taken(root, capsys):
    # Otherwise the refusals below would show nothing.
    assert main(DOCTOR.split()) in (0, 1)
    assert "ucgm: error" not in capsys.readouterr().err
    for words in (TRAIN, SAMPLE, TRAIN.replace("latents.safetensors", "cache").replace("run", "other")):
        assert main(words.split()) == 0


def refused(words, capsys, *names):
    """Run a command, and see that its error names the file."""
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert "ucgm: error: " in error
    assert "unexpected" not in error, error
    assert "Traceback" not in error
    assert any(name in error for name in names), error


@pytest.mark.parametrize("damage", JSON_DAMAGES)
@pytest.mark.parametrize(("words", "file"), FILES_OF_JSON, ids=lambda each: each[:60])
def test_damaged_json_is_named(root, capsys, words, file, damage):
    if not (root / file).exists():
        (root / file).write_text("{}")
    JSON_DAMAGES[damage](root / file)
    refused(words, capsys, file, file.rpartition("/")[2])


@pytest.mark.parametrize(
    ("words", "file", "damage"),
    [
        (SAMPLE, "model/model_index.json", changed(_class_name=3)),
        (SAMPLE, "model/model_index.json", changed(_class_name="NoPipeline")),
        (SAMPLE, "model/model_index.json", changed(transformer=["diffusers", "NoTransformer"])),
        (SAMPLE, "model/model_index.json", changed(transformer=["no_module", "DiTTransformer2DModel"])),
        (SAMPLE, "model/model_index.json", changed(transformer=None)),
        (SAMPLE, "model/model_index.json", changed(transformer={"a": 1})),
        (SAMPLE, "model/model_index.json", changed(text_encoder=["transformers", "CLIPTextModel"])),
        (SAMPLE, "model/model_index.json", changed(id2label=3)),
        (SAMPLE, "model/model_index.json", changed(call_defaults=[1])),
        (SAMPLE, "model/model_index.json", changed(call_defaults={"hight": 3})),
        (SAMPLE, "model/transformer/config.json", changed(num_layers="many")),
        (SAMPLE, "model/transformer/config.json", changed(num_layers=99)),
        (SAMPLE, "model/transformer/config.json", changed(attention_head_dim=None)),
        (SAMPLE, "model/scheduler/scheduler_config.json", changed(transport=["linear"])),
        (SAMPLE, "model/scheduler/scheduler_config.json", changed(_class_name=None)),
        (f"{SAMPLE} --scheduler model/scheduler", "model/scheduler/scheduler_config.json", changed(_class_name="X")),
        (SAMPLE, "model/transformer/diffusion_pytorch_model.safetensors", torn),
        (SAMPLE, "model/vae/diffusion_pytorch_model.safetensors", written("weights")),
        (TRAIN, "latents.safetensors", torn),
        (TRAIN, "latents.safetensors", written("")),
        (TRAIN, "latents.safetensors", lambda path: save_file({"latents": torch.zeros(4, 4, 8, 8)}, path)),
        (
            TRAIN,
            "latents.safetensors",
            lambda path: save_file({"latents": torch.zeros(4), "class_labels": torch.zeros(4)}, path),
        ),
        (
            TRAIN,
            "latents.safetensors",
            lambda path: save_file({"latents": torch.zeros(4, 4, 8, 8), "class_labels": torch.zeros(3).long()}, path),
        ),
        (DOCTOR, "cache/cache.json", changed(counts="all")),
        (DOCTOR, "cache/cache.json", changed(counts=[3])),
        (DOCTOR, "cache/cache.json", changed(columns=["x"])),
        (DOCTOR, "cache/cache.json", changed(num_samples=99)),
        (DOCTOR, "cache/shard-00000.safetensors", torn),
    ],
)
def test_damaged_models_and_data_are_named(root, capsys, words, file, damage):
    damage(root / file)
    refused(words, capsys, *file.split("/")[:2], "`--model`", "`call_defaults`", "`id2label`")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.yaml", "a: [1, 2\nb: }"),
        ("run.yaml", "- 1\n- 2"),
        ("run.yaml", ""),
        ("run.yaml", "\x00\x01"),
        ("run.yaml", "learning_rate: [1, 2]"),
        ("run.yaml", "lerning_rate: 1"),
        ("run.yaml", "1: 2"),
        ("run.yaml", "? [a, b]\n: c"),
        ("run.yaml", "&a [*a]"),
        ("run.json", '{"learning_rate": "high"}'),
        ("run.json", '{"consistency_ratio": [[0]]}'),
        ("run.json", '{"validation_inputs": 3}'),
        ("run.json", '{"max_train_steps": 1e9999}'),
        ("run.json", '{"output_dir": 7}'),
    ],
)
def test_damaged_files_of_settings_are_named(root, capsys, name, text):
    (root / name).write_text(text)
    words = TRAIN.replace(
        " --output-dir run --max-train-steps 1",
        "" if "output_dir" in text or "max_" in text else " --output-dir run --max-train-steps 1",
    )
    setting = text.strip('{"').partition('"')[0].partition(":")[0]
    refused(f"{words} --config {name}", capsys, name, f"`{setting}`", "`output_dir`", "`--output-dir`")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        b"not an archive",
        "torn",
        {"mu": np.zeros(3)},
        {"mu": np.zeros(128), "sigma": np.zeros((3, 3))},
        {"arr_0": np.zeros((2, 3))},
        {"mu": np.array(["a"]), "sigma": np.array(["b"])},
    ],
    ids=str,
)
def test_damaged_statistics_are_named(root, capsys, content):
    file = root / "reference.npz"
    if isinstance(content, dict):
        np.savez(file, **content)
    elif content == "torn":
        np.savez(file, mu=np.zeros(128), sigma=np.eye(128))
        torn(file)
    else:
        file.write_bytes(content)
    refused(EVALUATE.replace("photos", "reference.npz"), capsys, "reference.npz")


def test_a_torn_shard_is_named(root, capsys):
    (root / "shards").mkdir()
    with tarfile.open(root / "shards" / "a.tar", "w") as archive:
        archive.add(root / "photos" / "Bag" / "0.png", "0.png")
    (root / "shards" / "b.tar").write_bytes((root / "shards" / "a.tar").read_bytes()[:700])
    refused(CACHE.replace("photos", "shards"), capsys, "b.tar")


def test_an_unexpected_error_says_how_to_see_more(root, capsys, monkeypatch):
    def failing(args):
        return {}["nothing"]

    monkeypatch.setitem(commands.COMMANDS, "info", failing)
    assert main(["info", "model"]) == 2
    error = capsys.readouterr().err
    assert "ucgm: error: unexpected KeyError: 'nothing'" in error
    assert "UCGM_TRACEBACK=1" in error
    with pytest.raises(KeyError):
        main(["info", "model", "--traceback"])
    monkeypatch.setenv("UCGM_TRACEBACK", "1")
    with pytest.raises(KeyError):
        main(["info", "model"])
