"""What a run needs is known before the network's first call: data, sizes, grids, a tracker, a checkpoint."""

import pytest
import stock_pipelines
import torch

from diffusers_ucgm import UCGMPipeline, UCGMTrainingConfig
from diffusers_ucgm.labels import ModelClasses
from diffusers_ucgm.training import requirements
from diffusers_ucgm.training.adapters import adapter_for_pipeline
from diffusers_ucgm.training.requirements import (
    check_data,
    check_environment,
    check_image_size,
    check_run,
    validation_conditions,
)


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def pipe():
    return UCGMPipeline.from_pretrained("fashion-mnist")


def data(**changes):
    item = {"latents": torch.zeros(4, 8, 8), "class_labels": 3, **changes}
    return [{name: value for name, value in item.items() if value is not None}] * 4


def test_data_must_have_what_the_network_takes(pipe):
    adapter = adapter_for_pipeline(pipe)
    check_data(pipe.transformer, adapter, data())
    with pytest.raises(
        ValueError, match="must have the `class_labels` that DiTTransformer2DModel takes, got latents al"
    ):
        check_data(pipe.transformer, adapter, data(class_labels=None))
    with pytest.raises(ValueError, match=r"got \['encoder_hidden_states'\]"):
        check_data(pipe.transformer, adapter, data(class_labels=None, encoder_hidden_states=torch.zeros(2, 3)))
    with pytest.raises(ValueError, match=r"`class_labels` must be in \[0, 9\], .* got \[10\]"):
        check_data(pipe.transformer, adapter, [*data(), *data(class_labels=10)])
    with pytest.raises(ValueError, match=r"`dataset` must have items with `latents`, got \['class_labels'\]"):
        check_data(pipe.transformer, adapter, data(latents=None))
    for column, value in (("caption", "a bag"), ("caption", ["a bag"]), ("image", None), ("class_labels", "1")):
        with pytest.raises(ValueError, match=f"`dataset` must .*`{column}`|`class_labels`"):
            check_data(pipe.transformer, adapter, [{**each, column: value} for each in data()])
    text = stock_pipelines.sd15().pipe
    with pytest.raises(ValueError, match=r"must have the encoded prompts \['encoder_hidden_states'\]"):
        check_data(text.unet, adapter_for_pipeline(text), data())


@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 8, 16), (3, 8, 8), (4, 1, 8, 8)])
def test_a_network_of_classes_is_trained_in_the_one_shape_that_it_is_sampled_in(pipe, shape):
    message = (
        rf"`latents` must have shape \(4, 8, 8\), which DiT.* is sampled in, got \({', '.join(map(str, shape))}\)"
    )
    with pytest.raises(ValueError, match=message):
        check_data(pipe.transformer, adapter_for_pipeline(pipe), data(latents=torch.zeros(shape)))


def test_sizes_follow_from_the_autoencoder_and_the_network(pipe):
    check_image_size(pipe, adapter_for_pipeline(pipe), 32)
    flux = stock_pipelines.flux().pipe  # an autoencoder of factor 2, patches of 2x2 latents
    for size in (16, 64, (32, 16)):
        check_image_size(flux, adapter_for_pipeline(flux), size)
    with pytest.raises(ValueError, match="`latents` must have sides in whole patches of 2"):
        check_image_size(flux, adapter_for_pipeline(flux), 18)
    with pytest.raises(ValueError, match="`size` must be a multiple of 2"):
        check_image_size(flux, adapter_for_pipeline(flux), 17)
    unet = stock_pipelines.sd15().pipe  # which takes any size
    check_image_size(unet, adapter_for_pipeline(unet), 96)


def test_what_grids_show_is_resolved_at_the_start(pipe):
    assert validation_conditions(pipe, ["bag", 3, "ankle_boot"]) == ["bag", 3, "ankle_boot"]
    dit = stock_pipelines.dit().pipe
    assert validation_conditions(dit, ["1", 0]) == [1, 0]
    with pytest.raises(ValueError, match="5 is no class|classes of the network"):
        validation_conditions(dit, [5000])
    text = stock_pipelines.sd15().pipe
    assert validation_conditions(text, ["a cat"]) == ["a cat"]
    with pytest.raises(ValueError, match=r"must be prompts for StableDiffusionPipeline, got \[3, ' '\]"):
        validation_conditions(text, [3, "a cat", " "])


def test_a_checkpoint_to_resume_from_is_there(tmp_path):
    check_run(UCGMTrainingConfig(str(tmp_path), resume_from_checkpoint="latest"))
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "state.json").write_text("{}")
    check_run(UCGMTrainingConfig(str(tmp_path), resume_from_checkpoint=str(tmp_path / "checkpoint-5")))
    message = r"`resume_from_checkpoint` must be .*checkpoint-7', where .*` has checkpoint-5, checkpoint-10\."
    with pytest.raises(FileNotFoundError, match=message):
        check_run(UCGMTrainingConfig(str(tmp_path), resume_from_checkpoint=str(tmp_path / "checkpoint-7")))


def test_a_tracker_is_one_whose_package_is_installed(monkeypatch):
    monkeypatch.setattr(requirements, "get_available_trackers", lambda: ["tensorboard"])
    check_environment(UCGMTrainingConfig("run", report_to="tensorboard"))
    message = r"`report_to` must be a tracker .*, \['tensorboard'\], got 'wandb'\. Install wandb"
    with pytest.raises(ValueError, match=message):
        check_environment(UCGMTrainingConfig("run", report_to="wandb"))


@pytest.mark.parametrize("available", [False, True])
def test_float16_needs_an_accelerator(available, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    check_environment(UCGMTrainingConfig("run", mixed_precision="bf16"))
    if available:
        check_environment(UCGMTrainingConfig("run", mixed_precision="fp16"))
        return
    with pytest.raises(ValueError, match=r"`mixed_precision` must be 'no' or 'bf16' on a CPU, got 'fp16'"):
        check_environment(UCGMTrainingConfig("run", mixed_precision="fp16"))


def test_labels_of_a_cache_are_compared_with_the_names_of_the_pipeline(pipe):
    class Cache(list):
        index = {"labels": {"names": {"8": "Purse"}, "classes": {}}}

    adapter, items = adapter_for_pipeline(pipe), Cache(data())
    # The network itself has no names.
    check_data(pipe.transformer, adapter, items)
    with pytest.raises(ValueError, match="must have the classes of the network as `class_labels`.*8 was 'Purse'"):
        check_data(pipe.transformer, adapter, items, ModelClasses({8: "Bag"}, 10))
