"""The server says what it needs before it loads a model, and listens where it was told."""

import builtins
import socket
import sys

import pytest

from diffusers_ucgm.web_demo import server
from diffusers_ucgm.web_demo.server import open_page


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(server, "load_model", None)


def opened(**given):
    with open_page("fashion-mnist", device="cpu", **given):
        pytest.fail("the page is open")


def test_without_gradio_the_error_has_the_line_that_installs_it(monkeypatch):
    real = builtins.__import__

    def without_gradio(name, *args):
        if name == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
        return real(name, *args)

    monkeypatch.delitem(sys.modules, "diffusers_ucgm.web_demo.page", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_gradio)
    with pytest.raises(ImportError, match=r"needs gradio\. Install it by `pip install 'diffusers-ucgm\[demo\]'`\."):
        opened()


def test_a_port_in_use_is_named():
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = f"`port` must be free at 127.0.0.1, got {port}: .* Give another one by `--port`"
        with pytest.raises(OSError, match=message):
            opened(port=port)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"port": 0}, ValueError, "`port` must be at least 1, got 0"),
        ({"port": 65_536}, ValueError, "`port` must be at most 65535"),
        ({"host": ""}, ValueError, "`host` must be a text that is not empty"),
        ({"host": "no.such.host.invalid"}, OSError, "`host` must be an address of this machine, such as 127.0.0.1"),
        ({"host": "192.0.2.1"}, OSError, "`host` must be an address of this machine"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_named(given, error, message):
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    with pytest.raises(error, match=message):
        opened(**given)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.8.8", True), ("0.0.0.0", False), ("::", False)]
    + [("192.168.0.3", False), ("example.org", False)],
)
def test_only_loopback_addresses_count_as_this_machine(host, expected):
    assert server._is_loopback(host) == expected
