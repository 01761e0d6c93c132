"""Values that no setting and no argument of a scheduler may have."""

import numpy as np
import torch


NAN, INF = float("nan"), float("inf")
HUGE = 10**400
# What no setting can be.
NONSENSE = [
    *(b"x", object(), {}, {"a": 1}, {1}, 1j, len, int, "no such word", [object()], ["a", "b", "c"], [[1, 2], [3]]),
    *(NAN, INF, -INF, HUGE, -HUGE, 1e300, -1e300, [NAN, 1.0], (1.0, INF, 1.0), np.array([NAN]), np.nan),
    *(np.float32("inf"), torch.tensor(NAN), torch.tensor([[1.0]]), torch.tensor(True), np.array("x"), torch.zeros(0)),
]
NUMBERS = [True, False, np.True_, "1", "", [], [1.0], (0.5,), -1, -0.5, np.array([0.5])]
WHOLE = [*NUMBERS, 4.0, 2.5, 0, 10**9, "4", torch.tensor(4.0)]
SEQUENCES = [
    "abc",
    "",
    3.0,
    1,
    True,
    (),
    [],
    [True] * 3,
    [1.0, NAN, 1.0],
    ["1", "1", "1"],
    [None] * 3,
    {0.5},
]


def refusal(call):
    """The text of the error that a call ends in; empty where it does not."""
    try:
        call()
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def assert_refused(call, name, value):
    assert f"`{name}`" in refusal(call), (name, value)
