"""The layouts of the masks, which kernels rely on."""

import pytest
import torch

from jepa_fast import BlockCausal, BlockSparse, Varlen

CPU = torch.device("cpu")


def random_mask(shape: tuple[int, ...], density: float) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density


@pytest.mark.parametrize("block_size", [(16, 32), (32, 32), (48, 64), (128, 128)])
@pytest.mark.parametrize("density", [0.0, 0.003, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (300, 200), (3, 130, 257), (2, 3, 100, 64), (0, 5), (5, 0)])
def test_dense_and_back(shape: tuple[int, ...], density: float, block_size: tuple[int, int]) -> None:
    dense = random_mask(shape, density)
    dense[..., :64, :64] = True
    dense[..., 128:, :128] = False
    mask = BlockSparse.from_dense(dense, block_size)
    assert torch.equal(mask.dense(*shape[-2:], CPU), dense[(None,) * (4 - dense.ndim)])
    again = BlockSparse.rebuild(mask.tensors(), mask.integers())
    assert torch.equal(again.dense(*shape[-2:], CPU), mask.dense(*shape[-2:], CPU))


def test_full_partial_and_empty_blocks_are_kept_apart() -> None:
    dense = torch.zeros(40, 100, dtype=torch.bool)
    dense[:32, :32] = True  # full
    dense[:32, 40] = True  # partial
    dense[32:, 96:] = True  # full as far as the mask goes
    mask = BlockSparse.from_dense(dense, (32, 32))
    assert mask.blocks == (2, 4)
    assert mask.full_offsets.tolist() == [0, 1, 2]
    assert mask.full_keys.tolist() == [0, 3]
    assert mask.partial_offsets.tolist() == [0, 1, 1]
    assert mask.partial_keys.tolist() == [1]
    assert mask.partial_bits.shape == (1, 32, 1)
    assert (mask.partial_bits == 1 << 8).all()
    assert mask.full_queries_offsets.tolist() == [0, 1, 1, 1, 2]
    assert mask.full_queries.tolist() == [0, 1]
    assert mask.partial_queries_offsets.tolist() == [0, 0, 1, 1, 1]
    assert mask.partial_queries.tolist() == [0]
    assert mask.partial_queries_place.tolist() == [0]
    assert all(x.dtype == torch.int32 and x.is_contiguous() for x in mask.tensors())


def test_lists_by_key_hold_the_same_blocks() -> None:
    mask = BlockSparse.from_dense(random_mask((2, 3, 300, 260), 0.01), (32, 32))
    blocks_q, blocks_k = mask.blocks
    by_query = {}
    for row in range(mask.planes * blocks_q):
        for place in range(mask.partial_offsets[row], mask.partial_offsets[row + 1]):
            by_query[row // blocks_q, row % blocks_q, int(mask.partial_keys[place])] = place
    by_key = {}
    for row in range(mask.planes * blocks_k):
        for i in range(mask.partial_queries_offsets[row], mask.partial_queries_offsets[row + 1]):
            block = (row // blocks_k, int(mask.partial_queries[i]), row % blocks_k)
            by_key[block] = int(mask.partial_queries_place[i])
    assert by_query == by_key
    assert len(by_query) > 100


def test_bad_dense_masks() -> None:
    good = torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"mask: expected a tensor of bool, got torch\.float32"):
        BlockSparse.from_dense(good.float())
    with pytest.raises(
        ValueError, match=r"mask: expected \[Nq, Nk\] with up to two dimensions before, got \[4\]"
    ):
        BlockSparse.from_dense(good[0])
    for block_size in ((8, 32), (16, 16), (20, 32), (16, 40)):
        with pytest.raises(ValueError, match=r"block_size: expected multiples of \(16, 32\), got"):
            BlockSparse.from_dense(good, block_size)


def test_packed_lengths() -> None:
    mask = Varlen.from_lengths([2, 0, 3])
    assert mask.cu_seqlens_q.tolist() == mask.cu_seqlens_k.tolist() == [0, 2, 2, 5]
    assert (mask.max_seqlen_q, mask.max_seqlen_k) == (3, 3)
    mask = Varlen.from_lengths([1, 2], [3, 0])
    expected = torch.tensor([[1, 1, 1], [0, 0, 0], [0, 0, 0]], dtype=torch.bool)
    assert torch.equal(mask.dense(3, 3, CPU), expected)
    with pytest.raises(ValueError, match="lengths_k: expected 2 lengths as in lengths_q, got 1"):
        Varlen.from_lengths([1, 2], [3])
    with pytest.raises(ValueError, match="lengths_k: expected lengths of at least 0, got -2"):
        Varlen.from_lengths([1, 2], [3, -2])


def test_steps() -> None:
    mask = BlockCausal(2, query_offset=1)
    expected = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)
    assert torch.equal(mask.dense(3, 5, CPU), expected)
    assert [mask.visible(i, 5) for i in range(3)] == [2, 4, 4]


def test_checks_on_the_device_come_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off the CPU no value is read; here the device's assertions are stood in for, as they cannot be survived."""
    from jepa_fast.kernels.attention.masks import varlen

    asserted: list[str] = []
    monkeypatch.setattr(torch, "_assert_async", lambda condition, message: asserted.append(message))
    cu_seqlens = torch.zeros(3, dtype=torch.int32, device="meta")
    mask = Varlen(cu_seqlens, cu_seqlens, 4, 4)
    mask.check_values(6, 6)
    assert asserted == []
    monkeypatch.setenv(varlen.CHECK_VARIABLE, "1")
    mask.check_values(6, 6)
    assert len(asserted) == 8
