"""Token routing inside `torch.compile`, and its registrations."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from jepa_fast import assemble_predictor_tokens, gather_tokens, pack_tokens


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])  # the last by the reference
@pytest.mark.parametrize("learned", [True, False])
def test_one_graph_forward_and_backward(
    draw_gather, draw_assembly, differentiated, dtype, learned: bool
) -> None:
    x, index, position = draw_gather(dtypes=(dtype, torch.float32))
    context, context_index, target_index, table, mask_token = draw_assembly(dtypes=(dtype, torch.float32))

    def step(x: Tensor, position: Tensor, context: Tensor, table: Tensor, mask_token: Tensor) -> Tensor:
        if not learned:
            position, table = position.detach(), table.detach()
        gathered = gather_tokens(1.5 * x, index, position=position)
        packed = pack_tokens(x, [index, index[:2, :1]])
        assembled = assemble_predictor_tokens(
            2.0 * context, context_index, target_index, table, mask_token, num_context=2
        )
        ends = packed.mask.cu_seqlens_q[1:]
        return torch.cat([gathered.flatten(), packed.tokens.flatten(), assembled.flatten(), ends])

    leaves = [t.requires_grad_() for t in (x, position, context, table, mask_token)]
    wanted = leaves if learned else [x, context, mask_token]
    counter = CompileCounterWithBackend("aot_eager")
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=counter)):
        out = function(*leaves)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        results.append((out.detach(), *torch.autograd.grad(out, wanted, upstream)))
    assert counter.frame_count == 1
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_bad_index_values_still_raise(draw_gather) -> None:
    x, index, _ = draw_gather()
    index[0, 0] = 24
    compiled = torch.compile(gather_tokens, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"values in \[0, 24\), got 24 at \[0, 0\]"):
        compiled(x, index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(draw_gather, draw_assembly, dtype: torch.dtype) -> None:
    ops = torch.ops.jepa_fast
    x, index, position = draw_gather(dtypes=(dtype, torch.float32))
    x.requires_grad_()
    indices = [index, index[:2, :2]]
    torch.library.opcheck(ops.gather_tokens.default, (x, indices, position, torch.float32, "auto"))
    torch.library.opcheck(ops.gather_tokens.default, (x, indices[:1], None, dtype, "auto"))
    grad = torch.randn(24, 33)
    torch.library.opcheck(ops.gather_tokens_backward.default, (grad, indices, 2, 24, dtype, "auto"))
    context, *rest, mask_token = draw_assembly(dtypes=(dtype, torch.float32))
    arguments = (context.requires_grad_(), *rest, mask_token.requires_grad_(), 2, torch.float32, "auto")
    torch.library.opcheck(ops.assemble_predictor_tokens.default, arguments)
    grad = torch.randn(12, 12, 33)
    torch.library.opcheck(ops.assemble_predictor_tokens_backward.default, (grad, 4, 7, dtype, "auto"))
