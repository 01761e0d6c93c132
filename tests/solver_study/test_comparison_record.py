"""The record of a comparison: what is measured is kept, and what does not fit is refused."""

import json

import pytest
from exact_comparisons import compared, exact

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.solver_study import compare
from diffusers_ucgm.solver_study.comparison_record import RESULT, ComparisonRecord
from diffusers_ucgm.solver_study.stock_solvers import ucgm_solvers


@pytest.fixture
def drawn(monkeypatch):
    """How many cells have been drawn; `stop_at` interrupts one."""
    log = {"cells": 0, "stop_at": None}
    draw = compare.generate

    def counted(*args, **settings):
        if log["cells"] == log["stop_at"]:
            raise KeyboardInterrupt
        log["cells"] += 1
        return draw(*args, **settings)

    monkeypatch.setattr(compare, "generate", counted)
    return log


@pytest.mark.parametrize("row", [{"rms": ""}, {"calls": "2"}, {"banana": 1}])
def test_a_damaged_comparison_is_named(row, tmp_path):
    rows = [{"solver": "a", "calls": 2, "settings": {}, **row}]
    (tmp_path / RESULT).write_text(json.dumps({"plan": {}, "measurements": rows}))
    with pytest.raises(ValueError, match=f"{RESULT}' must hold the measurements of a comparison"):
        ComparisonRecord.open(tmp_path, {})


def test_a_record_from_before_evaluations_were_counted_is_read(tmp_path):
    pipe = exact()
    solvers = {"own": UCGMScheduler.from_config(pipe.scheduler.config)}
    (measured,) = compared(pipe, solvers, (2,), output=tmp_path)
    assert measured.evaluations == 2.0
    record = json.loads((tmp_path / RESULT).read_text())
    del record["measurements"][0]["evaluations"]
    (tmp_path / RESULT).write_text(json.dumps(record))
    (again,) = compared(pipe, solvers, (2,), output=tmp_path)
    assert (again.evaluations, again.median) == (None, measured.median)


def test_a_stopped_comparison_goes_on_to_the_same_numbers(tmp_path, drawn):
    pipe = exact()
    solvers = ucgm_solvers(pipe.scheduler.config)
    whole = compared(pipe, solvers, (2, 4))
    drawn.update(cells=0, stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        compared(pipe, solvers, (2, 4), output=tmp_path)
    assert len(json.loads((tmp_path / "comparison.json").read_text())["measurements"]) == 3
    drawn.update(cells=0, stop_at=None)
    resumed = compared(pipe, solvers, (2, 4), output=tmp_path)
    assert drawn["cells"] == 2 * len(solvers) - 3
    assert [{**vars(row), "seconds": 0} for row in resumed] == [{**vars(row), "seconds": 0} for row in whole]
    compared(pipe, solvers, (2, 4), output=tmp_path)
    assert drawn["cells"] == 2 * len(solvers) - 3
    assert {entry.name for entry in tmp_path.iterdir()} == {"comparison.json", "run.json", "solutions"}


@pytest.mark.parametrize("name", ["calls_made", "median", "settings", "calls"])
def test_a_record_that_lacks_a_value_is_named(tmp_path, name):
    pipe = exact()
    solvers = {"own": UCGMScheduler.from_config(pipe.scheduler.config)}
    compared(pipe, solvers, (2,), output=tmp_path)
    record = json.loads((tmp_path / "comparison.json").read_text())
    del record["measurements"][0][name]
    (tmp_path / "comparison.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"'.*comparison\.json' must hold the measurements .*{name}.* Delete it"):
        compared(pipe, solvers, (2,), output=tmp_path)


def test_what_diffusers_notes_for_itself_does_not_begin_a_comparison_anew(tmp_path, drawn):
    """It lists the defaults of a config in another order in every process."""
    pipe = exact()
    own = UCGMScheduler.from_config(pipe.scheduler.config)
    compared(pipe, {"own": own}, (2,), output=tmp_path)
    for scheduler in (pipe.scheduler, own):
        listed = scheduler.config.get("_use_default_values", [])
        scheduler.register_to_config(_use_default_values=[*reversed(listed), "num_train_timesteps"])
    compared(pipe, {"own": own}, (2,), output=tmp_path)
    assert drawn["cells"] == 1


def test_only_what_is_new_is_measured(tmp_path, drawn):
    pipe = exact()
    config = pipe.scheduler.config
    solvers = {"a": UCGMScheduler.from_config(config)}
    compared(pipe, solvers, (2,), output=tmp_path)
    compared(pipe, {**solvers, "b": UCGMScheduler.from_config(config, shift=3.0)}, (2, 3), output=tmp_path)
    assert drawn["cells"] == 4
    # The same name with other settings is another solver.
    compared(pipe, {"a": UCGMScheduler.from_config(config, shift=3.0)}, (2,), output=tmp_path)
    assert drawn["cells"] == 5


def test_a_folder_of_another_comparison_is_refused(tmp_path):
    pipe = exact()
    solvers = {"own": UCGMScheduler.from_config(pipe.scheduler.config)}
    compared(pipe, solvers, (2,), output=tmp_path)
    with pytest.raises(ValueError, match=r"`output` must be a new folder or of the same run, got .*'num_samples'"):
        compared(pipe, solvers, (2,), number=8, output=tmp_path)
