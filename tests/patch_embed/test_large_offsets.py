"""Pixels more than 2**31 elements into a tensor, in a sparse file that takes no memory."""

from pathlib import Path

import pytest
import torch

from jepa_fast import masked_patch_embed, patchify


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter reads the file; a GPU cannot")
@pytest.mark.parametrize("implementation", [pytest.param("native", marks=pytest.mark.native), "triton"])
@pytest.mark.parametrize("samples", [2, 5])  # a stride past 2**31, and one below it whose product is not
def test_far_sample(tmp_path: Path, implementation: str, samples: int) -> None:
    far = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2**31 + 64, dtype=torch.uint8)
    far[-64:] = 255
    pixels = far.as_strided((samples, 1, 8, 8), (2**31 // (samples - 1), 64, 8, 1))
    rows = patchify(pixels, 8, implementation=implementation)
    assert rows.sum((1, 2)).tolist() == [*[0.0] * (samples - 1), 64.0]
    weight, index = torch.ones(16, 1, 8, 8), torch.zeros(samples, 1, dtype=torch.int64)
    for source in (pixels, rows):
        out = masked_patch_embed(source, weight, None, index, implementation=implementation)
        assert out[:, 0, 0].tolist() == [*[0.0] * (samples - 1), 64.0]
