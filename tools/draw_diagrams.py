"""Draw the Mermaid diagrams of `docs/` as pictures in `docs/images/`, for the site; GitHub draws them by itself.

    npm install --prefix /tmp/mermaid @mermaid-js/mermaid-cli      # with PUPPETEER_SKIP_DOWNLOAD=1
    PATH=/tmp/mermaid/node_modules/.bin:$PATH python tools/draw_diagrams.py

It needs `mmdc` of that package and Debian's Chromium. A page has one diagram, whose picture has the page's name.
`tools/site_hooks.py` finds a picture by the digest of its diagram.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from site_hooks import DIAGRAM, DOCS, digest_of, picture_of


CHROMIUM = {
    "executablePath": "/usr/bin/chromium",
    "args": ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
}
STYLE = {"theme": "neutral", "fontFamily": "sans-serif", "htmlLabels": False, "flowchart": {"htmlLabels": False}}


def draw(diagram: str) -> str:
    """The picture of a diagram, as SVG."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "diagram.mmd").write_text(diagram)
        (folder / "chromium.json").write_text(json.dumps(CHROMIUM))
        (folder / "style.json").write_text(json.dumps(STYLE))
        command = [
            "mmdc",
            "-i",
            "diagram.mmd",
            "-o",
            "diagram.svg",
            "-p",
            "chromium.json",
            "-c",
            "style.json",
            "-b",
            "white",
        ]
        subprocess.run(command, cwd=folder, check=True)
        return (folder / "diagram.svg").read_text()


def main() -> None:
    """Draw every diagram that has no picture, or whose picture shows an older one."""
    if shutil.which("mmdc") is None:
        sys.exit("`mmdc` is not on PATH: install the npm package @mermaid-js/mermaid-cli.")
    for page in sorted(DOCS.rglob("*.md")):
        found = DIAGRAM.search(page.read_text())
        if found is not None and picture_of(found[1]) is None:
            picture = DOCS / "images" / f"{page.stem}.svg"
            picture.write_text(f"{draw(found[1])}\n<!-- diagram {digest_of(found[1])} -->\n")
            print(picture)


if __name__ == "__main__":
    main()
