"""What drawn pictures are compared with: real pictures, or a file of their statistics.

A statistics file is an `.npz` with `mu` and `sigma`, as pytorch-fid, clean-fid and torch-fidelity's users exchange
them; ADM's also hold `mu_s` and `sigma_s` of the spatial features and some of the pictures themselves, `arr_0`.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from diffusers_ucgm import files
from diffusers_ucgm.checks import check_finite
from diffusers_ucgm.data.image_sources import check_image_source
from diffusers_ucgm.data.images import ImageItems, load_image_dataset, prepare_image
from diffusers_ucgm.names import local_path

from .features import FeatureNetwork, features_of
from .statistics import FeatureStatistics


__all__ = ["Reference", "load_reference", "reference_from_file", "save_reference"]


@dataclass(frozen=True)
class Reference:
    """The real pictures, as far as the metrics need them.

    Attributes:
        statistics: Of the features.
        spatial_statistics: Of the spatial features, or None.
        features: Of the pictures one by one, shape `(N, D)`, or None where only statistics are known.
        num_samples: How many pictures the statistics are of, or None where the file does not say.
        skipped: Name and reason of every picture that could not be read.
    """

    statistics: FeatureStatistics
    spatial_statistics: FeatureStatistics | None = None
    features: Tensor | None = None
    num_samples: int | None = None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.features is not None:
            check_finite("features", self.features, "the reference")


def load_reference(
    source: str | Path,
    network: FeatureNetwork,
    *,
    split: str = "train",
    size: int | tuple[int, int] | None = None,
    image_column: str | None = None,
    feature_name: str | None = None,
    batch_size: int = 64,
    progress: bool = True,
    background: str = "white",
    allow_remote_files: bool = False,
) -> Reference:
    """Features and statistics of a reference.

    Args:
        source: A statistics file, or pictures: a folder of images, of webdataset shards, of `save_to_disk` or of IDX
            files (MNIST's), the name of a data set on the Hub, or an `.npz` with `arr_0` alone.
        network: What gives the features.
        split: Of the data set.
        size: Scale and crop the pictures to this height and width first; None leaves that to the network.
        image_column: Of the data set; None finds it by its usual names.
        feature_name: What the features are called. A file that names others is refused.
        batch_size: Pictures in a call of the network.
        progress: Whether a bar is shown.
        background: What transparent images are composed on: a colour's name or `#rrggbb`.
        allow_remote_files: Whether a data set's rows may name files outside its folder, and addresses.

    Raises:
        ValueError: If the file holds no statistics, or those of other features.
        FileNotFoundError: If there is nothing under that name.
    """
    if str(source).endswith(".npz"):
        return _from_file(Path(source), network, size, feature_name, batch_size, progress)
    found = load_image_dataset(source, split, image_column=image_column, allow_remote_files=allow_remote_files)
    # An image without a class or a caption is an image.
    found = replace(found, label_column=None, caption_column=None)
    items = ImageItems(found, size, channels=found.channels, background=background)
    reference = _of_pictures(_readable(items), network, batch_size, progress, items.num_rows)
    return replace(reference, skipped=(*found.left_out, *items.skipped))


def check_reference(argument: str, source: str | Path) -> None:
    """Check that a reference exists, or may be on the Hub, before anything is computed.

    Args:
        argument: What the error calls it.
        source: As `load_reference` takes it.

    Raises:
        FileNotFoundError: If it is a mistyped name or path; the error says what exists.
    """
    if str(source).endswith(".npz"):
        local_path(argument, source, "a file of statistics or pictures")
    else:
        check_image_source(argument, source)


def save_reference(path: str | Path, reference: Reference, feature_name: str | None = None) -> Path:
    """Write a statistics file that this package, ADM's and clean-fid's code read.

    Args:
        path: Ends in `.npz`.
        reference: What is written: statistics, not the pictures.
        feature_name: What the features are called.

    Raises:
        ValueError: If the name ends otherwise.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"`path` must end in .npz, got {str(path)!r}.")
    arrays: dict[str, Any] = {
        "mu": reference.statistics.mean.numpy(),
        "sigma": reference.statistics.covariance.numpy(),
    }
    if reference.spatial_statistics is not None:
        arrays["mu_s"] = reference.spatial_statistics.mean.numpy()
        arrays["sigma_s"] = reference.spatial_statistics.covariance.numpy()
    if reference.num_samples is not None:
        arrays["num_samples"] = np.array(reference.num_samples)
    if feature_name is not None:
        arrays["feature_name"] = np.array(feature_name)
    # From a buffer: numpy would give a path its own ending.
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    files.write_bytes(path, buffer.getvalue())
    return path.resolve()


def reference_from_file(path: Path, feature_name: str | None = None) -> Reference | None:
    """The statistics of an `.npz` file, or None where it holds images alone.

    Args:
        path: Of the file.
        feature_name: What the features are called. A file that names others is refused.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds neither, or what it holds cannot be used.
    """
    arrays = _file_arrays(path, feature_name)
    if "mu" not in arrays:
        return None
    return Reference(
        _statistics(arrays, "mu", "sigma", path),
        _statistics(arrays, "mu_s", "sigma_s", path) if {"mu_s", "sigma_s"} <= set(arrays) else None,
        None,
        _number(arrays, path),
    )


def _from_file(
    path: Path,
    network: FeatureNetwork,
    size: int | tuple[int, int] | None,
    feature_name: str | None,
    batch_size: int,
    progress: bool,
) -> Reference:
    known = reference_from_file(path, feature_name)
    arrays = _file_arrays(path, feature_name)
    if "arr_0" not in arrays:
        assert known is not None
        return known
    images = torch.from_numpy(arrays["arr_0"])
    shown = _sized(images.permute(0, 3, 1, 2), size)
    pictures = _of_pictures(shown, network, batch_size, progress, len(images))
    return pictures if known is None else replace(known, features=pictures.features)


def _file_arrays(path: Path, feature_name: str | None) -> dict[str, np.ndarray]:
    """The arrays of a statistics file, if it holds statistics or images, of these features.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    path = local_path("source", path, "a file of statistics or pictures")
    arrays = _arrays(path)
    if not {"mu", "sigma"} <= set(arrays) and "arr_0" not in arrays:
        raise ValueError(
            f"`source` must hold 'mu' and 'sigma', or pictures as 'arr_0', got {sorted(arrays)} in {path}."
        )
    named = str(arrays["feature_name"]) if "feature_name" in arrays else None
    if None not in (named, feature_name) and named != feature_name:
        raise ValueError(
            f"`source` must hold statistics of {feature_name!r}, got those of {named!r} in {str(path)!r}."
        )
    found = arrays.get("arr_0")
    if found is not None and (
        found.ndim != 4 or found.dtype != np.uint8 or found.shape[3] not in (1, 3) or 0 in found.shape
    ):
        raise ValueError(
            f"`source` must hold bytes of shape (N, H, W, C) as 'arr_0', got {found.dtype} of shape "
            f"{tuple(found.shape)} in {str(path)!r}."
        )
    return arrays


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file.

    Raises:
        ValueError: If it is torn, something else, or holds objects.
    """
    try:
        # numpy leaves a torn file open that it has opened itself.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    # An `.npy` array has no context, and a damaged archive raises whatever zipfile, zlib and numpy do.
    except Exception as error:
        reason = "an array alone" if isinstance(error, AttributeError | TypeError) else f"{error}".splitlines()[0]
        raise ValueError(
            f"`source` must be a whole .npz file of numbers, got {str(path)!r}, which cannot be read: {reason}."
        ) from error


def _statistics(arrays: dict[str, np.ndarray], mean: str, covariance: str, path: Path) -> FeatureStatistics:
    for name in (mean, covariance):
        if arrays[name].dtype.kind not in "fiu":
            raise ValueError(f"`source` must hold numbers as {name!r}, got {arrays[name].dtype} in {str(path)!r}.")
    values = (np.asarray(arrays[name], np.float64) for name in (mean, covariance))
    try:
        return FeatureStatistics(
            torch.from_numpy(np.atleast_1d(next(values))), torch.from_numpy(np.atleast_2d(next(values)))
        )
    except ValueError as error:
        raise ValueError(
            f"`source` must hold statistics as {mean!r} and {covariance!r}, got in {str(path)!r}: {error}"
        ) from error


def _number(arrays: dict[str, np.ndarray], path: Path) -> int | None:
    """How many images the statistics are of, where the file says so."""
    if "num_samples" not in arrays:
        return None
    found = arrays["num_samples"]
    if found.size != 1 or found.dtype.kind not in "iu" or int(found.reshape(())) < 2:
        raise ValueError(
            f"`source` must hold a number from 2 up as 'num_samples', got {found!r:.80} in {str(path)!r}."
        )
    return int(found.reshape(()))


def _of_pictures(
    pictures: Iterator[Tensor], network: FeatureNetwork, batch_size: int, progress: bool, number: int | None
) -> Reference:
    shown = tqdm(pictures, total=number, disable=not progress, unit="image", desc="reference")
    found = features_of(network, shown, batch_size)
    if len(found.features) < 2:
        raise ValueError(f"`reference` must hold at least 2 images that can be read, got {len(found.features)}.")
    return Reference(
        FeatureStatistics.of(found.features),
        None if found.spatial is None else FeatureStatistics.of(found.spatial),
        found.features,
        len(found.features),
    )


def _sized(images: Tensor, size: int | tuple[int, int] | None) -> Iterator[Tensor]:
    """Pictures of a stack, bytes of shape `(N, C, H, W)`, one by one."""
    for image in images:
        if size is None:
            yield image
            continue
        array = image.permute(1, 2, 0).numpy()
        picture = Image.fromarray(array[..., 0] if len(image) == 1 else array)
        yield _bytes(prepare_image(picture, size, channels=len(image)))


def _readable(items: ImageItems) -> Iterator[Tensor]:
    for _, rows in items.blocks(64, lambda number: True):
        for row, sample in rows:
            if (item := items.prepared(row, sample)) is not None:
                yield _bytes(item["pixels"])


def _bytes(pixels: Tensor) -> Tensor:
    """Bytes from floats in [-1, 1]."""
    return ((pixels + 1.0) * 127.5).round().to(torch.uint8)
