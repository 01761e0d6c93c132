"""Make the notebooks of `examples/notebooks/` from the scripts beside them, and run them.

    python tools/notebooks.py                       # `make notebooks`: run all, and write them with their outputs
    python tools/notebooks.py --only swap           # some
    python tools/notebooks.py --output /tmp/run     # elsewhere, as the tests do

A script is Python in cells (jupytext's percent format), so it can be read, linted and compared line by line. A
notebook is run in an empty folder.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode, write


FOLDER = Path(__file__).resolve().parents[1] / "examples" / "notebooks"
LIMIT = 600  # seconds of a cell, and of the start of a kernel


def scripts() -> list[Path]:
    """The scripts of the notebooks."""
    return sorted(FOLDER.glob("*.py"))


def notebook_of(script: Path) -> NotebookNode:
    """The notebook of a script, without outputs; its cells are numbered, so that a new one changes few lines."""
    notebook = jupytext.read(script)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def run(notebook: NotebookNode) -> None:
    """Run a notebook's cells in an empty folder; their outputs are then in it.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=LIMIT, startup_timeout=LIMIT, resources=place, record_timing=False).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # the kernel adds its version
    for cell in notebook.cells:
        # Progress bars and warnings are those of one machine, and one form of a picture is enough.
        outputs = [each for each in cell.get("outputs", []) if each.get("name") != "stderr"]
        for each in outputs:
            each.get("data", {}).pop("image/jpeg", None)
        if "outputs" in cell:
            cell["outputs"] = outputs


def main() -> None:
    """Run and write the notebooks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[script.stem for script in scripts()], help="all by default")
    parser.add_argument("--output", type=Path, default=FOLDER)
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    for script in scripts():
        if args.only and script.stem not in args.only:
            continue
        started = time.perf_counter()
        notebook = notebook_of(script)
        run(notebook)
        args.output.mkdir(parents=True, exist_ok=True)
        write(notebook, args.output / f"{script.stem}.ipynb")
        print(f"{script.stem}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
