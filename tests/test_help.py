"""The help of every command: complete, and printed without loading what the command itself needs."""

import subprocess
import sys

import pytest

from diffusers_ucgm.cli import COMMANDS
from diffusers_ucgm.training.settings_help import settings_help


# What takes seconds to import, and what imports it.
HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "numpy",
    "PIL",
    "matplotlib",
    "optuna",
    "gradio",
}


def help_of(*words):
    """What is printed, and which heavy packages were imported for it."""
    code = (
        "import sys, diffusers_ucgm.cli as cli\n"
        f"try: cli.main({[*words, '--help']})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print('loaded:', sorted({HEAVY} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    text, _, loaded = result.stdout.rpartition("loaded: ")
    return text, loaded.strip()


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=" ".join)
def test_help_loads_nothing_heavy(command):
    text, loaded = help_of(*command)
    assert "usage: ucgm" in text
    assert loaded == "[]"


def test_help_names_every_command():
    text, _ = help_of()
    for name in COMMANDS:
        assert f"\n    {name}" in text


def test_help_of_train_describes_every_setting():
    text, _ = help_of("train")
    words = " ".join(text.split())
    for group in settings_help().values():
        for each in group:
            assert f"--{each.name.replace('_', '-')} " in text
            assert " ".join(each.description.split()) in words.replace("- ", "-")
