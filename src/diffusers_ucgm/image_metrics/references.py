"""The reference of an evaluation: real images, or a file of their statistics.

A statistics file is an `.npz` with `mu` and `sigma`, as pytorch-fid, clean-fid and torch-fidelity's users exchange
them; ADM's also hold `mu_s` and `sigma_s` of the spatial features and some of the images themselves, `arr_0`.
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


__all__ = [
    "Reference",
    "ReferenceSource",
    "check_reference",
    "is_statistics_file",
    "load_reference",
    "pixel_bytes",
    "readable_images",
    "reference_from_file",
    "save_reference",
]


@dataclass(frozen=True)
class Reference:
    """The real images, as far as the metrics need them.

    Attributes:
        statistics: The statistics of the features.
        spatial_statistics: The statistics of the spatial features, or None.
        features: The features of each image, shape `(N, D)`, or None where only statistics are known.
        num_samples: The number of images, or None where the file does not say.
        skipped: Name and reason of every image that could not be read.
    """

    statistics: FeatureStatistics
    spatial_statistics: FeatureStatistics | None = None
    features: Tensor | None = None
    num_samples: int | None = None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.features is not None:
            check_finite("features", self.features, "the reference")


@dataclass(frozen=True)
class ReferenceSource:
    """A reference that is given, or where and how to load one.

    Attributes:
        reference: A `Reference`, or a source that `load_reference` takes, as are the others.
        split: The split of a data set.
        size: The height and width that images are scaled and cropped to; None leaves them as they are.
        image_column: The column of the images; None finds it.
        background: The colour that transparent images are composed on.
        allow_remote_files: Whether rows may name files outside the source's folder.
    """

    reference: str | Path | Reference
    split: str = "train"
    size: int | tuple[int, int] | None = None
    image_column: str | None = None
    background: str = "white"
    allow_remote_files: bool = False

    def load(self, network: FeatureNetwork, feature_name: str, batch_size: int, progress: bool) -> Reference:
        """The reference in the features of a network; see `load_reference`."""
        if isinstance(self.reference, Reference):
            return self.reference
        return load_reference(
            self.reference,
            network,
            split=self.split,
            size=self.size,
            image_column=self.image_column,
            feature_name=feature_name,
            batch_size=batch_size,
            progress=progress,
            background=self.background,
            allow_remote_files=self.allow_remote_files,
        )

    def items(self) -> ImageItems:
        """The images of a data set.

        Raises:
            ValueError: If the source cannot be read.
        """
        assert not isinstance(self.reference, Reference)
        found = load_image_dataset(
            self.reference,
            self.split,
            image_column=self.image_column,
            allow_remote_files=self.allow_remote_files,
        )
        # An image without a class or a caption is an image.
        found = replace(found, label_column=None, caption_column=None)
        return ImageItems(found, self.size, channels=found.channels, background=self.background)

    def description(self) -> dict[str, object]:
        """The source and the settings that it heeds, for the results of an evaluation."""
        if isinstance(self.reference, Reference):
            return {"source": "given"}
        is_file = is_statistics_file(self.reference)
        return {
            "source": str(self.reference),
            # A statistics file has no splits.
            "split": None if is_file else self.split,
            "size": self.size,
            "image_column": self.image_column,
            **({} if is_file else {"background": self.background}),
        }


def is_statistics_file(source: str | Path) -> bool:
    """Whether a source is an `.npz` file and not a data set."""
    return str(source).endswith(".npz")


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
        source: A statistics file, or images: a folder of images, of webdataset shards, of `save_to_disk` or of IDX
            files (MNIST's), the name of a data set on the Hub, or an `.npz` with `arr_0` alone.
        network: The feature network.
        split: The split of the data set.
        size: The height and width that images are scaled and cropped to first; None leaves that to the network.
        image_column: The column of the images; None finds it by its usual names.
        feature_name: The name of the features. A file that names others is refused.
        batch_size: Images in a call of the network.
        progress: Whether a bar is shown.
        background: The colour that transparent images are composed on: its name or `#rrggbb`.
        allow_remote_files: Whether a data set's rows may name files outside its folder, and addresses.

    Raises:
        ValueError: If the file holds no statistics, or those of other features.
        FileNotFoundError: If there is nothing under that name.
    """
    if is_statistics_file(source):
        return _reference_of_file(Path(source), network, size, feature_name, batch_size, progress)
    items = ReferenceSource(source, split, size, image_column, background, allow_remote_files).items()
    reference = _reference_of_images(readable_images(items), network, batch_size, progress, items.num_rows)
    return replace(reference, skipped=(*items.source.left_out, *items.skipped))


def check_reference(argument: str, source: str | Path) -> None:
    """Check that a reference exists, or may be on the Hub, before anything is computed.

    Args:
        argument: The name of the reference in errors.
        source: A source that `load_reference` takes.

    Raises:
        FileNotFoundError: If it is a mistyped name or path; the error says what exists.
    """
    if is_statistics_file(source):
        local_path(argument, source, "a file of statistics or images")
    else:
        check_image_source(argument, source)


def save_reference(path: str | Path, reference: Reference, feature_name: str | None = None) -> Path:
    """Write a statistics file that this package, ADM's and clean-fid's code read.

    Args:
        path: The file, whose name ends in `.npz`.
        reference: The reference, whose statistics are written, and not its images.
        feature_name: The name of the features.

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
    # A buffer, since numpy would give a path its own ending.
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    files.write_bytes(path, buffer.getvalue())
    return path.resolve()


def reference_from_file(path: Path, feature_name: str | None = None) -> Reference | None:
    """The statistics of an `.npz` file, or None where it holds images alone.

    Args:
        path: The file.
        feature_name: The name of the features. A file that names others is refused.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds neither, or what it holds cannot be used.
    """
    return _known_statistics(_file_arrays(path, feature_name), path)


def _known_statistics(arrays: dict[str, np.ndarray], path: Path) -> Reference | None:
    """The statistics among a file's arrays, or None where these are images alone."""
    if "mu" not in arrays:
        return None
    return Reference(
        _statistics(arrays, "mu", "sigma", path),
        _statistics(arrays, "mu_s", "sigma_s", path) if {"mu_s", "sigma_s"} <= set(arrays) else None,
        None,
        _number(arrays, path),
    )


def _reference_of_file(
    path: Path,
    network: FeatureNetwork,
    size: int | tuple[int, int] | None,
    feature_name: str | None,
    batch_size: int,
    progress: bool,
) -> Reference:
    arrays = _file_arrays(path, feature_name)
    known = _known_statistics(arrays, path)
    if "arr_0" not in arrays:
        assert known is not None
        return known
    stack = torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2)
    found = _reference_of_images(_resize(stack, size), network, batch_size, progress, len(stack))
    return found if known is None else replace(known, features=found.features)


def _file_arrays(path: Path, feature_name: str | None) -> dict[str, np.ndarray]:
    """The arrays of a statistics file, if it holds statistics or images, of these features.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    path = local_path("source", path, "a file of statistics or images")
    arrays = _arrays(path)
    if not {"mu", "sigma"} <= set(arrays) and "arr_0" not in arrays:
        raise ValueError(f"`source` must hold 'mu' and 'sigma', or images as 'arr_0', got {sorted(arrays)} in {path}.")
    _check_feature_name(arrays, feature_name, path)
    _check_images(arrays.get("arr_0"), path)
    return arrays


def _check_feature_name(arrays: dict[str, np.ndarray], expected: str | None, path: Path) -> None:
    """Check that a file names no other features."""
    found = str(arrays["feature_name"]) if "feature_name" in arrays else None
    if None not in (found, expected) and found != expected:
        raise ValueError(f"`source` must hold statistics of {expected!r}, got those of {found!r} in {str(path)!r}.")


def _check_images(images: np.ndarray | None, path: Path) -> None:
    """Check that the images of a file, where it has any, are bytes with the channels last."""
    if images is None:
        return
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"`source` must hold bytes of shape (N, H, W, C) as 'arr_0', got {images.dtype} of shape "
            f"{tuple(images.shape)} in {str(path)!r}."
        )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file.

    Raises:
        ValueError: If it is truncated, something else, or holds objects.
    """
    try:
        # numpy leaves a truncated file open that it has opened itself.
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
    """The number of images that the statistics are of, where the file says so."""
    if "num_samples" not in arrays:
        return None
    found = arrays["num_samples"]
    if found.size != 1 or found.dtype.kind not in "iu" or int(found.reshape(())) < 2:
        raise ValueError(
            f"`source` must hold a number from 2 up as 'num_samples', got {found!r:.80} in {str(path)!r}."
        )
    return int(found.reshape(()))


def _reference_of_images(
    images: Iterator[Tensor], network: FeatureNetwork, batch_size: int, progress: bool, number: int | None
) -> Reference:
    bar = tqdm(images, total=number, disable=not progress, unit="image", desc="reference")
    found = features_of(network, bar, batch_size)
    if len(found.features) < 2:
        raise ValueError(f"`reference` must hold at least 2 images that can be read, got {len(found.features)}.")
    return Reference(
        FeatureStatistics.of(found.features),
        None if found.spatial is None else FeatureStatistics.of(found.spatial),
        found.features,
        len(found.features),
    )


def _resize(images: Tensor, size: int | tuple[int, int] | None) -> Iterator[Tensor]:
    """The images of a stack, bytes of shape `(N, C, H, W)`, one by one in a size."""
    for image in images:
        if size is None:
            yield image
            continue
        array = image.permute(1, 2, 0).numpy()
        opened = Image.fromarray(array[..., 0] if len(image) == 1 else array)
        yield pixel_bytes(prepare_image(opened, size, channels=len(image)))


def readable_images(items: ImageItems) -> Iterator[Tensor]:
    """The images of a data set that can be read, bytes of shape `(C, H, W)`."""
    for _, rows in items.blocks(64, lambda number: True):
        for row, sample in rows:
            if (item := items.prepare(row, sample)) is not None:
                yield pixel_bytes(item["pixels"])


def pixel_bytes(pixels: Tensor) -> Tensor:
    """Unsigned bytes from floats in [-1, 1]."""
    return ((pixels + 1.0) * 127.5).round().to(torch.uint8)
