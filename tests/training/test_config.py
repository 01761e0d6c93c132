"""Settings of a training run: checks, files, and which may change on resume."""

import json
from dataclasses import fields

import pytest
from diffusers.optimization import SchedulerType

from diffusers_ucgm.cli import parser_for
from diffusers_ucgm.loss import DERIVATIVES, UCGMLoss
from diffusers_ucgm.training.config import FREE_ON_RESUME, SETTING_TYPES, UCGMTrainingConfig
from diffusers_ucgm.training.optimizers import OPTIMIZERS
from diffusers_ucgm.transports import PREDICTIONS


def test_loss_takes_every_setting_of_the_config():
    settings = {
        "transport": "trigflow",
        "prediction_type": "v_prediction",
        "consistency_ratio": 0.5,
        "enhancement_ratio": 1.3,
        "enhancement_range": (0.1, 0.6),
        "huber_c": 5.0,
        "cosine_term": True,
        "cosine_weighting": True,
        "label_dropout": 0.2,
        "time_distribution": (0.8, 1.0, 1.0),
        "channel_dim": -1,
        "batched_calls": True,
        "derivative": "forward",
    }
    assert set(settings) == {field.name for field in fields(UCGMLoss)}
    assert UCGMTrainingConfig("run", **settings).loss() == UCGMLoss(**settings)


def test_choices_are_those_of_diffusers_and_of_the_optimizers():
    # The settings are read without torch, so these names stand twice.
    choices = {name: kind.choices for name, kind in SETTING_TYPES.items()}
    assert set(choices["lr_scheduler"]) == {each.value for each in SchedulerType}
    assert set(choices["optimizer"]) == set(OPTIMIZERS)
    assert set(choices["prediction_type"]) == set(PREDICTIONS)
    assert choices["derivative"] == DERIVATIVES


def test_defaults_of_the_loss_and_the_config_agree():
    assert UCGMTrainingConfig("run").loss() == UCGMLoss()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sgd"}, r"`optimizer` must be one of \['adamw', 'adamw_8bit', .*, got 'sgd'\."),
        ({"mixed_precision": "fp8"}, r"`mixed_precision` must be one of \['no', 'bf16', 'fp16'\], got 'fp8'\."),
        ({"train_batch_size": 0}, r"`train_batch_size` must be at least 1, got 0\."),
        ({"gradient_accumulation_steps": 0}, r"`gradient_accumulation_steps` must be at least 1, got 0\."),
        ({"max_train_steps": 0}, r"`max_train_steps` must be at least 1, got 0\."),
        ({"checkpointing_steps": 0}, r"`checkpointing_steps` must be at least 1, got 0\."),
        ({"checkpoints_total_limit": 0}, r"`checkpoints_total_limit` must be at least 1, got 0\."),
        ({"logging_steps": 0}, r"`logging_steps` must be at least 1, got 0\."),
        ({"teacher_decay": 1.1}, r"`teacher_decay` must be in \[0, 1\], got 1.1\."),
        ({"ema_decay": -0.1}, r"`ema_decay` must be in \[0, 1\], got -0.1\."),
        ({"learning_rate": -1.0}, r"`learning_rate` must not be negative, got -1.0\."),
        ({"learning_rate": float("nan")}, r"`learning_rate` must not be negative, got nan\."),
        ({"lr_scheduler": "cosin"}, r"`lr_scheduler` must be one of .*'cosine'.*, got 'cosin'\."),
        ({"lr_scheduler": "piecewise_constant"}, r"`lr_step_rules` must go with `lr_scheduler='piecewise_constant'`"),
        ({"lr_step_rules": "1:5,0.1"}, r"`lr_step_rules` must go with .*, got '1:5,0.1' with 'constant'\."),
        ({"max_grad_norm": -1.0}, r"`max_grad_norm` must not be negative, got -1.0\."),
        ({"lr_warmup_steps": -1}, r"`lr_warmup_steps` must not be negative, got -1\."),
        ({"adam_weight_decay": -0.1}, r"`adam_weight_decay` must not be negative, got -0.1\."),
        ({"consistency_ratio": 2.0}, r"`consistency_ratio` must be in \[0, 1\], got 2.0\."),
        ({"transport": "strait"}, r"`transport` must be one of .*, got 'strait'\."),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        UCGMTrainingConfig("run", **settings)


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="batch_size"):
        UCGMTrainingConfig("run", batch_size=3)


def test_settings_survive_json(tmp_path):
    config = UCGMTrainingConfig("run", time_distribution=[0.8, 1.0, 1.0], enhancement_range=[0.1, 0.5])
    assert config.time_distribution == (0.8, 1.0, 1.0)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    assert UCGMTrainingConfig.from_file(file) == config


def test_a_path_as_output_folder_is_kept_as_text(tmp_path):
    # JSON holds no paths: the first checkpoint would fail, hours later.
    config = UCGMTrainingConfig(tmp_path / "run")
    assert config.to_dict()["output_dir"] == str(tmp_path / "run")


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


@pytest.mark.parametrize(
    ("name", "words", "value"),
    [
        ("mixed_precision", "no", "no"),
        ("gradient_checkpointing", "no", False),
        ("max_train_steps", "100", 100),
        ("learning_rate", "1e-4", 1e-4),
        ("lora_alpha", "null", None),
        ("consistency_ratio", "1", 1.0),
        ("max_train_steps", "2e3", 2000),
        ("consistency_schedule", ["[[0, 0.0], [2000, 1.0]]"], [[0, 0.0], [2000, 1.0]]),
        ("consistency_schedule", ["[0, 0.0]", "[2000, 1]"], [[0, 0.0], [2000, 1.0]]),
        ("consistency_schedule", [["0", "0.5"], ["2e3", "1"]], [[0, 0.5], [2000, 1.0]]),
        ("consistency_schedule", ["null"], None),
        ("enhancement_range", ["[0, 0.5]"], [0.0, 0.5]),
        ("enhancement_range", ["0", "0.5"], [0.0, 0.5]),
        ("validation_inputs", ["cat: dog", "3"], ["cat: dog", "3"]),
        ("validation_inputs", ['["a cat", 3]'], ["a cat", "3"]),
        ("lora_target_modules", ["to_q"], ["to_q"]),
    ],
)
def test_words_are_read_by_the_type_of_their_setting(name, words, value):
    found = SETTING_TYPES[name].read(name, words)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("max_train_steps", "1.5", r"`max_train_steps` must be of type int, got '1\.5'\."),
        ("gradient_checkpointing", "maybe", r"`gradient_checkpointing` must be of type bool, got 'maybe'\."),
        ("enhancement_range", ["0"], r"`enhancement_range` must be of type tuple\[float, float\], got \['0'\]\."),
        ("consistency_schedule", ["[[1.5, 0]]"], r"`consistency_schedule` must be of type tuple\[tuple\[int, float\]"),
        ("consistency_schedule", ["0", "0.5"], r"`consistency_schedule` must be of type tuple\[tuple\[int, float\]"),
        ("seed", ["1", "2"], r"`seed` must be of type int, got \['1', '2'\]\."),
        (
            "validation_inputs",
            [{"cat": "dog"}],
            r"of type tuple\[str, \.\.\.\], got .*Quote texts with a colon",
        ),
    ],
)
def test_words_of_another_type_are_refused(name, words, message):
    with pytest.raises(ValueError, match=message):
        SETTING_TYPES[name].read(name, words)


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


def test_settings_that_do_not_enter_the_weights_may_change_on_resume():
    saved = UCGMTrainingConfig("run").to_dict()
    other = UCGMTrainingConfig(
        "elsewhere",
        checkpointing_steps=1,
        checkpoints_total_limit=9,
        dataloader_num_workers=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        logging_steps=1,
        overwrite_output_dir=True,
        report_to="tensorboard",
        resume_from_checkpoint="latest",
        torch_compile=True,
        tracker_project_name="other",
        train_batch_size=32,
        validation_inputs=["a cat"],
        validation_num_inference_steps=[2],
        validation_steps=5,
    )
    mine = other.to_dict()
    assert {name for name in mine if mine[name] != saved[name]} == FREE_ON_RESUME
    other.check_resumable(saved)


def test_all_other_changes_on_resume_are_listed():
    saved = UCGMTrainingConfig("run", seed=1, learning_rate=0.1).to_dict()
    message = (
        r"`resume_from_checkpoint` must be a run with the same settings, got learning_rate: 0.1 is now 0.2, "
        r"seed: 1 is now 2\. Resume with the saved settings, or start a new run in another `output_dir`\."
    )
    with pytest.raises(ValueError, match=message):
        UCGMTrainingConfig("run", seed=2, learning_rate=0.2).check_resumable(saved)


def test_a_flag_alone_is_on_as_in_the_other_commands():
    words = [
        "train",
        "--pipeline",
        "fashion-mnist",
        "--data",
        "d",
        "--overwrite-output-dir",
        "--torch-compile",
        "false",
    ]
    args = parser_for(words).parse_args(words)
    assert (args.setting_overwrite_output_dir, args.setting_torch_compile) == ("true", "false")


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_ratio_of_a_schedule_that_is_out_of_range_is_named(ratio):
    with pytest.raises(ValueError, match=r"`consistency_schedule` must hold ratios in \[0, 1\], got"):
        UCGMTrainingConfig(output_dir="run", consistency_schedule=[[0, 0.0], [10, ratio]])
