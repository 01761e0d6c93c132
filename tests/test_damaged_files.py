"""Files that are damaged, or say something else than they should, are named."""

import json

import pytest
import torch
from class_pipelines import pipeline
from safetensors.torch import load_file, save_file

from diffusers_ucgm.conversion.reference import read_reference_config
from diffusers_ucgm.files import read_yaml
from diffusers_ucgm.image_metrics.features import load_features
from diffusers_ucgm.loading import load_pipeline
from diffusers_ucgm.names import BUNDLED_CLASSIFIERS
from diffusers_ucgm.training.checkpoints import load_checkpoint, naming


DAMAGED = [b"a: [1, 2", b"\xff\xfe", b"a: b: c", b"? [a]\n: 1", b"a: *b", b"a: !!python/name:os.getcwd", b"[" * 3000]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_yaml_is_named(content, tmp_path):
    (tmp_path / "a.yaml").write_bytes(content)
    for read in (read_yaml, read_reference_config):
        with pytest.raises(ValueError, match="a.yaml"):
            read(tmp_path / "a.yaml")


def test_yaml_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` must be a YAML file, got .*a.yaml"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("damage", ["name", "none"])
def test_weights_that_are_not_there_are_named(damage, tmp_path):
    pipeline(None).save_pretrained(tmp_path)
    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]
    tensors = {} if damage == "none" else {**tensors, f"{first}_": tensors.pop(first)}
    save_file({name: value for name, value in tensors.items() if name != first}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="transformer.* must hold all weights of its config.json"):
        load_pipeline(str(tmp_path))


def test_a_damaged_classifier_is_named(tmp_path):
    config = json.loads((BUNDLED_CLASSIFIERS["fashion-mnist-classifier"] / "config.json").read_text())
    key = next(name for name, value in config.items() if isinstance(value, list))
    (tmp_path / "config.json").write_text(json.dumps({**config, key: [None]}))
    with pytest.raises(ValueError, match="`features` must be a whole classifier, got"):
        load_features(str(tmp_path))


@pytest.mark.parametrize("state", [[], 5, {"config": "banana"}])
def test_a_damaged_state_is_named(state, tmp_path):
    (tmp_path / "state.json").write_text(json.dumps(state))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="`folder` must be a whole checkpoint, got .*state.json"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("value", [2**70, [2, 2**40]])
def test_a_configuration_that_nothing_can_be_built_from_is_named(value, tmp_path):
    pipeline(None).save_pretrained(tmp_path)
    file = tmp_path / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_layers": value}))
    with pytest.raises(ValueError, match="config.json' must have numbers below .*num_layers"):
        load_pipeline(str(tmp_path))


@pytest.mark.parametrize("error", [KeyError("step"), RuntimeError("expected sequence"), TypeError("banana")])
def test_what_a_checkpoint_holds_is_named_in_every_error(error):
    with (
        pytest.raises(ValueError, match="`folder` must be a whole checkpoint, got 'run/checkpoint-2'"),
        naming("run/checkpoint-2"),
    ):
        raise error
