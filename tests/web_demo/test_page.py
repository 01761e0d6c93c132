"""The page in a browser: what is clicked is drawn, mistakes are messages, and nothing is asked of another machine.

It needs the extra `demo`, playwright and the system's Chromium (`apt-get install chromium`), and is skipped without.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from class_pipelines import pipeline

from diffusers_ucgm import UCGMScheduler


pytest.importorskip("gradio", reason="the extra demo is not installed")
gradio_client = pytest.importorskip("gradio_client", reason="the extra demo is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: `apt-get install chromium`"),
    pytest.mark.skipif(os.name != "posix", reason="the server is ended by signals of POSIX"),
]
# Milliseconds; a busy machine takes its time.
PATIENCE = 120_000
NEW_PICTURE = """before => {
    const image = document.querySelector('#%s img');
    return image !== null && image.complete && image.naturalWidth > 0 && image.src !== before;
}"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """`ucgm serve` in a process of its own."""

    def __init__(self, *words):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        command = [sys.executable, "-m", "diffusers_ucgm.cli", "serve", "--device", "cpu", "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
        )
        self.errors = []
        # Read at once: a full pipe would stop the server.
        self.reader = threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True)
        self.reader.start()
        self.first_line = self.process.stdout.readline()

    def client(self):
        """A client without a browser."""
        return gradio_client.Client(self.url, verbose=False, analytics_enabled=False)

    def stop(self):
        """The exit code and the rest of the output after Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        rest = self.process.stdout.read()
        self.process.wait(60)
        self.reader.join(60)
        self.process.stdout.close()
        self.process.stderr.close()
        return self.process.returncode, rest


@pytest.fixture(scope="module")
def server():
    running = Server("--model", "fashion-mnist")
    assert running.first_line == f"Page: {running.url} (Ctrl-C ends it)\n", "".join(running.errors)
    yield running
    drawing = running.client().submit("UCGM-S", "UCGM-S", None, 0, "", "Bag", 100, 9, api_name="/draw")
    while not (status := drawing.status()).progress_data:
        assert not drawing.done(), status
        time.sleep(0.1)
    # Ctrl-C ends it while it draws.
    assert running.stop() == (0, "The page has closed.\n")
    # A mistake of a visitor is in no log.
    assert "Traceback" not in "".join(running.errors)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # Chromium's sandbox needs rights that containers do not give to root.
        options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield running
        running.close()


@pytest.fixture
def opened(server, browser):
    """Opens a page of a visitor, and sees that it logs no error and asks no other machine."""
    visitors = []

    def open_page():
        page = browser.new_page(viewport={"width": 1280, "height": 960})
        page.set_default_timeout(PATIENCE)
        visitor = SimpleNamespace(page=page, errors=[], hosts=set())
        page.on("console", lambda message: visitor.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: visitor.errors.append(str(error)))
        page.on("request", lambda request: visitor.hosts.add(urlsplit(request.url).netloc))
        page.goto(server.url)
        page.wait_for_selector("#draw")
        choose(page, calls=2)
        visitors.append(visitor)
        return page

    yield open_page
    for visitor in visitors:
        visitor.page.close()
        assert visitor.errors == []
        # "data:" and "blob:" addresses have no host.
        assert visitor.hosts - {""} == {f"127.0.0.1:{server.port}"}


def choose(page, **values):
    """Fill in controls by their identifiers, as by hand."""
    for name, value in values.items():
        field = page.locator(f"#{name.replace('_', '-')}").locator("input[type=number], textarea, input").first
        field.fill(str(value))
        field.press("Enter" if name in ("model", "left", "right", "class") else "Tab")


def picture_of(page, name):
    image = page.query_selector(f"#{name} img")
    return None if image is None else image.evaluate("image => image.src")


def click(page, button, picture):
    """Click, and wait for another picture; gives its width."""
    before = picture_of(page, picture)
    page.click(f"#{button}")
    page.wait_for_function(NEW_PICTURE % picture, arg=before)
    return page.query_selector(f"#{picture} img").evaluate("image => image.naturalWidth")


def message_after(page, button):
    """Click, and close the message that appears; gives its text."""
    page.click(f"#{button}")
    toast = page.wait_for_selector("[data-testid=toast-body]")
    text = toast.inner_text()
    page.click("[data-testid=toast-close]")
    toast.wait_for_element_state("hidden")
    return text


def test_a_click_draws_both_pictures_and_another_seed_draws_others(opened):
    page = opened()
    assert click(page, "draw", "right-picture") >= 500
    both = [picture_of(page, f"{side}-picture") for side in ("left", "right")]
    assert re.match(r"FlowMatchEuler: 2 network calls, [\d.]+\ss", page.inner_text("#left-caption"))
    assert re.match(r"UCGM-S: 2 network calls, [\d.]+\ss", page.inner_text("#right-caption"))
    choose(page, seed=1, right="UniPCMultistep")
    click(page, "draw", "right-picture")
    assert "UniPCMultistep" in page.inner_text("#right-caption")
    assert picture_of(page, "left-picture") not in both


def test_the_quality_of_both_solvers_is_measured(opened):
    page = opened()
    page.get_by_role("tab", name="Quality against calls").click()
    choose(page, num_samples=2)
    assert click(page, "measure", "plot") > 900
    cells = page.inner_text("#table").split()
    assert {"FlowMatchEuler", "UCGM-S", "10"} <= set(cells)


def test_a_mistake_is_a_message_and_the_page_goes_on(opened):
    page = opened()
    for values, message in (
        ({"seed": "1.5"}, "Seed must be a whole number, got 1.5."),
        ({"seed": ""}, "Seed must be a whole number, got None."),
        ({"seed": 0, "guidance": "-1"}, "Guidance scale must be a finite number from 0 up, or None, got -1."),
        ({"guidance": "", "class": "Bagg"}, "Did you mean 'Bag'?"),
    ):
        choose(page, **values)
        assert message in message_after(page, "draw")
    choose(page, **{"class": "Bag"})
    click(page, "draw", "left-picture")


def test_a_folder_is_loaded_and_a_bad_one_is_a_message(opened, tmp_path):
    page = opened()
    for bad in (tmp_path, tmp_path / "none", "<img src=x onerror=alert(1)>"):
        choose(page, model=bad)
        text = message_after(page, "load")
        assert "Model must be" in text
        assert str(bad) in text
        assert "Loaded: fashion-mnist" in page.inner_text("#status")
    scheduler = UCGMScheduler(transport="discrete_beta", prediction_type="epsilon")
    pipeline(scheduler=scheduler).save_pretrained(tmp_path / "epsilon")
    choose(page, model=tmp_path / "epsilon")
    page.click("#load")
    page.wait_for_function("document.querySelector('#left input').value === 'DDIM'")
    assert str(tmp_path / "epsilon") in page.inner_text("#status")
    choose(page, calls=2, left="PNDM")
    click(page, "draw", "left-picture")
    assert "PNDM: " in page.inner_text("#left-caption")


def test_a_model_of_text_has_a_prompt_in_place_of_the_class(opened):
    page = opened()
    assert page.is_visible("#class")
    assert not page.is_visible("#prompt")
    choose(page, model="emoji")
    page.click("#load")
    page.wait_for_selector("#prompt")
    assert not page.is_visible("#class")
    choose(page, prompt=" ", calls=2)
    assert "Prompt must not be empty" in message_after(page, "draw")
    choose(page, prompt="red apple, fluent style", right="emoji-few-step (LoRA)")
    page.get_by_label("1", exact=True).check()
    assert click(page, "draw", "right-picture") == 512
    assert "without guidance" in page.inner_text("#right-caption")


def test_two_visitors_with_two_models_draw_at_once(opened):
    first, second = opened(), opened()
    choose(second, model="fashion-mnist-2-step")
    first.click("#draw")
    second.click("#load")
    second.wait_for_function("document.querySelector('#status').innerText.includes('fashion-mnist-2-step')")
    choose(second, calls=2)
    second.click("#draw")
    first.wait_for_function(NEW_PICTURE % "right-picture", arg=None)
    choose(first, seed=1)
    click(first, "draw", "right-picture")
    second.wait_for_function(NEW_PICTURE % "right-picture", arg=None)
    assert "UCGM-S" in first.inner_text("#right-caption")
    assert "pipeline's own" in second.inner_text("#right-caption")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("calls", 0, "Network calls must be at least 1, got 0"),
        ("calls", 10_000, "Network calls must be at most 100, got 10000"),
        ("calls", -3, "Network calls must be at least 1, got -3"),
        *(("calls", value, "Network calls must be a whole number") for value in ("10", None, [1], {"a": 1})),
        *(("guidance", value, "Guidance scale must be a finite number") for value in ("x", [1.0], {}, True)),
        *(("seed", value, "Seed must be a whole number") for value in ("0", None, [0], {})),
        *(("seed", value, "Seed must be from") for value in (2**64, -(2**64))),
        *(("num_images", value, "Images must be one of") for value in (2, "4", None, [4])),
        *(("left", value, "Solver must be one of") for value in ("Banana", None, 3, ["UCGM-S"])),
        ("label", "Hat", "Class must be"),
        ("label", None, "Class must not be empty"),
        *(("label", value, "Class must be a text") for value in (3, ["Bag"])),
    ],
)
def test_what_the_page_does_not_send_is_refused_by_the_name_of_the_control(server, name, value, message):
    client = server.client()
    given = {"guidance": None, "prompt": "", "label": "Bag", "calls": 2}
    with pytest.raises(gradio_client.exceptions.AppError, match=message):
        client.predict(**{**given, name: value}, api_name="/draw")
    client.close()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *(("labels", value, "Classes must be from 1 to 16, got 0") for value in (None, [])),
        *(("labels", value, "Classes must be a list") for value in ("Bag", 5, {"Bag": 1})),
        ("labels", [None], "Class must not be empty"),
        *(("budget", value, "calls must be a whole number") for value in ("10", None, [10])),
        *(("num_samples", value, "Samples must be") for value in (1, 17, "4", None)),
    ],
)
def test_what_cannot_be_measured_is_refused_by_the_name_of_the_control(server, name, value, message):
    client = server.client()
    given = {"guidance": None, "prompts": "", "labels": ["Bag"]}
    with pytest.raises(gradio_client.exceptions.AppError, match=message):
        client.predict(**{**given, name: value}, api_name="/measure")
    client.close()


@pytest.mark.parametrize("value", [None, 3, ["emoji"], {}, ""])
def test_what_is_no_model_is_refused_by_the_name_of_the_control(server, value):
    client = server.client()
    with pytest.raises(gradio_client.exceptions.AppError, match="Model must be"):
        client.predict(value, api_name="/load")
    client.close()
