"""The U-Net of EDM2 (Karras et al., arXiv 2312.02696): layers whose weights and activations keep their magnitude."""

import math
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from diffusers_ucgm.network_caches import CacheableNetwork

from .layers import SelfAttention


__all__ = ["EDM2UNet2DModel"]

EPSILON = 1e-4
# The weights of the second of two branches (arXiv 2312.02696, appendix B).
CLASS_WEIGHT = SKIP_WEIGHT = 0.5
RESIDUAL_WEIGHT = ATTENTION_WEIGHT = 0.3
LARGEST_ACTIVATION = 256.0
# The root mean square of silu for normal values.
SILU_MAGNITUDE = 0.596
# ln(sigma) / 4 is this linear function of the path's time in [0, 1], as in the transport "edm".
LOG_SIGMA_SCALE, LOG_SIGMA_SHIFT = 2.68, -1.59


def _normalize(v: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """Scale `v` to a root mean square of 1 over some axes; statistics in float32, epsilon outside the root."""
    magnitude = v.float().square().mean(dims, keepdim=True).sqrt() + EPSILON
    return v / magnitude.to(v.dtype)


def _mix(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """`(1 - weight) a + weight b`, scaled to the magnitude that independent `a` and `b` have."""
    return ((1.0 - weight) * a + weight * b) / math.sqrt((1.0 - weight) ** 2 + weight**2)


def _concatenate(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The channels of both, scaled so that `b` counts by its weight and not by its number of channels."""
    number_a, number_b = a.shape[1], b.shape[1]
    scale = math.sqrt((number_a + number_b) / ((1.0 - weight) ** 2 + weight**2))
    weight_a, weight_b = scale * (1.0 - weight) / math.sqrt(number_a), scale * weight / math.sqrt(number_b)
    return torch.cat([a * weight_a, b * weight_b], dim=1)


def _activation(v: Tensor) -> Tensor:
    return F.silu(v) / SILU_MAGNITUDE


def _unit_weight(weight: Tensor) -> Tensor:
    """The weight by which a layer of independent inputs of magnitude 1 gives outputs of magnitude 1."""
    dims = tuple(range(1, weight.ndim))
    return (_normalize(weight.float(), dims) / math.sqrt(weight[0].numel())).to(weight.dtype)


class EDM2Linear(nn.Linear):
    """A linear layer without bias whose rows count by direction alone."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Shape `(..., out_features)`."""
        return F.linear(input, _unit_weight(self.weight))


class EDM2Conv2d(nn.Conv2d):
    """A convolution without bias whose filters count by direction alone."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Shape `(B, out_channels, H, W)`."""
        return F.conv2d(input, _unit_weight(self.weight), padding=self.padding)


class EDM2Embedding(nn.Module):
    """A linear layer of one-hot vectors of magnitude 1: columns of a weight whose rows count by direction alone."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(embedding_dim, num_embeddings))

    def forward(self, input: Tensor) -> Tensor:
        """Shape `(B, embedding_dim)` for ids of shape `(B,)`."""
        # A one-hot vector times sqrt(number of embeddings) picks a column of the normalised weight.
        return F.embedding(input, _normalize(self.weight.float(), 1).to(self.weight.dtype).T)


class EDM2Norm(nn.Module):
    """Root mean square of 1 over the last axis."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Same shape."""
        return _normalize(hidden_states, -1)


class EDM2TimeFeatures(nn.Module):
    """Random Fourier features of `ln(sigma) / 4`; frequencies and phases are stored, not learned."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2.0 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2.0 * math.pi * torch.rand(width))

    def forward(self, v: Tensor) -> Tensor:
        """Shape `(B, width)` for shape `(B,)`, float32."""
        return math.sqrt(2.0) * (v.float()[:, None] * self.freqs.float() + self.phases.float()).cos()


class EDM2Block(nn.Module):
    """A residual block of the encoder or the decoder, with attention where heads are given."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        heads: int = 0,
        decoder: bool = False,
        resample: str | None = None,
        takes_skip: bool = False,
    ) -> None:
        super().__init__()
        self.decoder, self.resample, self.takes_skip = decoder, resample, takes_skip
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.emb_linear = EDM2Linear(embedding_dim, out_channels)
        self.conv1 = EDM2Conv2d(in_channels if decoder else out_channels, out_channels, 3)
        self.conv2 = EDM2Conv2d(out_channels, out_channels, 3)
        self.conv_shortcut = EDM2Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.attn = None
        if heads:
            norm = cast(Any, lambda width: EDM2Norm())
            dim_head = out_channels // heads
            self.attn = SelfAttention(out_channels, heads, dim_head, out_bias=False, norm=norm, linear=EDM2Linear)
            self.attn.norm_v = EDM2Norm()
            # Fusing would make a plain linear layer of normalised ones.
            self.attn._supports_qkv_fusion = False

    def forward(self, x: Tensor, embedding: Tensor, skip: Tensor | None = None) -> Tensor:
        """The next activations, shape `(B, out_channels, H', W')`.

        Args:
            x: Activations, shape `(B, channels, H, W)`.
            embedding: Time and class after their activation, shape `(B, E)`.
            skip: Activations of the encoder, for a block that takes them.
        """
        if skip is not None:
            x = _concatenate(x, skip, SKIP_WEIGHT)
        if self.resample == "down":
            x = F.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if not self.decoder:
            x = _normalize(x if self.conv_shortcut is None else self.conv_shortcut(x), 1)
        scale = 1.0 + self.emb_linear(embedding) * self.emb_gain
        y = self.conv2(_activation(self.conv1(_activation(x)) * scale[:, :, None, None]))
        if self.decoder and self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        x = _mix(x, y, RESIDUAL_WEIGHT)
        if self.attn is not None:
            attended = self.attn(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
            x = _mix(x, attended, ATTENTION_WEIGHT)
        return x.clamp(-LARGEST_ACTIVATION, LARGEST_ACTIVATION)


class EDM2UNet2DModel(ModelMixin, ConfigMixin, AttentionMixin, PeftAdapterMixin, CacheableNetwork):
    """The class-conditional network of EDM2; the default is EDM2-S for 512 pixels.

    Called as `model(sample, timestep, class_labels)`, with the time of the transport "edm". The weights are stored as
    they were trained and normalised at every call; training does not rewrite them, as NVIDIA's own code does.

    Args:
        sample_size: Side of the latents; others work as long as their sides can be halved at every level.
        in_channels: Channels of the latents.
        out_channels: Channels of the output; None is as many.
        num_classes: Number of classes; as a class id it leaves the class out.
        block_out_channels: Width of each level.
        layers_per_block: Blocks of each level, and one more in the decoder.
        attention_levels: Levels whose blocks have attention; 0 has the highest resolution.
        attention_head_dim: Width of a head; narrower levels have no attention.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["EDM2Block"]
    _repeated_blocks = ["EDM2Block"]
    _keep_in_fp32_modules = ["time_proj"]
    _skip_layerwise_casting_patterns = ["time_proj", "emb_gain", "out_gain"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_classes: int = 1000,
        block_out_channels: tuple[int, ...] = (192, 384, 576, 768),
        layers_per_block: int = 3,
        attention_levels: tuple[int, ...] = (2, 3),
        attention_head_dim: int = 64,
    ) -> None:
        super().__init__()
        if unknown := [level for level in attention_levels if not 0 <= level < len(block_out_channels)]:
            raise ValueError(
                f"`attention_levels` must be in [0, {len(block_out_channels) - 1}], got {list(attention_levels)} with "
                f"{unknown}."
            )
        width, embedding_dim = block_out_channels[0], max(block_out_channels)
        self.time_proj = EDM2TimeFeatures(width)
        self.time_embedding = EDM2Linear(width, embedding_dim)
        self.class_embedding = EDM2Embedding(num_classes, embedding_dim)
        # A channel of ones stands in for biases.
        self.conv_in = EDM2Conv2d(in_channels + 1, width, 3)
        self.down_blocks, skips = self._encoder(embedding_dim)
        self.up_blocks = self._decoder(embedding_dim, skips)
        self.conv_out = EDM2Conv2d(width, in_channels if out_channels is None else out_channels, 3)
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.gradient_checkpointing = False
        for module in self.modules():
            if isinstance(module, EDM2Linear | EDM2Conv2d | EDM2Embedding):
                nn.init.normal_(module.weight)

    def _heads(self, channels: int, level: int) -> int:
        return channels // self.config.attention_head_dim if level in self.config.attention_levels else 0

    def _encoder(self, embedding_dim: int) -> tuple[nn.ModuleList, list[int]]:
        """The encoder's blocks, and the widths of the activations that the decoder takes."""
        width = self.config.block_out_channels[0]
        blocks, skips = nn.ModuleList(), [width]
        for level, channels in enumerate(self.config.block_out_channels):
            if level:
                blocks.append(EDM2Block(width, width, embedding_dim, resample="down"))
                skips.append(width)
            for _ in range(self.config.layers_per_block):
                blocks.append(EDM2Block(width, channels, embedding_dim, heads=self._heads(channels, level)))
                skips.append(width := channels)
        return blocks, skips

    def _decoder(self, embedding_dim: int, skips: list[int]) -> nn.ModuleList:
        """The decoder's blocks; `skips` are the widths of the encoder's activations, the last one taken first."""
        channels_of_levels = self.config.block_out_channels
        width, last = channels_of_levels[-1], len(channels_of_levels) - 1
        block = partial(EDM2Block, embedding_dim=embedding_dim, decoder=True)
        blocks = nn.ModuleList(
            [block(width, width, heads=width // self.config.attention_head_dim), block(width, width)]
        )
        for level, channels in reversed(list(enumerate(channels_of_levels))):
            if level != last:
                blocks.append(block(width, width, resample="up"))
            for _ in range(self.config.layers_per_block + 1):
                heads = self._heads(channels, level)
                blocks.append(block(width + skips.pop(), channels, heads=heads, takes_skip=True))
                width = channels
        return blocks

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """The network's prediction of the path's target.

        Args:
            sample: Noisy latents, shape `(B, C, H, W)`.
            timestep: Times in [0, 1], shape `(B,)`, or one for all.
            class_labels: Class ids, shape `(B,)`; `num_classes` leaves a sample's class out, and None that of all.
            return_dict: Whether to return a `UNet2DOutput` or the tuple `(sample,)`.

        Returns:
            Shape `(B, out_channels, H, W)`.

        Raises:
            ValueError: If the sides cannot be halved at every level.
        """
        batch, _, height, width = sample.shape
        factor = 2 ** (len(self.config.block_out_channels) - 1)
        if height % factor or width % factor:
            raise ValueError(f"`sample` must have sides that are multiples of {factor}, got {height}x{width}.")
        time = torch.as_tensor(timestep, device=sample.device).expand(batch).float()
        features = self.time_proj(LOG_SIGMA_SCALE * time + LOG_SIGMA_SHIFT).to(sample.dtype)
        embedding = _activation(self._with_class(self.time_embedding(features), class_labels))
        x = self.conv_in(torch.cat([sample, torch.ones_like(sample[:, :1])], dim=1))
        skips = [x]
        for block in self.down_blocks:
            x = self._run(block, x, embedding, None)
            skips.append(x)
        for block in self.up_blocks:
            x = self._run(block, x, embedding, skips.pop() if block.takes_skip else None)
        x = self.conv_out(x) * self.out_gain
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def fuse_lora(
        self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: list[str] | None = None
    ) -> None:
        """Not for this model: a merged weight would be normalised together with the adapter.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "`fuse_lora` must be left out for EDM2UNet2DModel, whose layers normalise their weights at every call: a "
            "merged weight gives other outputs than the weight and the adapter beside it. Keep the adapter loaded."
        )

    def _with_class(self, embedding: Tensor, class_labels: Tensor | None) -> Tensor:
        """Time and class mixed; the time alone, at its full weight, where the class is left out."""
        if class_labels is None:
            return embedding
        left_out = class_labels == self.config.num_classes
        label = self.class_embedding(class_labels.masked_fill(left_out, 0))
        return torch.where(left_out[:, None], embedding, _mix(embedding, label, CLASS_WEIGHT))

    def _run(self, block: nn.Module, x: Tensor, embedding: Tensor, skip: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return cast(Any, self)._gradient_checkpointing_func(block, x, embedding, skip)
        return block(x, embedding, skip)
