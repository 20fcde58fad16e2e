"""The attention of transformers' V-JEPA 2, with its rotary embedding and random weights."""

import pytest
import torch

from jepa_fast import Rope3D, masked_attention

pytest.importorskip("transformers", reason="transformers is an oracle of tests alone")
from transformers import VJEPA2Config
from transformers.models.vjepa2 import modeling_vjepa2


@pytest.fixture
def attention() -> torch.nn.Module:
    torch.manual_seed(0)
    config = VJEPA2Config(
        crop_size=64, frames_per_clip=8, tubelet_size=2, hidden_size=192, num_attention_heads=3,
        attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    return modeling_vjepa2.VJEPA2RopeAttention(config, hidden_size=192, num_attention_heads=3).eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_rope_attention(attention: torch.nn.Module, masked: bool, dtype: torch.dtype) -> None:
    attention.to(dtype)
    side, tokens = 4, 4 * 4 * 4
    ids = torch.arange(tokens).expand(2, -1)
    if masked:
        ids = torch.rand(2, tokens).argsort(1)[:, :40].sort(1).values
    hidden = torch.randn(2, ids.shape[1], 192).to(dtype)
    expected = attention(hidden, position_mask=ids if masked else None)[0]

    query, key, value = (
        layer(hidden).unflatten(-1, (3, 64)) for layer in (attention.query, attention.key, attention.value)
    )
    positions = torch.stack([ids // side**2, ids % side**2 // side, ids % side], -1)
    rope = Rope3D(positions if masked else positions[0], table="hf")
    for implementation in ("auto", "reference"):
        context = masked_attention(query, key, value, rope=rope, implementation=implementation)
        found = attention.proj(context.flatten(2))
        tolerance = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
