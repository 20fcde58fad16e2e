"""A small I-JEPA with weights large enough that every part of it matters, and a batch for it."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from jepa_fast import models
from jepa_fast.masks import Masks, MultiBlockMasks

SIDE = 12  # patches
BATCH = 3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from a second thread, and wait for it where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> models.IJEPA:
    """Freshly drawn biases are zero and LayerNorm is the identity: noise on them shows where they are used."""
    torch.manual_seed(0)
    model = models.create(
        "ijepa_vitt8_128", image_size=8 * SIDE, depth=3, predictor_depth=2, predictor_dim=96
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(BATCH, 3, 8 * SIDE, 8 * SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[1, 2], ids=["one context", "two contexts"])
def masks(request: pytest.FixtureRequest) -> Masks:
    sampler = MultiBlockMasks(SIDE, num_context=request.param, num_targets=3)
    return sampler.sample(BATCH, 0, torch.Generator().manual_seed(2))
