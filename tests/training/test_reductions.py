"""Sums, means and facts of all processes of a run."""

from types import SimpleNamespace

import pytest
import torch

from diffusers_ucgm.training.reductions import is_true_of_any, reduce_tensor


def process(*others):
    """An accelerator in one of several processes, the others of which have these values."""

    def reduce(value, how):
        total = value + sum(others)
        return total / (1 + len(others)) if how == "mean" else total

    number = 1 + len(others)
    return SimpleNamespace(num_processes=number, device=torch.device("cpu"), reduce=reduce if others else None)


def test_one_process_has_its_own_value_and_asks_nobody():
    value = torch.tensor([1.0, 2.0])
    assert reduce_tensor(process(), value, "sum") is value
    assert reduce_tensor(process(), value, "mean") is value


@pytest.mark.parametrize(("how", "expected"), [("sum", [9.0, 6.0]), ("mean", [3.0, 2.0])])
def test_several_processes_have_the_same_sum_and_mean(how, expected):
    accelerator = process(torch.tensor([4.0, 4.0]), torch.tensor([4.0, 0.0]))
    assert reduce_tensor(accelerator, torch.tensor([1.0, 2.0]), how).tolist() == expected


@pytest.mark.parametrize("fact", [True, False])
@pytest.mark.parametrize("others", [(), (0.0,), (1.0, 0.0), (1.0, 1.0, 1.0)])
def test_a_fact_of_one_process_is_known_to_all(fact, others):
    assert is_true_of_any(process(*others), fact) is (fact or any(others))
