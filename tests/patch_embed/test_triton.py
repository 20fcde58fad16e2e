"""The Triton kernels: compiled on a GPU, through Triton's interpreter on the CPU (see tests/conftest.py)."""

import pytest
import torch

from jepa_fast import masked_patch_embed, patchify

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter's bfloat16 is broken.
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16
SHAPES = [
    ((8, 8), (3, 4)),
    ((14, 14), (3, 2)),
    ((16, 16), (2, 2)),
    ((32, 32), (1, 4)),
    ((2, 16, 16), (2, 2, 1)),
]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(("patch", "grid"), SHAPES, ids=str)
def test_patches(problem, patch, grid, dtype: torch.dtype) -> None:
    problem(patch, grid, kept=3, dtype=dtype, device=DEVICE).hold("triton")
    problem(patch, grid, kept=None, dtype=dtype, pixels=torch.uint8, normalize=True, device=DEVICE).hold(
        "triton"
    )


@pytest.mark.parametrize("options", [
    {"pixels": HALF, "dtype": HALF}, {"pixels": HALF, "normalize": True}, {"position": None, "bias": False},
    {"position": HALF, "dtype": HALF}, {"features": 33, "channels": 1}, {"features": 130, "channels": 4, "kept": 12},
], ids=str)  # fmt: skip
def test_forms(problem, options) -> None:
    problem(**options, device=DEVICE).hold("triton")


def test_layouts_and_more_rows_than_a_program_owns(problem) -> None:
    p = problem(grid=(6, 6), samples=3, kept=30, device=DEVICE)
    p.hold("triton")
    p.pixels = p.pixels.to(memory_format=torch.channels_last)
    p.index = p.index[:, :1].expand(-1, 4)
    p.hold("triton")
    p = problem(device=DEVICE)
    p.pixels = torch.cat([p.pixels, p.pixels], 3)[..., 3:35]  # rows that do not begin at 16 bytes
    p.hold("triton")


@pytest.mark.parametrize("patch", [(8, 8), (14, 14)])
def test_rows_serve_as_pixels(problem, differentiated, patch) -> None:
    p = problem(patch, pixels=torch.uint8, normalize=True, dtype=HALF, device=DEVICE)
    rows = patchify(p.pixels, patch, dtype=HALF, implementation="triton", **p.statistics)
    expected = patchify(p.pixels, patch, dtype=HALF, implementation="reference", **p.statistics)
    torch.testing.assert_close(rows, expected)
    results = [
        differentiated(
            lambda rows, w, b, x, name=name: masked_patch_embed(
                rows, w, b, p.index, position=x, implementation=name
            ),
            [rows, *p.leaves],
        )
        for name in ("triton", "reference")
    ]
    torch.testing.assert_close(*results, rtol=2e-2, atol=2e-2)
    assert torch.equal(
        masked_patch_embed(rows[:, :4], p.weight, None, implementation="triton"),
        masked_patch_embed(rows, p.weight, None, implementation="triton")[:, :4],
    )


def test_an_index_outside_is_never_read(problem, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a GPU, where the host does not look at the values.
    from jepa_fast.kernels.patch_embed import triton_patch_embed

    monkeypatch.setattr(triton_patch_embed, "check_values", lambda *_: None)
    p = problem(device=DEVICE)
    p.index[1, 2], p.index[2, 0], p.index[3, 4] = -1, 12, 2**40
    weight = p.weight.requires_grad_()
    out = masked_patch_embed(p.pixels, weight, p.bias, p.index, position=p.position, implementation="triton")
    assert out.isnan().all(-1).nonzero().tolist() == [[1, 2], [2, 0], [3, 4]]
    out[out.isfinite()].sum().backward()
    assert weight.grad.isfinite().all()


def test_every_output_is_written_and_nothing_else(problem, poisoned_memory) -> None:
    poisoned_memory("triton", problem(pixels=torch.uint8, normalize=True, dtype=HALF, device=DEVICE))


def test_other_patches_are_refused(problem) -> None:
    p = problem((4, 4), device=DEVICE)
    with pytest.raises(
        RuntimeError, match=r"patches are \[1, 4, 4\]; the kernel takes squares of 8, 14, 16, 32"
    ):
        p.ours("triton")(*p.leaves)
