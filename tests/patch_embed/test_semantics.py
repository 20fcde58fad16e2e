"""What the ops of patch embedding compute, accept and refuse."""

import pytest
import torch
from torch import Tensor

import jepa_fast
from jepa_fast import explain, masked_patch_embed, patchify

IMPLEMENTATIONS = [pytest.param("native", marks=pytest.mark.native), "reference"]


@pytest.mark.parametrize(("patch", "grid"), [((8, 8), (3, 4)), ((2, 4, 6), (2, 3, 2))], ids=str)
@pytest.mark.parametrize("kept", [5, None])
def test_reference_is_the_published_one(problem, differentiated, patch, grid, kept: int | None) -> None:
    p = problem(patch, grid, kept=kept, pixels=torch.float64, dtype=torch.float64, position=torch.float64)
    ours = differentiated(p.ours("reference"), p.leaves)
    theirs = differentiated(p.eager, p.leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_rows_are_in_the_order_of_a_weight() -> None:
    pixels = torch.arange(2 * 2 * 4 * 4 * 6).view(2, 2, 4, 4, 6).float()
    for implementation in ("native", "reference"):
        rows = patchify(pixels, (2, 2, 3), implementation=implementation)
        assert rows.shape == (2, 8, 24)
        second_frame_pair, second_row, second_column = 2, 2, 3
        patch = pixels[1, :, second_frame_pair:, second_row:, second_column:]
        assert torch.equal(rows[1, 7], patch.flatten()[:24]) or torch.equal(rows[1, 7], patch.reshape(-1))
        images = patchify(pixels[:, :, 0], (2, 3), implementation=implementation)
        assert torch.equal(images[0, 2], pixels[0, :, 0, 2:, :3].reshape(-1))


def test_gradients_of_the_reference(problem) -> None:
    p = problem((2, 2), (2, 2), channels=2, features=3, kept=3, pixels=torch.float64, dtype=torch.float64,
                position=torch.float64, normalize=True)  # fmt: skip
    p.index[0, 1] = p.index[0, 0]
    leaves = [x.requires_grad_() for x in (p.pixels, *p.leaves)]

    def call(pixels: Tensor, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
        return masked_patch_embed(pixels, weight, bias, p.index, position=position, **p.statistics)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradcheck(lambda *x: masked_patch_embed(x[0], x[1], None), leaves[:2])
    rows = patchify(p.pixels.detach(), 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: masked_patch_embed(x, p.weight.detach(), None, p.index), rows)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradient_of_pixels(problem, implementation: str) -> None:
    p = problem((2, 8, 8), (2, 2, 3), normalize=True)
    found = []
    for name, dtype in ((implementation, torch.float32), ("reference", torch.float64)):
        pixels = p.pixels.to(dtype, copy=True).requires_grad_()
        out = masked_patch_embed(
            pixels, p.weight.to(dtype), p.bias.to(dtype), p.index, implementation=name, **p.statistics
        )
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        found.append(torch.autograd.grad(out, pixels, upstream)[0])
    torch.testing.assert_close(found[0].double(), found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_teacher_and_student_share_one_pass(problem, implementation: str) -> None:
    p = problem()
    rows = patchify(p.pixels, 8, implementation=implementation)
    student, teacher = p.weight.requires_grad_(), 2.0 * p.weight.detach()
    with torch.no_grad():
        target = masked_patch_embed(rows, teacher, None, implementation=implementation)
    context = masked_patch_embed(rows, student, None, p.index, implementation=implementation)
    picked = target[torch.arange(4)[:, None] % 2, p.index]
    torch.testing.assert_close(picked, 2.0 * context)
    context.sum().backward()
    assert student.grad is not None
    assert target.grad_fn is None


def test_compute_dtype_and_result_dtype(problem, differentiated) -> None:
    p = problem()
    half, full = torch.bfloat16, torch.float32
    plain = p.ours("auto")(p.weight, p.bias, None)
    assert plain.dtype == full
    with torch.autocast("cpu", dtype=half):
        assert p.ours("auto")(p.weight, p.bias, None).dtype == half
        assert p.ours("auto")(p.weight, p.bias, p.position).dtype == full
        assert patchify(p.pixels, 8).dtype == half
        told = p.ours("auto", dtype=full)(p.weight, p.bias, None)
        assert torch.equal(told, plain)
        rounded = differentiated(p.ours("auto"), p.leaves)
    assert [x.dtype for x in rounded] == [full] * 4
    assert patchify(p.pixels, 8).dtype == full
    assert patchify(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 8).dtype == full
    assert not torch.equal(rounded[0], p.ours("auto")(*p.leaves))
    cast = problem(dtype=half)
    expected = differentiated(cast.ours("auto"), cast.leaves)
    torch.testing.assert_close(rounded[0], expected[0], rtol=0, atol=0)
    torch.testing.assert_close(rounded[1], expected[1].float(), rtol=0, atol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("empty", [{"kept": 0}, {"masks": 0}, {"samples": 0}, {"features": 0}], ids=str)
def test_empty(problem, differentiated, implementation: str, empty: dict[str, int]) -> None:
    p = problem(**empty)
    out, *gradients = differentiated(p.ours(implementation), p.leaves)
    assert out.shape == (*p.index.shape, p.weight.shape[0])
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("rows", [True, False])
def test_an_index_outside_is_named(problem, implementation: str, rows: bool) -> None:
    p = problem()
    if rows:
        p.pixels = patchify(p.pixels, 8)
    for value in (300, 12, -1):
        p.index[2, 3], p.index[3, 1] = value, value
        with pytest.raises(ValueError, match="index") as caught:
            p.ours(implementation)(*p.leaves)
        message = f"index: expected int64 [B, K] with values in [0, 12), got {value} at [2, 3]"
        assert str(caught.value) == message


@pytest.mark.native
def test_bad_arguments_are_named() -> None:
    x, w, b = torch.zeros(2, 3, 16, 24), torch.zeros(5, 3, 8, 8), torch.zeros(5)
    v, wv, i = torch.zeros(2, 3, 4, 16, 24), torch.zeros(5, 3, 2, 8, 8), torch.zeros(4, 3, dtype=torch.int64)
    rows = torch.zeros(2, 6, 192)
    for arguments, options, error, message in (
        ((x[0, 0], w, b), {}, ValueError, r"pixels: expected \[B, C, H, W\], .*got \[16, 24\]"),
        ((x.int(), w, b), {}, TypeError, "pixels: expected uint8 or a floating-point dtype, got torch.int32"),
        (
            (x[..., :20], w, b),
            {},
            ValueError,
            r"pixels: expected sizes that \[8, 8\] divides, got \[16, 20\]",
        ),
        (
            (v[:, :, :3], wv, b),
            {},
            ValueError,
            r"pixels: expected sizes that \[2, 8, 8\] divides, got \[3, 16",
        ),
        ((v, w, b), {}, ValueError, r"weight: expected \[D, C, t, p, p\] with C = 3 for pixels"),
        ((x, wv, b), {}, ValueError, r"weight: expected \[D, C, p, p\] with C = 3 for pixels"),
        (
            (x, w[:, :2], b),
            {},
            ValueError,
            r"weight: expected \[D, C, p, p\] with C = 3 .*got \[5, 2, 8, 8\]",
        ),
        ((x, w.int(), b), {}, TypeError, "weight: expected a floating-point dtype, got torch.int32"),
        ((x, w.to("meta"), b), {}, ValueError, "weight: expected device cpu of pixels, got meta"),
        ((x, w, b[:4]), {}, ValueError, r"bias: expected \[5\], got \[4\]"),
        ((x, w, b, i.int()), {}, TypeError, "index: expected int64, got torch.int32"),
        ((x, w, b, i[:3]), {}, ValueError, r"index: expected int64 \[multiple of B = 2, K\], got \[3, 3\]"),
        (
            (x, w, b),
            {"position": torch.zeros(7, 5)},
            ValueError,
            r"position: expected \[6, 5\], got \[7, 5\]",
        ),
        ((x, w, b), {"position": torch.zeros(6, 5).int()}, TypeError, "position: expected a floating-point"),
        ((x, w, b), {"mean": (0.5,)}, ValueError, "mean: expected C = 3 values, got 1"),
        ((x, w, b), {"std": (0.5, 0.0, 1.0)}, ValueError, "std: expected values above 0, got"),
        ((rows, w[:, :2], b), {}, ValueError, "weight: expected 192 values for each output"),
        ((rows, w, b), {"mean": (0.5,) * 3}, ValueError, "mean, std: expected None for rows"),
        ((rows.int(), w, b), {}, TypeError, "pixels: expected rows of a floating-point dtype"),
        ((x, w, b), {"implementation": "cuda"}, ValueError, "implementation: expected auto, .*got 'cuda'"),
        (
            (x, w.double(), b),
            {"implementation": "native"},
            RuntimeError,
            "native cannot serve patch_embed: a tensor is torch.float64",
        ),
    ):
        with pytest.raises(error, match=message):
            masked_patch_embed(*arguments, **options)
    with pytest.raises(ValueError, match=r"patch_size: expected \[t, h, w\] of at least 1, got \[8, 8\]"):
        patchify(v, 8)
    with pytest.raises(ValueError, match=r"patch_size: expected \[h, w\] of at least 1, got \[0, 8\]"):
        patchify(x, (0, 8))


@pytest.mark.native
def test_explain(problem) -> None:
    p = problem(pixels=torch.uint8, normalize=True)
    arguments = (p.pixels, p.weight, p.bias, p.index)
    assert explain(masked_patch_embed, *arguments, position=p.position, **p.statistics).chosen == "native"
    assert explain("patch_embed", p.pixels, p.weight.double(), None).chosen == "reference"
    assert explain(patchify, p.pixels, 8).chosen == "native"
    assert explain(patchify, p.pixels, (8, 8), dtype=torch.float64).chosen == "reference"
    assert {"masked_patch_embed", "patchify"} <= set(dir(jepa_fast))
