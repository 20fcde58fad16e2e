"""The loops of a kernel's machine code, found in its control flow."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from .sass import Instruction

_NO_SUCCESSOR = {"EXIT", "RET", "BRX", "JMX"}
Edges = Sequence[Sequence[int]]


def largest_loop(instructions: Sequence[Instruction]) -> int:
    """Instructions of the largest cycle of the control flow, loops inside it included; 0 if there is none.

    A backward branch alone is no loop: rarely taken code (the wait on a barrier, say) stands behind the
    kernel and jumps back into straight-line code. A loop is all that its head reaches and that reaches the
    branch back to it.
    """
    successors, predecessors, backward = _flow(instructions)
    loops = (_reachable(head, successors) & _reachable(tail, predecessors) for tail, head in backward)
    return max((len(loop) for loop in loops), default=0)


def main_loop(
    instructions: Sequence[Instruction], weigh: Callable[[Sequence[Instruction]], Any]
) -> list[Instruction]:
    """The instructions of the loop with the most work of its own; empty if there is none.

    weigh: gives a loop's work as something that compares. What is in a loop inside a loop is that one's work, so that
    a kernel's innermost work is found whatever stands around it, and waits on barriers count for nothing.
    """
    _, predecessors, backward = _flow(instructions)
    loops: dict[int, set[int]] = {}
    for tail, head in backward:
        body = _reachable(tail, predecessors, stop=head)
        # Entered at its head alone: otherwise it is straight-line code that a branch from behind comes back to.
        if 0 not in body or head == 0:
            loops.setdefault(head, set()).update(body)
    own = []
    for head, body in loops.items():
        inner = [other for h, other in loops.items() if h != head and h in body and other < body]
        own.append([instructions[i] for i in sorted(body.difference(*inner))])
    return max(own, key=weigh, default=[])


def _flow(instructions: Sequence[Instruction]) -> tuple[Edges, Edges, list[tuple[int, int]]]:
    """Successors and predecessors of each instruction, and the branches back as tail and head."""
    addresses = [instruction.address for instruction in instructions]
    successors: list[list[int]] = [[] for _ in instructions]
    predecessors: list[list[int]] = [[] for _ in instructions]
    backward: list[tuple[int, int]] = []
    for i, instruction in enumerate(instructions):
        if instruction.target is not None:
            target = bisect_left(addresses, instruction.target)  # past the padding that it may point to
            successors[i].append(target)
            if target <= i:
                backward.append((i, target))
        leaves = instruction.target is not None or instruction.base in _NO_SUCCESSOR
        if instruction.conditional or not leaves:
            successors[i].append(i + 1)
        successors[i] = [successor for successor in successors[i] if successor < len(instructions)]
        for successor in successors[i]:
            predecessors[successor].append(i)
    return successors, predecessors, backward


def _reachable(start: int, edges: Edges, stop: int | None = None) -> set[int]:
    """All that `start` leads to, itself included; the walk ends at `stop`, which is included, too."""
    seen = {start} if stop is None else {start, stop}
    waiting = [start] if start != stop else []
    while waiting:
        for neighbour in edges[waiting.pop()]:
            if neighbour not in seen:
                seen.add(neighbour)
                waiting.append(neighbour)
    return seen
