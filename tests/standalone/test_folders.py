"""Saved folders load without this package, and give the same numbers to the bit."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from class_pipelines import autoencoder, pipeline
from safetensors.torch import load_file

from diffusers_ucgm import (
    TRANSPORTS,
    UCGMPipeline,
    UCGMScheduler,
    UCGMTransformer2DModel,
    add_second_time,
    register_transport,
)
from diffusers_ucgm.cli import main
from diffusers_ucgm.loading import load_pipeline
from diffusers_ucgm.standalone.folders import make_standalone


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

# Four calls at the times that this pipeline gives, each with more of the history.
FITTED = {
    "timesteps": [1000.0, 750.0, 500.0, 250.0],
    "weights": [[0.8, 0.2], [0.6, 0.5, -0.1], [0.4, 0.7, -0.15, 0.05], [0.0, 1.1, -0.2, 0.15, -0.05]],
}
CALLS = {
    "stock": {"prompt": "a red heart", "height": 32, "width": 32},
    "fitted": {"prompt": "a red heart", "height": 32, "width": 32},
    "classes": {"class_labels": [0, 5]},
    "two-times": {"class_labels": [0, 3]},
    "own-network": {"class_labels": [0, 3]},
}
SAMPLE = """
def sample(pipe, call):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(**call, num_inference_steps=4, generator=generator, output_type="pt").images.contiguous()
"""
NAMES = {"torch": torch}
exec(SAMPLE, NAMES)
sample = NAMES["sample"]
# A process that cannot import this package loads, samples, saves, and loads what it saved.
REFUSING_US = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "diffusers_ucgm":
            raise ModuleNotFoundError(f"{name} is not to be used here", name=name)

sys.meta_path.insert(0, Refuse())
"""
WITHOUT_US = f"""
{REFUSING_US}
import copy, json
from pathlib import Path
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
{SAMPLE}
folder, calls, found = Path(sys.argv[1]), json.loads(sys.argv[2]), {{}}
for name, call in calls.items():
    pipe = DiffusionPipeline.from_pretrained(folder / name, trust_remote_code=True)
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    found[name] = sample(pipe, call)
    if name in ("fitted", "two-times"):
        pipe.save_pretrained(folder / f"{{name}}-again")
        pipe = DiffusionPipeline.from_pretrained(folder / f"{{name}}-again", trust_remote_code=True)
        found[f"{{name}}-again"] = sample(pipe, call)
assert not [name for name in sys.modules if name.startswith("diffusers_ucgm")]
save_file(found, folder / "images.safetensors")
"""


def output_without_us(folder, code, *arguments):
    """What a process prints that has no access to this package."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(folder / "modules")}
    words = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "were not found in your environment" not in result.stderr
    return result.stdout


def without_us(folder):
    """The images of pipelines in a process that has no access to this package."""
    output_without_us(folder, WITHOUT_US, str(folder), json.dumps(CALLS))
    return load_file(folder / "images.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of pipelines with their code, and the images that this process makes of each pipeline."""
    folder = tmp_path_factory.mktemp("saved")
    emoji = load_pipeline("emoji")
    pipes = {"classes": UCGMPipeline.from_pretrained("fashion-mnist")}
    two_times = pipeline(autoencoder("kl"), UCGMScheduler(target_time="next", extrapolation_ratio=0.0))
    torch.manual_seed(0)
    for parameter in add_second_time(two_times.transformer).second_time_embedder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network = UCGMTransformer2DModel(8, num_layers=2, num_attention_heads=2, attention_head_dim=8, num_classes=5)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipes |= {"two-times": two_times, "own-network": UCGMPipeline(network.eval(), autoencoder("kl"), UCGMScheduler())}
    images = {}
    for name, pipe in pipes.items():
        pipe.save_pretrained(folder / name, standalone=True)
        images[name] = sample(pipe, CALLS[name])
    # A stock pipeline does not know `standalone`: its scheduler does.
    emoji.scheduler = UCGMScheduler.from_config(emoji.scheduler.config)
    emoji.save_pretrained(folder / "stock")
    emoji.scheduler.save_pretrained(folder / "stock" / "scheduler", standalone=True)
    images["stock"] = sample(emoji, CALLS["stock"])
    emoji.scheduler = UCGMScheduler.from_config(emoji.scheduler.config, fitted_solvers=[FITTED])
    emoji.scheduler.save_pretrained(folder / "fit")
    words = ["--model", "emoji", "--scheduler", str(folder / "fit"), "--output", str(folder / "fitted")]
    assert main(["export", *words, "--standalone"]) == 0
    images["fitted"] = sample(emoji, CALLS["fitted"])
    assert not torch.equal(images["fitted"], images["stock"])
    return folder, images


@pytest.mark.parametrize("model", ["emoji", "fashion-mnist"])
def test_an_exported_model_loads_by_the_first_lines_of_its_readme(model, tmp_path):
    assert main(["export", "--model", model, "--output", str(tmp_path / "new"), "--standalone"]) == 0
    lines = (tmp_path / "new" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = f"{REFUSING_US}\n{lines.replace('this/repository', str(tmp_path / 'new'))}\nprint(type(pipe.scheduler))"
    assert "ucgm_scheduler.UCGMScheduler" in output_without_us(tmp_path, code)


def test_folders_load_without_this_package_and_give_the_same_bits(saved):
    folder, images = saved
    found = without_us(folder)
    for name in CALLS:
        assert torch.equal(found[name], images[name]), name
    # What a process without the package saves is as complete.
    for name in ("fitted-again", "two-times-again"):
        original = folder / name.removesuffix("-again")
        assert torch.equal(found[name], images[original.name])
        code = {file.relative_to(original) for file in original.rglob("*.py")}
        assert {file.relative_to(folder / name) for file in (folder / name).rglob("*.py")} == code
        for file in code:
            assert (folder / name / file).read_text() == (original / file).read_text()


@pytest.mark.parametrize("name", CALLS)
def test_folders_load_with_this_package_which_then_runs_none_of_their_code(saved, name):
    folder, images = saved
    pipe = load_pipeline(str(folder / name))
    assert isinstance(pipe.scheduler, UCGMScheduler)
    assert torch.equal(sample(pipe, CALLS[name]), images[name])
    if name not in ("stock", "fitted"):
        assert isinstance(UCGMPipeline.from_pretrained(folder / name), UCGMPipeline)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        diffusers.DiffusionPipeline.from_pretrained(folder / name)


def test_the_index_names_the_files(saved):
    folder, _ = saved
    files = {
        "stock": ["scheduler/ucgm_scheduler.py"],
        "fitted": ["scheduler/ucgm_scheduler.py"],
        "classes": ["pipeline.py", "scheduler/ucgm_scheduler.py"],
        "two-times": ["pipeline.py", "scheduler/ucgm_scheduler.py", "transformer/ucgm_second_time.py"],
        "own-network": ["pipeline.py", "scheduler/ucgm_scheduler.py", "transformer/ucgm_transformer_2d.py"],
    }
    for name, expected in files.items():
        assert sorted(each.relative_to(folder / name).as_posix() for each in (folder / name).rglob("*.py")) == expected
        index = json.loads((folder / name / "model_index.json").read_text())
        named = [
            (part, value[0]) for part, value in index.items() if part != "_class_name" and isinstance(value, list)
        ]
        assert [f"{part}/{module}.py" for part, module in named if module and module.startswith("ucgm_")] == [
            each for each in expected if each != "pipeline.py"
        ]
        assert (index["_class_name"] == ["pipeline", "UCGMPipeline"]) == ("pipeline.py" in expected)
        assert "trust_remote_code=True" in (folder / name / "scheduler" / "README.md").read_text()
    assert "trust_remote_code=True" in (folder / "two-times" / "README.md").read_text()


def test_a_scheduler_alone_is_a_module_that_python_imports(tmp_path, monkeypatch):
    scheduler = UCGMScheduler(fitted_solvers=[FITTED])
    scheduler.save_pretrained(tmp_path / "new", standalone=True)
    assert sorted(os.listdir(tmp_path / "new")) == ["README.md", "scheduler_config.json", "ucgm_scheduler.py"]
    monkeypatch.syspath_prepend(tmp_path / "new")
    monkeypatch.delitem(sys.modules, "ucgm_scheduler", raising=False)
    module = importlib.import_module("ucgm_scheduler")
    monkeypatch.delitem(sys.modules, "ucgm_scheduler")
    loaded = module.UCGMScheduler.from_pretrained(tmp_path / "new")
    assert not isinstance(loaded, UCGMScheduler)
    assert loaded.config.fitted_solvers == [FITTED]
    loaded.set_timesteps(4)
    scheduler.set_timesteps(4)
    assert loaded.timesteps.tolist() == scheduler.timesteps.tolist() == FITTED["timesteps"]
    scheduler.save_pretrained(tmp_path / "plain")
    assert sorted(os.listdir(tmp_path / "plain")) == ["README.md", "scheduler_config.json"]
    assert "import diffusers_ucgm" in (tmp_path / "plain" / "README.md").read_text()


def test_a_folder_of_a_stock_pipeline_without_our_parts_stays_as_it_is(tmp_path):
    index = {"_class_name": "ZImagePipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert make_standalone(tmp_path) == []
    assert json.loads((tmp_path / "model_index.json").read_text()) == index
    assert [each.name for each in Path(tmp_path).iterdir()] == ["model_index.json"]


def test_code_that_is_not_all_here_is_refused(tmp_path, monkeypatch):
    class Mine(UCGMScheduler):
        pass

    class MyPipeline(UCGMPipeline):
        pass

    with pytest.raises(
        ValueError, match="`standalone` must be False for a class .* got Mine, .* Save a UCGMScheduler"
    ):
        Mine().save_pretrained(tmp_path / "a", standalone=True)
    mine = MyPipeline(**pipeline().components)
    with pytest.raises(ValueError, match="got MyPipeline, .* Save a UCGMPipeline"):
        mine.save_pretrained(tmp_path / "b", standalone=True)
    monkeypatch.setattr("diffusers_ucgm.transports.TRANSPORTS", TRANSPORTS)
    register_transport("of-this-test", TRANSPORTS["linear"])
    try:
        for saver in (
            UCGMScheduler(transport="of-this-test"),
            pipeline(None, UCGMScheduler(transport="of-this-test")),
        ):
            with pytest.raises(
                ValueError, match="`transport` must be one of .* got 'of-this-test', which this process"
            ):
                saver.save_pretrained(tmp_path / "c", standalone=True)
    finally:
        del TRANSPORTS["of-this-test"]
    with pytest.raises(ValueError, match="`push_to_hub` must be False where the code is saved too"):
        pipeline().save_pretrained(tmp_path / "d", standalone=True, push_to_hub=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target_time", ["next", "end"])
def test_a_stock_pipeline_that_needs_our_hooks_is_refused(tmp_path, target_time):
    scheduler = UCGMScheduler(target_time=target_time, extrapolation_ratio=0.0)
    index = {
        "_class_name": "ZImagePipeline",
        "scheduler": ["diffusers_ucgm.scheduler", "UCGMScheduler"],
        "transformer": ["diffusers_ucgm.second_time", "SecondTimeZImageTransformer2DModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    message = f"`target_time` must be 'auto' or 'same' where ZImagePipeline .*, got '{target_time}'"
    with pytest.raises(ValueError, match=message):
        scheduler.save_pretrained(tmp_path / "scheduler", standalone=True)
    scheduler.save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ValueError, match=message):
        make_standalone(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text()) == index


def test_the_package_and_a_folders_code_live_in_one_process(saved, tmp_path, monkeypatch):
    folder, images = saved
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("ucgm_scheduler", "ucgm_second_time"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder / "two-times", trust_remote_code=True)
    assert not isinstance(theirs, UCGMPipeline)
    assert not isinstance(theirs.scheduler, UCGMScheduler)
    assert diffusers.UCGMPipeline is UCGMPipeline
    assert torch.equal(sample(theirs, CALLS["two-times"]), images["two-times"])
    # A folder of code gets the code of the package that exports it.
    theirs.save_pretrained(tmp_path / "again")
    for name in [each for each in sys.modules if each.startswith(("diffusers_modules", "ucgm_"))]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "again" / "scheduler" / "ucgm_scheduler.py").write_text("of an older version")
    assert len(make_standalone(tmp_path / "again")) == 3
    assert torch.equal(sample(load_pipeline(str(tmp_path / "again")), CALLS["two-times"]), images["two-times"])
    assert "class UCGMScheduler" in (tmp_path / "again" / "scheduler" / "ucgm_scheduler.py").read_text()
