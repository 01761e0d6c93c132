"""`ucgm completion`: what a shell then offers."""

import argparse
import shutil
import subprocess
import sys

import pytest

from diffusers_ucgm.cli import COMMANDS, main
from diffusers_ucgm.completion import SHELLS, completion_script


# What readline sets before it asks for completions of the last word.
OFFER = """
offer() { COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); COMPREPLY=(); _shtab_ucgm ucgm "${@: -1}"; echo "${COMPREPLY[*]}"; }
"""


@pytest.fixture(scope="module")
def bash_script():
    pytest.importorskip("shtab")
    command = [sys.executable, "-m", "diffusers_ucgm.cli", "completion", "bash"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def offered(bash_script, tmp_path):
    """The words that bash offers for the last one, in a folder with the file `weights.safetensors`."""
    (tmp_path / "weights.safetensors").touch()

    def of(*words):
        calls = " ".join(f"'{word}'" for word in ("ucgm", *words))
        code = f"{bash_script}\n{OFFER}\noffer {calls}"
        result = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
        return result.stdout.split()

    return of


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_offers_commands_options_choices_and_files(offered):
    assert set(offered("")) >= set(COMMANDS)
    assert offered("com") == ["compare", "completion"]
    assert offered("compare", "--sol") == ["--solution-calls"]
    assert "--consistency-ratio" in offered("train", "--cons")
    assert set(offered("sample", "--torch-dtype", "")) == {"fp32", "bf16", "fp16"}
    assert offered("sample", "--scheduler", "we") == ["weights.safetensors"]
    assert offered("sample", "--seed", "we") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    for name in COMMANDS:
        assert name in printed


def test_another_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["completion", "cmd"])
    assert end.value.code == 2
    assert "must be one of bash, zsh, fish, tcsh, got 'cmd'" in capsys.readouterr().err


def test_without_shtab_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(ImportError, match=r"pip install 'diffusers-ucgm\[completion\]'"):
        completion_script(argparse.ArgumentParser(), "bash")
