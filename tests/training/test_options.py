"""The options of `ucgm train`."""

from diffusers_ucgm.cli import parser_for


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


def test_settings_take_several_words_or_a_list():
    words = ["train", "--model", "m", "--data", "d", "--enhancement-range", "0", "0.5", "--validation-inputs", "[1]"]
    args = parser_for(words).parse_args(words)
    assert args.setting_enhancement_range == ["0", "0.5"]
    assert args.setting_validation_inputs == ["[1]"]
