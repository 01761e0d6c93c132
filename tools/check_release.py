"""Check that a release is consistent: one version everywhere, its section in the changelog, and small wheels.

    python tools/check_release.py                          # the version of pyproject.toml stands in every other file
    python tools/check_release.py --tag v0.2.0             # and is the tag's; the changelog is closed for it
    python tools/check_release.py --tag v0.2.0 --dist dist # and every file in the folder is of it
    python tools/check_release.py --tag v0.2.0 --notes     # prints the changelog's section alone

The version is that of `pyproject.toml`; `diffusers_ucgm.__version__` reads it from the installed metadata. The exit
code is 1 where something does not fit, and each such thing is a line on standard error.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
# In bytes. Most of a wheel are the bundled models.
LARGEST_WHEEL = 30_000_000
COMFY = Path("integrations", "comfyui", "pyproject.toml")
SECTION = re.compile(r"^## \[(?P<name>[^\]]+)\](?P<rest>.*)$", re.MULTILINE)
DATED = re.compile(r" - \d{4}-\d{2}-\d{2}")


def version_of(root: Path = ROOT) -> str:
    """The version in `pyproject.toml`."""
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]


def changelog_sections(root: Path = ROOT) -> dict[str, tuple[str, str]]:
    """The heading behind the name and the text of each section of the changelog, by its name."""
    text = (root / "CHANGELOG.md").read_text()
    found = list(SECTION.finditer(text))
    ends = [each.start() for each in found[1:]] + [len(text)]
    return {
        each["name"]: (each["rest"], text[each.end() : end].strip()) for each, end in zip(found, ends, strict=True)
    }


def version_faults(root: Path = ROOT) -> Iterator[str]:
    """A line for each file with another version than `pyproject.toml`."""
    version = version_of(root)
    cited = re.search(r"^version: (.*)$", (root / "CITATION.cff").read_text(), re.MULTILINE)
    places = {"CITATION.cff": None if cited is None else cited[1].strip("\"' ")}
    if (root / COMFY).is_file():
        places[COMFY.as_posix()] = version_of((root / COMFY).parent)
    for place, found in places.items():
        if found != version:
            yield f"{place} must have the version of pyproject.toml, {version}, got {found}."
    if version not in changelog_sections(root):
        yield f"CHANGELOG.md must have a section `## [{version}]`."


def tag_faults(tag: str, root: Path = ROOT) -> Iterator[str]:
    """A line for whatever keeps the version from being released under a tag."""
    version, sections = version_of(root), changelog_sections(root)
    if tag != f"v{version}":
        yield f"The tag must be v{version}, by the version in pyproject.toml, got {tag}."
    heading, text = sections.get(version, ("", ""))
    if not DATED.fullmatch(heading):
        yield f"CHANGELOG.md must have a heading `## [{version}] - YYYY-MM-DD`, got `## [{version}]{heading}`."
    if not text:
        yield f"CHANGELOG.md must say what version {version} changes, got an empty section."
    if sections.get("Unreleased", ("", ""))[1]:
        yield f"CHANGELOG.md must have nothing under `## [Unreleased]`: move it to `## [{version}]`."


def dist_faults(dist: Path, root: Path = ROOT) -> Iterator[str]:
    """A line for each file that is no part of a release, is missing, or is too large."""
    version = version_of(root)
    wanted = {f"diffusers_ucgm-{version}-py3-none-any.whl", f"diffusers_ucgm-{version}.tar.gz"}
    found = {each.name: each.stat().st_size for each in dist.iterdir()}
    for name in sorted(wanted ^ set(found)):
        yield f"{dist} must hold {name}." if name in wanted else f"{dist} must hold this version alone, got {name}."
    for name, size in sorted(found.items()):
        if name.endswith(".whl") and size > LARGEST_WHEEL:
            yield f"{name} must have at most {LARGEST_WHEEL / 1e6:.0f} MB, got {size / 1e6:.2f} MB."


def main(argv: list[str] | None = None) -> int:
    """Print what does not fit, or the notes of the release."""
    parser = argparse.ArgumentParser(description="Check that a release is consistent.")
    parser.add_argument("--tag", help="the tag, v and the version")
    parser.add_argument("--dist", type=Path, help="folder with the wheel and the source distribution")
    parser.add_argument("--notes", action="store_true", help="print the version's section of the changelog")
    args = parser.parse_args(argv)
    faults = list(version_faults())
    if args.tag is not None:
        faults += tag_faults(args.tag)
    if args.dist is not None:
        faults += dist_faults(args.dist)
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        print(changelog_sections()[version_of()][1] if args.notes else f"Version {version_of()} is consistent.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
