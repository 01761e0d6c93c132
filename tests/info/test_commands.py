"""`ucgm info`, `ucgm presets` and `ucgm recipes`: what they print, and which targets they refuse."""

import pytest

from diffusers_ucgm import PRESETS, UCGMScheduler
from diffusers_ucgm.cli import main
from diffusers_ucgm.names import BUNDLED, BUNDLED_LORAS


def test_presets_are_listed_and_all_are_legal(capsys):
    assert main(["presets"]) == 0
    printed = capsys.readouterr().out
    for name, preset in PRESETS.items():
        assert name in printed
        scheduler = UCGMScheduler(**preset.scheduler)
        scheduler.set_timesteps(preset.num_inference_steps)
        assert len(scheduler.timesteps) == preset.num_inference_steps


def test_a_preset_has_its_figures_in_its_row(capsys):
    main(["presets"])
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["repa-e-256"][1] == "40"
    for name, preset in PRESETS.items():
        assert int(rows[name][1]) == preset.num_inference_steps
        assert float(rows[name][2]) == pytest.approx(preset.scheduler["extrapolation_ratio"], abs=0.005)
        assert preset.fid is None or f"{preset.fid:.2f}" in rows[name]


def test_a_bundled_name_is_its_folder_unless_a_folder_has_that_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["info", "fashion-mnist"]) == 0
    assert f"UCGMPipeline in {BUNDLED['fashion-mnist']}" in capsys.readouterr().out
    (tmp_path / "fashion-mnist").mkdir()
    UCGMScheduler().save_pretrained(tmp_path / "fashion-mnist")
    assert main(["info", "fashion-mnist"]) == 0
    assert "UCGMScheduler in fashion-mnist" in capsys.readouterr().out


def test_bundled_loras_and_classifiers_are_described_by_their_names(capsys):
    assert main(["info", "emoji-few-step"]) == 0
    said = capsys.readouterr().out
    assert f"LoRA in {BUNDLED_LORAS['emoji-few-step']}\nbase model: emoji\nrank: 8\n" in said
    assert main(["info", "fashion-mnist-classifier"]) == 0
    assert "ImageClassifier2DModel in " in capsys.readouterr().out


def test_a_target_is_a_folder_with_something_to_describe(tmp_path, capsys):
    (tmp_path / "file").write_text("words")
    for target, message in (
        (tmp_path / "file", "`target` must be a folder, got the file"),
        (tmp_path, "`target` must hold model_index.json, scheduler_config.json, state.json, config.json, "),
        ("fashion-mnits", "Did you mean 'fashion-mnist'?"),
    ):
        assert main(["info", str(target)]) == 2
        assert message in capsys.readouterr().err


def test_the_length_of_a_run_needs_the_name_of_a_recipe(capsys):
    assert main(["recipes", "--max-train-steps", "9"]) == 2
    assert "`--max-train-steps` must go with the name of a recipe, one of ['" in capsys.readouterr().err
    assert main(["recipes", "two-step", "--max-train-steps", "9"]) == 0
    assert "max_train_steps: 9\n" in capsys.readouterr().out
