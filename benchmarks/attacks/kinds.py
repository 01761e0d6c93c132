"""Kinds of settings: which values their documentation allows, and values that it does not.

This is the oracle of `benchmarks/robustness.py`. It is written from the docstrings and from what diffusers' own
schedulers take, and it shares no code with the checks of the package.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch


class Kind(Protocol):
    """What a setting may be."""

    def accepts(self, value: Any) -> bool:
        """Whether the documentation allows a value, or leaves it open."""
        ...

    def near(self, rng: random.Random) -> list[Any]:
        """Values that people give by mistake; some may be allowed."""
        ...


@dataclass(frozen=True)
class Number:
    """A finite number within limits; `is_open` leaves the lower and the upper limit out."""

    low: float = -math.inf
    high: float = math.inf
    is_open: tuple[bool, bool] = (False, False)
    is_whole: bool = False

    def accepts(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if self.is_whole and value != int(value):
            return False
        above = value > self.low if self.is_open[0] else value >= self.low
        below = value < self.high if self.is_open[1] else value <= self.high
        return above and below

    def near(self, rng: random.Random) -> list[Any]:
        inside = self._inside(rng)
        found: list[Any] = [str(inside), [inside], f"{inside} ", {"value": inside}, inside + 0.37, (inside,)]
        if math.isfinite(self.low):
            found += [self.low, self.low - 1, self.low - 10 ** rng.uniform(-3, 5), -abs(inside) - 1]
        if math.isfinite(self.high):
            found += [self.high, self.high + 1, self.high + 10 ** rng.uniform(-3, 5)]
        return [*found, math.nan, math.inf, -math.inf, np.float64("nan"), torch.tensor(math.nan), True, False]

    def _inside(self, rng: random.Random) -> float:
        low = self.low if math.isfinite(self.low) else -10.0
        high = self.high if math.isfinite(self.high) else max(low, 0.0) + 10.0
        value = rng.uniform(low, high)
        return math.ceil(value) if self.is_whole else value


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def accepts(self, value: Any) -> bool:
        return any(type(value) is type(each) and value == each for each in self.values) or (
            isinstance(value, float) and value in self.values
        )

    def near(self, rng: random.Random) -> list[Any]:
        one = rng.choice(self.values)
        if not isinstance(one, str):
            return [one + 1.5, -one, str(one), [one], 10**6, math.nan]
        place = rng.randrange(len(one))
        return [one.upper(), f"{one} ", one[:place] + one[place + 1 :], one + one[-1], [one], one.encode(), f'"{one}"']


@dataclass(frozen=True)
class Truth:
    """True or False; 0 and 1 are left open."""

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1))

    def near(self, rng: random.Random) -> list[Any]:
        return ["true", "false", "no", "False", rng.randint(2, 99), -1, 0.5, [True], [], b"no", math.nan]


@dataclass(frozen=True)
class Text:
    """A text that is not empty."""

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and bool(value.strip())

    def near(self, rng: random.Random) -> list[Any]:
        return ["", 0, rng.randint(1, 99), [], ["a"], b"text", 1.5, {"a": 1}, True]


@dataclass(frozen=True)
class Maybe:
    """None, or another kind."""

    kind: Kind

    def accepts(self, value: Any) -> bool:
        return value is None or self.kind.accepts(value)

    def near(self, rng: random.Random) -> list[Any]:
        return ["none", "null", "None", *self.kind.near(rng)]


@dataclass(frozen=True)
class Either:
    """One of several kinds."""

    kinds: tuple[Kind, ...]

    def accepts(self, value: Any) -> bool:
        return any(kind.accepts(value) for kind in self.kinds)

    def near(self, rng: random.Random) -> list[Any]:
        return [value for kind in self.kinds for value in kind.near(rng)]


@dataclass(frozen=True)
class Several:
    """A list or tuple; `order` is "falling" or "rising" (equals allowed) or None, `total` the sum's upper limit."""

    item: Kind
    example: tuple[Any, ...]
    is_fixed: bool = True
    order: str | None = None
    total: float = math.inf

    def accepts(self, value: Any) -> bool:
        if isinstance(value, np.ndarray | torch.Tensor):
            value = value.tolist() if value.ndim == 1 else None
        if not isinstance(value, list | tuple) or (self.is_fixed and len(value) != len(self.example)):
            return False
        if not value or not all(map(self.item.accepts, value)):
            return False
        pairs = list(zip(value[:-1], value[1:], strict=True))
        if self.order == "falling" and not all(a >= b for a, b in pairs):
            return False
        if self.order == "rising" and not all(a <= b for a, b in pairs):
            return False
        return not math.isfinite(self.total) or sum(value) < self.total

    def near(self, rng: random.Random) -> list[Any]:
        example = list(self.example)
        found: list[Any] = [example[:-1], [*example, example[-1]], [example], example[0], str(example), [], ()]
        for value in rng.sample(self.item.near(rng), 3) + [math.nan, math.inf, None, "a", -1.0]:
            place = rng.randrange(len(example))
            found.append([*example[:place], value, *example[place + 1 :]])
        return [*found, example[::-1], dict(enumerate(example)), np.array([example])]


@dataclass(frozen=True)
class Anything:
    """Listed values alone, all of them malformed; for settings whose legal values are no plain ones."""

    malformed: tuple[Any, ...]

    def accepts(self, value: Any) -> bool:
        return not any(value is each for each in self.malformed)

    def near(self, rng: random.Random) -> list[Any]:
        return list(self.malformed)


def strange(rng: random.Random) -> list[Any]:
    """Values of every type, for settings of any kind."""
    return [
        None,
        "",
        "banana",
        "nan",
        "1e-3",
        b"\x00",
        [],
        {},
        [[]],
        {"a": 1},
        [None],
        ["a", 1],
        math.nan,
        math.inf,
        -math.inf,
        rng.randint(-(10**6), -2),
        -rng.random() - 0.01,
        rng.uniform(1e6, 1e9) + 0.5,
        1j,
        object(),
        print,
        {1, 2},
        np.zeros((0,)),
        np.ones((2, 2)),
        torch.ones(3, 3),
        torch.tensor([math.nan]),
    ]


def malformed(kind: Kind, number: int, rng: random.Random) -> list[Any]:
    """Different values that a kind does not allow; those that resemble allowed ones are more frequent."""
    near = [value for value in kind.near(rng) if not kind.accepts(value)]
    far = [value for value in strange(rng) if not kind.accepts(value)] if not isinstance(kind, Anything) else []
    chosen, seen = [], set()
    rng.shuffle(near)
    rng.shuffle(far)
    # Two of three are near misses.
    mixed = [pool.pop() for i in range(len(near) + len(far)) if (pool := _next_pool(i, near, far))]
    for value in mixed:
        if (shown := shortened(value)) not in seen and len(chosen) < number:
            seen.add(shown)
            chosen.append(value)
    return chosen


def _next_pool(i: int, near: list[Any], far: list[Any]) -> list[Any]:
    first, second = (far, near) if i % 3 == 2 else (near, far)
    return first or second


def shortened(value: Any, letters: int = 60) -> str:
    """A value as text for the listing."""
    text = " ".join(repr(value).split())
    return text if len(text) <= letters else f"{text[: letters - 3]}..."


def words_of(values: Sequence[Any]) -> list[str]:
    """Values as words of a command line; those that no one can type are left out."""
    return [str(value) for value in values if isinstance(value, str | int | float) and not isinstance(value, bool)]
