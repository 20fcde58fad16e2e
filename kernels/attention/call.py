"""What an implementation of `masked_attention` is asked to do, apart from its three tensors.

An implementation is a module with three functions. `api.py` has checked all arguments and brought them into this form:

    why_not(call, query, key, value) -> list[str]
        the reasons why it cannot serve; empty if it can
    forward(call, query, key, value) -> (out, lse)
        out: the dtype and shape of query, contiguous
        lse: float32 (float64 for float64 inputs), contiguous, `[B, Hq, Nq]` or packed `[Hq, total_q]`: the natural
            logarithm of the sum over the keys seen of exp(scale * <rotated q, rotated k>); -inf where a query sees none
    backward(call, query, key, value, out, lse, grad_out) -> (dq, dk, dv)
        in the dtype and shape of query, key and value, contiguous; with respect to the unrotated query and key

query `[B, Nq, Hq, D]`, key and value `[B, Nk, Hk, D]`, or packed `[total_q, Hq, D]` and `[total_k, Hk, D]` under a
`packed` mask. They and grad_out have a contiguous last dimension and any other strides, 0 among them, one dtype and
one device. Hk divides Hq: query head h reads key head `h // (Hq // Hk)`. No dimension is 0.
A sequence of a packed call may be empty.

query and key come unrotated: an implementation rotates them by `call.rope_query` and `call.rope_key` itself, inside its
loops or in a pass before, and turns their gradients back by the transpose. A query that sees no key has an output row
of zeros, and gives no gradient to anything.

The backward is deterministic where `torch.are_deterministic_algorithms_enabled()`.
"""

from dataclasses import dataclass

from ..rope.tables import Tables
from .masks import Mask


@dataclass(frozen=True)
class Call:
    """mask: None sees every key. rope_query, rope_key: both or neither; rows run over queries and over keys.
    scale: of the logits, before the softmax."""

    mask: Mask | None
    rope_query: Tables | None
    rope_key: Tables | None
    scale: float
