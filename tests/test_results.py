"""The results of benchmarks: each figure of a page comes from a file, which says how it was made."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import results_file
from results_file import Column, PrintedTable, Results, Table, keep, number, read_results, table_from, write_results


ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("results", ROOT / "tools" / "results.py")
results = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = results
SPEC.loader.exec_module(results)

FILES = results.results_files()
# Tables with numbers that no benchmark measures, by the start of their first line, and where the numbers come from.
OTHER_TABLES = {
    "docs/architecture.md": {"| | jsonargparse | tyro |": "what was tried by hand, without numbers"},
    "docs/compare-solvers.md": {
        "| scheduler | behaviour | effect |": "read off diffusers' sources and the table of all solvers"
    },
    "docs/integrations/comfyui.md": {"| node | input |": "settings of the nodes"},
    "docs/concepts.md": {"| name | alpha | gamma |": "formulas"},
    "docs/emoji-model.md": {"| part | images | `kind` |": "the split that `prepare` makes; its names alone decide it"},
    "docs/paper-models.md": {
        "| checkpoint | command": "the paper, arXiv 2505.07447, quoted",
        "| | TiT | SiT |": "settings of the published networks",
    },
    "docs/pipelines.md": {"| model | method | grid |": "settings"},
    "docs/sampling.md": {"| `target_time` | the second time |": "settings"},
    "docs/training.md": {
        "| setting | multi-step | few-step": "settings of the paper and of the recipes",
        "| preset | target times | first step |": "settings; tests/test_loss_settings.py and the presets hold them",
        "| consistency ratio | calls with a gradient |": "calls that the loss makes; tests/test_loss.py counts them",
    },
    "docs/tune-the-sampler.md": {"| parameter | range |": "settings of the search"},
    "docs/tune-to-few-steps.md": {"| setting | value | why |": "settings of the recipes"},
}


def tables_outside_marks(text):
    """The tables of a page that are not filled from a file, each as its lines."""
    text = results.MARK.sub("", text)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [found[0].splitlines() for found in re.finditer(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE)]


def has_numbers(lines):
    """Whether some row of a table has two cells that begin with a number."""
    begins = re.compile(r"\*{0,2}[-+]?\.?\d")
    return any(sum(bool(begins.match(cell)) for cell in results_file.cells_of(line)) >= 2 for line in lines[2:])


@pytest.mark.parametrize("page", results.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_the_tables_of_its_files(page):
    assert results.filled(page.read_text()) == page.read_text(), "Run `make results`."


def test_a_changed_figure_is_noticed():
    text = (ROOT / "README.md").read_text()
    assert results.filled(text.replace("0.9620", "0.9920")) == text


@pytest.mark.parametrize(
    "page",
    [page for page in results.pages() if not page.is_relative_to(results.RESULTS)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_other_table_with_numbers_says_where_they_come_from(page):
    known = OTHER_TABLES.get(str(page.relative_to(ROOT)), {})
    heads = [lines[0] for lines in tables_outside_marks(page.read_text()) if has_numbers(lines)]
    assert [head for head in heads if not any(head.startswith(each) for each in known)] == []
    every = [lines[0] for lines in tables_outside_marks(page.read_text())]
    assert [each for each in known if not any(head.startswith(each) for head in every)] == []


def test_the_pages_of_results_have_no_other_tables():
    pages = [page for page in results.pages() if page.is_relative_to(results.RESULTS)]
    assert [page.name for page in pages if tables_outside_marks(page.read_text())] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(results.RESULTS)))
def test_a_file_says_how_its_numbers_were_made(file):
    found = read_results(file)
    for name in ("title", "command", "commit", "machine", "date"):
        assert isinstance(getattr(found, name), str)
        assert getattr(found, name)
    assert found.versions
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found.date)
    for table in found.tables.values():
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_every_table_of_a_file_is_in_a_page():
    marked = {found[2] for page in results.pages() for found in results.MARK.finditer(page.read_text())}
    assert set(results.VIEWS) <= marked
    for file in FILES:
        name = file.relative_to(results.RESULTS).with_suffix("").as_posix()
        shown = {name, f"{name}#table"}
        missing = [part for part in read_results(file).tables if f"{name}#{part}" not in marked | shown]
        assert missing in ([], ["commands"] if name == "docs-commands" else [])
        assert shown & marked or "table" not in read_results(file).tables
        assert f"{name}#about" in marked or name == "figures"


def test_every_figure_is_the_one_that_is_recorded():
    pages = [page for page in results.pages() if "![" in page.read_text()]
    shown = {
        (page.parent / link).resolve().relative_to(ROOT).as_posix()
        for page in pages
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())
    }
    recorded = {row["file"]: row["digest"] for row in results.table("figures").dicts()}
    assert shown - set(recorded) == set()
    assert {name: results.digest_of(ROOT / name) for name in recorded} == recorded, "Run `tools/results.py --figure`."


def test_the_plots_of_the_solvers_are_drawn_from_their_tables():
    recorded = {row["file"]: row["command"] for row in results.table("figures").dicts()}
    assert {recorded[name] for name in results.SOLVER_PLOTS} == {results.DRAW}
    assert {part for part, _ in results.SOLVER_PLOTS.values()} < set(read_results(results.file_of("solvers")).tables)
    row = {
        "solver": "Heun",
        "1": 2.3,
        "2": {"value": 2.3, "text": "2.3 (1)"},
        "4": {"value": 0.5, "text": "**0.5** (3)"},
        "5": None,
    }
    assert results.curve_of(row) == ([1, 3], [2.3, 0.5])


def test_a_file_is_read_as_it_was_written(tmp_path):
    table = Table(
        [Column("a"), Column("b", ".2f", "right")],
        [["x | y", 0.5], ['"line 3"', None], ["z", {"value": 0.25, "text": "**0.25**"}]],
    )
    found = Results("T", "python x.py", "abc", {"torch": "2"}, "m", "2026-11-27", {"table": table, "other": table})
    file = tmp_path / "new" / "file.json"
    write_results(file, found)
    assert read_results(file) == found
    assert '["z", {"value": 0.25, "text": "**0.25**"}]' in file.read_text()
    assert found.about().splitlines()[0] == "- Command: `python x.py`"
    assert replace(found, command=results_file.NOT_RECORDED).about().startswith("- Command: not recorded")


def test_a_table_shows_numbers_in_its_columns_format():
    table = Table([Column("a"), Column("b", ".2f", "right")], [["x", 0.5], ["y", None], ["z", "blank"]])
    assert table.markdown() == "| a | b |\n| --- | ---: |\n| x | 0.50 |\n| y |  |\n| z | blank |"
    assert table.with_columns({"b": ("c", ".1f")}).markdown().endswith("| 0.5 |\n|  |\n| blank |")
    assert table.where(lambda row: row["a"] == "y").rows == [["y", None]]


def test_a_table_of_text_keeps_its_numbers():
    head = "| name | n | share | d |\n| --- | ---: | ---: | --- |\n"
    text = head + "| 2 steps | 1,500 | 83% | **0.5** (1) |\n| b | 20 | 7% |  |"
    table = table_from(text)
    assert table.markdown() == text
    assert table.rows[0][:3] == ["2 steps", 1500, 0.83]
    assert number(table.rows[0][3]) == 0.5
    with pytest.raises(ValueError, match="must hold a number"):
        number(table.rows[0][0])


def test_a_benchmark_prints_its_table_and_keeps_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "kills.py"), "--only", "a b"])
    table = PrintedTable("name", "value:")
    table.add("x", "0.50")
    assert capsys.readouterr().out == "| name | value |\n| --- | ---: |\n| x | 0.50 |\n"
    keep(None, "T", {"table": table.markdown()})
    keep(tmp_path / "x.json", "T", {"table": table.markdown()})
    found = read_results(tmp_path / "x.json")
    assert found.command == "python benchmarks/kills.py --only 'a b'"
    assert found.tables["table"].rows == [["x", 0.5]]
    assert {"CPython", "torch", "diffusers"} <= set(found.versions)
    assert not (tmp_path / "x.md").exists()


def test_new_results_get_a_page_with_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    keep(tmp_path / "x.json", "Title", {"first": "| a |\n| --- |\n| 1 |"})
    page = tmp_path / "x.md"
    assert page.read_text().startswith("# Title\n\n<!-- results: x#about -->\n<!-- /results -->\n")
    text = results.filled(page.read_text())
    assert "| a |\n| --- |\n| 1 |\n<!-- /results -->" in text
    assert results.filled(text) == text


def test_the_table_that_a_command_wrote_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "pages", list)
    page = tmp_path / "comparison.md"
    page.write_text("# Title\n\n| solver | 5 |\n| --- | ---: |\n| a | 0.5 |\n\n| other |\n| --- |\n| b |\n")
    results.take_table("x", "ucgm compare", page)
    found = read_results(tmp_path / "x.json")
    assert (found.title, found.command, found.tables["table"].rows) == ("x", "ucgm compare", [["a", 0.5]])
    monkeypatch.setattr(results, "pages", lambda: [page])
    results.take_table("x", "ucgm compare", page, "| other")
    text = page.read_text()
    assert text.endswith("| a | 0.5 |\n\n<!-- results: x -->\n<!-- /results -->\n")
    assert results.filled(text).endswith("<!-- results: x -->\n| other |\n| --- |\n| b |\n<!-- /results -->\n")
    page.write_text(results.filled(text).replace("| b |", "| c |"))
    results.take_table("x", "ucgm compare", page, "| other")
    assert read_results(tmp_path / "x.json").tables["table"].rows == [["c"]]
    assert page.read_text().count("<!-- results: x -->") == 1
    results.take_table("comparison", "ucgm compare", page)
    assert page.read_text().startswith("# Title\n\n<!-- results: comparison#about -->\n<!-- /results -->\n")
    page.write_text("no table")
    with pytest.raises(ValueError, match="must name a page with a table"):
        results.take_table("x", "ucgm compare", page)


@pytest.mark.parametrize("name", ["nothing", "bundled-model#nothing"])
def test_a_mark_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match="A mark must name one of"):
        results.filled(f"<!-- results: {name} -->\n<!-- /results -->\n")


def test_a_mark_without_an_end_is_refused():
    text = "<!-- results: bundled-model -->\n| a |\n\ntext\n\n<!-- results: kills -->\n<!-- /results -->\n"
    with pytest.raises(ValueError, match="must end in a line"):
        results.filled(text)
    with pytest.raises(ValueError, match="must end in a line"):
        results.filled("text\n<!-- results: kills -->\n| a |\n")
