"""Latent prediction loss on the GPU: one program per selected row, the row in registers.

One form serves every kind of loss (settings.py), so kinds, normalisation and the index are run-time arguments:
what is compiled depends on the two dtypes and the width alone.
"""

# mypy: allow-untyped-defs
import functools
import itertools
from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.configuration import KernelConfiguration
from ..runtime.launch import launch
from .index import check_values
from .settings import Settings

_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_MIN_BLOCK, _MAX_FEATURES = 256, 8192
_SAMPLED_BLOCK = 1024
_VALUES_PER_WARP = 512  # 16 values per lane and operand: enough loads in flight, no spill at 8192 features
# Triton compiles anew for integers that are 1 or multiples of 16. Only the second is worth it, and only where an
# address is formed from it: then a whole row moves in 16-byte accesses.
_UNSPECIALIZED = ("tokens", "samples", "index_groups", "length", "normalize")
_ADDRESSING = (
    "stride_prediction",
    "stride_prediction_token",
    "stride_target",
    "stride_target_token",
    "features",
)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def latent_loss_kernel(
    p_prediction,  # [P, K, D]
    p_target,  # [B, N, D]
    p_index,  # int64 [index_groups, K]; not read if index_groups is 0
    p_row_loss,  # float32 [P * K]
    p_upstream,  # float32 [1], read if GRADIENT
    p_gradient,  # [P, K, D], contiguous, written if GRADIENT
    tokens,
    samples,
    index_groups,
    length,
    stride_prediction,
    stride_prediction_token,
    stride_target,
    stride_target_token,
    features,
    normalize,
    eps,
    beta,
    quadratic,
    offset,
    count,  # P * K * D
    GRADIENT: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    i_group, i_token = i_row // tokens, i_row % tokens
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < features
    source = i_token
    if index_groups > 0:
        source = tl.load(p_index + (i_group % index_groups) * tokens + i_token)
    inside = (source >= 0) & (source < length)
    p_row = p_prediction + i_group * stride_prediction + i_token * stride_prediction_token
    p_goal = (
        p_target + (i_group % samples) * stride_target + tl.where(inside, source, 0) * stride_target_token
    )
    b_prediction = tl.load(p_row + o_d, mask=m_d, other=0.0).to(tl.float32)  # [BLOCK_D]
    b_goal = tl.load(p_goal + o_d, mask=m_d, other=0.0).to(tl.float32)  # [BLOCK_D]
    if normalize != 0:
        mean = tl.sum(b_goal, axis=0) / features
        b_goal = tl.where(m_d, b_goal - mean, 0.0)  # [BLOCK_D]
        variance = tl.sum(b_goal * b_goal, axis=0) / features
        b_goal = b_goal * (1.0 / tl.sqrt(variance + eps))  # [BLOCK_D]
    # A host check of the index would stop the stream: a row outside the target shows as NaN instead.
    b_difference = tl.where(inside, b_prediction - b_goal, float("nan"))  # [BLOCK_D]
    b_size = tl.abs(b_difference)  # [BLOCK_D]
    b_loss = tl.where(b_size < beta, b_size * b_size * quadratic, b_size - offset)  # [BLOCK_D]
    tl.store(p_row_loss + i_row, tl.sum(tl.where(m_d, b_loss, 0.0), axis=0))
    if GRADIENT:
        b_sign = tl.where(b_difference > 0, 1.0, tl.where(b_difference < 0, -1.0, 0.0))  # [BLOCK_D]
        # What is not a number takes the second branch and stays so.
        b_slope = tl.where(b_size > beta, b_sign, b_difference * (2.0 * quadratic))  # [BLOCK_D]
        b_gradient = b_slope * (tl.load(p_upstream) / count)  # [BLOCK_D]
        tl.store(p_gradient + i_row * features + o_d, b_gradient.to(p_gradient.dtype.element_ty), mask=m_d)


@functools.cache
def _configuration(
    gradient: bool, prediction: torch.dtype, target: torch.dtype, block_d: int, aligned: bool
) -> KernelConfiguration:
    pointers = {
        "p_prediction": f"*{_TYPES[prediction]}",
        "p_target": f"*{_TYPES[target]}",
        "p_index": "*i64",
        "p_row_loss": "*fp32",
        "p_upstream": "*fp32",
        "p_gradient": f"*{_TYPES[prediction]}",
    }
    integers = ("tokens", "samples", "index_groups", "length", *_ADDRESSING, "normalize")
    floats = ("eps", "beta", "quadratic", "offset", "count")
    name = f"latent_loss{'_gradient' if gradient else ''}/{_TYPES[prediction]}-{_TYPES[target]}/BLOCK_D={block_d}"
    widest = 128 if aligned else 0
    return KernelConfiguration(
        name=name + ("" if aligned else "/unaligned"),
        kernel=latent_loss_kernel,
        signature={**pointers, **dict.fromkeys(integers, "i32"), **dict.fromkeys(floats, "fp32")},
        constexprs={"GRADIENT": gradient, "BLOCK_D": block_d},
        divisible_by_16=(*pointers, *_ADDRESSING) if aligned else (),
        num_warps=max(1, block_d // _VALUES_PER_WARP),
        sampled=_is_sampled(gradient, prediction, target, block_d, aligned),
        expected_load_bits=widest,
        expected_store_bits=widest if gradient else 0,
    )


def _is_sampled(
    gradient: bool, prediction: torch.dtype, target: torch.dtype, block_d: int, aligned: bool
) -> bool:
    """The pairs of types that training has at one size, one of them unaligned, and the gradient at every size, which
    does all that the loss does."""
    if block_d != _SAMPLED_BLOCK:
        return gradient and aligned and prediction == target == torch.bfloat16
    if not aligned:
        return prediction == target == torch.bfloat16
    return prediction == target or torch.float16 not in (prediction, target)


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that the launcher can pick."""
    block_d = _MIN_BLOCK
    while block_d <= _MAX_FEATURES:
        for gradient, prediction, target, aligned in itertools.product(
            (False, True), _TYPES, _TYPES, (True, False)
        ):
            yield _configuration(gradient, prediction, target, block_d, aligned)
        block_d *= 2


def why_not(prediction: Tensor, target: Tensor) -> list[str]:
    reasons = [
        f"{name} is {tensor.dtype}; the kernel takes float32, bfloat16 and float16"
        for name, tensor in (("prediction", prediction), ("target", target))
        if tensor.dtype not in _TYPES
    ]
    if prediction.shape[-1] > _MAX_FEATURES:
        reasons.append(f"D is {prediction.shape[-1]}; the kernel holds at most {_MAX_FEATURES} in registers")
    return reasons


def loss_and_gradient(
    prediction: Tensor, target: Tensor, index: Tensor | None, settings: Settings, upstream: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    check_values(index, target)
    groups, tokens, features = prediction.shape
    rows, device = groups * tokens, prediction.device
    row_loss = torch.empty(rows, dtype=torch.float32, device=device)
    gradient = (
        None if upstream is None else torch.empty(prediction.shape, dtype=prediction.dtype, device=device)
    )
    addressing = (prediction.stride(0), prediction.stride(1), target.stride(0), target.stride(1), features)
    aligned = not any(n % 16 for n in (*addressing, prediction.data_ptr(), target.data_ptr()))
    block_d = max(_MIN_BLOCK, triton.next_power_of_2(features))
    if rows:
        launch(
            _configuration(gradient is not None, prediction.dtype, target.dtype, block_d, aligned),
            (rows,),
            prediction,
            target,
            # What is not read still has to be a pointer of the declared type.
            torch.empty(1, dtype=torch.int64, device=device) if index is None else index,
            row_loss,
            row_loss if upstream is None else upstream,
            prediction if gradient is None else gradient,
            tokens,
            target.shape[0],
            0 if index is None else index.shape[0],
            target.shape[1],
            *addressing,
            int(settings.normalize_target),
            settings.eps,
            *settings.penalty(),
            float(prediction.numel()),
        )
    return row_loss.sum() / float(prediction.numel()), gradient
