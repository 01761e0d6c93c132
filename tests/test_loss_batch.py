"""The rows whose answers are used, and the networks that a chain needs."""

import pytest
import torch

from diffusers_ucgm.loss_batch import Drawn, Networks, used_rows


CPU = torch.device("cpu")
T = torch.tensor([0.1, 0.5, 0.5, 0.9, 0.9])
DROPPED = torch.tensor([False, False, True, False, True])


def rows(r, is_free_guidance):
    drawn = Drawn(T, r, torch.zeros(5, 1), DROPPED)
    found = used_rows(drawn, (0.0, 0.75), is_free_guidance, 1.0, CPU)[:2]
    return [list(range(5)) if each.index is None else each.index.tolist() for each in found]


def test_two_times_ask_for_guided_samples_and_for_gaps():
    assert rows(torch.tensor([0.1, 0.2, 0.5, 0.0, 0.9]), True) == [[0, 1], [1, 3]]


def test_one_time_asks_for_what_the_enhanced_target_uses():
    # Dropped samples move half-way to the unconditional estimate; outside, half-way to the conditional one.
    assert rows(None, True) == [[0, 1, 2, 4], [0, 1, 2, 3, 4]]
    assert rows(None, False) == [[0, 1, 3], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("field", ["t", "dropped"])
def test_masks_on_a_device_are_not_waited_for(field):
    drawn = Drawn(T, 0.5 * T, torch.zeros(5, 1), DROPPED)
    moved = drawn._replace(
        **{field: getattr(drawn, field).to("meta")}, r=drawn.r.to("meta" if field == "t" else "cpu")
    )
    assert used_rows(moved, (0.0, 0.75), True, 1.0, torch.device("meta")).guided.index is None


def test_a_chain_has_the_network_of_its_name():
    student, teacher, averaged = (lambda: 0), (lambda: 1), (lambda: 2)
    networks = Networks(student, teacher, averaged)
    assert [networks.chain(name) for name in ("student", "teacher", "ema")] == [student, teacher, averaged]
    networks.check("ema")


@pytest.mark.parametrize(
    ("teacher", "averaged", "name", "message"),
    [
        (None, None, "ema", "`averaged` must be given with `chain_network='ema'` and only then, got None with 'ema'"),
        (
            None,
            print,
            "student",
            "`averaged` must be given with `chain_network='ema'` and only then, got <.*'student'",
        ),
        (None, None, "teacher", "`teacher` must be given with `chain_network='teacher'`, got None"),
    ],
)
def test_missing_and_unused_networks_are_refused(teacher, averaged, name, message):
    with pytest.raises(ValueError, match=message):
        Networks(print, teacher, averaged).check(name)


def test_what_is_drawn_moves_to_a_device_together():
    moved = Drawn(T, T, torch.zeros(5, 1), DROPPED).to(torch.device("meta"))
    assert {each.device.type for each in moved[:4]} == {"meta"}
    assert Drawn(T, None, torch.zeros(5, 1), DROPPED).to(CPU).r is None
