"""The reference and the native kernel against the float64 reference, and the tables against their definition."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import Rope3D, rope_3d
from jepa_fast.kernels.rope import native

IMPLEMENTATIONS = [pytest.param("native", marks=pytest.mark.native), "reference"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_DIMS = (24, 32, 64, 80, 88, 104, 128)
Draw = Callable[..., tuple[Tensor, Tensor, Rope3D]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["shared", "per_sample", "packed"])
@pytest.mark.parametrize("pairing", ["tiled", "interleaved"])
@pytest.mark.parametrize("head_dim", [6, 10, *HEAD_DIMS, 256])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_error_budget(
    draw: Draw,
    hold: Callable[..., None],
    implementation: str,
    head_dim: int,
    pairing: str,
    layout: str,
    dtype: Any,
) -> None:
    hold(*draw(head_dim, dtype, pairing, layout=layout), implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_channels_that_no_axis_covers_pass(draw: Draw, implementation: str) -> None:
    for head_dim in (2, 4, 24, 32, 64, 80, 88, 104, 128):
        query, _, rope = draw(head_dim)
        covered = 3 * 2 * (head_dim // 3 // 2)
        assert covered < head_dim or head_dim == 24
        rotated = rope_3d(query, rope, implementation=implementation)
        assert torch.equal(rotated[..., covered:], query[..., covered:])
        assert head_dim < 6 or not torch.equal(rotated, query)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_layouts(draw: Draw, hold: Callable[..., None], implementation: str) -> None:
    query, key, rope = draw(24)
    hold(query.mT.contiguous().mT, key.mT.contiguous().mT, rope, implementation)
    hold(query.transpose(1, 2).contiguous().transpose(1, 2), key, rope, implementation)
    fused = torch.cat([query, key], 2)
    hold(fused[:, :, :4], fused[:, :, 4:], rope, implementation)
    hold(query[:, :, :1].expand(-1, -1, 3, -1), key[:1].expand(2, -1, -1, -1), rope, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_query_and_key_together_are_each_alone(draw: Draw, implementation: str) -> None:
    query, key, rope = draw(64)
    together = rope_3d(query, rope, key, implementation=implementation)
    alone = [rope_3d(x, rope, implementation=implementation) for x in (query, key)]
    for x, y in zip(together, alone, strict=True):
        assert torch.equal(x, y)


@pytest.mark.native
@pytest.mark.parametrize("head_dim", [10, 24, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_output_is_written_and_nothing_else(
    draw: Draw, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, head_dim: int
) -> None:
    query, key, rope = draw(head_dim, dtype)
    rooms, empty = [], torch.empty

    def poisoned(shape: Any, dtype: torch.dtype) -> Tensor:
        wanted = empty(shape, dtype=dtype, device="meta")
        rooms.append(torch.full((wanted.numel() + 64,), torch.nan, dtype=dtype))
        rooms[-1][:32] = rooms[-1][-32:] = 77.0
        return rooms[-1][32:-32].view(wanted.shape)

    monkeypatch.setattr(native.torch, "empty", poisoned)
    rotated = rope_3d(query, rope, key, implementation="native")
    assert len(rooms) == 2
    assert all(x.isfinite().all() for x in rotated)
    assert all((room[:32] == 77.0).all() and (room[-32:] == 77.0).all() for room in rooms)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nan_stays_in_its_pair(draw: Draw, implementation: str) -> None:
    query, _, rope = draw(32)
    query[1, 5, 2, 7] = torch.nan
    found = rope_3d(query, rope, implementation=implementation).isnan().nonzero().tolist()
    assert found == [[1, 5, 2, 6], [1, 5, 2, 7]]


def test_tables_by_hand() -> None:
    rope = {
        pairing: Rope3D(torch.tensor([[3, 0, 7]]), pairing=pairing).tables(24)
        for pairing in ("tiled", "interleaved")
    }
    for pairing, order in (("tiled", [0, 1, 2, 3] * 2), ("interleaved", [0, 0, 1, 1, 2, 2, 3, 3])):
        for axis, position in enumerate((3, 0, 7)):
            angles = [position * 10000 ** (-j / 4) for j in order]
            part = slice(8 * axis, 8 * axis + 8)
            expected = torch.tensor([[math.cos(a) for a in angles], [math.sin(a) for a in angles]])
            found = torch.cat([rope[pairing].cos[:, part], rope[pairing].sin[:, part]])
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_interleaved_turns_and_tiled_does_not(draw: Draw) -> None:
    query, _, rope = draw(64, torch.float64, "interleaved")
    torch.testing.assert_close(rope_3d(query, rope).norm(dim=-1), query.norm(dim=-1))
    query, _, rope = draw(64, torch.float64, "tiled")
    assert (rope_3d(query, rope).norm(dim=-1) / query.norm(dim=-1)).min() < 0.95


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_table_precision_is_that_of_the_published_code(dtype: torch.dtype) -> None:
    positions = torch.randint(32, (50, 3), generator=torch.Generator().manual_seed(0))
    exact = Rope3D(positions).tables(64, dtype)
    assert torch.equal(exact.cos, Rope3D(positions).tables(64).cos)
    exponent = (torch.arange(10, dtype=dtype) / 10).float()
    angle = positions[:, :, None] * (1.0 / 10000**exponent)
    hf = Rope3D(positions, table="hf").tables(64, dtype)
    assert torch.equal(hf.cos[:, :60], angle.cos().repeat(1, 1, 2).flatten(1))
    # Under CUDA autocast the power is formed in float32, and einsum takes its result back to half precision.
    rounded = positions[:, :, None] * (1.0 / 10000**exponent).to(dtype)
    assert rounded.dtype == dtype
    fair = Rope3D(positions, table="fair_autocast").tables(64, dtype)
    assert torch.equal(fair.sin[:, :60], rounded.sin().float().repeat(1, 1, 2).flatten(1))
    assert not torch.equal(fair.sin, hf.sin)
    for table in ("hf", "fair_autocast"):
        assert torch.equal(Rope3D(positions, table=table).tables(64, torch.float32).cos, exact.cos)
        assert torch.equal(
            Rope3D(positions, table=table, dtype=dtype).tables(64, torch.float64).sin,
            Rope3D(positions, table=table).tables(64, dtype).sin,
        )


def test_autocast_rounds_as_the_tables_say() -> None:
    """PyTorch's own rules for CUDA, read off tensors without storage."""
    from torch._subclasses import FakeTensorMode

    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            exponent = torch.empty(10, dtype=torch.bfloat16, device="cuda")
            positions = torch.empty(8, dtype=torch.int64, device="cuda")
            frequency = 1.0 / 10000**exponent
            angle = torch.einsum("..., f -> ... f", positions, frequency)
            assert frequency.dtype == torch.float32
            assert angle.dtype == angle.sin().dtype == torch.bfloat16
            assert (positions.unsqueeze(1) * frequency).dtype == torch.float32  # transformers
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def test_tables_are_made_once(draw: Draw) -> None:
    query, key, rope = draw(64)
    first = rope.tables(64)
    rope_3d(query, rope, key)
    assert rope.tables(64) is first
    assert rope.tables(32) is not first
    assert first.cos.dtype == first.sin.dtype == torch.float32
    assert first.cos.shape == (37, 64)
    assert draw(64, layout="per_sample")[2].tables(64).cos.shape == (74, 64)
