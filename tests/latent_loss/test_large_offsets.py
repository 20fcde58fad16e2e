"""Elements more than 2**31 elements into a tensor, in a sparse file that takes no memory."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from jepa_fast import latent_prediction_loss

FEATURES = 16


@pytest.fixture
def far(tmp_path: Path) -> Tensor:
    """float16 [2**31 + FEATURES], all zeros."""
    return torch.from_file(str(tmp_path / "sparse"), shared=True, size=2**31 + FEATURES, dtype=torch.float16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter reads the file; a GPU cannot")
@pytest.mark.parametrize("implementation", [pytest.param("native", marks=pytest.mark.native), "triton"])
def test_far_token(far: Tensor, implementation: str) -> None:
    target = far.view(1, -1, FEATURES)
    far[-FEATURES:] = torch.arange(FEATURES)
    last = torch.full((1, 1), target.shape[1] - 1)
    loss = latent_prediction_loss(
        target[:, -1:].clone(), target, last, normalize_target=False, implementation=implementation
    )
    assert loss.item() == 0.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter reads the file; a GPU cannot")
@pytest.mark.parametrize("implementation", [pytest.param("native", marks=pytest.mark.native), "triton"])
@pytest.mark.parametrize("rows", [2, 5])  # a stride past 2**31, and one below it whose product is not
def test_far_sample(far: Tensor, implementation: str, rows: int) -> None:
    strided = far.as_strided((rows, 1, FEATURES), (2**31 // (rows - 1), FEATURES, 1))
    far[-FEATURES:] = 3.0
    near = torch.zeros(rows, 1, FEATURES)
    near[-1] = 3.0
    for prediction, target in ((near, strided), (strided, near)):
        loss = latent_prediction_loss(
            prediction, target, normalize_target=False, implementation=implementation
        )
        assert loss.item() == 0.0
