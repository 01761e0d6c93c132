"""Errors of the command line: two lines, with the nearest word."""

import pytest

from diffusers_ucgm.cli import main
from diffusers_ucgm.command_parser import with_dashes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "--pipline", "x"], "there is no option --pipline. Did you mean '--pipeline'?"),
        (["train", "--lerning_rate", "1"], "Did you mean '--learning-rate'?"),
        (["sample", "--guidence-scale=2"], "Did you mean '--guidance-scale'?"),
        (["cache", "--crop", "centre"], "got 'centre'. Did you mean 'center'?"),
        (["tune-sampler", "--objective", "fretchet"], "Did you mean 'frechet'?"),
        (["convert", "--preset", "repa-e256"], "Did you mean 'repa-e-256'?"),
        (["train", "--device", "cuda"], "there is no option --device.\n"),
        (["serve", "--share"], "there is no option --share.\n"),
        (["evaluate"], "the following arguments are required: --model"),
    ],
)
def test_typos_get_the_nearest_word_and_no_list_of_all_options(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 2


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--learning_rate", "--learning-rate"),
        ("--output_dir=my_run", "--output-dir=my_run"),
        ("my_run", "my_run"),
        ("--a prompt_with dashes", "--a prompt_with dashes"),
    ],
)
def test_underscores_of_option_names_are_dashes(word, expected):
    assert with_dashes(word) == expected
