"""A command that is stopped prints one line, with the command that goes on, and leaves no half file."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from diffusers_ucgm import cli
from diffusers_ucgm.interruptions import stop_message


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sample", "--steps", "4"], "ucgm: stopped by Ctrl-C."),
        (["cache", "--source", "my photos"], "ucgm: stopped by Ctrl-C. Go on with `ucgm cache --source 'my photos'`"),
        (
            ["train", "--overwrite-output-dir", "true", "--data", "a b", "--resume_from_checkpoint=x", "--seed", "1"],
            "ucgm: stopped by Ctrl-C. Go on with `ucgm train --data 'a b' --seed 1 --resume-from-checkpoint latest`",
        ),
        (
            ["train", "--overwrite-output-dir", "--data", "d"],
            "ucgm: stopped by Ctrl-C. Go on with `ucgm train --data d --resume-from-checkpoint latest`",
        ),
        (
            ["train", "--resume-from-checkpoint", "latest", "--data", "d"],
            "ucgm: stopped by Ctrl-C. Go on with `ucgm train --data d --resume-from-checkpoint latest`",
        ),
        (
            ["evaluate", "--overwrite-output-dir", "--model", "m"],
            "ucgm: stopped by Ctrl-C. Go on with `ucgm evaluate --model m`",
        ),
    ],
)
def test_the_line_has_the_command_that_goes_on(words, line):
    assert stop_message(words, signal.SIGINT) == line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_ends_in_one_line(monkeypatch, capsys, number):
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "parser_for", lambda words: signal.raise_signal(number))
    assert cli.main(["compare", "--model", "m"]) == 128 + number
    how = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert capsys.readouterr().err == f"ucgm: stopped by {how}. Go on with `ucgm compare --model m`\n"
    assert signal.getsignal(signal.SIGTERM) == handler


def stopped(words, folder, pattern, number):
    """Run a command, stop it once it has written something, and give its exit code and the last lines it printed."""
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "diffusers_ucgm.cli", *words], stderr=subprocess.PIPE, text=True, env=env
    )
    while process.poll() is None and not list(folder.glob(pattern)):
        time.sleep(0.02)
    process.send_signal(number)
    _, error = process.communicate()
    return process.returncode, error


def test_a_run_goes_on_by_the_line_that_it_prints(tmp_path):
    number = signal.SIGINT
    torch.manual_seed(0)
    labels = torch.arange(64) % 10
    save_file({"latents": torch.randn(64, 4, 8, 8), "class_labels": labels}, tmp_path / "data.safetensors")
    run = tmp_path / "a run"
    train = ["train", "--pipeline", "fashion-mnist", "--data", str(tmp_path / "data.safetensors")]
    (tmp_path / "settings.json").write_text('{"lr_scheduler": "constant", "train_batch_size": 2}')
    train += ["--output-dir", str(run), "--config", str(tmp_path / "settings.json"), "--max-train-steps", "100000"]
    code, error = stopped([*train, "--logging-steps", "1"], run, "log.jsonl", number)
    assert code == 128 + number
    assert "Traceback" not in error
    line = error.strip().splitlines()[-1]
    assert line.startswith("ucgm: stopped by Ctrl-C. Go on with `ucgm ")
    words = shlex.split(line.split("`")[1])[1:]
    assert words[-2:] == ["--resume-from-checkpoint", "latest"]
    checkpoint = next(run.glob("checkpoint-*"))
    step = int(checkpoint.name.split("-")[1])
    # What the line says, to a nearer end.
    words[words.index("--max-train-steps") + 1] = str(step + 1)
    assert cli.main(words) == 0
    assert not list(run.glob(".*"))
