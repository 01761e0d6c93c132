"""Settings from words, files and recipes, and of version 0.1.0."""

import pytest

from diffusers_ucgm.training.config import SETTING_TYPES, UCGMTrainingConfig
from diffusers_ucgm.training.settings import in_current_form, override, read_words, recipe_settings


def test_yaml_files_are_read_and_arguments_win(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("output_dir: run\nlearning_rate: 0.01\ntime_distribution: [0.8, 1, 1]\nema_decay: 0.5\n")
    config = UCGMTrainingConfig.from_file(file, ema_decay=0.9)
    assert (config.output_dir, config.learning_rate, config.ema_decay) == ("run", 0.01, 0.9)
    assert config.time_distribution == (0.8, 1, 1)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    # YAML 1.1 asks for a dot in "1.0e-4"; people leave it out.
    file = tmp_path / "config.yaml"
    file.write_text("output_dir: run\nlearning_rate: 1e-4\n")
    assert UCGMTrainingConfig.from_file(file).learning_rate == 1e-4


def test_words_that_yaml_takes_for_something_else_are_what_the_setting_is(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "output_dir: 2026-11-25\nmixed_precision: no\nreport_to: null\ngradient_checkpointing: yes\n"
        "consistency_ratio: [[0, 0], [2000, 1]]\nlora_alpha: 8\nvalidation_inputs: ['cat: dog', 7, no, 1e3]\n"
    )
    config = UCGMTrainingConfig.from_file(file)
    assert (config.output_dir, config.mixed_precision, config.report_to) == ("2026-11-25", "no", None)
    assert config.gradient_checkpointing is True
    assert config.consistency_schedule == ((0, 0.0), (2000, 1.0))
    assert config.lora_alpha == 8.0
    assert config.validation_inputs == ("cat: dog", "7", "no", "1e3")


SCHEDULE = [[0, 0.5], [100, 1.0]]


@pytest.mark.parametrize("schedule", [SCHEDULE, ((0, 0.5), (100, 1.0)), [[0.0, 0.5], [100.0, 1]]])
def test_a_schedule_may_still_be_a_value_of_the_ratio(schedule):
    config = UCGMTrainingConfig("run", consistency_ratio=schedule)
    assert config.consistency_ratio == 0.0
    assert config.consistency_schedule == ((0, 0.5), (100, 1.0))
    assert all(type(step) is int for step, _ in config.consistency_schedule)


@pytest.mark.parametrize("name", ["run.json", "run.yaml"])
def test_files_of_version_0_1_0_with_a_schedule_and_ids_are_read(tmp_path, name):
    file = tmp_path / name
    file.write_text(
        '{"output_dir": "run", "consistency_ratio": [[0.0, 0.5], [1e2, 1.0]], "validation_inputs": ["a", 3]}'
    )
    config = UCGMTrainingConfig.from_file(file)
    assert config.consistency_schedule == ((0, 0.5), (100, 1.0))
    assert config.validation_inputs == ("a", "3")
    other = UCGMTrainingConfig.from_file(file, consistency_ratio=0.25)
    assert (other.consistency_ratio, other.consistency_schedule) == (0.25, None)
    other = UCGMTrainingConfig.from_file(file, consistency_ratio=[[0, 1.0]])
    assert other.consistency_schedule == ((0, 1.0),)


def test_a_run_of_version_0_1_0_with_a_schedule_is_resumed():
    saved = UCGMTrainingConfig("run").to_dict()
    del saved["consistency_schedule"]
    config = UCGMTrainingConfig("run", consistency_schedule=SCHEDULE)
    for steps in (0, 100), (0.0, 100.0):
        config.check_resumable({**saved, "consistency_ratio": [[steps[0], 0.5], [steps[1], 1.0]]})
    with pytest.raises(ValueError, match=r"consistency_schedule: \[\[0, 0.5\]\] is now \[\[0, 0.5\], \[100, 1.0\]\]"):
        config.check_resumable({**saved, "consistency_ratio": [[0, 0.5]]})
    UCGMTrainingConfig("run", consistency_ratio=0.5).check_resumable({**saved, "consistency_ratio": 0.5})


@pytest.mark.parametrize("name", ["config.json", "config.yaml"])
def test_files_with_unknown_settings_or_no_settings_are_refused(tmp_path, name):
    file = tmp_path / name
    file.write_text('{"output_dir": "run", "batch_size": 3, "lr": 1}')
    with pytest.raises(
        ValueError, match=r"`path` must name settings of UCGMTrainingConfig, got \['batch_size', 'lr'\] in '"
    ):
        UCGMTrainingConfig.from_file(file)
    file.write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"`path` must hold a mapping of settings, got list in '"):
        UCGMTrainingConfig.from_file(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        UCGMTrainingConfig.from_file(tmp_path / "none.yaml")


def test_mistyped_names_in_files_get_the_nearest(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: run\nlerning_rate: 1\nbatch_size: 3\n")
    with pytest.raises(ValueError, match=r"For 'batch_size': Did you mean 'train_batch_size'\?.*'learning_rate'\?"):
        UCGMTrainingConfig.from_file(file)


def test_a_ratio_and_a_schedule_override_each_other():
    ratio, schedule = {"consistency_ratio": 0.5}, {"consistency_schedule": [[0, 1.0]]}
    assert override({"seed": 1, **ratio}, schedule) == {"seed": 1, **schedule}
    assert override({"seed": 1, **schedule}, ratio) == {"seed": 1, **ratio}
    assert override(schedule, {"seed": 1}) == {"seed": 1, **schedule}
    assert override(schedule, {"consistency_ratio": [[0, 0.5]]}) == {"consistency_schedule": [[0, 0.5]]}


def test_settings_of_this_version_stay():
    current = {"consistency_ratio": 0.5, "consistency_schedule": None, "validation_inputs": ["a", "1"], "seed": 3}
    assert in_current_form(current) == current
    # True is no id, and is refused later.
    assert in_current_form({"validation_inputs": [True, 3]}) == {"validation_inputs": [True, "3"]}


def test_a_word_of_the_ratio_may_be_a_schedule():
    found = read_words({"consistency_ratio": "[[0, 0.5], [10, 1]]", "seed": "3"}, SETTING_TYPES)
    assert found == {"consistency_schedule": [[0, 0.5], [10, 1.0]], "seed": 3}
    assert read_words({"consistency_ratio": "0.5"}, SETTING_TYPES) == {"consistency_ratio": 0.5}


@pytest.mark.parametrize("steps", [0, -1, 1.5, "5", True])
def test_a_recipe_is_of_a_number_of_steps(steps):
    with pytest.raises(ValueError, match=r"`max_train_steps` must be at least 1, got"):
        recipe_settings("two-step", {"max_train_steps": steps})
