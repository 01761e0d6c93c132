"""Fixtures that the tests of several folders use."""

import signal

import datasets
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState


def _reset_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


@pytest.fixture(scope="session", autouse=True)
def _heeds_ctrl_c():
    """Python's own handler: a script's shell starts what runs in the background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def fresh_accelerate():
    """A test begins and ends without the state of accelerate, which keeps precision and accumulation for a process."""
    _reset_accelerate()
    yield
    _reset_accelerate()


@pytest.fixture
def own_datasets_cache(tmp_path_factory, monkeypatch):
    """A cache of `datasets` that no other test has filled."""
    cache = tmp_path_factory.mktemp("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", str(cache / "downloads" / "extracted"))
    datasets.disable_progress_bars()
