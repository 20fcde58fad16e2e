"""Which teacher tensor follows which student tensor."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from .shards import placement

Teacher = Mapping[Tensor, Tensor] | Iterable[Tensor | None] | Iterable[tuple[Tensor, Tensor]]
Pairs = list[tuple[Tensor, Tensor]]  # student, teacher


def pair(teacher: Teacher, parameters: Sequence[Tensor]) -> Pairs:
    """The pairs of any form that `AdamWEMA` accepts. Raises ValueError or TypeError."""
    if isinstance(teacher, Mapping):
        return list(teacher.items())
    entries = list(teacher)
    if all(entry is None or isinstance(entry, Tensor) for entry in entries):
        if len(entries) != len(parameters):
            raise ValueError(
                f"teacher: expected {len(parameters)} entries, one per parameter and None for one without teacher, "
                f"got {len(entries)}"
            )
        return [(p, entry) for p, entry in zip(parameters, entries, strict=True) if isinstance(entry, Tensor)]
    pairs = []
    for i, entry in enumerate(entries):
        if (
            not isinstance(entry, Sequence)
            or len(entry) != 2
            or not all(isinstance(t, Tensor) for t in entry)
        ):
            raise TypeError(
                f"teacher[{i}]: expected a (teacher, student) pair of tensors, got {type(entry).__name__}"
            )
        pairs.append((entry[1], entry[0]))
    return pairs


def check_pairs(pairs: Pairs, known: Mapping[Tensor, Tensor], names: Mapping[Tensor, str]) -> None:
    """Whether the pairs match and are new. Raises ValueError or TypeError that names the first one that does not."""
    followed = set(known)
    followers = set(known.values())
    for i, (student, teacher) in enumerate(pairs):
        label = f"teacher[{i}]" + (f" ({names[student]})" if student in names else "")
        for what, of_teacher, of_student in (
            ("shape", list(teacher.shape), list(student.shape)),
            ("device", teacher.device, student.device),
            ("placement", placement(teacher), placement(student)),
        ):
            if of_teacher != of_student:
                raise ValueError(f"{label}: expected {what} {of_student} of its student, got {of_teacher}")
        if teacher.is_complex() or student.is_complex():
            raise TypeError(f"{label}: expected real dtypes, got {teacher.dtype} for {student.dtype}")
        if teacher.dtype != student.dtype and not (
            teacher.is_floating_point() and student.is_floating_point()
        ):
            raise TypeError(f"{label}: expected a dtype that goes with {student.dtype}, got {teacher.dtype}")
        if student in followed or teacher in followers:
            twice = "a student that no other teacher follows" if student in followed else "another tensor"
            raise ValueError(f"{label}: expected {twice}, got one for the second time")
        followed.add(student)
        followers.add(teacher)
