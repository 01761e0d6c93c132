"""What a command prints: output that nobody reads, and errors."""

import argparse
import io
import os
import subprocess
import sys

import pytest

from diffusers_ucgm.console import Output, error_message, expand_home, given_words


@pytest.mark.parametrize(
    "words", [["presets"], ["recipes"], ["train", "--help"], ["--help"], ["info", "fashion-mnist"]]
)
@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_reader_that_leaves_is_no_error(words, unbuffered):
    command = [sys.executable, *(["-u"] if unbuffered else []), "-m", "diffusers_ucgm.cli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def message_of(raising, **options):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any kind
        raising()
    return error_message(caught.value, argparse.Namespace(**options))


def test_an_error_of_files_is_its_message():
    assert message_of(lambda: open("/nowhere/at/all")).startswith("ucgm: error: [Errno 2] No such file")


def test_an_error_from_outside_names_the_inputs_that_exist(tmp_path):
    options = {"command": str(tmp_path), "model": str(tmp_path), "data": "missing", "output": str(tmp_path), "seed": 0}
    message = message_of(lambda: {}["nothing"], **options)
    assert message.startswith(f"ucgm: error: unexpected KeyError: 'nothing'\n--model {tmp_path} may be damaged, or ")
    assert "The input may be damaged" in message_of(lambda: {}["nothing"])


def test_an_error_without_a_message_is_its_type():
    def fail():
        raise OSError

    assert message_of(fail) == "ucgm: error: OSError"


@pytest.mark.parametrize(
    ("message", "option"),
    [
        ("`output` must be a folder", "argument --output: "),
        ("`output_dir` must be a folder", "argument --output-dir: "),
        ("`folder` must be a new folder, got 'out', which", "argument --output: "),
        ("`num_inference_steps` must be at least 1, got 0.", "argument --steps: "),
        ("`--output` must be a folder", ""),
        ("`target` must be a folder, got 'here'.", ""),
        ("`recipe` must be one of [], got 'x'.", ""),
        ("`number` must be at least 1, got 0.", ""),
    ],
)
def test_an_error_names_the_option_of_an_argument(message, option):
    def fail():
        raise OSError(message)

    options = {
        "command": "info",
        "output": "out",
        "setting_output_dir": "run",
        "target": "here",
        "name": "x",
        "seed": 0,
        "steps": 0,
    }
    assert message_of(fail, **options) == f"ucgm: error: {option}{message}"


@pytest.mark.parametrize(
    ("argument", "options", "option"),
    [
        ("num_inference_steps", {"steps": [0]}, "--steps"),
        ("num_solution_calls", {"solution_calls": 0}, "--solution-calls"),
        ("seeds", {"num_samples": 1}, "--num-samples"),
        ("conditions", {"labels": ["x"], "prompts": None}, "--labels"),
        ("conditions", {"labels": None, "prompts": None}, "--prompts"),
    ],
)
def test_an_error_names_the_option_of_an_argument_with_another_name(argument, options, option):
    def fail():
        raise OSError(f"`{argument}` must be something else.")

    assert message_of(fail, **options).startswith(f"ucgm: error: argument {option}: `{argument}` must")
    assert message_of(fail).startswith(f"ucgm: error: `{argument}` must")


def test_the_home_folder_stands_for_its_sign_where_the_shell_left_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = argparse.Namespace(output="~/a", setting_output_dir="~/b", trajectory=None, model="~/c", prompts=["~"])
    expand_home(args)
    assert vars(args) == {
        "output": str(tmp_path / "a"),
        "setting_output_dir": str(tmp_path / "b"),
        "trajectory": None,
        "model": str(tmp_path / "c"),
        "prompts": ["~"],
    }


def test_every_word_that_may_name_an_input_is_found():
    args = argparse.Namespace(command="compare", output="out", scheduler=["a=folder"], model="m", seed=0, lora=None)
    assert given_words(args) == ["compare", "a=folder", "folder", "m"][1:]


def run_with_output(redirection, **environment):
    """The exit code and the errors of a command of which the output goes elsewhere, by the shell."""
    command = f"{sys.executable} -m diffusers_ucgm.cli presets {redirection}"
    result = subprocess.run(
        ["sh", "-c", command], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return result.returncode, result.stderr


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
def test_a_closed_output_is_no_error():
    assert run_with_output(">&-") == (0, "")


def test_letters_that_the_terminal_lacks_are_escaped():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    output = Output(stream)
    output.write("caf\u00e9 \u65e5\n")
    output.flush()
    assert stream.buffer.getvalue() == b"caf\\xe9 \\u65e5\n"
