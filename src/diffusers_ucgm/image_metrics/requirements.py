"""Checks of an evaluation, a comparison or a search that are possible before the network's first call."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from diffusers_ucgm.contracts import Pipeline, call_parameters
from diffusers_ucgm.files import check_writable
from diffusers_ucgm.generation.conditions import check_call_arguments
from diffusers_ucgm.names import did_you_mean

from .features import FeatureNetwork
from .references import (
    Reference,
    ReferenceSource,
    check_reference,
    is_statistics_file,
    readable_images,
    reference_from_file,
)
from .statistics import FeatureStatistics


__all__ = ["check_call", "check_outputs", "check_reference_fits", "check_width"]

# The shape of the image that shows how many features a network has.
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


def check_call(pipe: Pipeline, num_inference_steps: int | None, call: Mapping[str, object]) -> None:
    """Check that a pipeline takes the arguments of a call.

    Raises:
        ValueError: If it has no argument of a name, the steps are fewer than 1, or `check_call_arguments` refuses one.
    """
    if num_inference_steps is not None and num_inference_steps < 1:
        raise ValueError(f"`num_inference_steps` must be at least 1, got {num_inference_steps}.")
    known = [name for name in call_parameters(pipe) if name != "self"]
    if unknown := [name for name in call if name not in known]:
        hint = did_you_mean(unknown[0], known)
        raise ValueError(f"`call` must name arguments of {type(pipe).__name__}, {known}, got {unknown}.{hint}")
    # The pipeline would refuse some of them too, but when the folder is already this run's.
    check_call_arguments(pipe, call)


def check_reference_fits(source: ReferenceSource, network: FeatureNetwork, feature_name: str | None = None) -> None:
    """Check that a reference exists, can be read and has the features of a network, at the cost of one image.

    Args:
        source: The reference, or where it is.
        network: The feature network.
        feature_name: The name of the features.

    Raises:
        ValueError: If it cannot be used.
        FileNotFoundError: If there is nothing under that name.
    """
    if isinstance(source.reference, Reference):
        check_width(source.reference.statistics, network)
        return
    check_reference("reference", source.reference)
    if not is_statistics_file(source.reference):
        network(_first_image(source)[None])
        return
    found = reference_from_file(Path(source.reference), feature_name)
    if found is not None:
        check_width(found.statistics, network)


def _first_image(source: ReferenceSource) -> Tensor:
    """The first image of a data set that can be read, bytes of shape `(C, H, W)`."""
    items = source.items()
    first = next(readable_images(items), None)
    if first is None:
        raise ValueError(
            f"`reference` must hold images, got none that can be read in {str(source.reference)!r}: "
            f"{items.skipped[:3]}."
        )
    return first


def check_width(statistics: FeatureStatistics, network: FeatureNetwork) -> None:
    """Check that statistics have as many features as a network gives.

    Raises:
        ValueError: If they have not.
    """
    try:
        width = network(torch.zeros(1, *PROBE, dtype=torch.uint8)).features.shape[1]
    except (ValueError, RuntimeError):
        # The network takes images of one size alone; those of the evaluation will show whether they fit.
        return
    found = len(statistics.mean)
    if found != width:
        raise ValueError(
            f"`reference` must hold statistics of {width} features, as `features` gives, got {found}. Take the "
            "features that the file was made with."
        )
