"""Self-attention against its formula, and the rotation of queries and keys."""

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import nn

from diffusers_ucgm.models.layers import SelfAttention, rotary_table


WIDTH, HEADS, HEAD_WIDTH = 12, 3, 8


def attention(**options):
    torch.manual_seed(0)
    return SelfAttention(WIDTH, HEADS, HEAD_WIDTH, **options).double()


def by_formula(layer, tokens, table=None):
    """`softmax(q k^T / sqrt(width)) v` for each head, and the output's projection."""
    by_head = [
        projection(tokens).unflatten(-1, (HEADS, HEAD_WIDTH)) for projection in (layer.to_q, layer.to_k, layer.to_v)
    ]
    query, key, value = layer.norm_q(by_head[0]), layer.norm_k(by_head[1]), by_head[2]
    if table is not None:
        query, key = rotated(query, table), rotated(key, table)
    weights = torch.einsum("bthw,bshw->bhts", query, key).div(HEAD_WIDTH**0.5).softmax(-1)
    return layer.to_out[0](torch.einsum("bhts,bshw->bthw", weights, value).flatten(2))


def rotated(heads, table):
    """The pairs of neighbouring entries as complex numbers, turned by the angles of the table."""
    cosines, sines = (each[:, ::2].double() for each in table)
    turned = torch.view_as_complex(heads.unflatten(-1, (-1, 2)).contiguous()) * torch.complex(cosines, sines)[:, None]
    return torch.view_as_real(turned).flatten(-2)


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": True, "out_bias": False}, {"norm": nn.RMSNorm}],
    ids=["plain", "biases", "norms"],
)
def test_attention_is_its_formula(options):
    layer = attention(**options)
    tokens = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(layer(tokens), by_formula(layer, tokens))


def test_queries_and_keys_are_turned_and_values_are_not():
    layer = attention()
    tokens = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    table = rotary_table(torch.arange(2.0), torch.arange(3.0), HEAD_WIDTH)
    turned = layer(tokens, table)
    torch.testing.assert_close(turned, by_formula(layer, tokens, table), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(turned, layer(tokens), atol=1e-3)


def test_norms_of_heads_belong_to_queries_and_keys_alone():
    layer = attention(norm=nn.RMSNorm)
    norms = {name: value.shape for name, value in layer.named_parameters() if "norm" in name}
    assert norms == {"norm_q.weight": (HEAD_WIDTH,), "norm_k.weight": (HEAD_WIDTH,)}


def test_the_table_turns_half_of_the_pairs_by_the_row_and_half_by_the_column():
    rows, columns = torch.tensor([0.0, 2.0, 5.0]), torch.tensor([1.0, 4.0])
    cosines, sines = rotary_table(rows, columns, 8, theta=100.0)
    assert cosines.shape == sines.shape == (6, 8)
    # The speeds of a width of 8 are 100^0 and 100^(-4/8).
    angles = torch.tensor([[row, row / 10.0, column, column / 10.0] for row in rows for column in columns])
    torch.testing.assert_close(cosines, angles.repeat_interleave(2, 1).cos())
    torch.testing.assert_close(sines, angles.repeat_interleave(2, 1).sin())


def test_products_of_turned_vectors_depend_on_the_distance_alone():
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(6.0)
    table = rotary_table(positions, positions, 8)
    turned = [apply_rotary_emb(each.expand(1, 36, 1, 8), table, sequence_dim=1)[0, :, 0] for each in (query, key)]
    products = (turned[0] @ turned[1].T).unflatten(1, (6, 6)).unflatten(0, (6, 6))
    # From (row, column) to the place two rows below and one column to the right.
    found = torch.stack([products[row, column, row + 2, column + 1] for row in range(4) for column in range(5)])
    torch.testing.assert_close(found, found[:1].expand(20))
    assert not torch.allclose(products[0, 0, 1, 2], found[0], atol=1e-3)
