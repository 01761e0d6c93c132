"""A stock config and keyword arguments, read together for `UCGMScheduler.from_config`.

The rule is that a setting which the stock class of the config knows means as a keyword what it means in the config:
`from_config(config, flow_shift=5.0)` is `from_config(StockScheduler.from_config(config, flow_shift=5.0).config)`.
Other keywords are settings of `UCGMScheduler`, and a warning names keywords that neither class knows.
"""

import inspect
import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

from diffusers_ucgm.constraints import plain
from diffusers_ucgm.names import did_you_mean
from diffusers_ucgm.presets import SAMPLER_SETTINGS

from .config import DEFAULTS, SchedulerConfig
from .stock_configs import STOCK_SCHEDULERS, stock_settings, translate


__all__ = ["OWN_SETTINGS", "STOCK_CLASS", "Swap", "read_swap", "unread_by_stock"]

# The settings of the sampler alone: diffusers' multistep solvers mean something else by `solver_order` and
# `solver_type`.
OWN_SETTINGS = (
    *SAMPLER_SETTINGS,
    "sigma_embedding",
    "clips_estimates",
    "divides_samples",
    "ends_at_first_step",
    "round_timesteps",
    "fitted_solvers",
    "target_time",
)
# The key under which a config of `UCGMScheduler` keeps the class of the config that it was made from.
STOCK_CLASS = "_stock_class_name"
# The keys by which `translate` tells paths apart, by `transport`; the flows have `FLOW_KEYS`.
PATH_KEYS = {
    "discrete_beta": {"beta_schedule", "trained_betas"},
    "sigma_space": {"sigma_data"},
    "scm": {"sigma_data"},
}
FLOW_KEYS = {"shift"}
ALL_PATH_KEYS = FLOW_KEYS.union(*PATH_KEYS.values())
# The settings of `FlowMatchHeunDiscreteScheduler` and of `FlowMapEulerDiscreteScheduler`, which are read differently.
OF_TWO_CLASSES = {"num_train_timesteps", "shift"}
# Stock schedulers have two names for the shift of a flow.
OTHER_NAME = {"shift": "flow_shift", "flow_shift": "shift"}
# What modular pipelines of diffusers give to `from_pretrained` of every component, whatever it takes.
LOADER_KEYWORDS = ("trust_remote_code", "variant")

# Settings whose defaults hold in sigma space alone. Stock schedulers of other paths have settings of these names too.
SIGMA_SPACE_SETTINGS = ("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho")
# Settings that are None where the model decides. Stock schedulers of these names take no None.
DECIDED_BY_MODEL = ("prediction_type", "original_inference_steps")


def unread_by_stock(config: SchedulerConfig) -> list[str]:
    """The settings of our config that a stock scheduler must not read, although a saved config names them.

    Args:
        config: The config of a `UCGMScheduler`.
    """
    path = config["transport"]
    names = () if path == "sigma_space" else SIGMA_SPACE_SETTINGS
    foreign = [each for each in names if each not in PATH_KEYS.get(path, ()) and config[each] == DEFAULTS[each]]
    return [*OWN_SETTINGS, *foreign, *(name for name in DECIDED_BY_MODEL if config[name] is None)]


@dataclass(frozen=True)
class Swap:
    """The parts from which `from_config` makes a `UCGMScheduler`.

    Attributes:
        config: The stock settings, which are carried along, and their translation into settings of `UCGMScheduler`.
        settings: The settings of `UCGMScheduler` that win over `config`.
        read: The names of the keywords that were read as settings of the stock class.
        unknown: The keywords that neither class knows.
        known: The names that could have been meant.
    """

    config: dict[str, object]
    settings: dict[str, object]
    read: frozenset[str]
    unknown: dict[str, object]
    known: frozenset[str]

    def warn_of_unknown(self) -> None:
        """Warn of the keywords that neither class knows, each with the known name that is most like it."""
        for name in [each for each in self.unknown if each not in LOADER_KEYWORDS]:
            warnings.warn(
                f"`{name}` is neither a setting of `UCGMScheduler` nor of the scheduler that the config is of, and "
                f"has no effect.{did_you_mean(name, sorted(self.known))}",
                UserWarning,
                stacklevel=3,
            )


def read_swap(scheduler: type, config: Mapping[str, object], keywords: Mapping[str, object]) -> Swap:
    """Read a config together with keywords.

    The config of a `UCGMScheduler` that was made from a stock config is taken apart, if a stock setting is to change:
    into the stock config, and the settings that differ from its translation, which are kept.

    Args:
        scheduler: `UCGMScheduler` or a subclass.
        config: The config of one of `STOCK_SCHEDULERS` or of a `UCGMScheduler`.
        keywords: The keyword arguments of `from_config`.

    Raises:
        ValueError: If `translate` refuses the stock config.
    """
    defaults, is_own = _defaults(scheduler), _is_own(scheduler, config)
    # A stock config marks its defaults, which would give way to ours.
    config = {name: value for name, value in config.items() if name != "_use_default_values"}
    stock = _stock_part(config, defaults) if is_own else _with_class(_without_ours(config, defaults))
    known = _known_settings(stock) - set(OWN_SETTINGS)
    theirs, ours, unknown = _sort_keywords(keywords, known, defaults)
    if ours.get("clip_sample") or ours.get("thresholding"):
        ours.setdefault("clips_estimates", True)  # the caller asks for it: it was not left over in the config
    if is_own and theirs:
        ours = _changed_settings(config, {**defaults, **_translation(stock)}, defaults) | ours
    if is_own and (theirs or ours):
        ours["fitted_solvers"] = keywords.get("fitted_solvers")  # they were fitted with the settings as they were
    if theirs or not is_own:
        config = _translation({**stock, **theirs})
        _warn_of_settings_without_meaning(config)
    names = known.union(defaults, {"preset"})
    return Swap(config, ours, frozenset(theirs), unknown, frozenset(names))


def _defaults(scheduler: type) -> dict[str, object]:
    """The settings of a scheduler's class at their defaults."""
    parameters = inspect.signature(scheduler.__init__).parameters
    return {name: each.default for name, each in parameters.items() if name != "self"}


def _is_own(scheduler: type, config: Mapping[str, object]) -> bool:
    """Whether a config is of the scheduler's class, by its class or, without one, by a setting."""
    name = config.get("_class_name")
    return name in [each.__name__ for each in scheduler.__mro__] if name else "extrapolation_ratio" in config


def _without_ours(config: dict[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """A stock config without the settings of `UCGMScheduler` that a stock scheduler made from its config carries."""
    name = config.get("_class_name")
    if STOCK_CLASS not in config or name not in STOCK_SCHEDULERS:
        return config
    known = set(stock_settings(name))
    return {key: value for key, value in config.items() if key in known or key not in defaults}


def _with_class(config: dict[str, object]) -> dict[str, object]:
    """A stock config with its class: that of a scheduler that was made by hand is known by its settings."""
    settings = {name for name in config if not name.startswith("_")}
    same = [each for each in STOCK_SCHEDULERS if set(stock_settings(each)) == settings]
    # Classes of the same settings are read alike, but for two.
    return {"_class_name": same[-1], **config} if same and settings != OF_TWO_CLASSES else config


def _translation(stock: Mapping[str, object]) -> dict[str, object]:
    """A stock config, whole, and its translation into settings of `UCGMScheduler`."""
    settings, name = translate(stock), stock.get("_class_name")
    whole = {**stock_settings(name), **stock}
    return {key: value for key, value in whole.items() if key not in OWN_SETTINGS} | settings | {STOCK_CLASS: name}


def _changed_settings(
    config: Mapping[str, object], before: Mapping[str, object], defaults: Mapping[str, object]
) -> dict[str, object]:
    """The settings of `UCGMScheduler` in a config that differ from those before."""
    return {name: config[name] for name in defaults if _plain(config.get(name, before[name])) != _plain(before[name])}


def _stock_part(config: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """The stock config that a config of `UCGMScheduler` was made from; empty if it was made from none."""
    carried = {key: value for key, value in config.items() if key not in defaults and not key.startswith("_")}
    if STOCK_CLASS not in config and not carried:
        return {}
    if (name := config.get(STOCK_CLASS)) in STOCK_SCHEDULERS:
        carried["_class_name"] = name
        shared = set(stock_settings(name)) & set(defaults)
    else:
        shared = _shared_of_path(config, defaults)
    return carried | {key: config[key] for key in shared - set(OWN_SETTINGS) if key in config}


def _shared_of_path(config: Mapping[str, object], defaults: Mapping[str, object]) -> set[str]:
    """The settings that a stock config of the path may have had; None was not in the stock config."""
    shared = set(defaults) - ALL_PATH_KEYS | PATH_KEYS.get(str(config.get("transport")), FLOW_KEYS)
    return {key for key in shared if config.get(key) is not None}


def _known_settings(stock: Mapping[str, object]) -> set[str]:
    """The settings of the class that a config is of; where it names none, of all classes that it can be of."""
    if not stock:
        return set()
    name = stock.get("_class_name")
    if name in STOCK_SCHEDULERS and (settings := stock_settings(name)):
        return set(settings)
    path = ALL_PATH_KEYS & set(stock)
    candidates = [set(stock_settings(each)) for each in STOCK_SCHEDULERS]
    return set(stock).union(*(each for each in candidates if path <= each))


def _sort_keywords(
    keywords: Mapping[str, object], known: Collection[str], defaults: Mapping[str, object]
) -> tuple[dict[str, object], dict[str, object], dict[str, object]]:
    """Keywords that are settings of the stock class, of `UCGMScheduler`, and of neither."""
    theirs: dict[str, object] = {}
    ours: dict[str, object] = {}
    unknown: dict[str, object] = {}
    for name, value in keywords.items():
        other = OTHER_NAME.get(name, name)
        if name in known:
            theirs[name] = value
        elif other in known and other not in keywords:
            theirs[other] = value
            ours.update({name: value} if name in defaults else {})
        else:
            (ours if name in defaults else unknown)[name] = value
    return theirs, ours, unknown


def _plain(value: object) -> object:
    """A value as JSON gives it back, so that it compares to a saved one."""
    value = plain(value)
    return list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value


def _warn_of_settings_without_meaning(said: Mapping[str, object]) -> None:
    unused = [key for key in ("use_lu_lambdas", "solver_p", "tau_func") if said.get(key)]
    if said.get("lambda_min_clipped", -math.inf) not in (None, -math.inf, "-Infinity"):
        unused.append("lambda_min_clipped")
    if unused:
        warnings.warn(
            f"{', '.join(f'`{key}={said[key]!r}`' for key in unused)} of the stock scheduler has no meaning for "
            "`UCGMScheduler` and is kept only for swapping back.",
            UserWarning,
            stacklevel=4,
        )
