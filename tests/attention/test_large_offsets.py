"""Elements more than 2**31 elements into a tensor, in a sparse file that takes no memory."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from jepa_fast import Rope3D, Varlen, masked_attention, rope_3d

pytestmark = pytest.mark.native
DIM = 16


@pytest.fixture
def far(tmp_path: Path) -> Tensor:
    """float16 [2**31 + DIM], zeros but for the last."""
    file = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2**31 + DIM, dtype=torch.float16)
    file[-DIM:] = torch.arange(DIM)
    return file


# A stride past 2**31, and one below it whose product is not.
@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_far_samples_tokens_and_heads(far: Tensor, dimension: int, count: int) -> None:
    shape, strides = [1, 1, 1, DIM], [DIM, DIM, DIM, 1]
    shape[dimension], strides[dimension] = count, 2**31 // (count - 1)
    strided = far.as_strided(shape, strides)
    near = strided.clone()
    assert near.flatten()[-1] == DIM - 1
    plain = torch.randn(shape).half()
    for place in range(3):
        arguments = [plain, plain, plain]
        results = []
        for x in (strided, near):
            arguments[place] = x
            leaves = [y.detach().requires_grad_() for y in arguments]
            out = masked_attention(*leaves, implementation="native")
            results.append((out, *torch.autograd.grad(out, leaves, plain)))
        for ours, expected in zip(*results, strict=True):
            assert torch.equal(ours, expected)
    rope = Rope3D(torch.ones(shape[1], 3))
    assert torch.equal(rope_3d(strided, rope, implementation="native"), rope_3d(near, rope))


def test_far_packed_token(far: Tensor) -> None:
    packed = far.view(-1, 1, DIM)
    last = packed.shape[0] - 1
    two = packed[::last][:2]  # the first and the last token
    mask = Varlen.from_lengths([1, 1])
    out = masked_attention(two, two, two, mask=mask, implementation="native")
    assert torch.equal(out[1, 0], torch.arange(DIM).half())
