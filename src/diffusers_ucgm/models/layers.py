"""Self-attention for the networks of this package, through diffusers' attention dispatch."""

from typing import Any, cast

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn


__all__ = ["SelfAttention", "SelfAttnProcessor", "rotary_table"]


class SelfAttnProcessor:
    """Attention by whichever backend `set_attention_backend` chose."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: "SelfAttention", hidden_states: Tensor, image_rotary_emb: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """The attended tokens, shape `(B, T, D)` like the given ones.

        Args:
            attn: The projections and norms.
            hidden_states: Tokens.
            image_rotary_emb: Cosines and sines, shape `(T, head width)`, float32; None rotates nothing.
        """
        if attn.fused_projections:
            projections = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            projections = (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        query, key, value = (each.unflatten(-1, (-1, attn.head_dim)) for each in projections)  # (B, T, heads, width)
        query, key, value = attn.norm_q(query), attn.norm_k(key), attn.norm_v(value)
        if image_rotary_emb is not None:
            table = cast(Any, image_rotary_emb)  # typed as a tuple of one
            query, key = (cast(Tensor, apply_rotary_emb(each, table, sequence_dim=1)) for each in (query, key))
        attended = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        attended = attended.flatten(2, 3).to(query.dtype)
        for layer in attn.to_out:
            attended = layer(attended)
        return attended


class SelfAttention(nn.Module, AttentionModuleMixin):
    """Projections of self-attention, under diffusers' names."""

    _default_processor_cls = SelfAttnProcessor
    _available_processors = [SelfAttnProcessor]
    # diffusers types it as one of its own.
    processor: Any

    def __init__(
        self,
        query_dim: int,
        heads: int,
        dim_head: int,
        bias: bool = False,
        out_bias: bool = True,
        norm: type[nn.Module] | None = None,
        linear: type[nn.Linear] = nn.Linear,
    ) -> None:
        """Make the layers.

        Args:
            query_dim: Width of the tokens.
            heads: Number of heads.
            dim_head: Width of a head.
            bias: Whether query, key and value have one.
            out_bias: Whether the output has one.
            norm: Makes the norm of a head's query and of its key from the head's width; None leaves them.
            linear: Makes the projections.
        """
        super().__init__()
        self.heads, self.head_dim, self.use_bias = heads, dim_head, bias
        width = heads * dim_head
        self.to_q = linear(query_dim, width, bias=bias)
        self.to_k = linear(query_dim, width, bias=bias)
        self.to_v = linear(query_dim, width, bias=bias)
        self.to_out = nn.ModuleList([linear(width, query_dim, bias=out_bias)])
        self.norm_q, self.norm_k = (nn.Identity() if norm is None else norm(dim_head) for _ in range(2))
        self.norm_v = nn.Identity()
        self.set_processor(cast(Any, self._default_processor_cls()))

    def forward(self, hidden_states: Tensor, image_rotary_emb: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The attended tokens, shape `(B, T, D)`."""
        return self.processor(self, hidden_states, image_rotary_emb)


def rotary_table(rows: Tensor, columns: Tensor, dim_head: int, theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines that turn the pairs of neighbouring entries of a head.

    The first half of the pairs turns by `row * w_j`, the second by `column * w_j`, with `w_j = theta^(-4 j / width)`.

    Args:
        rows: Positions of the grid's rows, shape `(H,)`, float32.
        columns: Positions of its columns, shape `(W,)`, float32.
        dim_head: Width of a head, a multiple of 4.
        theta: Period of the slowest pair, over `2 pi`.

    Returns:
        Two tensors of shape `(H W, width)`, row by row, each value twice in a row.
    """
    frequencies = theta ** (-torch.arange(0, dim_head, 4, device=rows.device, dtype=torch.float32) / dim_head)
    down = (rows[:, None] * frequencies)[:, None].expand(-1, len(columns), -1)
    across = (columns[:, None] * frequencies)[None].expand(len(rows), -1, -1)
    angles = torch.cat([down, across], dim=-1).flatten(0, 1).repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()
