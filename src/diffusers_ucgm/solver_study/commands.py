"""The commands `ucgm compare` and `ucgm tune-sampler`."""

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from diffusers_ucgm.contracts import Pipeline
from diffusers_ucgm.generation.conditions import check_call_arguments, conditions_for
from diffusers_ucgm.generation.inputs import call_arguments, given_conditions, load_model
from diffusers_ucgm.image_metrics.references import check_reference
from diffusers_ucgm.loading import DTYPES, load_pipeline, load_pipeline_lora
from diffusers_ucgm.randomness import consecutive_seeds
from diffusers_ucgm.run_folder import RunFolder

from .defaults import OBJECTIVE_NAMES
from .options import name_and_value


if TYPE_CHECKING:
    from .objectives import Objective
    from .stock_solvers import Solver
    from .tuning_result import Result

__all__ = ["COMMANDS"]


def tune(args: argparse.Namespace) -> int:
    """Fit a solver to a model, or search the sampler's settings, show before and after, and say what was gained."""
    return METHODS[args.method](args)


def _fit(args: argparse.Namespace) -> int:
    from .fit import fit_solver
    from .fit_result import report_fit

    if args.search_guidance:
        raise ValueError(
            f"`--search-guidance` must go with `--method search`, got `--method {args.method}`: a fit keeps guidance."
        )
    if args.objective != OBJECTIVE_NAMES[0] or args.reference is not None:
        raise ValueError(
            "`--objective` and `--reference` must go with `--method search`: a fit makes the distance from the "
            "solutions small."
        )
    conditions = given_conditions(args)
    pipe, call = _model_and_call(args)
    with RunFolder(args.output, "tune-sampler").hold() as run:
        result = fit_solver(
            pipe,
            args.steps,
            run,
            method=args.method,
            conditions=conditions,
            refine=args.refine,
            num_seeds=args.num_seeds,
            num_held_out=args.num_held_out,
            seed=args.seed,
            num_solution_calls=args.solution_calls,
            batch_size=args.batch_size,
            overwrite_output_dir=args.overwrite_output_dir,
            call=call,
        )
        print(report_fit(result))
        if find_spec("matplotlib") is not None:
            print(f"Plot: {result.plot()}")
        return _show(args, pipe, call, result)


def _search(args: argparse.Namespace) -> int:
    from .objectives import OBJECTIVES, Objective
    from .plots import plot_tuning
    from .tune import tune_sampler
    from .tuning_result import report

    if args.refine or len(args.steps) > 1:
        raise ValueError(
            "`--refine` and several `--steps` must go with `--method fit`, got `--method search` with "
            f"`--steps {' '.join(map(str, args.steps))}`."
        )
    if args.reference is not None:
        check_reference("--reference", args.reference)
    conditions = given_conditions(args)
    pipe, call = _model_and_call(args)
    objective: Objective | str = args.objective
    if objective not in OBJECTIVES:
        objective = _frechet(args, pipe)
    with RunFolder(args.output, "tune-sampler").hold() as run:
        result = tune_sampler(
            pipe,
            args.steps[0],
            run,
            conditions=conditions,
            num_trials=args.num_trials,
            num_seeds=args.num_seeds,
            num_held_out=args.num_held_out,
            seed=args.seed,
            objective=objective,
            search_guidance=args.search_guidance,
            num_solution_calls=args.solution_calls,
            overwrite_output_dir=args.overwrite_output_dir,
            batch_size=args.batch_size,
            call=call,
        )
        print(report(result))
        # The search itself does without matplotlib.
        if result.held_out is not None and find_spec("matplotlib") is not None:
            values = [trial.value for trial in result.trials]
            print(f"Plot: {plot_tuning(*result.held_out, values, result.output / 'tuning.png')}")
        return _show(args, pipe, call, result)


def _model_and_call(args: argparse.Namespace) -> tuple[Pipeline, dict[str, object]]:
    """The pipeline, and the arguments of its call, which it must take."""
    call = call_arguments(args)
    pipe = load_model(args)
    check_call_arguments(pipe, call)
    return pipe, call


def _show(args: argparse.Namespace, pipe: Pipeline, call: Mapping[str, object], result: "Result") -> int:
    """Save and name what shows a result."""
    from .tuning_result import save_images, save_pipeline

    print(f"Scheduler: {result.output / 'scheduler'}")
    print(f"Image: {save_images(pipe, result, call)}")
    if args.save_pipeline:
        print(f"Pipeline: {save_pipeline(pipe, result)}")
    return 0


def _frechet(args: argparse.Namespace, pipe: Pipeline) -> "Objective":
    from .objectives import load_frechet_objective

    if args.reference is None:
        raise ValueError("`--reference` must name real images or their statistics for `--objective frechet`.")
    return load_frechet_objective(
        args.features,
        args.reference,
        pipe.device,
        split=args.split,
        size=args.size,
        batch_size=args.batch_size,
        background=args.background,
        allow_remote_files=args.allow_remote_files,
    )


def compare(args: argparse.Namespace) -> int:
    """Measure solvers on the same seeds, print the table, and write tables and plot."""
    from .compare import compare_solvers
    from .measurements import save_comparison
    from .stock_solvers import load_solver, stock_solvers, ucgm_solvers

    if args.reference is not None:
        check_reference("--reference", args.reference)
    sources = _few_step_sources(args)
    pipe, call = _model_and_call(args)
    config = pipe.scheduler.config
    # Solvers that add noise can only be judged by their images.
    stock = stock_solvers(config, noisy=args.reference is not None)
    given = [name_and_value(each) for each in args.scheduler]
    solvers = _choose({**ucgm_solvers(config), **stock}, args.only, [name for name, _ in given])
    own = [name for name in solvers if name.startswith("UCGM")]
    for name, folder in given:
        if name in solvers:
            raise ValueError(
                f"`--scheduler` must have a name that no other solver has, got {name!r}. The others are "
                f"{list(solvers)}."
            )
        solvers[name] = load_solver(folder, args.calls, argument="--scheduler")
        own.append(name)
    few_step = {name: _few_step_model(args, pipe, *source) for name, source in sources.items()}
    with RunFolder(args.output, "compare").hold() as run:
        measurements = compare_solvers(
            pipe,
            conditions_for(pipe, args.num_samples, given_conditions(args)),
            list(consecutive_seeds(args.seed, args.num_samples)),
            solvers=solvers,
            calls=args.calls,
            output=run,
            frechet=None if args.reference is None else _frechet(args, pipe),
            few_step=few_step,
            num_solution_calls=args.solution_calls,
            overwrite_output_dir=args.overwrite_output_dir,
            batch_size=args.batch_size,
            call=call,
        )
        print(save_comparison(measurements, args.output, title=args.model, emphasised=[*own, *few_step]))
    return 0


def _few_step_sources(args: argparse.Namespace) -> dict[str, tuple[str, str | None]]:
    """The pipeline and the LoRA of each few-step model, by its name.

    Raises:
        ValueError: If two have one name, or there is no reference for them.
    """
    models = [name_and_value(word, "--few-step-model", "MODEL") for word in args.few_step_model]
    loras = [name_and_value(word, "--few-step-lora", "LORA") for word in args.few_step_lora]
    names = [name for name, _ in (*models, *loras)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"`--few-step-model` and `--few-step-lora` must have different names, got {twice[0]!r} twice."
        )
    if names and args.reference is None:
        raise ValueError(
            "`--few-step-model` and `--few-step-lora` must go with `--reference`: a few-step model has no solution, "
            "and is compared by the Fréchet distance to real images."
        )
    return {**{name: (model, None) for name, model in models}, **{name: (args.model, lora) for name, lora in loras}}


def _few_step_model(args: argparse.Namespace, pipe: Pipeline, model: str, lora: str | None) -> Pipeline:
    """A pipeline of its own for a few-step model, where the multi-step one is."""
    option = "--model" if lora else "--few-step-model"
    found = load_pipeline(model, DTYPES[args.torch_dtype], argument=option)
    if lora is not None:
        load_pipeline_lora(found, lora, argument="--few-step-lora")
    return cast(Pipeline, found.to(pipe.device))


def _choose(solvers: "dict[str, Solver]", names: list[str] | None, given: list[str]) -> "dict[str, Solver]":
    """The solvers of some names, among which may be those of `--scheduler`; None stands for all.

    Raises:
        ValueError: If there is no solver of a name.
    """
    if names is None:
        return solvers
    if unknown := [name for name in names if name not in solvers and name not in given]:
        raise ValueError(f"`--only` must name some of {[*solvers, *given]}, got {unknown}.")
    return {name: solver for name, solver in solvers.items() if name in names}


METHODS = {"fit": _fit, "times": _fit, "search": _search}
COMMANDS = {"compare": compare, "tune-sampler": tune}
