"""`ucgm serve` ends with a line for what a user can change, and with none for Ctrl-C."""

import signal
import socket
from contextlib import contextmanager

import pytest

from diffusers_ucgm.cli import main
from diffusers_ucgm.interruptions import Stopped
from diffusers_ucgm.web_demo import commands


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Stopped(signal.SIGTERM)])
def test_the_page_is_announced_and_a_signal_ends_it_without_an_error(stop, monkeypatch, capsys):
    closed = []

    @contextmanager
    def opened(*_, **__):
        try:
            yield "http://127.0.0.1:7860/"
        finally:
            closed.append(True)

    class Interrupted:
        def wait(self):
            raise stop

    monkeypatch.setattr(commands, "open_page", opened)
    monkeypatch.setattr(commands.threading, "Event", Interrupted)
    assert main(["serve"]) == 0
    assert capsys.readouterr().out == "Page: http://127.0.0.1:7860/ (Ctrl-C ends it)\nThe page has closed.\n"
    assert closed == [True]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora-scale", "0.5"], "`--lora-scale` must go with `--lora`, got 0.5 without one."),
        (
            ["--lora", "emoji-few-step", "--lora-scale", "nan"],
            "error: `--lora-scale` must be a finite number, got nan.",
        ),
        (["--port", "0"], "argument --port: `port` must be at least 1, got 0."),
        (["--call", "height"], "`--call` must be words of the form NAME=VALUE"),
        (["--call", "guidance_scale=3"], "`--call` must give each argument once"),
    ],
)
def test_mistakes_are_told_without_a_traceback(words, message, capsys):
    assert main(["serve", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("option", "word", "message"),
    [
        ("--model", "fashion-mnst", "Did you mean 'fashion-mnist'?"),
        ("--model", "", "`model` must be one of"),
        ("--lora", "", "`lora` must be one of"),
        ("--lora", "./nope", "`lora` must be"),
        ("--lora", "emoji-few-step", "`lora` must be a LoRA for this UCGMPipeline"),
        ("--call", "nope=1", "`nope` must be left out for UCGMPipeline"),
        ("--device", "banana", "`--device` must be a device such as cpu or cuda, got 'banana'"),
        ("--device", "", "`--device` must be a device"),
        ("--host", "", "`host` must be a text that is not empty"),
        ("--host", "no.such.host.invalid", "`host` must be an address of this machine"),
    ],
)
def test_what_cannot_be_served_is_named(option, word, message, capsys):
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    assert main(["serve", "--model", "fashion-mnist", "--port", str(free_port()), option, word]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
