"""The options of `ucgm serve` reach the server."""

import contextlib

import pytest
import torch
from command_calls import arguments_of, default_of, parsed

from diffusers_ucgm.web_demo.server import open_page


def test_each_option_reaches_the_server(monkeypatch):
    words = ["--model", "fashion-mnist", "--lora", "mine", "--lora-scale", "0.5", "--device", "cpu", "--torch-dtype"]
    words += ["bf16", "--call", "height=64", "width=32", "--host", "0.0.0.0", "--port", "7999"]
    assert arguments_of(monkeypatch, "web_demo.commands:open_page", "serve", *words) == {
        "model": "fashion-mnist",
        "lora": "mine",
        "lora_scale": 0.5,
        "dtype": torch.bfloat16,
        "device": "cpu",
        "call": {"height": 64, "width": 32},
        "host": "0.0.0.0",
        "port": 7999,
    }


def test_without_options_the_defaults_are_those_of_the_function(monkeypatch):
    found = arguments_of(monkeypatch, "web_demo.commands:open_page", "serve")
    expected = {name: default_of(open_page, name) for name in found}
    assert {**found, "call": found["call"] or None} == expected


def test_no_option_opens_the_page_to_the_world(capsys):
    with contextlib.suppress(SystemExit):
        parsed("serve", "--share")
        pytest.fail("`--share` was taken")
    assert "there is no option --share" in capsys.readouterr().err
