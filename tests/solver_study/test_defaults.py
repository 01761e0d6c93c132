"""Names and defaults of the command line's help are those that the search and the comparison know."""

import ast
import inspect

from diffusers_ucgm.image_metrics.evaluate import evaluate_pipeline
from diffusers_ucgm.solver_study import defaults
from diffusers_ucgm.solver_study.objectives import OBJECTIVES


def test_the_objectives_of_the_help_are_those_of_the_search():
    # The options are read without torch, so these names stand twice.
    assert set(defaults.OBJECTIVE_NAMES) == set(OBJECTIVES)


def test_budgets_rise_from_one_call():
    assert defaults.CALLS[0] == 1
    assert list(defaults.CALLS) == sorted(set(defaults.CALLS))


def test_a_search_draws_seeds_that_no_default_evaluation_draws():
    evaluated = inspect.signature(evaluate_pipeline).parameters
    assert evaluated["seed"].default + evaluated["num_samples"].default < defaults.FIRST_SEED


def test_the_module_imports_nothing():
    tree = ast.parse(inspect.getsource(defaults))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
