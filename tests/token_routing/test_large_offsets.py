"""Elements more than 2**31 elements into a tensor, in a sparse file that takes no memory."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from jepa_fast import assemble_predictor_tokens, gather_tokens

FEATURES = 16
IMPLEMENTATIONS = [pytest.param("native", marks=pytest.mark.native), "triton"]
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="Triton's interpreter reads the file; a GPU cannot"
)


@pytest.fixture
def far(tmp_path: Path) -> Tensor:
    """float16 [2**31 + FEATURES], zeros and at the end 3."""
    far = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2**31 + FEATURES, dtype=torch.float16)
    far[-FEATURES:] = 3.0
    return far


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_far_token(far: Tensor, implementation: str) -> None:
    x = far.view(1, -1, FEATURES)
    index = torch.tensor([[x.shape[1] - 1, 0]])
    assert gather_tokens(x, index, implementation=implementation).sum(-1).tolist() == [[48.0, 0.0]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("rows", [2, 5])  # a stride past 2**31, and one below it whose product is not
def test_far_sample(far: Tensor, implementation: str, rows: int) -> None:
    x = far.as_strided((rows, 1, FEATURES), (2**31 // (rows - 1), FEATURES, 1))
    index = torch.zeros(rows, 1, dtype=torch.int64)
    assert gather_tokens(x, index, implementation=implementation)[-1].sum().item() == 48.0
    position = torch.ones(1, FEATURES)
    out = assemble_predictor_tokens(x, index, index, position, position[0], implementation=implementation)
    assert out.sum(-1).tolist() == [*[[16.0, 32.0]] * (rows - 1), [64.0, 32.0]]
