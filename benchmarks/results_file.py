"""The files in `benchmarks/results/`: numbers, with the command, commit, versions, machine and date that gave them.

A file of JSON has a title, these five entries, and tables by name. `tools/results.py` (`make results`) puts the tables
into the pages, so that no figure of a page is typed. A cell is a number, which its column's format shows, a text,
nothing, or a number with the text that stands for it.
"""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NOT_RECORDED = "not recorded"
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy")
Cell = str | int | float | None | dict[str, Any]
Row = dict[str, Cell]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its heading.
        format: How its numbers are shown, as Python's `format` takes it, such as ".3f". Texts stay.
        align: "left" or "right".
    """

    name: str
    format: str = ""
    align: str = "left"

    def shown(self, cell: Cell) -> str:
        """A cell as it stands in a page."""
        if cell is None:
            return ""
        if isinstance(cell, dict):
            return str(cell["text"])
        return cell if isinstance(cell, str) else format(cell, self.format)


@dataclass(frozen=True)
class Table:
    """A table of results: its columns, and in each row a cell for each of them."""

    columns: list[Column]
    rows: list[list[Cell]]

    def dicts(self) -> list[Row]:
        """The rows by the names of their columns."""
        return [dict(zip((column.name for column in self.columns), row, strict=True)) for row in self.rows]

    def where(self, is_taken: Callable[[Row], bool]) -> "Table":
        """The table with some of its rows."""
        return replace(
            self, rows=[row for row, by_name in zip(self.rows, self.dicts(), strict=True) if is_taken(by_name)]
        )

    def with_columns(self, names: Mapping[str, str | tuple[str, str]]) -> "Table":
        """The table with some of its columns, by their names here; each gets a name, and a format if one is given."""
        by_name = {column.name: (i, column) for i, column in enumerate(self.columns)}
        taken = [by_name[name] for name in names]
        columns = []
        for (_, column), new in zip(taken, names.values(), strict=True):
            name, form = (new, column.format) if isinstance(new, str) else new
            columns.append(replace(column, name=name, format=form))
        return Table(columns, [[row[i] for i, _ in taken] for row in self.rows])

    def markdown(self) -> str:
        """The table as it stands in a page."""
        lines = [[column.name for column in self.columns]]
        lines.append(["---:" if column.align == "right" else "---" for column in self.columns])
        lines += [[column.shown(cell) for column, cell in zip(self.columns, row, strict=True)] for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(cell: Cell) -> float:
    """The number in a cell.

    Raises:
        ValueError: The cell has none.
    """
    value = cell["value"] if isinstance(cell, dict) else cell
    if isinstance(value, str) or value is None:
        raise ValueError(f"`cell` must hold a number, got {cell!r}.")
    return float(value)


@dataclass(frozen=True)
class Results:
    """What a file of results holds.

    Attributes:
        title: What was measured.
        command: The command line.
        commit: The commit of the sources, with "+" where files differed from it.
        versions: Versions by package, or "not recorded".
        machine: The processor and its cores.
        date: The day, as YYYY-MM-DD.
        tables: The tables by name; the only one of a file is called "table".
    """

    title: str
    command: str
    commit: str
    versions: dict[str, str] | str
    machine: str
    date: str
    tables: dict[str, Table]

    def about(self) -> str:
        """How the numbers were made, as it stands in a page."""
        versions = self.versions
        shown = versions if isinstance(versions, str) else ", ".join(f"{name} {of}" for name, of in versions.items())
        return "\n".join(
            [
                f"- Command: `{self.command}`" if self.command != NOT_RECORDED else f"- Command: {self.command}",
                f"- Commit and date: {self.commit}, {self.date}",
                f"- Versions: {shown}",
                f"- Machine: {self.machine}",
            ]
        )


def file_of(name: str) -> Path:
    """The file of results of a name, such as "emoji/text-to-image"."""
    return RESULTS / f"{name}.json"


def read_results(file: Path) -> Results:
    """The results in a file."""
    found = json.loads(file.read_text())
    tables = {
        name: Table([Column(**column) for column in table["columns"]], table["rows"])
        for name, table in found.pop("tables").items()
    }
    return Results(**found, tables=tables)


def write_results(file: Path, results: Results) -> None:
    """Write a file of results, one row of a table on a line, and a page with its tables where there is none yet."""
    lines: list[str] = []

    def kept(value: Any) -> str:
        lines.append(json.dumps(value, ensure_ascii=False))
        return f"line {len(lines) - 1}"

    found = asdict(results)
    for table in found["tables"].values():
        table.update({part: [kept(each) for each in table[part]] for part in ("columns", "rows")})
    text = json.dumps(found, indent=1, ensure_ascii=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        re.sub(r'"line (\d+)"(?=,?$)', lambda place: lines[int(place[1])], text, flags=re.MULTILINE) + "\n"
    )
    page = file.with_suffix(".md")
    if file.is_relative_to(RESULTS) and not page.exists():
        name = file.relative_to(RESULTS).with_suffix("").as_posix()
        parts = ["about", *results.tables]
        markers = [f"<!-- results: {name}#{part} -->\n<!-- /results -->" for part in parts]
        page.write_text("\n\n".join([f"# {results.title}", *markers]) + "\n")


def results_of_this_run(title: str, tables: Mapping[str, Table]) -> Results:
    """The results of the running script, with its command, the commit, the versions, the machine and the day."""
    script, *arguments = sys.argv
    place = Path(script).resolve()
    shown = place.relative_to(ROOT).as_posix() if place.is_relative_to(ROOT) else place.name
    return Results(
        title,
        f"python {shlex.join([shown, *arguments])}",
        commit(),
        {"CPython": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        machine(),
        str(date.today()),
        dict(tables),
    )


def commit() -> str:
    """The commit of the working tree, with "+" where tracked files differ from it."""
    try:
        head = git("rev-parse", "--short", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return NOT_RECORDED


def git(*words: str) -> str:
    """What git prints in the repository."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> str:
    """The processor, its cores and the system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return f"{names[0] if names else platform.machine()}, {cores} cores, {platform.system()}"


# Tables as text ------------------------------------------------------------------------------------------------------

FORMATS = ("d", ",d", ".1f", ".2f", ".3f", ".4f", ".5f", ".0%", ".1%", ".2e", ".3g", ".2g", "g")
LEADING_NUMBER = re.compile(r"\*{0,2}([-+]?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)%?\*{0,2}(?=$|[ ,(/])")


def table_from(markdown: str) -> Table:
    """A table of Markdown as one of results, which shows every cell as the text does.

    A column whose cells one format shows has numbers. In other columns but the first, a cell that begins with a number
    keeps it beside its text.
    """
    head, rule, *lines = [cells_of(line) for line in markdown.strip().splitlines()]
    columns, taken = [], []
    for i, name in enumerate(head):
        texts = [line[i] for line in lines]
        form = format_of(texts)
        columns.append(Column(name, form, "right" if rule[i].endswith(":") else "left"))
        taken.append([cell_from(text, form, is_first=i == 0) for text in texts])
    return Table(columns, [list(row) for row in zip(*taken, strict=True)])


def cells_of(line: str) -> list[str]:
    """The cells of a line of a table."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def number_from(text: str) -> int | float | None:
    """The number that a text is; None if it is none."""
    plain = text.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+", text) else text
    try:
        if plain.endswith("%"):
            return float(plain[:-1]) / 100
        return int(plain) if re.fullmatch(r"-?\d+", plain) else float(plain)
    except ValueError:
        return None


def format_of(texts: Sequence[str]) -> str:
    """The format that shows all texts of a column from their numbers; empty if there is none."""
    numbers = {text: number_from(text) for text in texts if text}
    if not numbers or None in numbers.values():
        return ""
    for form in FORMATS:
        try:
            if all(format(value, form) == text for text, value in numbers.items()):
                return form
        except ValueError:  # "d" of a number with a point
            continue
    return ""


def cell_from(text: str, form: str, *, is_first: bool) -> Cell:
    """A cell of a column with a format, or with none."""
    if not text:
        return None
    if form:
        return number_from(text)
    leading = None if is_first else LEADING_NUMBER.match(text)
    return text if leading is None else {"value": float(leading[1]), "text": text}


class PrintedTable:
    """A table of Markdown that a benchmark prints row by row.

    Args:
        columns: The headings; those of numbers end in ":", which is not shown.
    """

    def __init__(self, *columns: str) -> None:
        rules = ("---:" if column.endswith(":") else "---" for column in columns)
        self._lines: list[str] = []
        self.add(*(column.removesuffix(":") for column in columns))
        self.add(*rules)

    def add(self, *cells: str) -> None:
        """Print a row."""
        self._lines.append(f"| {' | '.join(cells)} |")
        print(self._lines[-1], flush=True)

    def markdown(self) -> str:
        """All rows."""
        return "\n".join(self._lines)


# What benchmarks call ------------------------------------------------------------------------------------------------


def add_results_option(parser: argparse.ArgumentParser) -> None:
    """The option of a benchmark that names its file of results."""
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="also keep the table in this file, such as benchmarks/results/x.json, for `make results`",
    )


def keep(file: Path | None, title: str, tables: Mapping[str, str]) -> None:
    """Write the tables of the running benchmark, as Markdown, to a file of results; nothing where there is no file."""
    if file is not None:
        found = {name: table_from(table) for name, table in tables.items()}
        write_results(file.resolve(), results_of_this_run(title, found))
