"""The names of a network's tensors without the wrappers and the heads of its training."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor


__all__ = ["COUNTERS", "GROUPS", "TRAINING_HEADS", "is_group", "plain_names", "without_training_heads"]

# The names under which a training checkpoint keeps weights, by preference; "state_dict" is Lightning's word.
AVERAGES = ("ema", "ema_model", "model_ema", "module_ema", "shadow", "shadow_params", "averaged_model")
GROUPS = (*AVERAGES, "model", "state_dict", "network", "net", "online_model", "model_state_dict")
# The prefixes that compilation, DDP, FSDP, checkpointing and averaging give a network's names, in any order.
WRAPPERS = {"module", *GROUPS, "diffusion_model"}
# Their names within a tensor's name, where single blocks were wrapped.
INNER_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module"}
# Counters of averages.
COUNTERS = {"n_averaged", "num_updates", "initted", "decay", "step"}
# Entries beside the weights.
OTHERS = ("optimizer", "opt", "lr_scheduler", "scaler")
# Parts that compare a network's features with another's in training (REPA), under their names before the first dot.
TRAINING_HEADS = ("projectors", "projector", "repa_projector", "repa_projectors", "repa_head", "align_head")


def plain_names(
    state_dict: Mapping[str, Tensor], weights: str | None = None, *, argument: str = "state_dict"
) -> dict[str, Tensor]:
    """The tensors of one set of weights by the network's own names.

    Args:
        state_dict: Names that may begin with wrappers, and with groups such as "ema." and "model.".
        weights: The group to take, "ema" for averaged weights; None takes averaged ones where there are any.
        argument: What errors call the tensors.

    Raises:
        ValueError: If there is no such group, or two tensors end under one name.
    """
    names, missing = _names_in_group({key: _without_wrappers(key) for key in state_dict}, weights)
    if missing is not None:
        raise ValueError(f"`weights` must be one of ['nothing: the file has one set'], got {missing!r}.")
    found: dict[str, Tensor] = {}
    for key, name in names.items():
        if name in found:
            raise ValueError(
                f"`{argument}` must hold each tensor once, got two named {name!r} without their wrappers."
            )
        found[name] = state_dict[key]
    return found


def _names_in_group(names: dict[str, str], weights: str | None) -> tuple[dict[str, str], str | None]:
    """Take groups off the names, one after the other, as long as all names begin with one.

    Args:
        names: The names by the keys of the file.
        weights: The group that was asked for, or None.

    Returns:
        The names of one group, and the group that was asked for if none of that name was found.
    """
    while True:
        names = _without_counters(names)
        groups = _outer_groups(names.values())
        if not groups or not groups <= WRAPPERS:
            return names, weights
        wanted = _group_of(groups, weights)
        weights = weights if wanted is None else None
        names = _names_below(names, wanted or min(groups)) | _head_names(names)


def _without_counters(names: Mapping[str, str]) -> dict[str, str]:
    return {key: name for key, name in names.items() if name not in COUNTERS}


def _outer_groups(names: Iterable[str]) -> set[str]:
    """The first parts of the names, but those that stand beside a group."""
    return {_first(name) for name in names} - {*TRAINING_HEADS, *OTHERS}


def _group_of(groups: set[str], weights: str | None) -> str | None:
    """The group among several that was asked for, or None."""
    return next((name for name in GROUPS if name in groups and is_group(name, weights)), None)


def _head_names(names: Mapping[str, str]) -> dict[str, str]:
    return {key: name for key, name in names.items() if _first(name) in TRAINING_HEADS}


def _names_below(names: Mapping[str, str], group: str) -> dict[str, str]:
    return {key: name[len(group) + 1 :] for key, name in names.items() if name.startswith(f"{group}.")}


def without_training_heads(
    state_dict: Mapping[str, Tensor], note: Callable[[str], None] | None = None
) -> dict[str, Tensor]:
    """The tensors without the heads that only training needs.

    Args:
        state_dict: By the network's own names.
        note: A function that gets a sentence about the heads that were left out.
    """
    kept = {key: value for key, value in state_dict.items() if _first(key) not in TRAINING_HEADS}
    heads = sorted({*state_dict} - {*kept})
    if heads and note is not None:
        names = ", ".join(f"{name}.*" for name in dict.fromkeys(map(_first, heads)))
        note(f"Left out, as only training needs them: {names} ({len(heads)} tensors).")
    return kept


def is_group(name: str, weights: str | None) -> bool:
    """Whether a group has the weights that were asked for, "ema" being every kind of averages; None asks for none."""
    return weights is None or name == weights or (weights == "ema" and name in AVERAGES)


def _first(name: str) -> str:
    return name.partition(".")[0]


def _without_wrappers(key: str) -> str:
    """A name without wrappers of single blocks, wherever they are, and without those of data parallelism before it."""
    parts = [part for part in key.split(".") if part not in INNER_WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)
