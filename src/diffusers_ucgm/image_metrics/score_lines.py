"""The scores of images and prompts in lines, by the kind of prompt, generated images beside real ones."""

from diffusers_ucgm.files import JsonObject


__all__ = ["prompt_lines", "score_lines"]


def score_lines(metric: str, text_image: JsonObject | None) -> list[str]:
    """What belongs below the line of a metric: its value for real images, and both for each kind.

    Args:
        metric: The metric.
        text_image: `text_image` of an evaluation's results.
    """
    rows = [] if text_image is None else [each for each in text_image["scores"] if _text(each, metric)]
    sides = {(each["images"], each["kind"]): each for each in rows}
    lines = []
    for kind in dict.fromkeys(each["kind"] for each in rows):
        generated, real = sides.get(("generated", kind)), sides.get(("real", kind))
        words = [] if kind is None or generated is None else [_text(generated, metric)]
        words += [] if real is None else [f"real images {_text(real, metric)}", *_ratio(generated, real, metric)]
        if words:
            lines.append(f"    {'all' if kind is None else kind}: {', '.join(words)}")
    return lines


def prompt_lines(text_image: JsonObject | None) -> list[str]:
    """A line that says so where some prompts have no sample."""
    if text_image is None or text_image["num_used_prompts"] == text_image["num_prompts"]:
        return []
    return [f"Only the first {text_image['num_used_prompts']} of {text_image['num_prompts']} prompts have a sample."]


def _text(scores: JsonObject, metric: str) -> str:
    """A metric's value, the reason why it is missing, or nothing for a metric of another kind."""
    if metric in scores["metrics"]:
        return f"{scores['metrics'][metric]:.4f}"
    return f"left out ({scores['left_out'][metric]})" if metric in scores["left_out"] else ""


def _ratio(generated: JsonObject | None, real: JsonObject, metric: str) -> list[str]:
    """The value of generated images as a fraction of that of real ones."""
    values = [each["metrics"].get(metric) for each in (generated, real) if each is not None]
    if len(values) < 2 or None in values or not values[1]:
        return []
    return [f"ratio {values[0] / values[1]:.4f}"]
