"""Rows of a batch: taken and put back, and chosen without a device."""

import torch

from diffusers_ucgm.partial_calls import ALL_ROWS, rows_where


CPU = torch.device("cpu")


def test_rows_come_back_to_their_places_and_the_others_are_0():
    value = torch.arange(8.0).reshape(4, 2)
    rows = rows_where(torch.tensor([False, True, False, True]), CPU)
    assert torch.equal(rows.take(value), value[[1, 3]])
    assert torch.equal(rows.put(rows.take(value), 4), torch.tensor([[0.0, 0.0], [2.0, 3.0], [0.0, 0.0], [6.0, 7.0]]))


def test_all_rows_are_the_batch_itself():
    value = torch.arange(3.0)
    assert rows_where(torch.ones(3, dtype=torch.bool), CPU) is ALL_ROWS
    assert ALL_ROWS.take(value) is value
    assert ALL_ROWS.put(value, 3) is value


def test_one_row_stays_where_none_is_used():
    # Every process of a sharded network has to call it.
    rows = rows_where(torch.zeros(3, dtype=torch.bool), CPU)
    assert rows.index.tolist() == [0]


def test_a_mask_on_a_device_is_not_read():
    assert rows_where(torch.zeros(3, dtype=torch.bool, device="meta"), torch.device("meta")) is ALL_ROWS


def test_conditions_keep_what_has_no_rows():
    rows = rows_where(torch.tensor([False, True]), CPU)
    found = rows.take_condition({"y": torch.tensor([5, 6]), "scale": 2.0})
    assert found["y"].tolist() == [6]
    assert found["scale"] == 2.0
