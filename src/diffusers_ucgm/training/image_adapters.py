"""Adapters of image networks: each reproduces what the stock pipeline of its network does around the call.

Every class says how that pipeline lays out the noisy sample, which time it gives the network and how it reads the
output; a test holds each class to the values that the pipeline passes to its scheduler.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn

from diffusers_ucgm.targets import column

from .network_adapter import EMBEDDINGS, EMBEDDINGS_AND_MASK, NetworkAdapter, TimestepFunction


__all__ = [
    "AuraFlowAdapter",
    "ClassLabelAdapter",
    "DiTAdapter",
    "FluxAdapter",
    "Lumina2Adapter",
    "PatchedAdapter",
    "PixArtAdapter",
    "PixelSizeAdapter",
    "QwenImageAdapter",
    "SD3Adapter",
    "SanaAdapter",
    "UNetAdapter",
    "ZImageAdapter",
]

EMBEDDINGS_AND_POOLED = {"encoder_hidden_states": (0, 1), "pooled_projections": (2, 3)}


class ClassLabelAdapter(NetworkAdapter):
    """This package's networks: class labels; the null class comes after the last one.

    Attributes:
        classes_setting: The config's name for the number of classes.
    """

    classes_setting: str = "num_classes"

    def adapt(self, network: nn.Module) -> None:
        """Make the class after the last one the null condition."""
        if self.null_condition is None:
            self.null_condition = {"class_labels": self.config[self.classes_setting]}


class DiTAdapter(ClassLabelAdapter):
    """`DiTTransformer2DModel`: class labels, and an output whose learned variances are left out."""

    classes_setting = "num_embeds_ada_norm"

    def adapt(self, network: nn.Module) -> None:
        """Switch the model's own label dropout off.

        It draws anew in every block and in every call, and the loss decides which labels are dropped.
        """
        super().adapt(network)
        for module in network.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0


class PixelSizeAdapter(NetworkAdapter):
    """Networks that take the sizes of the images in pixels."""

    def __init__(
        self,
        network: nn.Module,
        timestep: TimestepFunction | None = None,
        *,
        null_condition: Mapping[str, object] | None = None,
        vae_scale_factor: int = 8,
    ) -> None:
        """Read the model's configuration; `vae_scale_factor` is the side of a latent in pixels."""
        super().__init__(network, timestep, null_condition=null_condition)
        self.vae_scale_factor = vae_scale_factor

    @classmethod
    def options_of(cls, pipe: DiffusionPipeline) -> dict[str, object]:
        """The autoencoder's scale."""
        return {"vae_scale_factor": pipe.vae_scale_factor}


class PixArtAdapter(PixelSizeAdapter):
    """PixArt-Alpha and -Sigma: masked text, sizes for the 1024 pixel models of Alpha, learned variances cut off."""

    prompt_outputs = EMBEDDINGS_AND_MASK

    def keywords(self, x_t: Tensor, condition: dict[str, Tensor]) -> Mapping[str, object]:
        """Height, width and aspect ratio in pixels, where the model has embeddings for them."""
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.config["use_additional_conditions"]:
            height, width = (side * self.vae_scale_factor for side in x_t.shape[-2:])
            sizes["resolution"] = x_t.new_tensor([[height, width]]).expand(len(x_t), 2)
            sizes["aspect_ratio"] = x_t.new_tensor([[height / width]]).expand(len(x_t), 1)
        return {**condition, "added_cond_kwargs": sizes}


class SD3Adapter(NetworkAdapter):
    """Stable Diffusion 3 and 3.5: pooled text beside the tokens."""

    prompt_outputs = EMBEDDINGS_AND_POOLED


class AuraFlowAdapter(NetworkAdapter):
    """AuraFlow: times up to 1, and no text mask in its network."""

    prompt_outputs = {"encoder_hidden_states": (0, 2)}

    def network_time(self, timestep: Tensor) -> Tensor:
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

    def network_time(self, timestep: Tensor) -> Tensor:
        """Times up to 1."""
        return timestep / 1000.0


class FluxAdapter(PatchedAdapter):
    """Flux: tokens with positions, pooled text, and the guidance scale as an input of guidance-distilled models."""

    prompt_outputs = {"encoder_hidden_states": (0, None), "pooled_projections": (1, None)}

    def __init__(
        self,
        network: nn.Module,
        timestep: TimestepFunction | None = None,
        *,
        null_condition: Mapping[str, object] | None = None,
        guidance_scale: float = 3.5,
    ) -> None:
        """Read the model's configuration; `guidance_scale` is an input of guidance-distilled models."""
        super().__init__(network, timestep, null_condition=null_condition)
        self.guidance_scale = guidance_scale

    def keywords(self, x_t: Tensor, condition: dict[str, Tensor]) -> Mapping[str, object]:
        """Positions of the tokens, and the guidance scale."""
        height, width = (side // 2 for side in x_t.shape[-2:])
        grid = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        positions = torch.cat([torch.zeros(height * width, 1), grid], 1).to(x_t)
        guidance = None
        if self.config["guidance_embeds"]:
            guidance = torch.full((len(x_t),), self.guidance_scale, device=x_t.device)
        tokens = condition["encoder_hidden_states"].shape[1]
        return {**condition, "img_ids": positions, "txt_ids": x_t.new_zeros(tokens, 3), "guidance": guidance}


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

    def keywords(self, x_t: Tensor, condition: dict[str, Tensor]) -> Mapping[str, object]:
        """The number of tokens down and across."""
        shape = (1, x_t.shape[-2] // 2, x_t.shape[-1] // 2)
        mask = condition.get("encoder_hidden_states_mask")
        return {
            **condition,
            "encoder_hidden_states_mask": None if mask is None else mask.bool(),
            "img_shapes": [[shape]] * len(x_t),
        }


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

    def network_time(self, timestep: Tensor) -> Tensor:
        """Times that are 1 at the data and 0 at the noise."""
        return 1.0 - timestep / 1000.0

    def keywords(self, x_t: Tensor, condition: dict[str, Tensor]) -> Mapping[str, object]:
        """A list of texts, each of its own length."""
        mask = condition.get("cap_mask")
        texts = condition["cap_feats"].unbind(0)
        if mask is not None:
            texts = [text[counts.bool()] for text, counts in zip(texts, mask, strict=True)]
        rest = {name: value for name, value in condition.items() if name != "cap_mask"}
        return {**rest, "cap_feats": list(texts)}


class Lumina2Adapter(NetworkAdapter):
    """Lumina Image 2: time from noise to data, and the velocity from noise to data."""

    prompt_outputs = EMBEDDINGS_AND_MASK

    def network_time(self, timestep: Tensor) -> Tensor:
        """Times that are 1 at the data and 0 at the noise."""
        return 1.0 - timestep / 1000.0

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """The flow's velocity, from data to noise."""
        return -output


class SanaAdapter(NetworkAdapter):
    """Sana, and with an sCM scheduler Sana Sprint: its pipeline turns the flow's network to the trigonometric path."""

    prompt_outputs = EMBEDDINGS_AND_MASK

    def __init__(
        self,
        network: nn.Module,
        timestep: TimestepFunction | None = None,
        *,
        null_condition: Mapping[str, object] | None = None,
        sigma_data: float | None = None,
        guidance_scale: float = 4.5,
    ) -> None:
        """Read the model's configuration.

        Args:
            network: The model whose configuration counts.
            timestep: See `NetworkAdapter`.
            null_condition: See `NetworkAdapter`.
            sigma_data: The data's standard deviation in an sCM scheduler; None for a flow.
            guidance_scale: The input of a model that has an embedding for it.
        """
        super().__init__(network, timestep, null_condition=null_condition)
        self.sigma_data, self.guidance_scale = sigma_data, guidance_scale

    @classmethod
    def options_of(cls, pipe: DiffusionPipeline) -> dict[str, object]:
        """The data's standard deviation, where the scheduler is an sCM one."""
        config = pipe.scheduler.config
        is_scm = "SCM" in type(pipe.scheduler).__name__ or config.get("transport") == "scm"
        return {"sigma_data": config["sigma_data"]} if is_scm else {}

    def network_time(self, timestep: Tensor) -> Tensor:
        """The flow's time in the network's scale."""
        if self.sigma_data is None:
            return timestep * self.config["timestep_scale"]
        return torch.sin(timestep) / (torch.cos(timestep) + torch.sin(timestep))

    def keywords(self, x_t: Tensor, condition: dict[str, Tensor]) -> Mapping[str, object]:
        """The guidance scale, where the network has an embedding for it."""
        if not self.config.get("guidance_embeds"):
            return condition
        scale = self.guidance_scale * self.config["guidance_embeds_scale"]
        return {**condition, "guidance": torch.full((len(x_t),), scale, device=x_t.device)}

    def __call__(self, network: nn.Module, x_t: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The prediction of the scheduler's path: a flow's velocity, or the output of sCM's trigonometric path."""
        if self.sigma_data is None:
            return super().__call__(network, x_t, t, **condition)
        time = column(self.network_time(self.timestep(t)), x_t)
        size = (time.square() + (1.0 - time).square()).sqrt()
        point = x_t / self.sigma_data * size
        velocity = super().__call__(network, point, t, **condition)
        turned = (1.0 - 2.0 * time) * point + (1.0 - 2.0 * time + 2.0 * time.square()) * velocity
        return turned / size * self.sigma_data


class UNetAdapter(PixelSizeAdapter):
    """The U-Nets of Stable Diffusion 1, 2 and XL.

    XL's condition has `text_embeds`, the pooled text, and may have `time_ids`, shape `(B, 6)`: height and width of the
    original, top and left of the crop, height and width of the result. Without them the image counts as uncropped.
    """

    prompt_outputs = EMBEDDINGS

    def adapt(self, network: nn.Module) -> None:
        """Ask for the pooled text where the model is XL."""
        self.is_xl = self.config["addition_embed_type"] == "text_time"
        if self.is_xl:
            self.prompt_outputs = {**EMBEDDINGS, "text_embeds": (2, 3)}

    def keywords(self, x_t: Tensor, condition: dict[str, Tensor]) -> Mapping[str, object]:
        """Pooled text and sizes of the XL model."""
        if not self.is_xl:
            return condition
        height, width = (side * self.vae_scale_factor for side in x_t.shape[-2:])
        whole = x_t.new_tensor([[height, width, 0, 0, height, width]]).expand(len(x_t), 6)
        added = {"text_embeds": condition["text_embeds"], "time_ids": condition.get("time_ids", whole)}
        rest = {name: value for name, value in condition.items() if name not in added}
        return {**rest, "added_cond_kwargs": added}
