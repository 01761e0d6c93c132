"""The search of a sampler: its parameters, and the journal of its trials."""

import pytest
import torch

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.solver_study import search
from diffusers_ucgm.solver_study.search import SEARCH_SPACE, _mend, parameters_of, search_settings, settings_of


def test_a_damaged_journal_is_named(tmp_path):
    (tmp_path / "trials.jsonl").write_bytes(b'{"a": 1}\n\xff\xfe\n')
    with pytest.raises(ValueError, match="trials.jsonl' must hold an entry in JSON .* got a damaged line 2"):
        _mend(tmp_path / "trials.jsonl")


def test_parameters_come_back_from_settings():
    parameters = {"method": "ratio", "extrapolation_ratio": 0.3, "warp_a": 2.0, "warp_b": 0.5, "warp_c": 1.5}
    parameters |= {"gap_noise": 0.01, "gap_data": 0.05, "shift": 2.0, "stochasticity": 0.25, "grid": "warp"}
    config = UCGMScheduler(**settings_of(parameters)).config
    assert parameters_of(config, SEARCH_SPACE, 10) == pytest.approx(parameters)
    for method in search.SEARCH_SPACE["method"]:
        config = UCGMScheduler(**settings_of({**parameters, "method": method})).config
        assert parameters_of(config, SEARCH_SPACE, 10)["method"] == method
    automatic = settings_of({**parameters, "grid": "auto"})
    assert (automatic["time_warp"], automatic["time_gaps"]) == ("auto", [0.0, 0.0])
    assert parameters_of(UCGMScheduler(**automatic).config, SEARCH_SPACE, 10)["grid"] == "auto"


@pytest.mark.parametrize("order", [1, 2])
def test_gap_of_nothing_is_the_same_grid_as_its_parameter(order):
    even = UCGMScheduler(solver_order=order, time_warp=(1.0, 1.0, 1.0), time_gaps=(0.0, 0.0))
    nearest = UCGMScheduler(**settings_of(parameters_of(even.config, SEARCH_SPACE, 10)))
    for scheduler in (even, nearest):
        scheduler.set_timesteps(10)
    torch.testing.assert_close(nearest.timesteps, even.timesteps, rtol=0, atol=0.02)  # of 1000


def test_settings_that_cannot_be_run_are_passed_over(tmp_path):
    space = {name: SEARCH_SPACE[name] for name in ("method", "extrapolation_ratio")}
    given = []

    def measure(settings):
        given.append(settings)
        return None if len(given) % 2 else float(len(given))

    starts = {"first": {"method": "ratio", "extrapolation_ratio": 0.5}}
    trials = search_settings(measure, space, starts, tmp_path / "trials.jsonl", num_trials=6, progress=False)
    assert [trial.value for trial in trials] == [None, 2.0, None, 4.0, None, 6.0]
