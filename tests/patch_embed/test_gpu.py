"""What only a GPU can show of patch embedding; test_triton.py runs its numerics there, too."""

import pytest
import torch

from jepa_fast import explain, masked_patch_embed, patchify
from jepa_fast.bench.measure import peak_memory

pytestmark = pytest.mark.gpu


def test_triton_is_chosen(problem) -> None:
    p = problem(device="cuda")
    assert explain(masked_patch_embed, p.pixels, p.weight, p.bias, p.index).chosen == "triton"
    assert explain(patchify, p.pixels, 8).chosen == "triton"


@pytest.mark.parametrize("pixels", [torch.uint8, torch.float32])
def test_captured_graph_reads_inputs_anew_without_synchronisation(problem, pixels: torch.dtype) -> None:
    p = problem((16, 16), pixels=pixels, normalize=True, dtype=torch.bfloat16, features=384, device="cuda")
    leaves = [x.requires_grad_() for x in p.leaves]

    def step() -> list[torch.Tensor]:
        out = p.ours("auto")(*leaves)
        return [out, *torch.autograd.grad(out, leaves, out)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, as PyTorch asks before a capture
        step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        p.pixels.copy_(p.pixels.flip(0))
        p.index.copy_(p.index.flip(1))
    graph.replay()
    for ours, expected in zip(found, step(), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("large", [True, False])
def test_published_sizes(problem, large: bool) -> None:
    samples = 64 if large else 4
    p = problem((14, 14), (16, 16), samples=samples, masks=1, kept=68, features=1280, dtype=torch.bfloat16,
                pixels=torch.uint8, normalize=True, device="cuda")  # fmt: skip
    p.hold("triton")


def test_memory_is_a_third_of_embedding_all(problem, differentiated) -> None:
    p = problem(
        (16, 16), (14, 14), samples=32, masks=1, kept=49, features=768, dtype=torch.bfloat16, device="cuda"
    )
    leaves = [p.weight, p.bias]

    def peak(call) -> int:
        return peak_memory(lambda: differentiated(lambda w, b: call(w, b, p.position), leaves), "cuda")

    p.hold("triton")
    assert peak(p.ours("auto")) <= peak(p.eager) / 3
