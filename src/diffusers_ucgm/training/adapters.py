"""The families of networks whose pipelines do more than call them: each reproduces what its pipeline does.

Every class says how the stock pipeline lays out the noisy sample, tells the time and reads the output; a test holds
each to what that pipeline hands its scheduler.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.embeddings import LabelEmbedding, get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor, nn

from .network_adapter import NetworkAdapter, register_adapter


__all__ = [
    "AuraFlowAdapter",
    "ClassLabelAdapter",
    "CogVideoXAdapter",
    "DiTAdapter",
    "FluxAdapter",
    "LTXAdapter",
    "Lumina2Adapter",
    "PixArtAdapter",
    "QwenImageAdapter",
    "SD3Adapter",
    "SanaAdapter",
    "UNetAdapter",
    "WanAdapter",
    "ZImageAdapter",
]

# What `encode_prompt` of most pipelines gives: embeddings, their mask, and both for the negative prompt.
EMBEDDINGS_AND_MASK = {"encoder_hidden_states": (0, 2), "encoder_attention_mask": (1, 3)}
EMBEDDINGS = {"encoder_hidden_states": (0, 1)}
EMBEDDINGS_AND_POOLED = {"encoder_hidden_states": (0, 1), "pooled_projections": (2, 3)}


@register_adapter("DiTTransformer2DModel")
class DiTAdapter(NetworkAdapter):
    """`DiTTransformer2DModel`: class labels, learned variances cut off.

    The model's own label dropout is switched off: it draws anew in every block and in every call, and what is dropped
    is the loss's decision.
    """

    def __init__(self, network: nn.Module, *args: Any, **options: Any) -> None:
        """Read the model's configuration; the null condition is the class after the last one."""
        super().__init__(network, *args, **options)
        if self._null_condition is None:
            self._null_condition = {"class_labels": self.config["num_embeds_ada_norm"]}
        for module in network.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0


@register_adapter("UCGMTransformer2DModel", "EDM2UNet2DModel")
class ClassLabelAdapter(NetworkAdapter):
    """This package's networks: class labels, of which the one after the last is the null class."""

    def __init__(self, network: nn.Module, *args: Any, **options: Any) -> None:
        """Read the number of classes from the model's configuration."""
        super().__init__(network, *args, **options)
        if self._null_condition is None:
            self._null_condition = {"class_labels": self.config["num_classes"]}


@register_adapter("PixArtTransformer2DModel")
class PixArtAdapter(NetworkAdapter):
    """PixArt-Alpha and -Sigma: masked text, sizes for the 1024 pixel models of Alpha, learned variances cut off."""

    prompt_outputs = EMBEDDINGS_AND_MASK

    def __init__(self, network: nn.Module, *args: Any, vae_scale_factor: int = 8, **options: Any) -> None:
        """Read the model's configuration; `vae_scale_factor` is the pixels of a latent's side."""
        super().__init__(network, *args, **options)
        self.vae_scale_factor = vae_scale_factor

    @classmethod
    def options_of(cls, pipe: DiffusionPipeline) -> dict[str, Any]:
        """The autoencoder's scale."""
        return {"vae_scale_factor": pipe.vae_scale_factor}

    def keywords(self, x_t: Tensor, condition: dict[str, Any]) -> dict[str, Any]:
        """Height, width and aspect ratio in pixels, where the model has embeddings for them."""
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.config["use_additional_conditions"]:
            height, width = (side * self.vae_scale_factor for side in x_t.shape[-2:])
            sizes["resolution"] = x_t.new_tensor([[height, width]]).expand(len(x_t), 2)
            sizes["aspect_ratio"] = x_t.new_tensor([[height / width]]).expand(len(x_t), 1)
        return {**condition, "added_cond_kwargs": sizes}


@register_adapter("SD3Transformer2DModel")
class SD3Adapter(NetworkAdapter):
    """Stable Diffusion 3 and 3.5: pooled text beside the tokens."""

    prompt_outputs = EMBEDDINGS_AND_POOLED


@register_adapter("AuraFlowTransformer2DModel")
class AuraFlowAdapter(NetworkAdapter):
    """AuraFlow: times up to 1, and no text mask in its network."""

    prompt_outputs = {"encoder_hidden_states": (0, 2)}

    def told(self, timestep: Tensor) -> Tensor:
        """Times up to 1."""
        return timestep / 1000.0


class PatchedAdapter(NetworkAdapter):
    """Networks that take patches of 2x2 latents as tokens."""

    def pack(self, x_t: Tensor) -> Tensor:
        """Tokens, shape `(B, H W / 4, 4 C)`."""
        patches = x_t.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # (B, C, h, 2, w, 2)
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """The patches back in their places."""
        height, width = (side // 2 for side in x_t.shape[-2:])
        patches = output.unflatten(1, (height, width)).unflatten(-1, (-1, 2, 2))  # (B, h, w, C, 2, 2)
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def told(self, timestep: Tensor) -> Tensor:
        """Times up to 1."""
        return timestep / 1000.0


@register_adapter("FluxTransformer2DModel")
class FluxAdapter(PatchedAdapter):
    """Flux: tokens with positions, pooled text, and the guidance scale as an input of guidance-distilled models."""

    prompt_outputs = {"encoder_hidden_states": (0, None), "pooled_projections": (1, None)}

    def __init__(self, network: nn.Module, *args: Any, guidance_scale: float = 3.5, **options: Any) -> None:
        """Read the model's configuration; `guidance_scale` is what a guidance-distilled model is told."""
        super().__init__(network, *args, **options)
        self.guidance_scale = guidance_scale

    def keywords(self, x_t: Tensor, condition: dict[str, Any]) -> dict[str, Any]:
        """Positions of the tokens, and the guidance scale."""
        height, width = (side // 2 for side in x_t.shape[-2:])
        grid = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        positions = torch.cat([torch.zeros(height * width, 1), grid], 1).to(x_t)
        guidance = None
        if self.config["guidance_embeds"]:
            guidance = torch.full((len(x_t),), self.guidance_scale, device=x_t.device)
        tokens = condition["encoder_hidden_states"].shape[1]
        return {**condition, "img_ids": positions, "txt_ids": x_t.new_zeros(tokens, 3), "guidance": guidance}


@register_adapter("QwenImageTransformer2DModel")
class QwenImageAdapter(PatchedAdapter):
    """Qwen-Image: tokens, masked text of any length, latents with or without an axis of one frame."""

    prompt_outputs = {"encoder_hidden_states": (0, None), "encoder_hidden_states_mask": (1, None)}
    max_text_tokens = 512

    def pack(self, x_t: Tensor) -> Tensor:
        """Tokens of the only frame."""
        return super().pack(x_t.squeeze(2) if x_t.ndim == 5 else x_t)

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """The patches back in their places."""
        return super().unpack(output, x_t).reshape(x_t.shape)

    def keywords(self, x_t: Tensor, condition: dict[str, Any]) -> dict[str, Any]:
        """The number of tokens down and across."""
        shape = (1, x_t.shape[-2] // 2, x_t.shape[-1] // 2)
        mask = condition.get("encoder_hidden_states_mask")
        return {
            **condition,
            "encoder_hidden_states_mask": None if mask is None else mask.bool(),
            "img_shapes": [[shape]] * len(x_t),
        }


@register_adapter("ZImageTransformer2DModel")
class ZImageAdapter(NetworkAdapter):
    """Z-Image: lists of samples and texts, time from noise to data, and the velocity from noise to data.

    The condition's text is one tensor `cap_feats` of shape `(B, tokens, width)` with a mask `cap_mask`, shape
    `(B, tokens)`, of the tokens that count.
    """

    prompt_outputs = {"cap_feats": (0, 1)}
    max_text_tokens = 512

    def pack(self, x_t: Tensor) -> list[Tensor]:
        """A list of samples with one frame."""
        return list(x_t.unsqueeze(2).unbind(0))

    def unpack(self, output: list[Tensor], x_t: Tensor) -> Tensor:
        """The flow's velocity, from data to noise."""
        return -torch.stack(output).squeeze(2)

    def told(self, timestep: Tensor) -> Tensor:
        """1 at the data."""
        return 1.0 - timestep / 1000.0

    def keywords(self, x_t: Tensor, condition: dict[str, Any]) -> dict[str, Any]:
        """A list of texts, each of its own length."""
        mask = condition.get("cap_mask")
        texts = condition["cap_feats"].unbind(0)
        if mask is not None:
            texts = [text[kept.bool()] for text, kept in zip(texts, mask, strict=True)]
        rest = {name: value for name, value in condition.items() if name != "cap_mask"}
        return {**rest, "cap_feats": list(texts)}


@register_adapter("Lumina2Transformer2DModel")
class Lumina2Adapter(NetworkAdapter):
    """Lumina Image 2: time from noise to data, and the velocity from noise to data."""

    prompt_outputs = EMBEDDINGS_AND_MASK

    def told(self, timestep: Tensor) -> Tensor:
        """1 at the data."""
        return 1.0 - timestep / 1000.0

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """The flow's velocity, from data to noise."""
        return -output


@register_adapter("SanaTransformer2DModel")
class SanaAdapter(NetworkAdapter):
    """Sana, and with an sCM scheduler Sana Sprint: its pipeline turns the flow's network to the trigonometric path."""

    prompt_outputs = EMBEDDINGS_AND_MASK

    def __init__(
        self,
        network: nn.Module,
        *args: Any,
        sigma_data: float | None = None,
        guidance_scale: float = 4.5,
        **options: Any,
    ) -> None:
        """Read the model's configuration.

        Args:
            network: The model whose configuration counts.
            args: See `NetworkAdapter`.
            sigma_data: Of an sCM scheduler; None for a flow.
            guidance_scale: What a model with an embedding for it is told.
            options: See `NetworkAdapter`.
        """
        super().__init__(network, *args, **options)
        self.sigma_data, self.guidance_scale = sigma_data, guidance_scale

    @classmethod
    def options_of(cls, pipe: DiffusionPipeline) -> dict[str, Any]:
        """The data's deviation, of an sCM scheduler."""
        config = pipe.scheduler.config
        is_scm = "SCM" in type(pipe.scheduler).__name__ or config.get("transport") == "scm"
        return {"sigma_data": config["sigma_data"]} if is_scm else {}

    def told(self, timestep: Tensor) -> Tensor:
        """The flow's time, scaled as the network has it."""
        if self.sigma_data is None:
            return timestep * self.config["timestep_scale"]
        return torch.sin(timestep) / (torch.cos(timestep) + torch.sin(timestep))

    def keywords(self, x_t: Tensor, condition: dict[str, Any]) -> dict[str, Any]:
        """The guidance scale, where the network has an embedding for it."""
        if not self.config.get("guidance_embeds"):
            return condition
        scale = self.guidance_scale * self.config["guidance_embeds_scale"]
        return {**condition, "guidance": torch.full((len(x_t),), scale, device=x_t.device)}

    def __call__(self, network: nn.Module, x_t: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The prediction: of a flow the velocity, of sCM that of the trigonometric path."""
        if self.sigma_data is None:
            return super().__call__(network, x_t, t, **condition)
        part = self.told(self.timestep(t)).reshape(-1, *(1,) * (x_t.ndim - 1))
        size = (part.square() + (1.0 - part).square()).sqrt()
        point = x_t / self.sigma_data * size
        velocity = super().__call__(network, point, t, **condition)
        turned = (1.0 - 2.0 * part) * point + (1.0 - 2.0 * part + 2.0 * part.square()) * velocity
        return turned / size * self.sigma_data


@register_adapter("LTXVideoTransformer3DModel")
class LTXAdapter(NetworkAdapter):
    """LTX-Video: every latent pixel a token, masked text, positions in seconds and pixels."""

    prompt_outputs = EMBEDDINGS_AND_MASK

    def __init__(
        self,
        network: nn.Module,
        *args: Any,
        frame_rate: float = 25.0,
        temporal_compression: int = 8,
        spatial_compression: int = 32,
        **options: Any,
    ) -> None:
        """Read the model's configuration.

        Args:
            network: The model whose configuration counts.
            args: See `NetworkAdapter`.
            frame_rate: Frames per second of the videos.
            temporal_compression: Frames of a latent frame.
            spatial_compression: Pixels of a latent's side.
            options: See `NetworkAdapter`.
        """
        super().__init__(network, *args, **options)
        self.interpolation = (temporal_compression / frame_rate, spatial_compression, spatial_compression)
        self.patch = (self.config["patch_size_t"], self.config["patch_size"], self.config["patch_size"])

    @classmethod
    def options_of(cls, pipe: DiffusionPipeline) -> dict[str, Any]:
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

    def keywords(self, x_t: Tensor, condition: dict[str, Any]) -> dict[str, Any]:
        """Sizes in latents, and their scale."""
        frames, height, width = x_t.shape[2:]
        sizes = {"num_frames": frames, "height": height, "width": width}
        return {**condition, **sizes, "rope_interpolation_scale": self.interpolation}


@register_adapter("WanTransformer3DModel")
class WanAdapter(NetworkAdapter):
    """Wan: videos, times up to 1000."""

    prompt_outputs = EMBEDDINGS


@register_adapter("CogVideoXTransformer3DModel")
class CogVideoXAdapter(NetworkAdapter):
    """CogVideoX: frames before channels, rotary positions of the larger models."""

    prompt_outputs = EMBEDDINGS

    def pack(self, x_t: Tensor) -> Tensor:
        """Shape `(B, frames, C, H, W)`."""
        return x_t.transpose(1, 2)

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """Shape `(B, C, frames, H, W)`."""
        return output.transpose(1, 2)

    def keywords(self, x_t: Tensor, condition: dict[str, Any]) -> dict[str, Any]:
        """The rotary table, or None for the smallest model."""
        return {**condition, "image_rotary_emb": self._rotary_table(x_t)}

    def _rotary_table(self, x_t: Tensor) -> tuple[Tensor, Tensor] | None:
        config = self.config
        if not config["use_rotary_positional_embeddings"]:
            return None
        frames, height, width = x_t.shape[2:]
        size, frame_size = config["patch_size"], config["patch_size_t"]
        grid = (height // size, width // size)
        base_width, base_height = config["sample_width"] // size, config["sample_height"] // size
        place: Mapping[str, Any] = {"embed_dim": config["attention_head_dim"], "grid_size": grid, "device": x_t.device}
        if frame_size is None:
            crops = get_resize_crop_region_for_grid(grid, base_width, base_height)
            cosines, sines = get_3d_rotary_pos_embed(crops_coords=crops, temporal_size=frames, **place)
        else:
            cosines, sines = get_3d_rotary_pos_embed(
                crops_coords=None,
                temporal_size=math.ceil(frames / frame_size),
                grid_type="slice",
                max_size=(base_height, base_width),
                **place,
            )
        return cosines, sines


@register_adapter("UNet2DConditionModel")
class UNetAdapter(NetworkAdapter):
    """The U-Nets of Stable Diffusion 1, 2 and XL.

    XL's condition has `text_embeds`, the pooled text, and may have `time_ids`, shape `(B, 6)`: height and width of the
    original, top and left of the crop, height and width of the result. Without them the picture is taken as whole.
    """

    prompt_outputs = EMBEDDINGS

    def __init__(self, network: nn.Module, *args: Any, vae_scale_factor: int = 8, **options: Any) -> None:
        """Read the model's configuration; `vae_scale_factor` is the pixels of a latent's side."""
        super().__init__(network, *args, **options)
        self.vae_scale_factor = vae_scale_factor
        self.is_xl = self.config["addition_embed_type"] == "text_time"
        if self.is_xl:
            self.prompt_outputs = {"encoder_hidden_states": (0, 1), "text_embeds": (2, 3)}

    @classmethod
    def options_of(cls, pipe: DiffusionPipeline) -> dict[str, Any]:
        """The autoencoder's scale."""
        return {"vae_scale_factor": pipe.vae_scale_factor}

    def keywords(self, x_t: Tensor, condition: dict[str, Any]) -> dict[str, Any]:
        """Pooled text and sizes of the XL model."""
        if not self.is_xl:
            return condition
        height, width = (side * self.vae_scale_factor for side in x_t.shape[-2:])
        whole = x_t.new_tensor([[height, width, 0, 0, height, width]]).expand(len(x_t), 6)
        added = {"text_embeds": condition["text_embeds"], "time_ids": condition.get("time_ids", whole)}
        rest = {name: value for name, value in condition.items() if name not in added}
        return {**rest, "added_cond_kwargs": added}
