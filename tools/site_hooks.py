"""What `mkdocs.yml` needs so that the pages that GitHub shows are also a site.

- A link that leaves `docs/` leads to a copy of its file in the site, below `repository/`; a page of Markdown becomes a
  page of the site.
- A diagram of Mermaid, which the theme would draw with a script from elsewhere, is shown as the picture in
  `docs/images/` that was drawn from it, and the build fails where the diagram has changed since.
- A page that loads a script, a style or a picture from elsewhere fails the build.

`mkdocs.yml` is strict: a warning of this file ends the build.
"""

import hashlib
import logging
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page


ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ELSEWHERE = "repository"  # the folder of the site for files that are not below docs/
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FENCED = re.compile(r"(^```.*?^```[^\n]*$)", re.DOTALL | re.MULTILINE)
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```", re.DOTALL | re.MULTILINE)
LOADED = re.compile(r"<(?:script|img|iframe|link|source|video)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^\"'> ]+")
log = logging.getLogger("mkdocs.hooks.site")


def file_of(src_uri: str) -> Path:
    """The file in the repository that a page of the site was made from."""
    inside, _, rest = src_uri.partition("/")
    return ROOT / rest if inside == ELSEWHERE else DOCS / src_uri


def place_of(file: Path) -> str:
    """The path in the site of a file of the repository."""
    in_docs = file.is_relative_to(DOCS)
    return file.relative_to(DOCS).as_posix() if in_docs else f"{ELSEWHERE}/{file.relative_to(ROOT).as_posix()}"


def target_of(link: str, page: Path) -> Path | None:
    """The file of the repository to which a link of a page leads; None for an address or an anchor."""
    path = link.partition("#")[0]
    if not path or "://" in path or path.startswith("mailto:"):
        return None
    return Path(os.path.normpath(page.parent / path))


def parts_with_links(text: str) -> list[str]:
    """A page's text, split so that every second part is a fenced block, in which nothing is a link."""
    return FENCED.split(text)


def files_linked(text: str, page: Path) -> set[Path]:
    """The files of the repository to which a page leads."""
    links = [found[2] for part in parts_with_links(text)[::2] for found in LINK.finditer(part)]
    return {target for link in links if (target := target_of(link, page)) is not None and target.is_file()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take in the files outside `docs/` to which pages lead, and those to which these lead."""
    pages = [file_of(file.src_uri) for file in files.documentation_pages()]
    while pages:
        page = pages.pop()
        for target in sorted(files_linked(page.read_text(), page)):
            if target.is_relative_to(DOCS) or files.get_file_from_path(place_of(target)) is not None:
                continue
            files.append(
                File.generated(config, place_of(target), abs_src_path=str(target), inclusion=InclusionLevel.NOT_IN_NAV)
            )
            if target.suffix == ".md":
                pages.append(target)
    return files


def with_site_links(text: str, page: Path) -> str:
    """A page's text whose links lead to the places of their files in the site."""

    def led(found: re.Match[str]) -> str:
        target, anchor = target_of(found[2], page), found[2].partition("#")[1:]
        if target is None or not target.is_file():
            return found[0]
        place = os.path.relpath(place_of(target), Path(place_of(page)).parent)
        return found[1] + "".join((place, *anchor)) + found[3]

    parts = parts_with_links(text)
    return "".join(part if index % 2 else LINK.sub(led, part) for index, part in enumerate(parts))


def digest_of(diagram: str) -> str:
    """What stands in a picture to name the diagram that it shows."""
    return hashlib.sha256(diagram.encode()).hexdigest()[:16]


def picture_of(diagram: str) -> Path | None:
    """The picture in `docs/images/` that was drawn from a diagram; None where there is none."""
    mark = f"diagram {digest_of(diagram)}"
    return next((file for file in sorted((DOCS / "images").glob("*.svg")) if mark in file.read_text()), None)


def with_pictures(text: str, page: Path) -> str:
    """A page's text with the pictures of its diagrams in their place."""

    def drawn(found: re.Match[str]) -> str:
        picture = picture_of(found[1])
        if picture is None:
            log.warning(
                "%s has a diagram without a picture. Draw it with `python tools/draw_diagrams.py`.",
                page.relative_to(ROOT),
            )
            return found[0]
        return f"![Diagram]({os.path.relpath(picture, page.parent)})"

    return DIAGRAM.sub(drawn, text)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn a page as GitHub shows it into one of the site."""
    file = file_of(page.file.src_uri)
    return with_site_links(with_pictures(markdown, file), file)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that loads something from elsewhere."""
    for found in LOADED.findall(output):
        log.warning("%s loads something from elsewhere: %s", page.file.src_uri, found)
    return output
