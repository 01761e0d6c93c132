"""The settings of a run, by name, from words, files and recipes, and from runs of earlier versions."""

from collections.abc import Collection, Mapping
from pathlib import Path

from diffusers_ucgm.files import JsonObject, read_json, read_yaml
from diffusers_ucgm.names import did_you_mean

from .recipes import get_recipe
from .setting_types import SettingType


__all__ = ["in_current_form", "override", "read_settings_file", "read_words", "recipe_settings"]

# One of them takes the place of the other.
RATIOS = ("consistency_ratio", "consistency_schedule")


def in_current_form(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings as this version has them, from settings of any version.

    In version 0.1.0 a schedule was a value of `consistency_ratio`, and ids among `validation_inputs` were numbers.

    Args:
        settings: Values by name, or their words.
    """
    current = dict(settings)
    if _is_schedule(current.get("consistency_ratio")) and current.get("consistency_schedule") is None:
        current["consistency_schedule"] = current.pop("consistency_ratio")
    for name, renew in (("consistency_schedule", _with_whole_step), ("validation_inputs", _as_text)):
        if isinstance(values := current.get(name), list | tuple):
            current[name] = [renew(each) for each in values]
    return current


def _is_schedule(ratio: object) -> bool:
    """Whether a ratio is a list of pairs, or a word that is a list in JSON."""
    if isinstance(ratio, str):
        return ratio.startswith("[")
    return isinstance(ratio, list | tuple) and all(isinstance(each, list | tuple) and len(each) == 2 for each in ratio)


def _with_whole_step(pair: object) -> object:
    if not isinstance(pair, list | tuple) or not pair or not isinstance(pair[0], float):
        return pair
    return [int(pair[0]), *pair[1:]] if pair[0].is_integer() else pair


def _as_text(value: object) -> object:
    return str(value) if type(value) is int else value


def override(settings: Mapping[str, object], others: Mapping[str, object]) -> JsonObject:
    """Settings with others in the place of some; a ratio takes the place of a schedule, and a schedule of a ratio.

    Args:
        settings: Values by name.
        others: Values by name, which win.
    """
    others = in_current_form(others)
    dropped = RATIOS if any(name in others for name in RATIOS) else ()
    return {**{name: value for name, value in settings.items() if name not in dropped}, **others}


def read_words(words: Mapping[str, object], types: Mapping[str, SettingType]) -> dict[str, object]:
    """The values of settings from words.

    Args:
        words: By name a word, or a list of words or of lists of them.
        types: The type of each setting.

    Raises:
        ValueError: If words are no value of their setting's type.
    """
    return {name: types[name].read(name, value) for name, value in in_current_form(words).items()}


def recipe_settings(name: str, others: Mapping[str, object]) -> JsonObject:
    """The settings of a recipe, with others in the place of some.

    Args:
        name: One of `RECIPES`.
        others: Values by name, which win; `max_train_steps` decides the recipe's schedules.

    Raises:
        ValueError: If there is no such recipe, or `max_train_steps` is no number of steps.
    """
    steps = others.get("max_train_steps")
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
        raise ValueError(f"`max_train_steps` must be at least 1, got {steps!r}.")
    return override(get_recipe(name).settings_for(steps), others)


def read_settings_file(
    path: str | Path, types: Mapping[str, SettingType], *, argument: str = "path"
) -> dict[str, object]:
    """The settings that a JSON or YAML file names.

    Args:
        path: The file; `.json` is JSON, any other name YAML.
        types: The type of each setting.
        argument: What errors call the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, is not a mapping, names a setting that does not exist or gives one a
            value of another type.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`{argument}` must be a JSON or YAML file, got {str(path)!r}, which is none.")
    is_json = path.suffix == ".json"
    if is_json:
        values = read_json(path, object, argument=argument, remedy="Correct the file.")
    else:
        values = read_yaml(path, argument=argument, as_words=True)
    if not isinstance(values, dict):
        raise ValueError(
            f"`{argument}` must hold a mapping of settings, got {type(values).__name__} in {str(path)!r}."
        )
    _check_names(values, types, path, argument)
    try:
        settings = in_current_form(values) if is_json else read_words(values, types)
        for name, value in settings.items():
            types[name].check(name, value)
    except ValueError as error:
        raise ValueError(
            f"`{argument}` must give settings values of their types, got in {str(path)!r}: {error}"
        ) from error
    return settings


def _check_names(values: Mapping[object, object], known: Collection[str], path: Path, argument: str) -> None:
    if unknown := sorted(str(name) for name in set(values) - set(known)):
        hints = "".join(f" For {name!r}:{hint}" for name in unknown if (hint := did_you_mean(name, known)))
        raise ValueError(
            f"`{argument}` must name settings of UCGMTrainingConfig, got {unknown} in {str(path)!r}.{hints}"
        )
