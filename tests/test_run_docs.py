"""`tools/run_docs.py`: what it leaves out is still in the pages, and its table keeps the rows of other pages."""

import importlib.util
import os
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
    assert "| README.md:7 | `ucgm a \\| ucgm b` | ran | 12 | " in run_docs.row_of(
        done("README.md", "ucgm a \\\n    | ucgm b   # see `x`", "ran")
    )
    assert " | 2 lines of Python | " in run_docs.row_of(done("README.md", "a = 1\nb = 2\n", "ran", "python"))


def test_a_table_counts_what_happened_and_keeps_its_rows(tmp_path):
    rows = {
        "docs/evaluate.md": [run_docs.row_of(done("docs/evaluate.md", "a | b", "not run: an ellipsis"))],
        "README.md": [run_docs.row_of(done("README.md", "a", result)) for result in ("ran", "failed", "ran")],
    }
    text = run_docs.table(rows)
    assert "this table: 2 ran, 1 failed, 1 not run." in text
    assert "Pages that have not run: CONTRIBUTING.md" in text
    file = tmp_path / "table.md"
    assert run_docs.rows_in(file) == {}
    file.write_text(text)
    assert run_docs.rows_in(file) == rows


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
