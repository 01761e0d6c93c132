"""Fixtures that the tests of several folders use."""

import datasets
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState


def _reset_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


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
