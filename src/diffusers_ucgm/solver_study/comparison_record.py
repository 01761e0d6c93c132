"""The measurements of a comparison in `comparison.json`, with which a stopped comparison goes on."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from diffusers_ucgm import files
from diffusers_ucgm.constraints import is_number
from diffusers_ucgm.contracts import Steppable
from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.fingerprint import public_settings

from .measurements import Measurement


__all__ = ["RESULT", "ComparisonRecord", "scheduler_settings"]

RESULT = "comparison.json"
# The fields of a measurement that hold words.
WORDS = ("solver", "reason")


@dataclass(frozen=True)
class ComparisonRecord:
    """The measurements so far, in memory and in a file.

    Attributes:
        file: The file; None keeps nothing.
        plan: What the comparison depends on.
        rows: Each measurement and the solver's settings, by solver and budget.
    """

    file: Path | None
    plan: Mapping[str, object]
    rows: dict[tuple[str, int], tuple[Measurement, JsonObject | None]]

    @classmethod
    def open(cls, output: str | Path | None, plan: Mapping[str, object]) -> "ComparisonRecord":
        """The record of a folder, empty where it has none yet.

        Raises:
            ValueError: If the file is damaged.
        """
        if output is None:
            return cls(None, plan, {})
        file = Path(output) / RESULT
        return cls(file, plan, _read_rows(file) if file.is_file() else {})

    def find(self, solver: str, calls: int, settings: JsonObject | None) -> Measurement | None:
        """The measurement of a solver with the same settings at a budget; None where it was not measured."""
        row, measured = self.rows.get((solver, calls), (None, None))
        return row if measured == settings else None

    def add(self, row: Measurement, settings: JsonObject | None) -> None:
        """Add a measurement, and write it to the file at once."""
        self.rows[row.solver, row.calls] = row, settings
        if self.file is None:
            return
        rows = [{**asdict(row), "settings": settings} for row, settings in self.rows.values()]
        files.write_json(self.file, {"plan": self.plan, "measurements": rows})


def _read_rows(file: Path) -> dict[tuple[str, int], tuple[Measurement, JsonObject | None]]:
    found, rows = files.read_json(file, remedy="Delete it to measure anew."), {}
    try:
        for row in found["measurements"]:
            settings = row.pop("settings")
            rows[row["solver"], row["calls"]] = _measurement(row), settings
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{str(file)!r} must hold the measurements of a comparison, got a damaged file: {error}. Delete "
            "it to measure anew."
        ) from error
    return rows


def _measurement(row: JsonObject) -> Measurement:
    """A measurement from JSON.

    Raises:
        ValueError: If a value is missing, or is no value of a measurement.
    """
    # Version 0.1.0 counted no evaluations, and had no intervals.
    row = {"evaluations": None, "median_low": None, "median_high": None, **row}
    for name, value in row.items():
        if name not in WORDS and value is not None and not is_number(value):
            raise ValueError(f"{name!r} must be a number, got {value!r}")
    if missing := [each.name for each in fields(Measurement) if each.name not in row]:
        raise ValueError(f"{missing} are missing")
    return Measurement(**row)


def scheduler_settings(scheduler: Steppable) -> JsonObject:
    """The settings that a solver's samples depend on, as JSON has them."""
    return public_settings(json.loads(scheduler.to_json_string()))
