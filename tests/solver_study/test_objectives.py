"""The gain of a search, and the interval of its ratio."""

import pytest
import torch

from diffusers_ucgm.solver_study.objectives import OBJECTIVES, gain_of


def test_interval_reaches_one_where_before_and_after_differ_by_chance():
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(100, generator=generator) + 0.5
    after = before * (1.0 + 0.1 * torch.randn(100, generator=generator))
    assert not gain_of(OBJECTIVES["median"], before, after).is_gain
    less = gain_of(OBJECTIVES["mean"], before, after * 0.8)
    assert less.is_gain
    assert less.ratio == pytest.approx(0.8, abs=0.03)
    assert less.elsewhere_before is None
