"""Exported pipelines: the same weights, another scheduler, and the code."""

import json

import pytest

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.export.models import export_standalone, model_folder, sampler_for
from diffusers_ucgm.names import BUNDLED


def test_a_name_or_a_folder_is_a_model(tmp_path):
    assert model_folder("emoji") == BUNDLED["emoji"]
    assert model_folder(str(BUNDLED["fashion-mnist"])) == BUNDLED["fashion-mnist"]
    with pytest.raises(FileNotFoundError, match="`name` must be one of .*, got 'emojy'"):
        model_folder("emojy")
    with pytest.raises(
        ValueError, match="`--model` must be the folder of a pipeline, with model_index.json and a sch"
    ):
        model_folder(str(tmp_path), argument="--model")


def test_the_models_own_sampler_is_kept_and_a_stock_one_replaced(tmp_path):
    own = sampler_for(BUNDLED["fashion-mnist-2-step"])
    assert own.config.stochasticity == 1.0
    stock = sampler_for(BUNDLED["emoji"])
    assert isinstance(stock, UCGMScheduler)
    assert stock.config.extrapolation_ratio == "adaptive"
    assert sampler_for(BUNDLED["emoji"], preset="few-step").config.stochasticity == 1.0
    UCGMScheduler(extrapolation_ratio=0.25).save_pretrained(tmp_path)
    assert sampler_for(BUNDLED["emoji"], str(tmp_path)).config.extrapolation_ratio == 0.25


def test_all_but_the_scheduler_is_copied_as_it_is(tmp_path):
    folder = BUNDLED["emoji"]
    (tmp_path / "source").mkdir()
    for file in folder.rglob("*"):
        if file.is_file():
            place = tmp_path / "source" / file.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    (tmp_path / "source" / "run.json").write_text("{}")
    (tmp_path / "source" / "scheduler" / "README.md").write_text("of the stock scheduler")
    assert export_standalone(tmp_path / "source", tmp_path / "new", UCGMScheduler()) == tmp_path / "new"
    files = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
    found = {file.relative_to(tmp_path / "new") for file in (tmp_path / "new").rglob("*") if file.is_file()}
    assert {each.as_posix() for each in found - files} == {"scheduler/README.md", "scheduler/ucgm_scheduler.py"}
    for file in files:
        if file.name not in ("model_index.json", "scheduler_config.json", "README.md"):
            assert (tmp_path / "new" / file).read_bytes() == (folder / file).read_bytes()
    assert "of the stock scheduler" not in (tmp_path / "new" / "scheduler" / "README.md").read_text()
    before, index = (json.loads((each / "model_index.json").read_text()) for each in (folder, tmp_path / "new"))
    assert index == {**before, "scheduler": ["ucgm_scheduler", "UCGMScheduler"]}


def test_a_model_is_not_exported_into_its_own_folder(tmp_path):
    source = tmp_path / "source"
    UCGMScheduler().save_pretrained(source / "scheduler")
    (source / "model_index.json").write_text('{"_class_name": "ZImagePipeline", "scheduler": ["a", "b"]}')
    for output in (source, source / "inside", tmp_path / "other" / ".." / "source" / "inside"):
        with pytest.raises(ValueError, match="`output` must be outside of the model's folder, got '.*source"):
            export_standalone(source, output, UCGMScheduler())
    assert sorted(each.name for each in source.iterdir()) == ["model_index.json", "scheduler"]


def test_what_cannot_be_exported_leaves_nothing(tmp_path):
    (tmp_path / "source" / "scheduler").mkdir(parents=True)
    (tmp_path / "source" / "model_index.json").write_text('{"_class_name": "ZImagePipeline"}')
    with pytest.raises(ValueError, match="must name a scheduler in model_index.json, got \\['_class_name'\\]"):
        export_standalone(tmp_path / "source", tmp_path / "new", UCGMScheduler())
    assert [each.name for each in tmp_path.iterdir()] == ["source"]
