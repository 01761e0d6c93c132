"""Comparison of solvers: true numbers of calls, convergence on exact fields, resumption, and what is refused."""

import pytest
import torch
from diffusers import PNDMScheduler
from exact_comparisons import NUMBER, PATHS, compared, exact
from exact_fields import ExactTransformer2DModel, exact_pipeline, random_mixture
from full_disk import assert_named_and_gone
from prompt_pipelines import prompt_pipeline

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.solver_study import compare
from diffusers_ucgm.solver_study.measurements import Measurement, comparison_curves, comparison_table
from diffusers_ucgm.solver_study.objectives import Objective
from diffusers_ucgm.solver_study.stock_solvers import NOISY_SOLVERS, STOCK_SOLVERS, stock_solvers, ucgm_solvers


@pytest.mark.parametrize("path", PATHS)
def test_every_solver_converges_to_the_solution(path):
    config = PATHS[path]().config
    solvers = stock_solvers(config) | ucgm_solvers(config)
    assert {name for name, row in STOCK_SOLVERS[path].items() if not row.only_path} <= set(solvers)
    rows = compared(exact(PATHS[path]()), solvers, (10, 100))
    for coarse, fine in zip(rows[::2], rows[1::2], strict=True):
        assert fine.reason is None, fine
        # Of samples with a variance of 1; the worst are Euler's and DEIS's, which leaves the last noise in.
        # A chain's beta spacing has few small noise levels: it converges, but from far away.
        is_slow = path == "discrete_beta" and fine.solver.endswith(" beta")
        assert fine.median < (0.5 if is_slow else 0.03), fine
        assert fine.median < coarse.median, (coarse, fine)
        assert fine.calls_made in (99, 100)


@pytest.mark.parametrize("path", PATHS)
def test_fresh_noise_leads_elsewhere(path):
    pipe = exact(PATHS[path]())
    solvers = stock_solvers(pipe.scheduler.config, noisy=True)
    rows = compared(pipe, {name: solvers[name] for name in NOISY_SOLVERS[path]}, (20,))
    assert all(row.median > 0.3 for row in rows), rows


def test_calls_are_counted_at_the_network():
    pipe, seen = exact(), []
    pipe.transformer.register_forward_hook(lambda *_: seen.append(1))
    solvers = stock_solvers(pipe.scheduler.config)
    chosen = {name: solvers[name] for name in ("FlowMatchEuler", "FlowMatchHeun")}
    rows = compared(pipe, chosen, (1, 2, 8), batch_size=5, num_solution_calls=9)
    assert [(row.solver, row.calls, row.calls_made) for row in rows] == [
        ("FlowMatchEuler", 1, 1),
        ("FlowMatchEuler", 2, 2),
        ("FlowMatchEuler", 8, 8),
        ("FlowMatchHeun", 1, 1),
        ("FlowMatchHeun", 2, 1),
        ("FlowMatchHeun", 8, 7),
    ]
    # Four batches of at most 5, of every cell and of the solutions.
    assert len(seen) == 4 * (1 + 2 + 8 + 1 + 1 + 7 + 9)


def test_the_size_of_a_batch_changes_nothing():
    pipe = exact()
    whole, parts = (compared(pipe, ucgm_solvers(pipe.scheduler.config), (4,), batch_size=size) for size in (16, 5))
    for one, other in zip(whole, parts, strict=True):
        assert one.median == pytest.approx(other.median, rel=1e-3)


def test_the_pipeline_is_left_as_it_was():
    pipe = exact()
    scheduler, hooks = pipe.scheduler, len(pipe.transformer._forward_hooks)
    compared(pipe, {"own": UCGMScheduler.from_config(scheduler.config)}, (2,))
    assert pipe.scheduler is scheduler
    assert len(pipe.transformer._forward_hooks) == hooks


def test_what_cannot_be_run_is_blank_with_a_reason():
    pipe = exact(PATHS["discrete_beta"]())
    own = UCGMScheduler.from_config(pipe.scheduler.config)
    solvers = {
        "LCM": stock_solvers(pipe.scheduler.config, noisy=True)["LCM"],
        "PNDM with its first steps": PNDMScheduler(),
        "tuned for 60": {60: own},
    }
    rows = {(row.solver, row.calls): row for row in compared(pipe, solvers, (2, 60), num_solution_calls=20)}
    assert rows["LCM", 2].calls_made == 2
    assert rows["LCM", 60].calls_made is rows["LCM", 60].median is None
    assert "50 x 1.0 is smaller than `num_inference_steps`: 60" in rows["LCM", 60].reason
    assert rows["PNDM with its first steps", 2].reason is not None
    assert rows["tuned for 60", 2].median is rows["tuned for 60", 2].reason is None
    assert rows["tuned for 60", 60].median < 0.1
    table = comparison_table(list(rows.values()))
    assert "| tuned for 60 |  | 0.0" in table.replace("**", "")


def test_samples_that_are_not_finite_are_blank():
    pipe = exact()
    pipe.transformer.register_forward_hook(lambda module, inputs, output: (output[0] / 0.0,))
    solution = torch.zeros(NUMBER, 1, 2, 2)
    blank = Measurement("own", 2)
    own = UCGMScheduler.from_config(pipe.scheduler.config)
    row = compare._Comparison(pipe, [0] * NUMBER, range(NUMBER), 1).measure(own, blank, solution)
    assert row.median is None
    assert "not finite" in row.reason


@pytest.mark.parametrize("name", [r"comparison\.json", r"solutions-\w+\.safetensors"])
def test_a_full_disk_is_named_and_the_comparison_goes_on(tmp_path, name):
    pipe = exact()
    solvers = {"own": UCGMScheduler.from_config(pipe.scheduler.config)}
    assert_named_and_gone(tmp_path, name, lambda: compared(pipe, solvers, (2,), output=tmp_path))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"solvers": {}}, "`solvers` must not be empty"),
        ({"calls": ()}, r"`calls` must be different numbers from 1 up, got \[\]"),
        ({"calls": (0, 2)}, r"`calls` must be different numbers from 1 up, got \[0, 2\]"),
        ({"calls": (2, 2)}, r"`calls` must be different numbers from 1 up, got \[2, 2\]"),
        ({"number": 1}, "`seeds` must be at least 2, one for each of 1 conditions, got 1"),
    ],
)
def test_bad_input_is_refused(changed, message):
    pipe = exact()
    given = {"solvers": ucgm_solvers(pipe.scheduler.config), "calls": (2,), **changed}
    with pytest.raises(ValueError, match=message):
        compared(pipe, given.pop("solvers"), given.pop("calls"), **given)


def test_a_few_step_model_has_no_solution_to_compare_with():
    pipe = exact(UCGMScheduler(stochasticity=1.0))
    with pytest.raises(ValueError, match=r"`pipe` must be of a multi-step model, .* got one with `stochasticity=1.0`"):
        compared(pipe, {"own": pipe.scheduler}, (2,))


def test_the_frechet_distance_is_of_the_pictures():
    shapes = []

    def measured(pictures, solutions):
        shapes.append(tuple(pictures.shape))
        return pictures

    objective = Objective("frechet", measured, lambda rows: float(rows.mean()), "pt", needs_solutions=False)
    pipe = exact()
    (row,) = compared(pipe, {"own": pipe.scheduler}, (2,), frechet=objective, batch_size=5)
    assert shapes == [(NUMBER, 1, 2, 2)]
    assert 0.0 < row.frechet_distance < 1.0


def of_images(value=lambda rows: float(rows.mean())):
    """An objective in the place of a Fréchet distance: a number of the images."""
    return Objective("frechet", lambda pictures, _: pictures, value, "pt", needs_solutions=False)


def test_a_few_step_model_stands_beside_solvers_by_its_images(tmp_path):
    pipe, tuned = exact(), exact(UCGMScheduler(stochasticity=1.0))
    solvers = {"own": UCGMScheduler.from_config(pipe.scheduler.config)}
    settings = {"frechet": of_images(), "output": tmp_path, "batch_size": 5}
    rows = compared(pipe, solvers, (2, 4), few_step={"tuned": tuned}, **settings)
    assert [(row.solver, row.calls, row.calls_made) for row in rows] == [
        *(("own", 2, 2), ("own", 4, 4), ("tuned", 2, 2), ("tuned", 4, 4))
    ]
    assert all(row.median is not None and row.median_low <= row.median <= row.median_high for row in rows[:2])
    assert all(row.median is row.median_low is row.rms is None for row in rows[2:])
    assert all(row.frechet_distance is not None for row in rows)
    calls = []
    tuned.transformer.register_forward_hook(lambda *_: calls.append(1))
    assert compared(pipe, solvers, (2, 4), few_step={"tuned": tuned}, **settings) == rows
    assert not calls
    # Another model under the same name is measured again.
    other = exact_pipeline(random_mixture(4, 2, seed=3), UCGMScheduler(stochasticity=1.0))
    again = compared(pipe, solvers, (2, 4), few_step={"tuned": other}, **settings)
    assert again[:2] == rows[:2]
    assert again[2].frechet_distance != rows[2].frechet_distance


def test_a_few_step_model_is_not_guided(monkeypatch):
    pipe, tuned = exact(), exact(UCGMScheduler(stochasticity=1.0))
    given, draw = [], compare.generate

    def seen(model, *args, **settings):
        given.append((model is tuned, dict(settings["call"])))
        return draw(model, *args, **settings)

    monkeypatch.setattr(compare, "generate", seen)
    solvers = {"own": UCGMScheduler.from_config(pipe.scheduler.config)}
    compared(pipe, solvers, (1,), few_step={"t": tuned}, frechet=of_images(), call={"guidance_scale": 2.0})
    assert given == [(False, {"guidance_scale": 2.0}), (True, {})]


@pytest.mark.parametrize(
    ("name", "frechet", "message"),
    [
        ("tuned", None, r"`few_step` must go with `frechet` \(`--reference`\), got \['tuned'\] alone"),
        ("own", of_images(), "`few_step` must have names that no solver has, got 'own'"),
    ],
)
def test_few_step_models_that_cannot_stand_beside_solvers_are_refused(name, frechet, message):
    pipe = exact()
    with pytest.raises(ValueError, match=message):
        compared(pipe, {"own": pipe.scheduler}, (2,), few_step={name: exact()}, frechet=frechet)


def test_a_few_step_model_of_prompts_is_refused_beside_one_of_classes():
    pipe, (sd3, _) = exact(), prompt_pipeline("sd3")
    with pytest.raises(ValueError, match="`few_step` must take the conditions of `pipe`, a UCGMPipeline, got 'tuned'"):
        compared(pipe, {"own": pipe.scheduler}, (2,), few_step={"tuned": sd3}, frechet=of_images())


def test_the_table_marks_the_best_and_the_calls_really_made():
    rows = [
        Measurement("Euler", 2, 2, 0.5, 0.6, 0.0),
        Measurement("Euler", 4, 4, 0.00001234, 0.6, 0.0),
        Measurement("Heun", 2, 1, 0.25, 0.7, 0.125),
        Measurement("Heun", 4, reason="ValueError: no"),
    ]
    assert comparison_table(rows).splitlines() == [
        "| solver | 2 | 4 |",
        "| --- | ---: | ---: |",
        "| Euler | 0.5 | **1.2e-05** |",
        "| Heun | **0.25** (1) |  |",
    ]
    assert "| Heun | 0.125 (1) |  |" in comparison_table(rows, "share_elsewhere")
    assert comparison_curves(rows) == {"Euler": ([2, 4], [0.5, 0.00001234]), "Heun": ([1], [0.25])}
    with pytest.raises(ValueError, match="`measure` must be one of .*, got 'speed'"):
        comparison_table(rows, "speed")


def test_an_exact_network_without_a_field_says_so():
    with pytest.raises(RuntimeError, match="`forward` was called before `set_field`"):
        ExactTransformer2DModel()(torch.zeros(1, 1, 4, 4), torch.ones(1))
