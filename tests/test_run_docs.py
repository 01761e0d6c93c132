"""`tools/run_docs.py`: every command of the pages ran as it stands, or is left out; the record keeps other pages."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("run_docs", ROOT / "tools" / "run_docs.py")
run_docs = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = run_docs
SPEC.loader.exec_module(run_docs)


@pytest.mark.parametrize("page", run_docs.NOT_RUN)
def test_what_is_left_out_stands_in_its_page(page):
    commands = [command for block in run_docs.blocks_of(page) for command in block.commands]
    assert [words for words in run_docs.NOT_RUN[page] if not any(words in each for each in commands)] == []


def test_what_is_given_is_given_to_pages_with_commands():
    assert set(run_docs.GIVEN) <= set(run_docs.pages_with_commands())


def done(page, text, result, language="bash"):
    return run_docs.Done(run_docs.Block(page, 7, language, text), text, result, 12.4)


def test_a_row_names_the_command_without_its_comment():
    row = run_docs.row_of(done("README.md", "ucgm a \\\n    | ucgm b   # see `x`", "ran"))
    assert row[:4] == ["README.md", "`ucgm a \\| ucgm b`", "ran", 12.4]
    row = run_docs.row_of(done("README.md", "a = 1\nb = 2\n", "ran", "python"))
    assert row[1] == "2 lines of Python"
    assert row[-1] == run_docs.digest_of("a = 1\nb = 2")


def test_the_record_counts_what_happened_and_keeps_its_rows(tmp_path):
    rows = {
        "docs/evaluate.md": [run_docs.row_of(done("docs/evaluate.md", "a | b", "not run: an ellipsis"))],
        "README.md": [run_docs.row_of(done("README.md", "a", result)) for result in ("ran", "failed", "ran")],
    }
    file = tmp_path / "record.json"
    assert run_docs.rows_in(file) == {}
    run_docs.write_results(file, run_docs.results(rows))
    assert run_docs.rows_in(file) == rows
    counts = run_docs.read_results(file).tables["counts"].rows
    assert counts == [["ran", 2], ["failed", 1], ["not run", 1]]


def test_every_command_of_the_pages_ran_or_is_left_out_with_its_reason():
    missing = run_docs.not_in(run_docs.rows_in(run_docs.RECORD))
    assert missing == [], "Run `python tools/run_docs.py --missing --record --work FOLDER`, or list it in `NOT_RUN`."


def test_a_command_that_changed_since_it_ran_is_missing(tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text("```bash\ntrue\nfalse\n```\n\n```python\nx = 1\n```\n")
    monkeypatch.setattr(run_docs, "ROOT", tmp_path)
    monkeypatch.setattr(run_docs, "pages", lambda: ["README.md"])
    rows = {
        "README.md": [
            run_docs.row_of(done("README.md", "true", "ran")),
            run_docs.row_of(done("README.md", "false", "failed")),
        ]
    }
    assert run_docs.not_in(rows) == [("README.md", "false"), ("README.md", "x = 1\n")]
    rows["README.md"].append(run_docs.row_of(done("README.md", "x = 1\n", "ran", "python")))
    monkeypatch.setattr(run_docs, "NOT_RUN", {"README.md": {"false": "it fails"}})
    assert run_docs.not_in(rows) == []


@pytest.mark.parametrize("page", run_docs.pages())
def test_a_block_is_run_or_of_a_language_that_is_only_shown(page):
    languages = re.findall(r"^```(\S*)\n.*?^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert set(languages) - {"bash", "python"} - set(run_docs.SHOWN) == set()


def test_a_page_whose_command_fails_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "page.md").write_text(
        "```bash\ntrue\nfalse\n```\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n"
    )
    monkeypatch.setattr(run_docs, "ROOT", tmp_path)
    monkeypatch.setattr(run_docs, "prepare", os.makedirs)
    monkeypatch.chdir(tmp_path)
    results = [each.result for each in run_docs.run_page("page.md", tmp_path / "work")]
    assert results == ["ran", "failed", "ran", "failed"]
    assert "FAILED page.md:1" in capsys.readouterr().out


def test_only_what_is_missing_runs_with_the_python_before_it(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text(
        "```bash\nfalse\ntrue\n```\n\n```python\nx = 1\n```\n\n```python\nassert x == 1\n```\n"
    )
    monkeypatch.setattr(run_docs, "ROOT", tmp_path)
    monkeypatch.setattr(run_docs, "prepare", os.makedirs)
    monkeypatch.chdir(tmp_path)
    known = [run_docs.digest_of("false"), run_docs.digest_of("x = 1")]
    done = list(run_docs.run_page("page.md", tmp_path / "work", known))
    assert [(each.command.strip(), each.result) for each in done] == [("true", "ran"), ("assert x == 1", "ran")]
    rows = [run_docs.row_of(each) for each in reversed(done)]
    gone = [*rows[0][:-1], "of a command that is gone"]
    assert run_docs.in_order("page.md", [*rows, gone]) == rows[::-1]
