"""Saved pipelines in a process of their own, as others load them: after `import diffusers_ucgm` and nothing else."""

import json
import subprocess
import sys

import pytest
from class_pipelines import autoencoder, pipeline
from stock_pipelines import sd15

import diffusers_ucgm
from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.sampling.swap import STOCK_CLASS
from diffusers_ucgm.second_time import second_time_class


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

IMPORTS = {
    "ours first": "import diffusers_ucgm\nimport diffusers",
    "ours last": "import diffusers\nfrom diffusers import DiffusionPipeline\nimport diffusers_ucgm",
}
LOAD = """
import json, sys
names = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")
absent = dict.fromkeys(names)
ways = [diffusers.StableDiffusionPipeline, diffusers.DiffusionPipeline, diffusers.AutoPipelineForText2Image]
loaded = [way.from_pretrained(sys.argv[1], **absent) for way in ways]
loaded.append(diffusers.AutoPipelineForImage2Image.from_pipe(loaded[0]))
loaded.append(diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(sys.argv[1], **absent))
found = [[type(pipe).__name__, type(pipe.scheduler).__name__, pipe.scheduler.config.extrapolation_ratio]
         for pipe in loaded]
print("FOUND " + json.dumps(found))
"""
LOAD_OURS = """
import json, sys
from diffusers_ucgm import UCGMPipeline
loaded = [each.from_pretrained(sys.argv[1]) for each in (UCGMPipeline, diffusers.DiffusionPipeline)]
print("FOUND " + json.dumps([type(pipe).__name__ for pipe in loaded]))
"""


def run_python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def found(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.split("FOUND ")[1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A stock pipeline with our scheduler, as an earlier version of this package saved it."""
    folder = tmp_path_factory.mktemp("saved")
    pipe = sd15().pipe
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config, extrapolation_ratio=0.25)
    pipe.save_pretrained(folder)
    (folder / "scheduler" / "README.md").unlink(missing_ok=True)
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    del config[STOCK_CLASS]
    file.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("order", IMPORTS)
def test_stock_pipelines_with_our_scheduler_load_after_one_import(saved, order):
    names = ["StableDiffusionPipeline"] * 3 + ["StableDiffusionImg2ImgPipeline"] * 2
    expected = [[name, "UCGMScheduler", 0.25] for name in names]
    assert found(run_python(f"{IMPORTS[order]}\n{LOAD}", saved)) == expected


@pytest.mark.parametrize("order", IMPORTS)
def test_our_pipelines_load_by_diffusers_own_class(tmp_path, order):
    pipeline(autoencoder("kl")).save_pretrained(tmp_path)
    assert found(run_python(f"{IMPORTS[order]}\n{LOAD_OURS}", tmp_path)) == ["UCGMPipeline"] * 2


def test_the_saved_folder_tells_the_line_to_add(tmp_path):
    pipe = sd15().pipe
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "stock")
    assert "\nimport diffusers_ucgm" in (tmp_path / "stock" / "scheduler" / "README.md").read_text()
    pipeline().save_pretrained(tmp_path / "ours")
    assert "\nfrom diffusers_ucgm import UCGMPipeline\n" in (tmp_path / "ours" / "README.md").read_text()


def test_a_readme_that_is_there_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    UCGMScheduler().save_pretrained(tmp_path)
    pipeline().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_line_is_enough(tmp_path):
    pipeline().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert 'from_pretrained("this/repository")' in code
    result = run_python(code.replace("this/repository", str(tmp_path)))
    assert result.returncode == 0, result.stderr


def test_every_component_that_is_saved_is_of_a_module_that_loads_itself():
    networks = {diffusers_ucgm.EDM2UNet2DModel, diffusers_ucgm.UCGMTransformer2DModel}
    components = {UCGMScheduler, *networks, second_time_class(diffusers_ucgm.UCGMTransformer2DModel)}
    assert {each.__module__ for each in components} == set(diffusers_ucgm._COMPONENTS)
