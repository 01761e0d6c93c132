"""Arguments of a step that are malformed are refused by name."""

import numpy as np
import pytest
import torch
from malformed_values import INF, NAN, assert_refused

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.sampling.step_arguments import STEP_ARGUMENTS


TENSORS = [None, 1.0, [1.0], "x", np.zeros((2, 3)), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3).bool()]
STEP = {
    "model_output": [*TENSORS, torch.zeros(2, 4), torch.zeros(3), torch.zeros(())],
    "sample": TENSORS,
    "generator": [0, "x", [], [None, None], [torch.Generator()] * 3, np.random.default_rng(0), [0, 1]],
    "return_dict": [None, "false", 0, 1],
    "eta": [1.0, NAN, "x", [0.0], True, False, {}, "", []],
    "timestep": [0, 1, 999, True, np.int64(0), torch.tensor(0), NAN, INF, 5e5, -900.0, "x", [1.0], {}, torch.zeros(0)],
    "per_token_timesteps": [
        1.0,
        "x",
        torch.zeros(2),
        torch.zeros(2, 5),
        torch.zeros(2, 3, dtype=torch.int64),
        torch.full((2, 3), NAN),
    ],
    "pred_original_sample": [*TENSORS[1:], torch.zeros(2, 4)],
}


@pytest.mark.parametrize("name", STEP)
def test_malformed_arguments_of_a_step_are_refused_by_name(name):
    assert set(STEP) >= set(STEP_ARGUMENTS)
    for value in STEP[name]:
        scheduler = UCGMScheduler()
        scheduler.set_timesteps(4)
        arguments = {
            "model_output": torch.zeros(2, 3),
            "timestep": scheduler.timesteps[0],
            "sample": torch.zeros(2, 3),
        }
        arguments[name] = value
        if name == "sample" and value is None:
            arguments["model_output"] = torch.zeros(2, 3)
        assert_refused(lambda s=scheduler, a=arguments: s.step(**a), name, value)


def test_indices_of_enumerate_are_refused_as_stock_schedulers_do():
    scheduler, sample = UCGMScheduler(), torch.zeros(1, 2)
    scheduler.set_timesteps(4)
    with pytest.raises(
        ValueError, match=r"`timestep` must be an entry of `scheduler.timesteps`.*integer 0.*enumerate"
    ):
        scheduler.step(sample, 0, sample)
    assert scheduler.step_index is None
    scheduler.step(sample, scheduler.timesteps[0], sample)
    with pytest.raises(ValueError, match="integer 1"):
        scheduler.step(sample, 1, sample)
    assert scheduler.step_index == 1


def test_whole_times_may_be_python_integers_and_indices_may_not():
    scheduler, sample = UCGMScheduler(transport="discrete_beta", round_timesteps=True), torch.ones(1, 2)
    results = []
    for convert in (lambda t: t, int, np.int64, float, lambda t: torch.tensor(int(t)), lambda t: t.float()):
        scheduler.set_timesteps(4)
        x = sample
        for t in scheduler.timesteps:
            x = scheduler.step(torch.sin(x), convert(t), x).prev_sample
        results.append(x)
    for each in results[1:]:
        torch.testing.assert_close(each, results[0], rtol=0, atol=0)
    scheduler.set_timesteps(4)
    for index in (1, 2, 3, torch.tensor(1)):
        assert index not in scheduler.timesteps
        with pytest.raises(ValueError, match="`timestep` must be an entry of `scheduler.timesteps`"):
            scheduler.step(sample, index, sample)
