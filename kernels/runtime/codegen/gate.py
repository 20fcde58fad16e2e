"""The code-generation gate: what fails a record, by itself and against the record stored in git."""

from typing import NamedTuple

from ..configuration import KernelConfiguration
from .compile import WIDE_BITS, CodegenRecord
from .hardware import ARCHITECTURES, REGISTER_UNIT

GROWTH_BUDGET = 0.10
"""A record may grow by this share over the stored one of the same architecture."""
SLACK = {
    "registers": REGISTER_UNIT,  # less changes no allocation by more than one unit
    "shared_bytes": 1024,
    "instructions": 16,  # a prologue changes by this much; only for a tiny kernel is that a large share
    "main_loop_instructions": 4,
}
"""Growth up to this much passes, whatever its share."""


class Failure(NamedTuple):
    """One line that says what is wrong, and what kind of instruction shows it: "spill", "load", "store" (a narrow one),
    "tensor" (what multiplies instead), "loop" (the main loop), or "" where none does."""

    message: str
    kind: str


def check(
    record: CodegenRecord, configuration: KernelConfiguration, baseline: CodegenRecord | None = None
) -> list[Failure]:
    """Why `record` fails; empty if it passes.

    By itself: a spill, a global access narrower than the configuration promises, no tensor-core instruction
    where promised, more shared memory than a block can have. Against `baseline`, the stored record of the
    same configuration and architecture: registers, shared memory or instructions grown past the budget, and
    a kind of tensor-core instruction, asynchronous copies or 128-bit accesses lost.
    """
    failures = _absolute(record, configuration)
    if baseline is not None:
        failures += _growth(record, baseline) + _lost(record, baseline)
    return [Failure(f"{record.label}: {message}", kind) for message, kind in failures]


def _absolute(record: CodegenRecord, configuration: KernelConfiguration) -> list[Failure]:
    failures = []
    if record.stack_bytes or record.local_loads or record.local_stores:
        spilled = (
            f"spills: {record.stack_bytes} B of stack, {record.local_loads} local loads, "
            f"{record.local_stores} local stores"
        )
        failures.append(Failure(spilled, "spill"))
    limit = ARCHITECTURES[record.arch].shared_per_block
    if record.shared_bytes > limit:
        over = f"shared memory: {record.shared_bytes} B is over the limit of {limit} B per block"
        failures.append(Failure(over, ""))
    for access, widths, expected in (
        ("load", record.loads, configuration.expected_load_bits),
        ("store", record.stores, configuration.expected_store_bits),
    ):
        widest = max(widths, default=0)
        if widest < expected:
            narrow = f"expected a {expected}-bit global {access}, the widest has {widest} bits"
            failures.append(Failure(narrow, access))
    if configuration.expected_tensor_core and not record.tensor_core:
        failures.append(Failure("expected tensor-core instructions, found none", "tensor"))
    return failures


def _growth(record: CodegenRecord, baseline: CodegenRecord) -> list[Failure]:
    failures = []
    for field, slack in SLACK.items():
        before, now = getattr(baseline, field), getattr(record, field)
        if now > before + max(slack, GROWTH_BUDGET * before):
            grew = f"{field.replace('_', ' ')} grew from {before} to {now}, past the budget"
            failures.append(Failure(grew, "" if field == "shared_bytes" else "loop"))
    return failures


def _lost(record: CodegenRecord, baseline: CodegenRecord) -> list[Failure]:
    failures = []
    # By kind, since HMMA in place of HGMMA or UTCHMMA runs at a fraction of the rate; the counts are unrolling.
    gone = sorted(baseline.tensor_core.keys() - record.tensor_core.keys())
    if gone:
        now = ", ".join(sorted(record.tensor_core)) or "none"
        failures.append(Failure(f"tensor-core instructions: lost {', '.join(gone)}, now {now}", "tensor"))
    if baseline.asynchronous_copies and not record.asynchronous_copies:
        lost = f"lost its {baseline.asynchronous_copies} asynchronous copies"
        failures.append(Failure(lost, "loop"))
    for access, wide_field in (("loads", "wide_loads"), ("stores", "wide_stores")):
        wide, was_wide = getattr(record, wide_field), getattr(baseline, wide_field)
        narrow = sum(getattr(record, access).values()) - wide
        was_narrow = sum(getattr(baseline, access).values()) - was_wide
        # Fewer wide accesses alone can be less unrolling; narrow ones in their place are lost vectorisation.
        if wide < was_wide and narrow > was_narrow:
            lost = (
                f"{WIDE_BITS}-bit {access} fell from {was_wide} to {wide} "
                f"while narrower ones rose from {was_narrow} to {narrow}"
            )
            failures.append(Failure(lost, access.removesuffix("s")))
    return failures
