"""Adapters of video networks: see `image_adapters.py`; samples have the shape `(B, C, frames, H, W)`."""

import math
from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor, nn

from .network_adapter import EMBEDDINGS, EMBEDDINGS_AND_MASK, NetworkAdapter, TimestepFunction


__all__ = ["AnyFlowAdapter", "CogVideoXAdapter", "LTXAdapter", "WanAdapter"]


class FramesFirstAdapter(NetworkAdapter):
    """Networks that take frames before channels."""

    prompt_outputs = EMBEDDINGS

    def pack(self, x_t: Tensor) -> Tensor:
        """Shape `(B, frames, C, H, W)`."""
        return x_t.transpose(1, 2)

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """Shape `(B, C, frames, H, W)`."""
        return output.transpose(1, 2)


class AnyFlowAdapter(FramesFirstAdapter):
    """AnyFlow takes both times for every frame; without a target time, the second is the time itself."""

    def __call__(
        self, network: nn.Module, x_t: Tensor, t: Tensor, *, target_time: Tensor | None = None, **condition: Any
    ) -> Tensor:
        """See `NetworkAdapter`."""
        both = (t, t if target_time is None else target_time)
        t, target_time = (time[:, None].expand(-1, x_t.shape[2]) for time in both)
        return super().__call__(network, x_t, t, target_time=target_time, **condition)


class LTXAdapter(NetworkAdapter):
    """LTX-Video: every latent pixel is a token, masked text, positions in seconds and pixels."""

    prompt_outputs = EMBEDDINGS_AND_MASK

    def __init__(
        self,
        network: nn.Module,
        timestep: TimestepFunction | None = None,
        *,
        null_condition: Mapping[str, object] | None = None,
        frame_rate: float = 25.0,
        temporal_compression: int = 8,
        spatial_compression: int = 32,
    ) -> None:
        """Read the model's configuration.

        Args:
            network: The model whose configuration counts.
            timestep: See `NetworkAdapter`.
            null_condition: See `NetworkAdapter`.
            frame_rate: The videos' frames per second.
            temporal_compression: The number of frames that a latent frame stands for.
            spatial_compression: The side of a latent in pixels.
        """
        super().__init__(network, timestep, null_condition=null_condition)
        self.interpolation = (temporal_compression / frame_rate, spatial_compression, spatial_compression)
        self.patch = (self.config["patch_size_t"], self.config["patch_size"], self.config["patch_size"])

    @classmethod
    def options_of(cls, pipe: DiffusionPipeline) -> dict[str, object]:
        """The autoencoder's compression."""
        return {
            "temporal_compression": pipe.vae_temporal_compression_ratio,
            "spatial_compression": pipe.vae_spatial_compression_ratio,
        }

    def pack(self, x_t: Tensor) -> Tensor:
        """Tokens, shape `(B, frames H W, C)` over the patch sizes."""
        frames, height, width = self.patch
        patches = x_t.unflatten(4, (-1, width)).unflatten(3, (-1, height)).unflatten(2, (-1, frames))
        return patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """The tokens back in their places."""
        counts = [side // size for side, size in zip(x_t.shape[2:], self.patch, strict=True)]
        patches = output.unflatten(1, counts).unflatten(-1, (-1, *self.patch))
        return patches.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6).flatten(4, 5).flatten(2, 3)

    def keywords(self, x_t: Tensor, condition: dict[str, Tensor]) -> Mapping[str, object]:
        """Sizes in latents, and their scale."""
        frames, height, width = x_t.shape[2:]
        sizes = {"num_frames": frames, "height": height, "width": width}
        return {**condition, **sizes, "rope_interpolation_scale": self.interpolation}


class WanAdapter(NetworkAdapter):
    """Wan: videos, times up to 1000."""

    prompt_outputs = EMBEDDINGS


class CogVideoXAdapter(FramesFirstAdapter):
    """CogVideoX: rotary positions of the larger models."""

    def keywords(self, x_t: Tensor, condition: dict[str, Tensor]) -> Mapping[str, object]:
        """The rotary table, or None for the smallest model."""
        return {**condition, "image_rotary_emb": self._rotary_table(x_t)}

    def _rotary_table(self, x_t: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines as `CogVideoXPipeline._prepare_rotary_positional_embeddings` computes them."""
        config = self.config
        if not config["use_rotary_positional_embeddings"]:
            return None
        frames, height, width = x_t.shape[2:]
        size, frame_size = config["patch_size"], config["patch_size_t"]
        grid = (height // size, width // size)
        base_width, base_height = config["sample_width"] // size, config["sample_height"] // size
        if frame_size is None:
            crops = get_resize_crop_region_for_grid(grid, base_width, base_height)
            cosines, sines = get_3d_rotary_pos_embed(
                config["attention_head_dim"], crops, grid, temporal_size=frames, device=x_t.device
            )
        else:
            cosines, sines = get_3d_rotary_pos_embed(
                config["attention_head_dim"],
                None,
                grid,
                temporal_size=math.ceil(frames / frame_size),
                grid_type="slice",
                max_size=(base_height, base_width),
                device=x_t.device,
            )
        return cosines, sines
