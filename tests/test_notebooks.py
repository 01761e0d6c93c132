"""The notebooks of the examples: each is what its script gives, and runs in an empty folder without a hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "notebooks"
NAMES = sorted(script.stem for script in FOLDER.glob("*.py"))
# What writes the cells of a script, without a kernel; in a process of its own, whose warnings are not errors.
CELLS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from notebooks import notebook_of, scripts
print(json.dumps({script.stem: notebook_of(script) for script in scripts()}))
"""


def without_outputs(notebook):
    keys = ("cell_type", "source")
    return [{key: cell[key] for key in keys} for cell in notebook["cells"]]


def joined(notebook):
    """A notebook as read from its file, with the lines of each cell in one text."""
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


@pytest.fixture(scope="module")
def made():
    """The notebooks that the scripts give, by name."""
    words = [sys.executable, "-c", CELLS, str(ROOT / "tools")]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(ended.stdout)


def test_every_notebook_has_its_script():
    assert NAMES == ["compare", "swap", "tune_the_sampler", "tune_to_four_steps"]
    assert sorted(notebook.stem for notebook in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_what_its_script_gives(name, made):
    notebook = joined(json.loads((FOLDER / f"{name}.ipynb").read_text()))
    assert without_outputs(notebook) == without_outputs(joined(made[name])), "Run `make notebooks`."


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_what_it_gave_and_nothing_of_the_machine(name):
    cells = [
        cell for cell in json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"] if cell["cell_type"] == "code"
    ]
    assert all(cell["execution_count"] for cell in cells)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert str(ROOT) not in json.dumps(outputs)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, tmp_path):
    words = [sys.executable, str(ROOT / "tools" / "notebooks.py"), "--only", name, "--output", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr[-2000:]
    cells = json.loads((tmp_path / f"{name}.ipynb").read_text())["cells"]
    assert not any(output["output_type"] == "error" for cell in cells for output in cell.get("outputs", []))
