"""What an evaluation, a comparison or a search needs and can be known before the network's first call."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffusers_ucgm.contracts import Pipeline, call_parameters
from diffusers_ucgm.data.images import ImageItems, load_image_dataset
from diffusers_ucgm.files import check_writable
from diffusers_ucgm.names import did_you_mean

from .features import FeatureNetwork
from .references import Reference, check_reference, reference_from_file
from .statistics import FeatureStatistics


__all__ = ["check_call", "check_outputs", "check_reference_fits", "check_width"]

# Pixels of the image that shows how many features a network has.
PROBE = (3, 28, 28)


def check_outputs(output: str | Path, reference_file: str | Path | None = None) -> None:
    """Check that results can be written.

    Raises:
        OSError: If they cannot.
        ValueError: If the file of a reference has another ending than `.npz`.
    """
    check_writable(output, "output", folder=True)
    if reference_file is not None:
        if Path(reference_file).suffix != ".npz":
            raise ValueError(f"`reference_file` must end in .npz, got {str(reference_file)!r}.")
        check_writable(reference_file, "reference_file")


def check_call(pipe: Pipeline, num_inference_steps: int | None, call: Mapping[str, Any]) -> None:
    """Check that a pipeline takes the arguments of a call.

    Raises:
        ValueError: If it has no such argument, a number is not finite, or the steps are fewer than 1.
    """
    if num_inference_steps is not None and num_inference_steps < 1:
        raise ValueError(f"`num_inference_steps` must be at least 1, got {num_inference_steps}.")
    known = [name for name in call_parameters(pipe) if name != "self"]
    if unknown := [name for name in call if name not in known]:
        hint = did_you_mean(unknown[0], known)
        raise ValueError(f"`call` must name arguments of {type(pipe).__name__}, {known}, got {unknown}.{hint}")
    # The pipeline would refuse it too, but when the folder is already this run's.
    if wrong := [name for name, value in call.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise ValueError(f"`{wrong[0]}` must be a finite number, got {call[wrong[0]]}.")


def check_reference_fits(
    source: str | Path | Reference,
    network: FeatureNetwork,
    *,
    split: str = "train",
    size: int | tuple[int, int] | None = None,
    image_column: str | None = None,
    feature_name: str | None = None,
    background: str = "white",
    allow_remote_files: bool = False,
) -> None:
    """Check that a reference is there, can be read and has the features of a network, at the cost of one image.

    Args:
        source: See `load_reference`, as for the others; or a reference that is loaded already.
        network: What gives the features.
        split: Of the data set.
        size: Of the images.
        image_column: Of the data set.
        feature_name: What the features are called.
        background: Of transparent images.
        allow_remote_files: Whether rows may name files outside the source's folder.

    Raises:
        ValueError: If it cannot be used.
        FileNotFoundError: If there is nothing under that name.
    """
    if not isinstance(source, Reference):
        check_reference("reference", source)
    if isinstance(source, Reference) or str(source).endswith(".npz"):
        found = source if isinstance(source, Reference) else reference_from_file(Path(source), feature_name)
        if found is not None:
            check_width(found.statistics, network)
        return
    opened = load_image_dataset(
        source, split, image_column=image_column, streaming=False, allow_remote_files=allow_remote_files
    )
    items = ImageItems(replace(opened, label_column=None, caption_column=None), size, background=background)
    for _, rows in items.blocks(16, lambda number: True):
        for row, sample in rows:
            if (item := items.prepared(row, sample)) is not None:
                network(((item["pixels"] + 1.0) * 127.5).round().to(torch.uint8)[None])
                return
    raise ValueError(
        f"`reference` must hold images, got none that can be read in {str(source)!r}: {items.skipped[:3]}."
    )


def check_width(statistics: FeatureStatistics, network: FeatureNetwork) -> None:
    """Check that statistics have as many features as a network gives.

    Raises:
        ValueError: If they have not.
    """
    try:
        width = network(torch.zeros(1, *PROBE, dtype=torch.uint8)).features.shape[1]
    except (ValueError, RuntimeError):
        # It takes images of one size alone, which will show when they are there.
        return
    found = len(statistics.mean)
    if found != width:
        raise ValueError(
            f"`reference` must hold statistics of {width} features, as `features` gives, got {found}. Take the "
            "features that the file was made with."
        )
