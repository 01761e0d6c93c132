"""`integrations/space/` is a Hugging Face Space that opens the page to visitors."""

import runpy
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from diffusers_ucgm import cli


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "integrations" / "space"
# What a Space may have as `colorFrom` and `colorTo` (https://huggingface.co/docs/hub/spaces-config-reference), and the
# longest `short_description` that the Hub takes.
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
LONGEST = 60


def front_matter():
    _, text, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(text)


def test_the_front_matter_is_what_a_space_needs():
    found = front_matter()
    assert found["sdk"] == "gradio"
    assert (SPACE / found["app_file"]).is_file()
    assert {found["colorFrom"], found["colorTo"]} <= COLOURS
    assert len(found["short_description"]) <= LONGEST
    assert found["license"] == "apache-2.0"


def test_the_versions_are_those_that_the_package_takes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    demo = {each.name: each for each in map(Requirement, project["optional-dependencies"]["demo"])}
    assert demo["gradio"].specifier.contains(str(front_matter()["sdk_version"]))
    assert Version(front_matter()["python_version"]) in Requirement(f"python{project['requires-python']}").specifier


def test_the_requirement_is_the_package_with_the_pages_extra():
    (line,) = (SPACE / "requirements.txt").read_text().splitlines()
    requirement = Requirement(line)
    assert (requirement.name, requirement.extras) == ("diffusers-ucgm", {"demo"})
    assert requirement.url == "git+https://github.com/diffusers-ucgm/diffusers-ucgm"


def test_the_app_serves_the_page_on_every_address(monkeypatch):
    called = []
    monkeypatch.setattr(cli, "main", lambda words: called.append(words) or 0)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SPACE / "app.py"))
    assert end.value.code == 0
    args = cli.parser_for(called[0]).parse_args(called[0])
    assert (args.command, args.host, args.port, args.model) == ("serve", "0.0.0.0", 7860, "emoji")
