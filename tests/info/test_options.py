"""The options of `ucgm info`, `ucgm presets` and `ucgm recipes`."""

import pytest
from command_calls import arguments_of, parsed


def test_a_description_has_a_target_and_a_schedule_of_ten_steps(capsys):
    args = parsed("info", "fashion-mnist")
    assert (args.target, args.steps, args.plot) == ("fashion-mnist", 10, None)
    with pytest.raises(SystemExit):
        parsed("info")
    assert "the following arguments are required: target" in capsys.readouterr().err


def test_steps_and_the_plots_file_reach_the_plot(tmp_path, monkeypatch):
    file = tmp_path / "schedule.png"
    words = ["info", "fashion-mnist", "--steps", "4", "--plot", file]
    found = arguments_of(monkeypatch, "info.commands:plot_schedule", *words)
    assert (found["folder"].name, found["steps"], found["path"]) == ("fashion-mnist", 4, str(file))


def test_the_list_of_presets_takes_no_options(capsys):
    assert parsed("presets").command == "presets"
    with pytest.raises(SystemExit):
        parsed("presets", "--steps", "4")
    assert "there is no option --steps" in capsys.readouterr().err


def test_the_length_of_a_run_reaches_its_recipe(monkeypatch):
    assert parsed("recipes").name is None
    words = ["recipes", "two-step", "--max-train-steps", "300"]
    found = arguments_of(monkeypatch, "info.commands:recipe_settings", *words)
    assert [*found.values()] == ["two-step", {"max_train_steps": 300}]
