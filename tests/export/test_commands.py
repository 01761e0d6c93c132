"""The command `ucgm export`."""

import json
import re

import pytest

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.cli import main


def test_a_command_writes_the_pipeline_and_the_sigmas(tmp_path, capsys):
    words = ["--model", "fashion-mnist", "--output", str(tmp_path / "new"), "--standalone", "--sigmas", "2", "4"]
    assert main(["export", *words]) == 0
    printed = capsys.readouterr().out
    assert f"Pipeline: {tmp_path / 'new'}" in printed
    assert "trust_remote_code=True" in printed
    assert "without `extrapolation_ratio=0.5`" in printed
    assert (tmp_path / "new" / "pipeline.py").is_file()
    table = json.loads((tmp_path / "new" / "sigmas.json").read_text())
    assert table["sigmas"]["4"] == UCGMScheduler().stock_sigmas(4)


def test_the_sigmas_alone_are_one_file(tmp_path):
    assert main(["export", "--model", "emoji", "--output", str(tmp_path), "--sigmas", "3"]) == 0
    assert [each.name for each in tmp_path.iterdir()] == ["sigmas.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "`--standalone` or `--sigmas` must say what is exported"),
        (["--standalone", "--model", "nope"], "`--model` must be one of .*, got 'nope'"),
        (["--standalone", "--scheduler", "./nope"], "`--scheduler` must be .*, got './nope'"),
        (["--standalone", "--preset", "nope"], "`preset` must be one of .*, got 'nope'"),
        (["--sigmas", "0"], "`--sigmas` must be whole numbers of at least 1, got 0"),
        (["--standalone", "--output", "/dev/null"], "`--output` must be a folder that can be written"),
        (["--standalone", "--output", "."], "`output` must be a folder that can be written as a whole, got '.'"),
        (["--standalone", "--output", ""], "`--output` must be a folder that can be written, got ''"),
        (["--sigmas", "3", "--output", ""], "`--output` must be a folder that can be written, got ''"),
        (["--standalone", "--mu", "1.15"], "`--mu` must go with `--sigmas`, got 1.15 without any"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--model", "fashion-mnist", "--output", str(tmp_path / "new"), *words]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    assert main(["export", "--model", "fashion-mnist", "--output", str(tmp_path), "--standalone"]) == 2
    assert "`--output` must be a new or empty folder" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


def test_the_sigmas_alone_may_go_into_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--model", "emoji", "--output", ".", "--sigmas", "3"]) == 0
    assert [each.name for each in tmp_path.iterdir()] == ["sigmas.json"]
