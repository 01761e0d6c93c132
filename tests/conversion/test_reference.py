"""Configs of the reference become settings of a recipe."""

import pytest
import yaml
from checkpoint_files import reference

from diffusers_ucgm import UCGMTrainingConfig
from diffusers_ucgm.conversion.reference import LEFT_OUT, SPELLINGS, read_reference_config


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
