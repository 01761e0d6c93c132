"""Networks that turn images into features: a bundled classifier, `transformers`, Inception, or one's own.

A feature network is any callable from images, unsigned bytes of shape `(B, C, H, W)` with 1 or 3 channels, to
`ImageFeatures`. It brings images to its own size and scale, generated and real ones in the same way.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from diffusers_ucgm.checks import check_finite
from diffusers_ucgm.files import read_json
from diffusers_ucgm.models.image_classifier_2d import ImageClassifier2DModel
from diffusers_ucgm.names import BUNDLED_CLASSIFIERS, expanded, local_or_hub


__all__ = [
    "ClassifierFeatures",
    "FeatureNetwork",
    "ImageFeatures",
    "InceptionFeatures",
    "TransformersFeatures",
    "features_of",
    "load_features",
    "pooled_features",
    "spatial_features",
]

# The number in the evaluation code of ADM (arXiv 2105.05233), whose reference files hold `mu_s` and `sigma_s` of them.
SPATIAL_CHANNELS = 7
# The weights of red, green and blue in grey, which are Pillow's.
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ImageFeatures:
    """The output of a feature network for B images, float32 on the CPU.

    Attributes:
        features: The features, shape `(B, D)`.
        logits: The class logits, shape `(B, classes)`, for the Inception score; None where the network has no classes.
        spatial: The features of a spatial map, shape `(B, S)`, for sFID; None where the network gives none.
    """

    features: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


FeatureNetwork = Callable[[Tensor], ImageFeatures]


def load_features(name: str, device: str | torch.device = "cpu") -> FeatureNetwork:
    """A feature network by name.

    Args:
        name: One of `BUNDLED_CLASSIFIERS`; "inception"; `package.module:function`, where the function takes the device
            and gives a feature network; a folder with an `ImageClassifier2DModel`; or a folder or repository of the
            Hub with an image model of `transformers`.
        device: The device of the network.

    Raises:
        ValueError: If the function is missing, or the folder holds neither kind of model.
        ImportError: If the module, or torch-fidelity for "inception", is not installed.
    """
    if name == "inception":
        return InceptionFeatures(device)
    if ":" in name and not expanded(name).is_dir():
        return _make_features(name, device)
    found = local_or_hub("features", name, ["inception", *BUNDLED_CLASSIFIERS])
    folder = BUNDLED_CLASSIFIERS.get(name, Path(found))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"`features` must be a folder with a config.json, got {str(folder)!r} without one.")
        config = read_json(folder / "config.json")
        if config.get("_class_name") == ImageClassifier2DModel.__name__:
            return ClassifierFeatures(folder, device)
    return TransformersFeatures(found, device)


def _make_features(name: str, device: str | torch.device) -> FeatureNetwork:
    """The feature network of a function, named `package.module:function`."""
    module, _, function = name.partition(":")
    try:
        make: Any = getattr(import_module(module), function, None)
    except (ImportError, ValueError) as error:
        raise ValueError(f"`features` must name a module that can be imported, got {name!r}: {error}.") from error
    if not callable(make):
        raise ValueError(f"`features` must name a function of {module!r}, got {function!r}.")
    return cast(FeatureNetwork, make(device))


@torch.no_grad()
def features_of(network: FeatureNetwork, images: Iterable[Tensor], batch_size: int = 64) -> ImageFeatures:
    """Features of any number of images, in their order.

    Args:
        network: A feature network.
        images: Unsigned bytes, shape `(C, H, W)` each. Those of one size go into a call together.
        batch_size: Images in a call.

    Raises:
        ValueError: If there are none, or the network gives something else than finite features, a row for each.
        TypeError: If it gives no `ImageFeatures`.
    """
    parts: list[ImageFeatures] = []
    remaining = iter(images)
    while batch := list(islice(remaining, batch_size)):
        by_shape: dict[torch.Size, list[int]] = {}
        for i, image in enumerate(batch):
            by_shape.setdefault(image.shape, []).append(i)
        found = [_check(network(torch.stack([batch[i] for i in rows])), len(rows)) for rows in by_shape.values()]
        order = torch.tensor([i for rows in by_shape.values() for i in rows]).argsort()
        parts.append(_join(found, order))
    if not parts:
        raise ValueError("`images` must be at least one, got none.")
    return _join(parts)


def _check(found: ImageFeatures, number: int) -> ImageFeatures:
    """Check that a feature network gave finite features, one row for each image, and give them back."""
    if not isinstance(found, ImageFeatures):
        raise TypeError(f"`features` must give `ImageFeatures`, got {type(found).__name__}.")
    for field in fields(ImageFeatures):
        value = getattr(found, field.name)
        if value is not None or field.name == "features":
            _check_rows(field.name, value, number)
    return found


def _check_rows(name: str, value: object, number: int) -> None:
    """Check that features are finite floating-point numbers in as many rows as there are images."""
    if not isinstance(value, Tensor) or value.ndim != 2 or len(value) != number or not value.is_floating_point():
        shape = tuple(value.shape) if isinstance(value, Tensor) else None
        raise ValueError(
            f"`features` must give `{name}` of shape ({number}, D) for {number} images, got "
            f"{getattr(value, 'dtype', type(value).__name__)} of shape {shape}."
        )
    check_finite(name, value, remedy="Compute the features in float32.")


def _join(parts: list[ImageFeatures], order: Tensor | None = None) -> ImageFeatures:
    joined: dict[str, Tensor | None] = {}
    for field in fields(ImageFeatures):
        values = [getattr(part, field.name) for part in parts]
        whole = None if values[0] is None else torch.cat(values)
        joined[field.name] = whole if whole is None or order is None else whole[order]
    return ImageFeatures(**joined)  # pyright: ignore[reportArgumentType]


def spatial_features(maps: Tensor) -> Tensor:
    """The first channels of maps as one row each, channels last, as ADM's reference files have them.

    Args:
        maps: Shape `(B, C, H, W)`.

    Returns:
        Shape `(B, H W min(C, 7))`, float32 on the CPU.
    """
    return maps[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float().cpu()


def pooled_features(output: Any) -> Tensor:
    """The features in the output of a model of `transformers`, one row each, float32 on the CPU.

    Args:
        output: A tensor, or an output with `pooler_output` or, where nothing is pooled, `last_hidden_state`, whose
            first token stands for all.
    """
    if not isinstance(output, Tensor):
        pooled = getattr(output, "pooler_output", None)
        output = output.last_hidden_state[:, 0] if pooled is None else pooled
    return output.flatten(1).float().cpu()


def _with_channels(images: Tensor, channels: int) -> Tensor:
    """Images as grey or as red, green and blue, still bytes."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    grey = (images.float() * torch.tensor(LUMA, device=images.device).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
    return grey.round().to(torch.uint8)


class ClassifierFeatures:
    """Features, logits and a map of an `ImageClassifier2DModel`, such as the bundled one."""

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        """Load the classifier.

        Args:
            folder: A folder of `save_pretrained`.
            device: The device of the network.
        """
        try:
            model: Any = ImageClassifier2DModel.from_pretrained(folder, use_safetensors=True)
            self.model: ImageClassifier2DModel = model.eval().to(device)
        # A damaged configuration fails wherever the network is built.
        except Exception as error:
            raise ValueError(
                f"`features` must be a whole classifier, got {str(folder)!r}, whose config.json or weights cannot be "
                f"used: {error}"
            ) from error

    def __call__(self, images: Tensor) -> ImageFeatures:
        """Features of images, smaller ones on a black border, as the classifier was trained.

        Raises:
            ValueError: If the images are larger than it knows.
        """
        config = self.model.config
        pixels = _with_channels(images.to(self.model.device), config.in_channels).float() / 127.5 - 1.0
        size = config.sample_size
        height, width = size - pixels.shape[-2], size - pixels.shape[-1]
        if min(height, width) < 0:
            raise ValueError(
                f"`images` must be at most {size} pixels wide and high for this classifier, got "
                f"{tuple(images.shape[-2:])}. Let `size` resize the reference, or take other features."
            )
        border = (width // 2, width - width // 2, height // 2, height - height // 2)
        output = self.model(torch.nn.functional.pad(pixels, border, value=-1.0))
        return ImageFeatures(output.features.cpu(), output.logits.cpu(), spatial_features(output.spatial))


class TransformersFeatures:
    """Pooled features of an image model of `transformers` (DINOv2, CLIP, ConvNeXt, ...), logits where it has them."""

    def __init__(self, name: str, device: str | torch.device = "cpu", argument: str = "features") -> None:
        """Load the model and its image processor, which needs no torchvision.

        Args:
            name: A folder, or a repository of the Hub.
            device: The device of the network.
            argument: The name of the model in errors.

        Raises:
            OSError: If there is no model under that name.
            ValueError: If `transformers` cannot load it.
        """
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

        try:
            architectures: list[str] = AutoConfig.from_pretrained(name).architectures or []
            classifies = any(each.endswith("ForImageClassification") for each in architectures)
            self.processor = AutoImageProcessor.from_pretrained(name)
            loader: Any = AutoModelForImageClassification if classifies else AutoModel
            self.model = loader.from_pretrained(name, use_safetensors=True).eval().to(device)
        except OSError:
            raise
        # A damaged configuration fails wherever the network is built.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"`{argument}` must be an image model that transformers can load, got {name!r}: {reason}"
            ) from error
        self.device = device
        self._body_output: Any = None
        if classifies:
            # The hook keeps the last layer's input, so that the body does not run twice.
            self.model.base_model.register_forward_hook(self._keep_output)

    def _keep_output(self, module: torch.nn.Module, inputs: object, output: object) -> None:
        self._body_output = output

    def __call__(self, images: Tensor) -> ImageFeatures:
        """Features of images, resized and scaled by the model's own processor."""
        opened = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in _with_channels(images.cpu(), 3)]
        pixels = self.processor(opened, return_tensors="pt")["pixel_values"].to(self.device)
        # Models of images and texts have a space for both.
        output: Any = getattr(self.model, "get_image_features", self.model)(pixel_values=pixels)
        if self._body_output is None:
            return ImageFeatures(pooled_features(output))
        return ImageFeatures(pooled_features(self._body_output), output.logits.float().cpu())


class InceptionFeatures:
    """The Inception network of FID, from torch-fidelity: 2048 features, logits without bias, and sFID's map."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        """Load the network; torch-fidelity fetches the weights once into torch's cache.

        Args:
            device: The device of the network.

        Raises:
            ImportError: If torch-fidelity is not installed.
        """
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # pyright: ignore
        except ImportError as error:
            raise ImportError(
                f"`features='inception'` needs torch-fidelity ({error}). Install it by "
                "`pip install torch-fidelity torchvision`, or take other features."
            ) from error
        names = ["2048", "logits_unbiased"]
        self.model = FeatureExtractorInceptionV3("inception-v3-compat", names).eval().to(device)
        self.device = device
        self._map: Tensor | None = None
        # TensorFlow's `mixed_6/conv`, the first branch of the third block of 17x17.
        self.model.Mixed_6d.branch1x1.register_forward_hook(self._keep_map)

    def _keep_map(self, module: torch.nn.Module, inputs: object, output: Tensor) -> None:
        self._map = output

    def __call__(self, images: Tensor) -> ImageFeatures:
        """Features of images, resized to 299x299 by the resizing of the original graph."""
        features, logits = self.model(_with_channels(images.to(self.device), 3))
        assert self._map is not None
        return ImageFeatures(features.cpu(), logits.cpu(), spatial_features(self._map))
