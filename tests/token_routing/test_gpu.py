"""What only a GPU can show of token routing; test_triton.py runs its numerics there, too."""

import os
import subprocess
import sys

import pytest
import torch

from jepa_fast import assemble_predictor_tokens, explain, gather_tokens, pack_tokens

pytestmark = pytest.mark.gpu


def test_triton_is_chosen(draw_gather, draw_assembly) -> None:
    assert explain(gather_tokens, *draw_gather(device="cuda")[:2]).chosen == "triton"
    assert explain(assemble_predictor_tokens, *draw_assembly(device="cuda"), num_context=2).chosen == "triton"


def test_captured_graph_reads_inputs_anew_without_synchronisation(draw_gather, draw_assembly) -> None:
    x, index, position = draw_gather(features=384, device="cuda")
    context, *rest, mask_token = draw_assembly(features=384, device="cuda")
    leaves = [t.requires_grad_() for t in (x, context, mask_token)]

    def step() -> list[torch.Tensor]:
        out = gather_tokens(x, index, position=position)
        assembled = assemble_predictor_tokens(context, *rest, mask_token, num_context=2)
        return [out, assembled, *torch.autograd.grad([out, assembled], leaves, [out, assembled])]

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
        x.normal_()
        index.copy_(index.flip(1))
        context.normal_()
    graph.replay()
    for ours, expected in zip(found, step(), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_bit_equal_again(draw_gather, draw_assembly, differentiated, dtype) -> None:
    x, index, position = draw_gather(16, 64, 4, 60, 384, (dtype, torch.float32), repeats=True, device="cuda")
    context, *indices, table, token = draw_assembly(
        16, 256, 1, 4, 80, 44, 384, (dtype, torch.float32), device="cuda"
    )

    def run() -> list[torch.Tensor]:
        gathered = differentiated(lambda x, p: gather_tokens(x, index, position=p), (x, position))
        assembled = differentiated(
            lambda c, p, m: assemble_predictor_tokens(c, *indices, p, m), (context, table, token)
        )
        return [*gathered, *assembled]

    first = run()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


def test_a_pack_stays_on_its_device(draw_gather) -> None:
    x, index, _ = draw_gather(device="cuda")
    packed = pack_tokens(x, [index, index[:2, :3]])
    assert {packed.tokens.device, packed.ids.device, packed.mask.cu_seqlens_q.device} == {x.device}


CHECKED = """
import torch
from jepa_fast import gather_tokens
index = torch.full((2, 3), 8, device="cuda")
gather_tokens(torch.zeros(2, 8, 16, device="cuda"), index)
torch.cuda.synchronize()
"""


def test_values_are_asserted_on_the_device_where_asked() -> None:
    environment = {**os.environ, "JEPA_FAST_CHECK": "1"}
    done = subprocess.run([sys.executable, "-c", CHECKED], capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert "index: expected values in [0, 8)" in done.stderr or "device-side assert" in done.stderr
