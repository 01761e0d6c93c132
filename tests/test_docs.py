"""The pages name files and tests that exist, and link to pages that exist."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "diffusers_ucgm"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def paths_named(text):
    """Paths of Python files and folders of the package that stand in backticks, of tests and tools too."""
    return re.findall(r"`((?:[a-z_0-9]+/)*(?:[a-z_0-9]+\.py|[a-z_0-9]+/))`", text)


def links(text):
    """Targets of links to files, without their anchors."""
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [each.partition("#")[0] for each in found if "://" not in each and not each.startswith(("#", "mailto:"))]


def test_the_readers_find_paths_and_links():
    text = "See `sampling/grids.py`, `models/` and [a](b.md#c) or [d](https://e.f), not `x.y`."
    assert paths_named(text) == ["sampling/grids.py", "models/"]
    assert links(text) == ["b.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    missing = [link for link in links(page.read_text()) if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("name", sorted(set(paths_named((ROOT / "docs" / "architecture.md").read_text()))))
def test_the_map_names_files_that_exist(name):
    assert (PACKAGE / name).exists() or (ROOT / name).exists() or name == "commands.py" or name == "options.py"


def test_the_map_has_every_folder_of_the_package():
    text = (ROOT / "docs" / "architecture.md").read_text()
    folders = [path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    assert [name for name in folders if f"{name}/" not in text] == []
