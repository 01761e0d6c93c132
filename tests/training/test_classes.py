"""`ucgm cache` gives every image the model's class of its folder, or refuses."""

import json
import shutil

import datasets
import pytest
import stock_pipelines
from diffusers import DiTPipeline
from diffusers.utils import logging
from PIL import Image

from diffusers_ucgm import UCGMPipeline, UCGMTrainer, UCGMTrainingConfig
from diffusers_ucgm.cli import main
from diffusers_ucgm.data.images import ImageSource, load_image_dataset
from diffusers_ucgm.data.latent_cache import CachedLatents
from diffusers_ucgm.generation.conditions import conditions_for
from diffusers_ucgm.training.adapters import adapter_for_pipeline
from diffusers_ucgm.training.classes import classes_of, matched_source


pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.fixture(scope="module")
def model():
    return UCGMPipeline.from_pretrained("fashion-mnist")


def photos(folder, names, depth=""):
    for name in names:
        (folder / name / depth).mkdir(parents=True)
        Image.effect_noise((32, 32), 60).save(folder / name / depth / f"{len(name)}.png")
    return folder


def cached(source, output, *more):
    words = ["cache", "--pipeline", "fashion-mnist", "--source", str(source), "--size", "32"]
    return main([*words, "--output", str(output), *more])


def matched(source, pipe, label_map=None):
    return matched_source(source, pipe, adapter_for_pipeline(pipe), label_map)


def test_folders_are_cached_as_the_classes_they_are_called(tmp_path, capsys):
    folder = photos(tmp_path / "photos", ["Bag", "ankle_boot", "t-shirt_top"])
    assert cached(folder, tmp_path / "cache") == 0
    printed = capsys.readouterr().out
    for line in ("Bag         -> 8 (Bag)", "ankle_boot  -> 9 (Ankle boot)", "t-shirt_top -> 0 (T-shirt/top)"):
        assert line in printed
    data = CachedLatents(tmp_path / "cache")
    assert sorted(each["class_labels"].item() for each in data) == [0, 8, 9]
    assert data.index["labels"]["classes"] == {"Bag": 8, "ankle_boot": 9, "t-shirt_top": 0}


def test_another_folder_is_refused_unless_the_map_names_it(tmp_path, capsys):
    folder = photos(tmp_path / "photos", ["Bag", "Trainers"])
    assert cached(folder, tmp_path / "cache") == 2
    error = capsys.readouterr().err
    assert "got ['Bag', 'Trainers']: 'Trainers' is no class." in error
    assert "7: 'Sneaker'" in error
    assert not (tmp_path / "cache").exists()
    (tmp_path / "map.json").write_text(json.dumps({"Trainers": "sneaker"}))
    assert cached(folder, tmp_path / "cache", "--label-map", str(tmp_path / "map.json")) == 0
    assert "Trainers -> 7 (Sneaker)" in capsys.readouterr().out
    (tmp_path / "map.json").write_text("{")
    assert cached(folder, tmp_path / "other", "--label-map", str(tmp_path / "map.json")) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_folders_of_unequal_depth_have_no_classes(tmp_path, capsys):
    folder = photos(tmp_path / "photos", ["Bag"])
    photos(folder, ["Sneaker"], depth="deep")
    assert cached(folder, tmp_path / "cache") == 2
    error = capsys.readouterr().err
    assert "must name the classes that DiTTransformer2DModel takes" in error
    assert "its images lie at different depths, such as 'Bag/" in error
    assert "all at the same depth" in error
    assert not (tmp_path / "cache").exists()


def rows(features, **columns):
    number = len(next(iter(columns.values())))
    features = datasets.Features({"image": datasets.Value("binary"), **features})
    return datasets.Dataset.from_dict({"image": [b""] * number, **columns}, features=features)


def test_only_labels_that_are_used_must_be_classes(model):
    label = datasets.ClassLabel(names=["unknown", "Bag", "Coat"])
    source = ImageSource(rows({"label": label}, label=[1, 2, 1]), "image", "label", None, tuple(label.names))
    _, mapping = matched(source, model)
    assert mapping.classes == {"Bag": 8, "Coat": 4}
    source = ImageSource(rows({"label": label}, label=[1, 0, -1]), "image", "label", None, tuple(label.names))
    with pytest.raises(ValueError, match="'unknown' is no class"):
        matched(source, model)


def test_ids_out_of_range_are_found_before_an_image_is_read(model):
    source = ImageSource(rows({"label": datasets.Value("int64")}, label=[0, 10]), "image", "label")
    with pytest.raises(ValueError, match="must be ids from 0 to 9, the classes of the model, got 10"):
        matched(source, model)


def test_a_network_of_prompts_takes_captions_and_no_labels():
    pipe = stock_pipelines.sd15().pipe
    texts = {"text": datasets.Value("string"), "label": datasets.Value("string")}
    source = ImageSource(rows(texts, text=["a"], label=["b"]), "image", "label", "text")
    kept, mapping = matched(source, pipe)
    assert (kept.label_column, kept.caption_column, mapping) == (None, "text", None)
    with pytest.raises(ValueError, match=r"must name the prompts that UNet2DConditionModel takes, got the columns"):
        matched(ImageSource(rows({"label": datasets.Value("int64")}, label=[1]), "image", "label"), pipe)
    with pytest.raises(ValueError, match="`--label-map` must be left out with UNet2DConditionModel"):
        matched(source, pipe, {"b": 1})


def test_a_network_of_classes_takes_labels_and_no_captions(model):
    texts = {"text": datasets.Value("string"), "label": datasets.Value("int64")}
    kept, _ = matched(ImageSource(rows(texts, text=[None], label=[1]), "image", "label", "text"), model)
    assert (kept.label_column, kept.caption_column) == ("label", None)
    with pytest.raises(ValueError, match=r"got the columns \['image', 'text'\], none of them with classes"):
        matched(ImageSource(rows({"text": datasets.Value("string")}, text=["a"]), "image", None, "text"), model)


def test_a_network_without_a_condition_takes_neither():
    pipe = stock_pipelines.ddpm().pipe
    kept, mapping = matched(ImageSource(rows({"label": datasets.Value("int64")}, label=[1]), "image", "label"), pipe)
    assert (kept.label_column, mapping) == (None, None)


def test_the_classes_of_stock_pipelines_are_known(model):
    assert classes_of(model).name(8) == "Bag"
    pipe = stock_pipelines.dit().pipe
    assert len(classes_of(pipe)) == pipe.transformer.config.num_embeds_ada_norm
    assert classes_of(stock_pipelines.sd3().pipe) is None


def test_shards_and_streams_are_matched_when_their_names_come(tmp_path, capsys):
    source = rows({"label": datasets.Value("string")}, label=["bag", "Sneaker"])
    kept, mapping = matched(
        ImageSource(source.to_iterable_dataset(), "image", "label"), UCGMPipeline.from_pretrained("fashion-mnist")
    )
    assert mapping.classes == {}
    assert [mapping("bag"), mapping("Sneaker")] == [8, 7]
    assert kept.label_column == "label"


def test_a_class_may_be_named_as_a_folder_is(model):
    assert model.get_label_ids(["ankle_boot", "T-SHIRT top", "8", "Bag"]) == [9, 0, 8, 8]
    with pytest.raises(ValueError, match=r"got 'Sneakers': 'Sneakers' is no class\. Did you mean 'Sneaker'\?"):
        model.get_label_ids("Sneakers")


def test_names_of_a_stock_class_pipeline_are_its_classes(tmp_path):
    stock = stock_pipelines.dit().pipe
    # It keeps them outside of its config, as it has them from its `model_index.json`.
    pipe = DiTPipeline(stock.transformer, stock.vae, stock.scheduler, id2label={0: "tench, Tinca", 3: "Bag"})
    assert classes_of(pipe).names == {0: "Tinca, tench", 3: "Bag"}
    source = load_image_dataset(str(photos(tmp_path / "photos", ["Bag", "tench"])))
    assert matched_source(source, pipe, adapter_for_pipeline(pipe))[1].classes == {"Bag": 3, "tench": 0}
    assert conditions_for(pipe, None, ["bag", "TINCA", 5, "7"]) == [3, 0, 5, 7]
    with pytest.raises(ValueError, match=r"`conditions` must be .*, got 'Bog': .* is no class\. Did you mean 'Bag'"):
        conditions_for(pipe, None, ["Bog"])


@pytest.mark.parametrize("column", ["image", "several"])
def test_a_column_that_holds_no_class_is_named(tmp_path, capsys, column):
    rows = {"image": [Image.effect_noise((32, 32), 60)], "several": [[1, 2]]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    assert cached(tmp_path / "saved", tmp_path / "cache", "--label-column", column) == 2
    message = f"error: `--label-column` must hold a class's name or id in each row, got '{column}' of "
    assert message in capsys.readouterr().err


def trained(pipe, cache, folder):
    config = UCGMTrainingConfig(str(folder), max_train_steps=1, train_batch_size=2)
    return UCGMTrainer.from_pipeline(config, pipe, CachedLatents(cache))


def changed_index(cache, folder, **entries):
    """A copy of a cache with other entries in its index; None takes one away."""
    shutil.copytree(cache, folder)
    index = {**json.loads((folder / "cache.json").read_text()), **entries}
    (folder / "cache.json").write_text(json.dumps({key: each for key, each in index.items() if each is not None}))
    return folder


@pytest.mark.usefixtures("fresh_accelerate")
def test_training_compares_the_names_of_a_cache_with_the_models(model, tmp_path, caplog):
    cache = tmp_path / "cache"
    assert cached(photos(tmp_path / "photos", ["Bag", "Coat"]), cache) == 0
    logging.enable_propagation()
    trained(model, cache, tmp_path / "run")
    assert caplog.text == ""
    labels = {"classes": {"Bag": 8, "Coat": 4}, "names": {"8": "Purse", "4": "Coat"}}
    renamed = changed_index(cache, tmp_path / "renamed", labels=labels)
    message = r"`dataset` must have the classes of the network .* made for a model with other classes: 8 was 'Purse'"
    with pytest.raises(ValueError, match=message):
        trained(model, renamed, tmp_path / "run")
    earlier = changed_index(cache, tmp_path / "earlier", labels=None, class_counts=None)
    trained(model, earlier, tmp_path / "run")
    assert "The cache is of an earlier version, which numbered folders" in caplog.text
    assert "8: 'Bag'" in caplog.text
    logging.disable_propagation()
