"""Saved pipelines in a process of their own, as others load them: after `import diffusers_ucgm` and nothing else."""

import importlib
import json
import subprocess
import sys
import threading

import pytest
from stock_pipelines import sd15
from test_pipeline import autoencoder, pipeline

import diffusers_ucgm
from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.deferred import DeferredModule, defer
from diffusers_ucgm.sampling.swap import STOCK_CLASS


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


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of a package that is put off."""
    (tmp_path / "put_off").mkdir()
    (tmp_path / "put_off" / "__init__.py").write_text("")
    (tmp_path / "put_off" / "part.py").write_text(
        "import time\nCOUNT.append(1) if 'COUNT' in globals() else None\ntime.sleep(0.05)\n"
        "__all__ = ['value']\nvalue = []\nvalue.append(__name__)\n"
    )
    (tmp_path / "put_off" / "broken.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "put_off.part"
    for name in [each for each in sys.modules if each.split(".")[0] == "put_off"]:
        del sys.modules[name]


def test_a_module_that_is_put_off_runs_at_its_first_name(module):
    defer(module)
    late = sys.modules[module]
    assert importlib.import_module(module) is late
    assert sys.modules["put_off"].part is late
    for name in ("__path__", "__warningregistry__", "__wrapped__"):  # what those look up who walk through all modules
        assert not hasattr(late, name)
    assert type(late) is DeferredModule
    assert late.value == [module]
    assert type(late) is not DeferredModule
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        late.nothing  # noqa: B018


def test_a_module_that_is_put_off_gives_all_its_names_to_a_star_import(module):
    defer(module)
    names = {}
    exec(f"from {module} import *", names)
    assert names["value"] == [module]


def test_threads_wait_for_a_module_that_is_put_off(module):
    defer(module)
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(sys.modules[module].value)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert all(each is seen[0] for each in seen)


def test_a_module_that_cannot_run_says_so_every_time(module):
    defer("put_off.broken")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
            sys.modules["put_off.broken"].value  # noqa: B018


def test_a_module_that_is_there_already_is_left_alone():
    before = sys.modules["diffusers_ucgm.scheduler"]
    defer("diffusers_ucgm.scheduler")
    assert sys.modules["diffusers_ucgm.scheduler"] is before
    assert before.UCGMScheduler is UCGMScheduler


def test_every_component_that_is_saved_is_of_a_module_that_loads_itself():
    components = {UCGMScheduler, diffusers_ucgm.EDM2UNet2DModel, diffusers_ucgm.UCGMTransformer2DModel}
    assert {each.__module__ for each in components} == set(diffusers_ucgm._COMPONENTS)
