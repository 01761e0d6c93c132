"""One class-conditional transformer for TiT, SiT, LightningDiT and DDT, the paper's networks.

They share one block (shift, scale and gate of attention and feed-forward from time and class) and differ in norms,
positions and feed-forward, which the configuration names. DDT's first blocks, its encoder, run on tokens of their own;
what they give is, added to the time, the condition of the other blocks, token by token.
"""

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, FeedForward
from diffusers.models.embeddings import TimestepEmbedding, get_2d_sincos_pos_embed, get_timestep_embedding
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from diffusers_ucgm.network_caches import CacheableNetwork

from .layers import SelfAttention, rotary_table


__all__ = ["UCGMTransformer2DModel"]

TIME_FEATURES = 256
# Positions of the rotation for a grid's side, by the name in the configuration.
ROTARY_POSITIONS = {
    "index": lambda side, device: torch.arange(side, device=device, dtype=torch.float32),
    "linspace": lambda side, device: torch.linspace(0.0, 16.0, side, device=device),
}
NORMS = {
    "layer_norm": partial(nn.LayerNorm, elementwise_affine=False),
    "rms_norm": RMSNorm,
    "rms_norm_no_weight": partial(RMSNorm, elementwise_affine=False),
}
ACTIVATIONS = ("gelu-approximate", "swiglu")


class UCGMTransformerBlock(nn.Module):
    """Attention and feed-forward, each shifted, scaled and gated by the condition."""

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        inner_dim: int,
        norm: Any,
        qk_norm: Any,
        activation_fn: str,
        attention_bias: bool,
        ff_bias: bool,
    ) -> None:
        super().__init__()
        self.modulation = nn.Linear(dim, 6 * dim)
        self.norm1 = norm(dim)
        self.attn = SelfAttention(dim, heads, dim_head, bias=attention_bias, norm=qk_norm)
        self.norm2 = norm(dim)
        self.ff = FeedForward(dim, inner_dim=inner_dim, activation_fn=activation_fn, bias=ff_bias)

    def forward(self, hidden_states: Tensor, condition: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Tokens of shape `(B, T, D)`, by a condition of shape `(B, 1 or T, D)` after its activation."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        attended = self.attn(self.norm1(hidden_states) * (1 + scale1) + shift1, rotary)
        hidden_states = hidden_states + gate1 * attended
        return hidden_states + gate2 * self.ff(self.norm2(hidden_states) * (1 + scale2) + shift2)


# For the caches of diffusers that leave blocks out.
TransformerBlockRegistry.register(
    UCGMTransformerBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),  # pyright: ignore
)


class UCGMTransformer2DModel(ModelMixin, ConfigMixin, AttentionMixin, PeftAdapterMixin, CacheableNetwork):
    """TiT, SiT, LightningDiT and DDT (`docs/paper-models.md` has their configurations); the default is TiT-XL/2.

    Called as `model(hidden_states, timestep, class_labels)`; the time runs over [0, 1], in the direction of the path
    that the model was trained on.

    Args:
        sample_size: Side of the latents.
        patch_size: Side of a token's patch.
        in_channels: Channels of the latents.
        out_channels: Channels of the output; None is as many.
        num_layers: Blocks in all.
        num_encoder_layers: How many of them are DDT's encoder; 0 has none.
        num_attention_heads: Heads.
        attention_head_dim: Width of a head, a multiple of 4 with `rotary_embedding`.
        num_classes: Number of classes; also the id of the null class.
        ff_inner_dim: Width of the feed-forward; None is 4 times the model's, with "swiglu" two thirds of that.
        activation_fn: Feed-forward: "swiglu" or "gelu-approximate".
        norm_type: Norm in the blocks: "layer_norm" (which never has weights), "rms_norm" or "rms_norm_no_weight".
        norm_out_type: Norm before the output; None is `norm_type`.
        qk_norm: Norm of queries and keys by head; None has none.
        norm_eps: Added to the mean square, in every norm.
        attention_bias: Whether queries, keys and values have a bias.
        ff_bias: Whether the feed-forward has biases.
        position_embedding: Whether the model has a table of positions, stored with the weights; it then takes latents
            of `sample_size` alone.
        rotary_embedding: Positions that turn queries and keys: "index" of row and column, "linspace" from 0 to 16
            whatever the grid, or None.
        time_max_period: Period of the slowest time feature, over `2 pi`.

    Raises:
        ValueError: If a setting has none of these values.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["UCGMTransformerBlock"]
    _repeated_blocks = ["UCGMTransformerBlock"]
    _skip_layerwise_casting_patterns = ["pos_embed", "norm", "modulation"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_layers: int = 28,
        num_encoder_layers: int = 0,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        num_classes: int = 1000,
        ff_inner_dim: int | None = None,
        activation_fn: str = "swiglu",
        norm_type: str = "rms_norm_no_weight",
        norm_out_type: str | None = None,
        qk_norm: str | None = "rms_norm_no_weight",
        norm_eps: float = 1e-6,
        attention_bias: bool = True,
        ff_bias: bool = True,
        position_embedding: bool = True,
        rotary_embedding: str | None = "index",
        time_max_period: float = 10_000.0,
    ) -> None:
        super().__init__()
        self._check_settings()
        heads = num_attention_heads, attention_head_dim
        dim = num_attention_heads * attention_head_dim
        self.out_channels = in_channels if out_channels is None else out_channels
        inner_dim = ff_inner_dim or (int(2 / 3 * 4 * dim) if activation_fn == "swiglu" else 4 * dim)
        norm = partial(NORMS[norm_type], eps=norm_eps)
        norm_out = partial(NORMS[norm_out_type or norm_type], eps=norm_eps)
        norm_qk = None if qk_norm is None else partial(NORMS[qk_norm], eps=norm_eps)

        self.proj_in = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.encoder_proj_in = (
            nn.Conv2d(in_channels, dim, patch_size, stride=patch_size) if num_encoder_layers else None
        )
        # With the weights: averaging moved the published models' tables by up to 1.7e-4.
        self.register_buffer(
            "pos_embed", _position_table(dim, sample_size // patch_size) if position_embedding else None
        )
        self.time_embedder = TimestepEmbedding(TIME_FEATURES, dim)
        self.class_embedder = nn.Embedding(num_classes + 1, dim)
        self.transformer_blocks = nn.ModuleList(
            UCGMTransformerBlock(dim, *heads, inner_dim, norm, norm_qk, activation_fn, attention_bias, ff_bias)
            for _ in range(num_layers)
        )
        self.norm_out = norm_out(dim)
        self.modulation_out = nn.Linear(dim, 2 * dim)
        self.proj_out = nn.Linear(dim, patch_size**2 * self.out_channels)
        self.gradient_checkpointing = False
        self._initialize()

    def _check_settings(self) -> None:
        config = self.config
        self._check_choices()
        head, encoder, size, patch = (
            config[name] for name in ("attention_head_dim", "num_encoder_layers", "sample_size", "patch_size")
        )
        if config["rotary_embedding"] is not None and head % 4:
            raise ValueError(f"`attention_head_dim` must be a multiple of 4 with `rotary_embedding`, got {head}.")
        if not 0 <= encoder < config["num_layers"]:
            raise ValueError(f"`num_encoder_layers` must be in [0, {config['num_layers'] - 1}], got {encoder}.")
        if size % patch:
            raise ValueError(f"`sample_size` must be a multiple of `patch_size`, got {size} and {patch}.")

    def _check_choices(self) -> None:
        choices = {
            "norm_type": tuple(NORMS),
            "norm_out_type": (None, *NORMS),
            "qk_norm": (None, *NORMS),
            "activation_fn": ACTIVATIONS,
            "rotary_embedding": (None, *ROTARY_POSITIONS),
        }
        for name, allowed in choices.items():
            if self.config[name] not in allowed:
                raise ValueError(f"`{name}` must be one of {list(allowed)}, got {self.config[name]!r}.")

    def _initialize(self) -> None:
        """Start from a network whose blocks and output are zero (DiT, arXiv 2212.09748)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in (self.class_embedder, self.time_embedder.linear_1, self.time_embedder.linear_2):
            nn.init.normal_(module.weight, std=0.02)
        gates = [cast(UCGMTransformerBlock, block).modulation for block in self.transformer_blocks]
        for module in (*gates, self.modulation_out, self.proj_out):
            nn.init.zeros_(module.weight)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The network's prediction of the path's target.

        Args:
            hidden_states: Noisy latents, shape `(B, C, H, W)`.
            timestep: Times in [0, 1], shape `(B,)`, or one for all.
            class_labels: Class ids, shape `(B,)`; `num_classes` is the null class, and None is it for all.
            return_dict: Whether to return a `Transformer2DModelOutput` or the tuple `(sample,)`.

        Returns:
            Shape `(B, out_channels, H, W)`.

        Raises:
            ValueError: If the latents do not fit patches or the table of positions.
        """
        batch, _, height, width = hidden_states.shape
        self._check_sides(height, width)
        rows, columns = height // self.config.patch_size, width // self.config.patch_size
        time, condition = self._condition(hidden_states, timestep, class_labels)
        rotary = self._rotary(rows, columns, hidden_states.device)
        encoder = self.config.num_encoder_layers
        if self.encoder_proj_in is not None:
            features = self.encoder_proj_in(hidden_states).flatten(2).transpose(1, 2)
            for block in self.transformer_blocks[:encoder]:
                features = self._run(block, features, condition, rotary)
            condition = F.silu(time + features)
        tokens = self.proj_in(hidden_states).flatten(2).transpose(1, 2)
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed.to(hidden_states.dtype)
        for block in self.transformer_blocks[encoder:]:
            tokens = self._run(block, tokens, condition, rotary)
        shift, scale = self.modulation_out(condition).chunk(2, dim=-1)
        tokens = self.proj_out(self.norm_out(tokens) * (1 + scale) + shift)
        patch = self.config.patch_size
        tokens = tokens.reshape(batch, rows, columns, patch, patch, self.out_channels)
        sample = tokens.permute(0, 5, 1, 3, 2, 4).reshape(batch, self.out_channels, height, width)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _check_sides(self, height: int, width: int) -> None:
        size, patch = self.config.sample_size, self.config.patch_size
        if height % patch or width % patch:
            raise ValueError(f"`hidden_states` must have sides that are multiples of {patch}, got {height}x{width}.")
        if self.pos_embed is not None and (height, width) != (size, size):
            raise ValueError(f"`hidden_states` must be {size}x{size}, as the position table is, got {height}x{width}.")

    def _condition(
        self, hidden_states: Tensor, timestep: Tensor | float, class_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The embedded time, and time and class after their activation, both of shape `(B, 1, D)`."""
        batch, device = len(hidden_states), hidden_states.device
        features = get_timestep_embedding(
            torch.as_tensor(timestep, device=device).expand(batch).float(),
            TIME_FEATURES,
            flip_sin_to_cos=True,
            downscale_freq_shift=0,
            max_period=self.config.time_max_period,  # pyright: ignore[reportArgumentType]
        )
        time = self.time_embedder(features.to(hidden_states.dtype))[:, None]
        if class_labels is None:
            class_labels = torch.full((batch,), self.config.num_classes, device=device)
        return time, F.silu(time + self.class_embedder(class_labels)[:, None])

    def _rotary(self, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        if self.config.rotary_embedding is None:
            return None
        positions = ROTARY_POSITIONS[self.config.rotary_embedding]
        return rotary_table(positions(rows, device), positions(columns, device), self.config.attention_head_dim)

    def _run(
        self, block: nn.Module, tokens: Tensor, condition: Tensor, rotary: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return cast(Any, self)._gradient_checkpointing_func(block, tokens, condition, rotary)
        return block(tokens, condition, rotary)


def _position_table(dim: int, side: int) -> Tensor:
    """Sines and cosines of row and column, shape `(1, side**2, dim)`."""
    return get_2d_sincos_pos_embed(dim, side, base_size=side, output_type="pt").float().unsqueeze(0)
