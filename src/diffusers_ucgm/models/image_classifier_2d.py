"""A small image classifier, whose features say how close two sets of small images are."""

from dataclasses import dataclass

from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn


__all__ = ["ImageClassifier2DModel", "ImageClassifierOutput"]


@dataclass
class ImageClassifierOutput(BaseOutput):
    """Features and logits of images.

    Attributes:
        features: What the last layer decides by, shape `(B, feature_dim)`.
        logits: Shape `(B, num_classes)`.
        spatial: The map in the middle, which still says where things are, shape `(B, C, H, W)`.
    """

    features: Tensor
    logits: Tensor
    spatial: Tensor


class ImageClassifier2DModel(ModelMixin, ConfigMixin):
    """Three convolutions, each halving the image, and two linear layers."""

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 1,
        block_out_channels: tuple[int, ...] = (32, 64, 128),
        feature_dim: int = 128,
        num_classes: int = 10,
        dropout: float = 0.3,
    ) -> None:
        """Build the network.

        Args:
            sample_size: Height and width of the images, a multiple of 2 to the number of blocks.
            in_channels: Channels of the images.
            block_out_channels: Output channels of each convolution.
            feature_dim: The number of features.
            num_classes: The number of logits.
            dropout: Before the features, in training.

        Raises:
            ValueError: If the blocks do not halve the images evenly.
        """
        super().__init__()
        scale = 2 ** len(block_out_channels)
        if sample_size % scale:
            raise ValueError(f"`sample_size` must be a multiple of {scale}, got {sample_size}.")
        self.blocks = nn.ModuleList()
        for channels, following in zip((in_channels, *block_out_channels), block_out_channels, strict=False):
            convolution = nn.Conv2d(channels, following, 3, padding=1)
            self.blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(following), nn.ReLU(), nn.MaxPool2d(2)))
        flat = block_out_channels[-1] * (sample_size // scale) ** 2
        self.features = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(flat, feature_dim), nn.ReLU())
        self.head = nn.Linear(feature_dim, num_classes)

    def forward(self, sample: Tensor) -> ImageClassifierOutput:
        """Features and logits.

        Args:
            sample: Images in [-1, 1], shape `(B, in_channels, sample_size, sample_size)`.
        """
        maps = [sample]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        features = self.features(maps[-1])
        # The last map is nearly as far from the image as the features are.
        return ImageClassifierOutput(features=features, logits=self.head(features), spatial=maps[-2])
