"""Products of linear layers by `cpu_products.cpp` against float64, and when they are taken."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from jepa_fast.kernels.runtime import library, native, products

SIZES = [
    (1, 1, 1),
    (6, 16, 16),
    (7, 3, 5),
    (97, 257, 33),
    (200, 600, 300),
    (13, 130, 520),
    (5, 0, 7),
    (0, 4, 4),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def always_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the CPU, and however small the product."""
    monkeypatch.setattr(products, "_serves", lambda a, b: not library.as_node(a, b))


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype)


def assert_near(found: Tensor, expected: Tensor, terms: int) -> None:
    """Half a unit in the last place, and what a float32 sum of so many terms of size 1 may be off."""
    error = (found.double() - expected).abs()
    rounding = torch.finfo(found.dtype).eps / 2 * expected.abs()
    assert (error <= rounding + 3e-7 * terms + 1e-12).all()


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_all_three_of_a_linear_layer(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    tokens, wide, out = size
    x, weight, bias = (drawn(*s, dtype=dtype) for s in ((tokens, wide), (out, wide), (out,)))
    grad = drawn(tokens, out, dtype=dtype)
    made = products.linear(x, weight, bias)
    assert made.dtype == dtype
    assert_near(made, x.double() @ weight.double().t() + bias.double(), wide)
    assert_near(products.linear(x, weight, None), x.double() @ weight.double().t(), wide)
    assert_near(products.multiply(grad, weight), grad.double() @ weight.double(), out)
    of_x, of_weight, of_bias = products.linear_gradients(grad, x, weight)
    assert_near(of_x, grad.double() @ weight.double(), out)
    assert_near(of_weight, grad.double().t() @ x.double(), tokens)
    assert of_bias.dtype == torch.float32
    assert_near(of_bias, grad.double().sum(0), tokens)


@pytest.mark.parametrize("ours", [pytest.param(True, marks=pytest.mark.native), False])
@pytest.mark.parametrize(("wide", "out"), [(40, 24), (24, 40)])
def test_gradients_are_contiguous_as_compilers_are_told(wide: int, out: int, ours: bool) -> None:
    found = products.linear_gradients(
        torch.randn(30, out), torch.randn(30, wide), torch.randn(out, wide), ours=ours
    )
    assert [x.is_contiguous() for x in found] == [True] * 3


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_leading_dimensions(dtype: torch.dtype) -> None:
    x, weight, bias = drawn(3, 40, 96, dtype=dtype), drawn(48, 96, dtype=dtype), drawn(48, dtype=dtype)
    expected = x.double() @ weight.double().t() + bias.double()
    assert_near(products.linear(x, weight, bias), expected, 96)
    assert_near(products.linear(x, weight.t().contiguous().t(), bias), expected, 96)
    some = x[:, ::2]
    assert_near(products.linear(some, weight, bias), expected[:, ::2], 96)
    every_other = drawn(40, 192, dtype=dtype)[:, ::2]  # no stride of 1: copied
    assert_near(products.multiply(every_other, weight.t()), every_other.double() @ weight.double().t(), 96)
    same = drawn(1, 96, dtype=dtype).expand(40, 96)
    assert_near(products.multiply(same, weight.t()), same.double() @ weight.double().t(), 96)


@pytest.mark.native
def test_into_what_is_there_and_nothing_else() -> None:
    """The gradient of x may take the place of x."""
    room = torch.full((10, 37), float("nan"))
    grad, weight, x = (drawn(*s, dtype=torch.float32) for s in ((8, 50), (50, 37), (8, 37)))
    room[1:9] = x
    out = room[1:9]
    found = products.linear_gradients(grad, out, weight, wants_bias=False, out=out)
    assert found.x is out
    assert found.bias is None
    assert_near(out, grad.double() @ weight.double(), 50)
    assert_near(found.weight, grad.double().t() @ x.double(), 8)
    assert room[0].isnan().all()
    assert room[9].isnan().all()
    assert products.linear_gradients(grad, x, weight, wants_x=False).x is None


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nans_stay_where_they_belong(dtype: torch.dtype) -> None:
    x, weight = drawn(70, 64, dtype=dtype), drawn(40, 64, dtype=dtype)
    x[3, 5], x[4, 6] = float("nan"), float("inf")
    made = products.linear(x, weight, None)
    assert made[3].isnan().all()
    assert not made[4].isfinite().any()
    assert made[torch.arange(70).sub(3.5).abs() > 1].isfinite().all()


@pytest.mark.native
def test_the_same_bits_whatever_the_number_of_threads() -> None:
    x, weight = drawn(300, 500, dtype=torch.float32), drawn(200, 500, dtype=torch.float32)
    threads = torch.get_num_threads()
    made = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        made.append(products.multiply(x, weight.t()))
    torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_a_single_vector_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x, weight, bias = torch.randn(512), torch.randn(512, 512), torch.randn(512)
    torch.testing.assert_close(products.linear(x, weight, bias), weight @ x + bias)


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    yield
    products._with_avx2_alone.cache_clear()


@pytest.mark.usefixtures("fresh_choice")
def test_taken_with_avx2_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x, weight = torch.zeros(64, 64), torch.zeros(64, 64)
    for capability in ("AVX512", "DEFAULT", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        products._with_avx2_alone.cache_clear()
        able = capability == "AVX2" and not native.why_not(x.device)
        assert products._serves(x, weight) == able
    assert not products._serves(x[:, :8], weight[:, :8])
    assert not products._serves(torch.zeros(1 << 16), torch.zeros(64, 1 << 16))
    assert not products._serves(x.double(), weight.double())
    assert not products._serves(x, weight.bfloat16())
    assert not products._serves(x.to("meta"), weight.to("meta"))
    monkeypatch.setenv("JEPA_FAST_IMPLEMENTATION", "reference")
    assert not products._serves(x, weight)
