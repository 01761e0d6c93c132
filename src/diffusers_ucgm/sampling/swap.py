"""A stock config and keyword arguments, read together for `UCGMScheduler.from_config`.

The rule is that a setting which the stock class of the config knows means as a keyword what it means in the config:
`from_config(config, flow_shift=5.0)` is `from_config(StockScheduler.from_config(config, flow_shift=5.0).config)`.
Other keywords are settings of `UCGMScheduler`, and what neither knows is named.
"""

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers_ucgm.names import did_you_mean

from .stock_configs import STOCK_SCHEDULERS, stock_settings, translated


__all__ = ["Swap", "swapped"]

# The key under which a config of `UCGMScheduler` keeps the class of the config that it was made from.
STOCK_CLASS = "_stock_class_name"
# The keys by which `translated` tells paths apart, by `transport`; the flows have `FLOW_KEYS`.
PATH_KEYS = {
    "discrete_beta": {"beta_schedule", "trained_betas"},
    "sigma_space": {"sigma_data"},
    "scm": {"sigma_data"},
}
FLOW_KEYS = {"shift"}
ALL_PATH_KEYS = FLOW_KEYS.union(*PATH_KEYS.values())
# Stock schedulers have two names for the shift of a flow.
OTHER_NAME = {"shift": "flow_shift", "flow_shift": "shift"}


@dataclass(frozen=True)
class Swap:
    """What there is to make a `UCGMScheduler` from.

    Attributes:
        config: The stock settings, which are carried along, and what they say in the words of `UCGMScheduler`.
        settings: The settings of `UCGMScheduler` that win over `config`.
        read: The names of the keywords that were read as settings of the stock class.
        unknown: The keywords that neither class knows.
        known: The names that could have been meant.
    """

    config: dict[str, Any]
    settings: dict[str, Any]
    read: frozenset[str]
    unknown: dict[str, Any]
    known: frozenset[str]

    def warn_of_unknown(self) -> None:
        """Name the keywords that nobody knows, each with the known name that is most like it."""
        for name in self.unknown:
            warnings.warn(
                f"`{name}` is neither a setting of `UCGMScheduler` nor of the scheduler that the config is of, and "
                f"has no effect.{did_you_mean(name, sorted(self.known))}",
                UserWarning,
                stacklevel=3,
            )


def swapped(
    config: Mapping[str, Any],
    keywords: Mapping[str, Any],
    defaults: Mapping[str, Any],
    own: Collection[str],
    is_own: bool,
) -> Swap:
    """Read a config together with keywords.

    The config of a `UCGMScheduler` that was made from a stock config is taken apart, if a stock setting is to change:
    into the stock config and the settings that differ from what it says, which are kept.

    Args:
        config: The config of one of `STOCK_SCHEDULERS` or of a `UCGMScheduler`.
        keywords: The keyword arguments of `from_config`.
        defaults: The settings of `UCGMScheduler` at their defaults.
        own: Those of the sampler alone, whatever a stock class calls by the same name.
        is_own: Whether the config is of a `UCGMScheduler`.

    Raises:
        ValueError: If `translated` refuses the stock config.
    """
    # A stock config marks its defaults, which would give way to ours.
    config = {name: value for name, value in config.items() if name != "_use_default_values"}
    stock = _stock_part(config, defaults, own) if is_own else _named(config)
    known = _known_settings(stock) - set(own)
    theirs, ours, unknown = _sorted(keywords, known, defaults)
    if any(ours.get(name) for name in ("clip_sample", "thresholding")):
        ours.setdefault("clips_estimates", True)  # said by the caller and not left over in the config
    if is_own and theirs:
        before = {**defaults, **_carried(stock, own)}
        said = {
            name: config[name] for name in defaults if _plain(config.get(name, before[name])) != _plain(before[name])
        }
        ours = said | ours
    if theirs or not is_own:
        config = _carried({**stock, **theirs}, own)
        _warn_of_settings_without_meaning(config)
    names = known.union(defaults, {"preset"})
    return Swap(config, ours, frozenset(theirs), unknown, frozenset(names))


def _named(config: dict[str, Any]) -> dict[str, Any]:
    """A stock config with its class: that of a scheduler that was made by hand is known by its settings."""
    settings = {name for name in config if not name.startswith("_")}
    same = [each for each in STOCK_SCHEDULERS if set(stock_settings(each)) == settings]
    # Classes of the same settings are read alike, but for this one.
    return {"_class_name": same[-1], **config} if same and "FlowMapEulerDiscreteScheduler" not in same else config


def _carried(stock: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """A stock config, whole, and what it says in the words of `UCGMScheduler`."""
    settings, name = translated(stock), stock.get("_class_name")
    whole = {**stock_settings(name), **stock}
    return {key: value for key, value in whole.items() if key not in own} | settings | {STOCK_CLASS: name}


def _stock_part(config: Mapping[str, Any], defaults: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """The stock config that a config of `UCGMScheduler` was made from; empty if it was made from none."""
    carried = {key: value for key, value in config.items() if key not in defaults and not key.startswith("_")}
    if STOCK_CLASS not in config and not carried:
        return {}
    if (name := config.get(STOCK_CLASS)) in STOCK_SCHEDULERS:
        carried["_class_name"] = name
        shared = set(stock_settings(name)) & set(defaults)
    else:
        shared = set(defaults) - ALL_PATH_KEYS | PATH_KEYS.get(str(config.get("transport")), FLOW_KEYS)
        shared = {key for key in shared if config.get(key) is not None}  # what is None was not in the stock config
    return carried | {key: config[key] for key in shared - set(own) if key in config}


def _known_settings(stock: Mapping[str, Any]) -> set[str]:
    """The settings of the class that a config is of; where it names none, of all classes that it can be of."""
    if not stock:
        return set()
    name = stock.get("_class_name")
    if name in STOCK_SCHEDULERS and (settings := stock_settings(name)):
        return set(settings)
    path = ALL_PATH_KEYS & set(stock)
    candidates = [set(stock_settings(each)) for each in STOCK_SCHEDULERS]
    return set(stock).union(*(each for each in candidates if path <= each))


def _sorted(
    keywords: Mapping[str, Any], known: Collection[str], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Keywords that are settings of the stock class, of `UCGMScheduler`, and of neither."""
    theirs: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
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


def _plain(value: Any) -> Any:
    """A value as JSON gives it back, so that it compares to one that was saved."""
    return value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, tuple) else value


def _warn_of_settings_without_meaning(said: Mapping[str, Any]) -> None:
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
