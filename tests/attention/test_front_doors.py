"""The front doors take what PyTorch's and flash-attention's functions take, and give what they give."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from jepa_fast import (
    BlockCausal,
    BlockSparse,
    Varlen,
    flash_attn_varlen_func,
    masked_attention,
    scaled_dot_product_attention,
)


def draw(heads_k: int = 4) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    # In float64, where only the arguments can make a difference.
    return [
        torch.randn(2, h, n, 32, generator=random, dtype=torch.float64)
        for h, n in ((4, 50), (heads_k, 60), (heads_k, 60))
    ]


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"is_causal": True}], ids=str)
@pytest.mark.parametrize("keys", [60, 40])
@pytest.mark.parametrize("heads_k", [4, 2])
def test_sdpa(heads_k: int, keys: int, options: dict[str, Any]) -> None:
    query, key, value = draw(heads_k)
    leaves = [x.requires_grad_() for x in (query, key[:, :, :keys], value[:, :, :keys])]
    options = {"enable_gqa": heads_k != 4, **options}
    outs = [f(*leaves, **options) for f in (scaled_dot_product_attention, F.scaled_dot_product_attention)]
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), leaves) for out in outs))


@pytest.mark.parametrize(
    "shape", [(50, 60), (1, 60), (50, 1), (2, 1, 50, 60), (1, 4, 1, 60), (4, 50, 60), (2, 4, 50, 60)]
)
def test_sdpa_masks_broadcast(shape: tuple[int, ...]) -> None:
    query, key, value = draw()
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[..., 0] = True
    torch.testing.assert_close(
        scaled_dot_product_attention(query, key, value, attn_mask=mask),
        F.scaled_dot_product_attention(query, key, value, attn_mask=mask),
    )


def test_sdpa_without_batch_and_with_our_masks() -> None:
    query, key, value = draw()
    torch.testing.assert_close(
        scaled_dot_product_attention(query[0], key[0], value[0]),
        F.scaled_dot_product_attention(query[0], key[0], value[0]),
    )
    dense = BlockCausal(7, 10).dense(50, 60, query.device)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=dense)
    for mask in (BlockCausal(7, 10), BlockSparse.from_dense(dense)):
        torch.testing.assert_close(scaled_dot_product_attention(query, key, value, mask), expected)


def test_sdpa_refusals() -> None:
    query, key, value = draw()
    mask = torch.ones(50, 60)
    for error, options, message in (
        (ValueError, {"dropout_p": 0.1}, "dropout_p: expected 0.0, this attention has no dropout, got 0.1"),
        (TypeError, {"attn_mask": mask}, "attn_mask: expected bool, additive masks are not supported, got"),
        (ValueError, {"attn_mask": mask.bool(), "is_causal": True}, "attn_mask: expected None together with"),
    ):
        with pytest.raises(error, match=message):
            scaled_dot_product_attention(query, key, value, **options)
    for shape in ((49, 60), (3, 50, 60), (1, 2, 4, 50, 60)):
        with pytest.raises(ValueError, match="attn_mask: expected a shape that broadcasts to"):
            scaled_dot_product_attention(query, key, value, mask.new_ones(shape).bool())
    with pytest.raises(ValueError, match=r"key: expected \[B, H, N, D\] or \[H, N, D\] like query, got"):
        scaled_dot_product_attention(query, key[0], value)
    with pytest.raises(ValueError, match="key: expected 4 heads of query, or enable_gqa=True, got 2"):
        scaled_dot_product_attention(query, key[:, :2], value[:, :2])


def test_flash_attention_varlen() -> None:
    mask = Varlen.from_lengths([5, 1, 20], [3, 7, 9])
    q, k, v = (torch.randn(n, h, 32) for n, h in ((26, 4), (19, 2), (19, 2)))
    arguments = (q, k, v, *mask.tensors(), 20, 9)
    assert torch.equal(flash_attn_varlen_func(*arguments), masked_attention(q, k, v, mask=mask))
    scaled = flash_attn_varlen_func(*arguments, softmax_scale=0.5)
    assert torch.equal(scaled, masked_attention(q, k, v, mask=mask, scale=0.5))
    # Every argument of flash-attn 2 by place, with its default.
    by_place = (0.0, 0.5, False, (-1, -1), 0.0, None, True, False, None)
    assert torch.equal(flash_attn_varlen_func(*arguments, *by_place), scaled)
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"dropout_p": 0.2}, "dropout_p: expected 0.0"),
        ({"window_size": (8, 0)}, r"window_size: expected \(-1, -1\)"),
        ({"softcap": 30.0}, "softcap: expected 0.0"),
        ({"alibi_slopes": torch.ones(4)}, "alibi_slopes: expected None"),
        ({"return_attn_probs": True}, "return_attn_probs: expected False"),
        ({"block_table": torch.zeros(3, 1)}, "block_table: expected None"),
    )
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            flash_attn_varlen_func(*arguments, **options)


def test_causal_flash_attention_is_aligned_to_the_last_key() -> None:
    lengths_q, lengths_k = [5, 1, 20, 0, 6], [3, 7, 20, 4, 0]
    mask = Varlen.from_lengths(lengths_q, lengths_k)
    sizes = ((sum(lengths_q), 4), (sum(lengths_k), 2), (sum(lengths_k), 2))
    leaves = [torch.randn(*size, 32, dtype=torch.float64, requires_grad=True) for size in sizes]
    found = flash_attn_varlen_func(*leaves, *mask.tensors(), 20, 20, causal=True)
    parts = []
    for q, k, v in zip(
        *(x.split(n) for x, n in zip(leaves, (lengths_q, lengths_k, lengths_k), strict=True)), strict=True
    ):
        rows, columns = torch.arange(len(q))[:, None], torch.arange(len(k))[None, :]
        visible = columns <= rows + len(k) - len(q)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        weights = torch.einsum("qhd,khd->hqk", q, k).mul(32**-0.5).exp() * visible
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
        parts.append(torch.einsum("hqk,khd->qhd", weights, v))
    expected = torch.cat(parts)
    assert not found[:2].any()  # five queries, three keys: the first two see none
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), leaves) for x in (found, expected)))


def test_a_caller_changes_one_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def model(attention: Callable[..., torch.Tensor]) -> torch.Tensor:
        return attention(*draw(), is_causal=True, dropout_p=0.0)

    torch.testing.assert_close(model(scaled_dot_product_attention), model(F.scaled_dot_product_attention))
