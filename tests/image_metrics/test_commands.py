"""`ucgm evaluate`."""

import json
import sys

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from evaluation_runs import NUMBER, drawn_of, words

from diffusers_ucgm.cli import main
from diffusers_ucgm.generation.inputs import given_conditions


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_command_prints_and_writes_everything(given, tmp_path, capsys):
    reference = tmp_path / "reference.npz"
    args = ["evaluate", "--output", str(tmp_path / "out"), *words(given)]
    assert main([*args, "--save-reference", str(reference)]) == 0
    printed = capsys.readouterr().out
    assert f"{NUMBER} samples, 24 real images" in printed
    for name in ("Frechet distance", "spatial Frechet distance", "Inception score", "precision", "recall"):
        assert f"  {name} ({given / 'classifier'}): " in printed
    assert "FID" not in printed
    first = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    # Against the file: the same distances, and no precision and recall.
    assert main(["evaluate", "--output", str(tmp_path / "out"), *words(given, reference=reference)]) == 0
    assert "precision" in (printed := capsys.readouterr().out)
    assert "left out, the reference has statistics only" in printed
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert saved["reference"]["split"] is None
    second = saved["metrics"]
    assert second == {name: value for name, value in first.items() if name not in ("precision", "recall")}


def test_command_takes_labels_a_scheduler_and_arguments_of_the_call(given, tmp_path):
    FlowMatchEulerDiscreteScheduler(shift=2.0).save_pretrained(tmp_path / "scheduler")
    changes = {"labels": "Bag 4", "scheduler": tmp_path / "scheduler", "call": "guidance_interval=[0,0.5]"}
    args = words(given, **changes, **{"guidance-scale": 1.5})
    assert main(["evaluate", "--output", str(tmp_path / "out"), *args]) == 0
    settings = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]
    assert settings["conditions"] == ["Bag", 4]
    assert settings["scheduler"]["class"] == "FlowMatchEulerDiscreteScheduler"
    assert settings["scheduler"]["shift"] == 2.0
    assert settings["call"] == {"guidance_scale": 1.5, "guidance_interval": [0, 0.5]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reference": "nowhere.npz"},
            "must be a file of statistics or images, got 'nowhere.npz', which does not exist",
        ),
        ({"features": "inception"}, "needs torch-fidelity"),
        ({"scheduler": "nowhere"}, "`--scheduler` must be a folder with a scheduler"),
        ({"call": "height:3"}, "`--call` must be words of the form NAME=VALUE, got 'height:3'"),
        ({"batch-size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"num-samples": 0}, "`num_samples` must be at least 2, got 0"),
        ({"save-reference": "x.pkl"}, "`reference_file` must end in .npz, got 'x.pkl'"),
        ({"model": "fashion-mnist", "update-model-card": ""}, "`--model` must be a folder for `--update-model-card`"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(given, tmp_path, capsys, monkeypatch, changes, message):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    calls = drawn_of(monkeypatch)
    assert main(["evaluate", "--output", str(tmp_path / "out"), *words(given, **changes)]) == 2
    assert message in capsys.readouterr().err
    assert calls == []


def test_prompts_are_words_or_the_lines_of_a_file(tmp_path):
    def conditions(**given):
        return given_conditions(type("args", (), {"labels": None, "prompts": None, **given}))

    (tmp_path / "prompts.txt").write_text("a cat\n\n  a dog \n")
    assert conditions() is None
    assert conditions(labels=["3", "Bag"]) == [3, "Bag"]
    assert conditions(prompts=["a cat"]) == ["a cat"]
    assert conditions(prompts=[str(tmp_path / "prompts.txt")]) == ["a cat", "a dog"]
    (tmp_path / "prompts.txt").write_text("\n")
    with pytest.raises(ValueError, match="`--prompts` must name a file with a prompt on each line"):
        conditions(prompts=[str(tmp_path / "prompts.txt")])
