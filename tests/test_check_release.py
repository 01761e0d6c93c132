"""`tools/check_release.py`: what keeps a version from being released is named."""

import importlib.util
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("check_release", ROOT / "tools" / "check_release.py")
release = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = release
SPEC.loader.exec_module(release)

CHANGELOG = """# Changelog

## [Unreleased]

## [1.2.0] - 2026-11-27

### Added

- A thing.

## [1.1.0] - 2026-01-01

- Another.
"""


@pytest.fixture
def root(tmp_path):
    """A repository of version 1.2.0 that can be released."""
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n')
    (tmp_path / "CITATION.cff").write_text('cff-version: 1.2.0\nversion: "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    comfy = tmp_path / release.COMFY
    comfy.parent.mkdir(parents=True)
    comfy.write_text('[project]\nversion = "1.2.0"\n')
    return tmp_path


def faults_of(root, tag="v1.2.0"):
    return [*release.version_faults(root), *release.tag_faults(tag, root)]


def test_this_repository_has_one_version(capsys):
    assert release.main([]) == 0
    assert capsys.readouterr().out == f"Version {release.version_of()} is consistent.\n"


def test_a_consistent_release_has_no_fault_and_has_notes(root):
    assert faults_of(root) == []
    assert release.changelog_sections(root)["1.2.0"][1] == "### Added\n\n- A thing."


@pytest.mark.parametrize(
    ("file", "old", "new", "fault"),
    [
        (
            "CITATION.cff",
            '"1.2.0"',
            "1.1.0",
            "CITATION.cff must have the version of pyproject.toml, 1.2.0, got 1.1.0.",
        ),
        (
            release.COMFY,
            "1.2.0",
            "1.1.0",
            f"{release.COMFY.as_posix()} must have the version of pyproject.toml, 1.2.0",
        ),
        ("CHANGELOG.md", "## [1.2.0] - 2026-11-27", "", "CHANGELOG.md must have a section `## [1.2.0]`."),
        ("CHANGELOG.md", " - 2026-11-27", "", "CHANGELOG.md must have a heading `## [1.2.0] - YYYY-MM-DD`"),
        ("CHANGELOG.md", "### Added\n\n- A thing.", "", "CHANGELOG.md must say what version 1.2.0 changes"),
        ("CHANGELOG.md", "[Unreleased]\n", "[Unreleased]\n\n- More.\n", "must have nothing under `## [Unreleased]`"),
    ],
)
def test_what_does_not_fit_is_named(root, file, old, new, fault):
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))
    assert any(fault in each for each in faults_of(root)), faults_of(root)


@pytest.mark.parametrize("tag", ["1.2.0", "v1.2", "v1.3.0"])
def test_the_tag_is_the_version(root, tag):
    assert faults_of(root, tag) == [f"The tag must be v1.2.0, by the version in pyproject.toml, got {tag}."]


def test_the_files_of_a_release_are_of_its_version_and_small(root, tmp_path, monkeypatch):
    dist = tmp_path / "dist"
    dist.mkdir()
    wheel, source = "diffusers_ucgm-1.2.0-py3-none-any.whl", "diffusers_ucgm-1.2.0.tar.gz"
    (dist / wheel).write_bytes(b"12345")
    assert [*release.dist_faults(dist, root)] == [f"{dist} must hold {source}."]
    (dist / source).touch()
    assert [*release.dist_faults(dist, root)] == []
    (dist / "diffusers_ucgm-1.1.0.tar.gz").touch()
    assert [*release.dist_faults(dist, root)] == [
        f"{dist} must hold this version alone, got diffusers_ucgm-1.1.0.tar.gz."
    ]
    (dist / "diffusers_ucgm-1.1.0.tar.gz").unlink()
    monkeypatch.setattr(release, "LARGEST_WHEEL", 4)
    assert [*release.dist_faults(dist, root)] == [f"{wheel} must have at most 0 MB, got 0.00 MB."]


def test_the_command_ends_with_1_and_names_each_fault(capsys):
    assert release.main(["--tag", "v0.0.0"]) == 1
    assert "The tag must be v" in capsys.readouterr().err
