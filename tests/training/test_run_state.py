"""The parts of a run's state: one loop saves and loads them, and a missing part is named."""

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from diffusers_ucgm.training.run_state import Part, ema_part, load_parts, rates_part, save_parts, values_part


def recorder(loaded, name, state, **options):
    return Part(lambda: state, lambda tensors, value: loaded.append((name, dict(tensors), value)), **options)


def test_what_is_saved_is_loaded_again_in_the_order_of_the_parts():
    loaded = []
    weights = {"a": torch.arange(3.0)}
    parts = {
        "tensors": recorder(loaded, "tensors", (weights, None)),
        "both": recorder(loaded, "both", (weights, {"b": 1})),
        "value": recorder(loaded, "value", ({}, 0)),
    }
    tensors, values = save_parts(parts)
    assert set(tensors) == {"tensors", "both"}
    assert values == {"both": {"b": 1}, "value": 0}
    load_parts(parts, tensors, values)
    assert [name for name, _, _ in loaded] == ["tensors", "both", "value"]
    assert torch.equal(loaded[0][1]["a"], weights["a"])
    assert loaded[2][2] == 0


def test_a_missing_part_is_named_unless_earlier_checkpoints_lack_it():
    loaded = []
    parts = {"later": recorder(loaded, "later", ({}, 1), is_required=False), "always": recorder(loaded, "a", ({}, 1))}
    load_parts(parts, {}, {"always": 2})
    assert loaded == [("a", {}, 2)]
    with pytest.raises(ValueError, match="the part 'always' is missing"):
        load_parts(parts, {}, {"later": 1})


def test_values_rates_and_averages_come_back():
    held = {"number": 3}
    part = values_part(lambda: held["number"], lambda value: held.update(number=value))
    assert part.state() == ({}, 3)
    part.load({}, 5)
    assert held == {"number": 5}
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    state = rates_part(rates).state()
    optimizer.step()
    rates.step()
    assert rates.get_last_lr() == [0.5]
    rates_part(rates).load(*state)
    assert rates.last_epoch == 0
    assert "lr_lambdas" not in state[1]
    ema = EMAModel(layer.parameters(), decay=0.9)
    tensors, value = ema_part(ema).state()
    kept = {name: each.clone() for name, each in tensors.items()}
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1.0)
    ema.step(layer.parameters())
    assert ema.optimization_step == 1
    ema_part(ema).load(kept, value)
    assert ema.optimization_step == 0
    assert all(torch.equal(each, kept[str(i)]) for i, each in enumerate(ema.shadow_params))
