"""The result of an evaluation as the model index of a model card, where the Hub looks for it."""

from pathlib import Path

from huggingface_hub import EvalResult
from huggingface_hub.repocard import metadata_load, metadata_save
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from .evaluate import EvaluationResult


__all__ = ["METRIC_NAMES", "eval_results", "metric_name", "update_model_card"]

# The names in Inception's features, and in others.
METRIC_NAMES = {
    "frechet_distance": ("FID", "Frechet distance"),
    "spatial_frechet_distance": ("sFID", "spatial Frechet distance"),
    "inception_score": ("Inception score", "Inception score"),
    "inception_score_std": ("Inception score, deviation", "Inception score, deviation"),
    "precision": ("precision", "precision"),
    "recall": ("recall", "recall"),
}
# The names of the metrics of images and texts.
TEXT_IMAGE_NAMES = {
    "text_agreement": "text agreement",
    "text_similarity": "text similarity",
    "diversity": "diversity",
}
CARD = "README.md"


def metric_name(metric: str, result: EvaluationResult) -> str:
    """The name of a metric with that of its features, and FID and sFID only where these are Inception's."""
    if metric in TEXT_IMAGE_NAMES and result.text_image is not None:
        return f"{TEXT_IMAGE_NAMES[metric]} ({result.text_image['model']})"
    features = result.features
    usual, general = METRIC_NAMES[metric]
    return usual if features == "inception" else f"{general} ({features})"


def eval_results(result: EvaluationResult) -> list[EvalResult]:
    """The metrics in the form of huggingface_hub."""
    settings, source = result.settings, result.reference["source"]
    args = {
        "num_samples": result.num_samples,
        "num_inference_steps": settings["num_inference_steps"],
        "scheduler": settings["scheduler"]["class"],
        **settings["call"],
    }
    return [
        EvalResult(
            # The Hub has no task for images of classes.
            task_type="text-to-image" if metric in TEXT_IMAGE_NAMES else "unconditional-image-generation",
            dataset_type=Path(source).name,
            dataset_name=Path(source).name,
            dataset_split=result.reference.get("split"),
            metric_type=metric,
            metric_name=metric_name(metric, result),
            metric_value=round(value, 4),
            metric_args={name: value for name, value in args.items() if value is not None},
        )
        for metric, value in result.metrics.items()
    ]


def update_model_card(folder: str | Path, result: EvaluationResult) -> Path:
    """Write the metrics into the metadata of a model card; those of other settings and data stay.

    Args:
        folder: The pipeline's folder. A card is made where it has none.
        result: The result of an evaluation.

    Returns:
        The path of the card.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"`folder` must be a folder with a model, got {str(folder)!r}.")
    card = folder / CARD
    metadata = (metadata_load(card) if card.is_file() else None) or {"library_name": "diffusers"}
    new = eval_results(result)
    name, old = folder.resolve().name, []
    if "model-index" in metadata:
        name, old = model_index_to_eval_results(metadata["model-index"])
    kept = [each for each in old if not any(each.is_equal_except_value(other) for other in new)]
    metadata["model-index"] = eval_results_to_model_index(name, kept + new)
    metadata_save(card, metadata)
    return card.resolve()
