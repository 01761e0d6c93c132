"""Put the tables of `benchmarks/results/` into the pages, between the marks that name them.

    python tools/results.py           # `make results`: write the pages
    python tools/results.py --check   # say which page differs from its file, and exit with 1 if one does
    python tools/results.py --draw    # also draw the plots of the solvers anew, from their tables
    python tools/results.py --figure docs/images/demo.png "ucgm demo"     # record a new picture with its command
    python tools/results.py --take emoji/solvers "ucgm compare ..." comparison/comparison.md   # keep a command's table

A mark is a comment of Markdown that names a file of results and one of its tables, or a view of `VIEWS`:

    <!-- results: emoji/text-to-image#table -->
    <!-- /results -->

`#about` stands for how the numbers were made. `benchmarks/results_file.py` describes the files.
"""

import argparse
import csv
import hashlib
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from results_file import (  # noqa: E402
    NOT_RECORDED,
    RESULTS,
    Cell,
    Column,
    Row,
    Table,
    commit,
    file_of,
    number,
    read_results,
    results_of_this_run,
    table_from,
    write_results,
)


OPENING = "<!-- results: "
# What stands between the marks has none of them.
MARK = re.compile(rf"({OPENING}(\S+) -->\n)((?:(?!{OPENING}).)*?)(^<!-- /results -->)", re.DOTALL | re.MULTILINE)


def table(name: str, part: str = "table") -> Table:
    """A table of a file of results."""
    return read_results(file_of(name)).tables[part]


# Views: tables of pages that show a part of a file, or its numbers in another order ------------------------------


def bundled_by_model() -> Table:
    """The Frechet distances of the bundled models by number of calls."""
    rows = table("bundled-model").dicts()
    calls = (1, 2, 4, 8, 40)
    models = {
        "`fashion-mnist-any-step`": ("(any-step)", calls),
        "`fashion-mnist-2-step`": ("(tuned)", (1, 2, 4)),
        "`fashion-mnist`, their teacher": ("(multi-step)", (40,)),
    }
    found: list[list[Cell]] = []
    for model, (kind, measured) in models.items():
        by_calls = {
            row["network calls (NFE)"]: row["Fréchet distance"]
            for row in rows
            if str(row["setting"]).endswith(kind) and "Euler" not in str(row["setting"])
        }
        found.append([model, *(by_calls[n] if n in measured else None for n in calls)])
    heads = [Column(f"{n} call{'s' if n > 1 else ''}", ".2f", "right") for n in calls]
    return Table([Column("model"), *heads], found)


def emoji_model() -> Table:
    """Some samplers of the bundled text-to-image model."""
    taken = {("Euler", 4), ("Euler", 20), ("UCGM-S", 4), ("UCGM-S", 20), ("LoRA", 2), ("LoRA", 4)}
    names: dict[str, Any] = {"sampler": "sampler", "steps": "steps", "guidance": "guidance"}
    names |= {"seen": "agreement, seen", "combination": "combination", "subject": "subject"}
    names["distance"] = ("distance", ".2f")
    whole = table("emoji/text-to-image")
    guided = {"Euler": 2, "UCGM-S": 2, "LoRA": 0}

    def is_taken(row: Row) -> bool:
        return row["sampler"] == "real images" or (
            (row["sampler"], row["steps"]) in taken and row["guidance"] == guided[str(row["sampler"])]
        )

    return whole.where(is_taken).with_columns(names)


def family_defaults() -> Table:
    """The defaults beside stock solvers, for one convention of each kind."""
    taken = ("flow matching, shift 1", "discrete beta, Stable Diffusion's", "sigma space")
    left_out = ("UCGM with the paper's `multi-step` preset", "UCGM of first order")
    return table("family-defaults").where(lambda row: row["convention"] in taken and row["solver"] not in left_out)


def scheduler_overhead() -> Table:
    """The time and the memory of a step with the latents of one image."""
    return table("scheduler-overhead").where(lambda row: row["latents"] == "1x16x128x128")


def fit_transfer() -> Table:
    """The distance of fits for 10 calls, divided by that of the closest stock solver."""
    whole = table("fit-transfer", "10-calls")
    columns = [Column("fitted at, 10 calls"), *(Column(each.name, ".2f", "right") for each in whole.columns[1:])]
    return Table(
        columns, [[row[0], *(float(str(cell["text"]).split(" / ")[1]) for cell in row[1:])] for row in whole.rows]
    )


def fitted_solvers() -> Table:
    """The ratios of fits to the closest stock solver: of all exact denoisers, and of each trained model."""
    whole = table("fitted-solvers")
    calls = [column.name for column in whole.columns[1:-1]]
    rows = {str(row["pipeline, guidance"]): [ratio_in(row[n]) for n in calls] for row in whole.dicts()}
    trained = {name: ratios for name, ratios in rows.items() if " model, " in name}
    exact = [ratios for name, ratios in rows.items() if name not in trained]
    by_calls = list(zip(*exact, strict=True))
    found: list[list[Cell]] = [
        [f"exact denoisers, median of {len(exact)}", *(median(each) for each in by_calls)],
        [f"exact denoisers, largest of {len(exact)}", *(max(each) for each in by_calls)],
        *([name.replace("model, ", "model, guidance "), *ratios] for name, ratios in trained.items()),
    ]
    return Table([Column("pipeline"), *(Column(n, ".2f", "right") for n in calls)], found)


def ratio_in(cell: Cell) -> float:
    """The ratio in a cell such as "0.046 / 0.093 = 0.49 (default 0.11)"."""
    text = cell["text"] if isinstance(cell, dict) else str(cell)
    return float(text.split(" = ")[1].split(" ")[0])


def any_step_means(name: str) -> Table:
    """The means of the Frechet distances by objective."""
    whole = table(name)
    calls = [column.name for column in whole.columns if column.name.endswith(" calls")]
    heads = [Column("1 call" if name == "1 calls" else name, ".2f", "right") for name in calls]
    rows: list[list[Cell]] = []
    for row in whole.dicts():
        means = [number(row[name]) for name in calls]
        rows.append([row["objective"], row["seeds"], row["steps"], *means])
    return Table([Column("objective"), Column("seeds", "d", "right"), Column("steps", "d", "right"), *heads], rows)


def ideal_fields() -> Table:
    """The ratios of the defaults to the best solver, with and without iPNDM: the medians of fields and guidances."""
    with (RESULTS / "ideal-fields.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    calls = ("5", "8", "10", "20", "40")

    def cell(config: str, n: str) -> str:
        rows = [row for row in found if row["config"] == config and row["calls"] == n]
        medians = (median(float(row[name]) for row in rows) for name in ("ratio", "ratio_to_diffusers"))
        return " / ".join(f"{each:.2f}" for each in medians)

    configs = dict.fromkeys(row["config"] for row in found)
    rows: list[list[Cell]] = [[config, *(cell(config, n) for n in calls)] for config in configs]
    return Table([Column("config of the pipeline"), *(Column(f"{n} calls", align="right") for n in calls)], rows)


def tune_sampler() -> Table:
    """The searches at four numbers of calls."""
    return table("tune-sampler").where(lambda row: row["calls"] in (5, 10, 20, 40))


def which_settings() -> Table:
    """Some solvers of the three trained models, with two digits."""
    calls = ("5", "10", "20", "40", "100")
    own = {
        "fitted": "UCGM-S fitted to the model",
        "UCGM-S": "UCGM-S with the settings of `from_config`",
        "UCGM-S paper": "UCGM-S, the paper's multi-step settings",
    }
    models = {
        "bundled flow model": ("the-bundled-flow-matching-model", ["UniPCMultistep", "FlowMatchEuler even sigmas"]),
        "epsilon, DDPM's noise schedule": (
            "epsilon-prediction-on-ddpms-noise-schedule",
            ["DPMSolverMultistep", "UniPCMultistep", "DDIM"],
        ),
        "EDM": ("edm", ["EDMDPMSolverMultistep", "EDMEuler"]),
    }
    rows: list[list[Cell]] = []
    for model, (part, stock) in models.items():
        by_name = {row["solver"]: row for row in table("solvers", part).dicts()}
        for name, shown in {**own, **{each: each for each in stock}}.items():
            found = by_name[name]
            rows.append([model, shown, *(two_digits(found[n]) for n in calls)])
    return Table([Column("model"), Column("solver"), *(Column(n, align="right") for n in calls)], rows)


def solvers_guided() -> Table:
    """The three trained models with guidance: our solvers, the most used stock one, and the closest at each budget."""
    models = {
        "bundled flow model": ("the-bundled-flow-matching-model", "DPMSolverMultistep"),
        "epsilon, DDPM's noise schedule": ("epsilon-prediction-on-ddpms-noise-schedule", "DPMSolverMultistep Karras"),
        "EDM": ("edm", "EDMDPMSolverMultistep"),
    }
    calls = ("5", "8", "10", "15", "20", "30")
    rows: list[list[Cell]] = []
    for scale in ("4", "7.5"):
        for model, (part, used) in models.items():
            by_name = {
                row["solver"]: row for row in table(f"solvers-guidance-{scale}", f"{part}-guidance-{scale}").dicts()
            }
            stock = [row for name, row in by_name.items() if not str(name).startswith("UCGM") and name != "fitted"]
            closest = {n: min((row[n] for row in stock if row[n] is not None), key=number) for n in calls}
            shown = {
                "UCGM-S fitted to the model": by_name["fitted"],
                "UCGM-S with the settings of `from_config`": by_name["UCGM-S"],
                used: by_name[used],
                "the closest of all stock solvers": closest,
            }
            rows += [[model, scale, name, *(two_digits(row[n]) for n in calls)] for name, row in shown.items()]
    heads = [Column(n, align="right") for n in calls]
    return Table([Column("model"), Column("guidance", align="right"), Column("solver"), *heads], rows)


def two_digits(cell: Cell) -> Cell:
    """A number with two significant digits, as a text; nothing where there is none."""
    return None if cell is None else format(number(cell), "#.2g")


def docs_commands() -> Table:
    """The commands of the pages, without what names their texts."""
    names = ("page", "command", "result", "seconds", "date")
    return table("docs-commands", "commands").with_columns({name: name for name in names})


def every_result() -> Table:
    """The files of results, and how their numbers were made."""
    rows: list[list[Cell]] = []
    for file in results_files():
        found = read_results(file)
        command = found.command if found.command == NOT_RECORDED else f"`{found.command}`"
        link = f"../{file.relative_to(ROOT).with_suffix('.md').as_posix()}"
        rows.append([f"[{found.title}]({link})", command, found.commit, found.date, found.machine])
    return Table([Column(name) for name in ("measurement", "command", "commit", "date", "machine")], rows)


VIEWS: dict[str, Callable[[], Table]] = {
    "any-step-tuning-means": partial(any_step_means, "any-step-tuning"),
    "any-step-from-scratch-means": partial(any_step_means, "any-step-from-scratch"),
    "bundled-model-by-calls": bundled_by_model,
    "docs-commands-shown": docs_commands,
    "emoji-model": emoji_model,
    "every-result": every_result,
    "family-defaults-some": family_defaults,
    "fit-transfer-at-10-calls": fit_transfer,
    "fitted-solvers-ratios": fitted_solvers,
    "ideal-fields-medians": ideal_fields,
    "scheduler-overhead-some": scheduler_overhead,
    "solvers-guided": solvers_guided,
    "solvers-some": which_settings,
    "tune-sampler-some": tune_sampler,
}


# Pages -----------------------------------------------------------------------------------------------------------


def content_of(name: str) -> str:
    """What stands between the marks of a name.

    Raises:
        ValueError: No file of results or view has the name.
    """
    if name in VIEWS:
        return VIEWS[name]().markdown()
    file, _, part = name.partition("#")
    if not file_of(file).is_file():
        known = sorted(each.relative_to(RESULTS).with_suffix("").as_posix() for each in results_files())
        raise ValueError(f"A mark must name one of {[*VIEWS, *known]}, got {name!r}.")
    results = read_results(file_of(file))
    if part == "about":
        return results.about()
    if (part or "table") not in results.tables:
        raise ValueError(f"A mark must name one of the tables {list(results.tables)} of {file!r}, got {part!r}.")
    return results.tables[part or "table"].markdown()


def filled(text: str) -> str:
    """A page's text with its tables anew.

    Raises:
        ValueError: A mark has no end, as after a merge, or names nothing.
    """
    ended = [found.start() for found in MARK.finditer(text)]
    started = [found.start() for found in re.finditer(f"^{OPENING}", text, re.MULTILINE)]
    for place in started:
        if place not in ended:
            mark = text[place:].partition("\n")[0]
            raise ValueError(f"The mark {mark!r} must end in a line '<!-- /results -->' before the next mark begins.")
    return MARK.sub(lambda found: f"{found[1]}{content_of(found[2])}\n{found[4]}", text)


def pages() -> list[Path]:
    """README, the documentation and the pages of results."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(RESULTS.rglob("*.md"))]


def results_files() -> list[Path]:
    """The files of results; what a benchmark keeps to go on, or what a run wrote, is none."""
    return sorted(file for file in RESULTS.rglob("*.json") if '"tables": {' in file.read_text())


def digest_of(file: Path) -> str:
    """What names the content of a picture."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def record_figure(name: str, command: str) -> None:
    """Keep a picture's command, commit, day and digest in the file of figures."""
    file = file_of("figures")
    found = read_results(file)
    whole = found.tables["table"]
    row: list[Cell] = [name, command, commit(), str(date.today()), digest_of(ROOT / name)]
    rows = sorted([*(each for each in whole.rows if each[0] != name), row], key=lambda each: str(each[0]))
    write_results(file, replace(found, tables={"table": Table(whole.columns, rows)}))


# The plots whose values are in a file of results: the table of each, with its title.
SOLVER_PLOTS = {
    "docs/images/solvers-ddpm.png": (
        "epsilon-prediction-on-ddpms-noise-schedule",
        "epsilon prediction, DDPM's schedule",
    ),
    "docs/images/solvers-edm.png": ("edm", "EDM"),
    "docs/images/solvers-exact-chain.png": (
        "exact-field-discrete-noise-schedule",
        "exact field, discrete noise schedule",
    ),
    "docs/images/solvers-exact-edm.png": ("exact-field-edms-sigma-space", "exact field, EDM's sigma space"),
    "docs/images/solvers-exact-flow.png": ("exact-field-flow", "exact field, flow"),
    "docs/images/solvers-fashion-mnist.png": ("the-bundled-flow-matching-model", "the bundled flow-matching model"),
}
DRAW = "python tools/results.py --draw"


def curve_of(row: Row) -> tuple[list[int], list[float]]:
    """The calls that a solver made and its values, from its row; a number in brackets is that of the calls."""
    points: dict[int, float] = {}
    for calls, cell in row.items():
        if cell is not None and calls != "solver":
            fewer = re.search(r"\((\d+)\)", cell["text"]) if isinstance(cell, dict) else None
            points[int(fewer[1] if fewer else calls)] = number(cell)
    return [*sorted(points)], [points[calls] for calls in sorted(points)]


def draw_solver_plots() -> None:
    """Draw the plots of the solvers from their tables, and record them."""
    from diffusers_ucgm.solver_study.plots import plot_quality

    for name, (part, title) in SOLVER_PLOTS.items():
        curves = {str(row["solver"]): curve_of(row) for row in table("solvers", part).dicts()}
        own = [solver for solver in curves if solver.startswith(("UCGM-S", "fitted"))]
        measure = "median distance to the solution"
        plot_quality(curves, ROOT / name, measure=measure, title=title, emphasised=own)
        record_figure(name, DRAW)


def take_table(name: str, command: str, page: Path, head: str = "|") -> None:
    """Keep a table that stands in a page, under the title that the file of results has.

    Args:
        name: That of the file of results.
        command: The command that made the table.
        page: What a command wrote, such as comparison.md of `ucgm compare`. In a page of ours the table gives
            way to its marks; a table that stands in these already is taken from there.
        head: The beginning of the table's first line.

    Raises:
        ValueError: The page has no such table, but for those in the marks of other files.
    """
    text = page.read_text()
    marks = {found.span(): found[2] for found in MARK.finditer(text)}

    def mark_of(place: int) -> str | None:
        """The name of the mark around a place."""
        return next((mark for (start, end), mark in marks.items() if start <= place < end), None)

    tables = [
        each
        for each in re.finditer(r"(?:^\|.*\n?)+", text, re.MULTILINE)
        if each[0].startswith(head) and mark_of(each.start()) in (None, name)
    ]
    if not tables:
        raise ValueError(f"`--take` must name a page with a table that begins with {head!r}, got {str(page)!r}.")
    file = file_of(name)
    title = read_results(file).title if file.is_file() else name
    found = results_of_this_run(title, {"table": table_from(tables[0][0])})
    write_results(file, replace(found, command=command))
    if page.resolve() in pages() and mark_of(tables[0].start()) is None:
        start, end = tables[0].span()
        text = f"{text[:start]}<!-- results: {name} -->\n<!-- /results -->\n{text[end:]}"
        about = f"<!-- results: {name}#about -->"
        if page.resolve() == file.with_suffix(".md") and about not in text:
            title, _, rest = text.partition("\n")
            text = f"{title}\n\n{about}\n<!-- /results -->\n{rest}"
        page.write_text(text)


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--draw", action="store_true", help="also draw the plots of the solvers from their tables")
    parser.add_argument(
        "--figure", nargs=2, metavar=("FILE", "COMMAND"), help="record a picture, then write the pages"
    )
    parser.add_argument("--take", nargs=3, metavar=("NAME", "COMMAND", "PAGE"), help="keep a page's first table")
    parser.add_argument("--head", default="|", help="or the first table that begins so")
    args = parser.parse_args()
    if args.draw:
        draw_solver_plots()
    if args.take:
        name, command, page = args.take
        take_table(name, command, Path(page), args.head)
    if args.figure:
        record_figure(*args.figure)
    different = [page for page in pages() if filled(page.read_text()) != page.read_text()]
    for page in different:
        print(f"{page.relative_to(ROOT)} {'differs from its file' if args.check else 'is new'}")
        if not args.check:
            page.write_text(filled(page.read_text()))
    return int(args.check and bool(different))


if __name__ == "__main__":
    sys.exit(main())
