"""The options of `ucgm export`."""

import pytest
from command_calls import arguments_of, parsed

from diffusers_ucgm.names import BUNDLED


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("model_folder", {"name": "fashion-mnist", "argument": "--model"}),
        ("sampler_for", {"scheduler": "tuned/scheduler", "preset": "few-step"}),
    ],
)
def test_the_model_and_its_sampler_reach_the_export(function, expected, monkeypatch, tmp_path):
    words = ["--model", "fashion-mnist", "--output", str(tmp_path / "new"), "--standalone"]
    words += ["--scheduler", "tuned/scheduler", "--preset", "few-step"]
    found = arguments_of(monkeypatch, f"export.commands:{function}", "export", *words)
    assert {**found, **expected} == found


def test_the_output_reaches_the_export(monkeypatch, tmp_path):
    words = ["--model", "fashion-mnist", "--output", str(tmp_path / "new"), "--standalone"]
    found = arguments_of(monkeypatch, "export.commands:export_standalone", "export", *words)
    assert (found["folder"], found["output"]) == (BUNDLED["fashion-mnist"], tmp_path / "new")


def test_numbers_of_steps_are_read(monkeypatch, tmp_path):
    words = ["--model", "fashion-mnist", "--output", str(tmp_path / "new"), "--sigmas", "4", "8"]
    assert parsed("export", *words).sigmas == [4, 8]
    assert not parsed("export", *words).standalone
    found = arguments_of(monkeypatch, "export.commands:sigmas_by_steps", "export", *words, "--mu", "1.15")
    assert (found["steps"], found["mu"]) == ([4, 8], 1.15)


@pytest.mark.parametrize("missing", ["--model", "--output"])
def test_model_and_output_must_be_given(missing, capsys):
    words = {"--model": "fashion-mnist", "--output": "new"}
    del words[missing]
    with pytest.raises(SystemExit):
        parsed("export", "--standalone", *(word for pair in words.items() for word in pair))
    assert missing in capsys.readouterr().err
