"""The key of a compilation: where two keys are equal, so is the machine code, and so is its record.

Triton's own key of a kernel changes with every line above it, and does not change with a constant that the kernel reads
through a module (`mask.PREFIX`). This one is of the syntax trees, so comments and places do not matter, and of every
value that they name.
"""

import ast
import builtins
import enum
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from ..configuration import KernelConfiguration

_DIGITS = 16  # 64 bits: two of a million keys are equal by chance once in 10^7
# What turns machine code into a record: a record is no longer that of its key when the reader changed.
_READERS = ("compile.py", "hardware.py", "loops.py", "roofline.py", "sass.py")


def compilation_key(configuration: KernelConfiguration, arch: int) -> str:
    """16 hexadecimal digits: of the compiler, the kernel with all it reaches, its arguments and options, and `arch`.

    What the gate expects of a configuration is not in it, nor is its name. It is the same where this process
    interprets kernels. Needs Triton.
    """
    kernel = configuration.kernel
    names = list(kernel.arg_names)
    # In the kernel's order: that of a mapping is free.
    described = [
        (name, configuration.signature.get(name), _text(configuration.constexprs.get(name))) for name in names
    ]
    claimed = sorted(configuration.divisible_by_16)
    # What does not describe its kernel must still have a key of its own, to be refused under it.
    odd = sorted({*configuration.signature, *configuration.constexprs} ^ set(names))
    options = sorted(configuration.options.items())
    return _digest(_compiler(arch), dependencies(kernel), described, odd, claimed, options, arch)


def dependencies(kernel: Any) -> str:
    """A digest of the kernel's source, of all functions that it reaches, and of all constants that they name."""
    return _dependencies(_function(kernel))


@functools.cache
def _dependencies(kernel: FunctionType) -> str:
    waiting = [kernel]
    found: dict[str, list[str]] = {}
    while waiting:
        function = waiting.pop()
        name = _qualified(function)
        if name in found:
            continue
        tree = _tree(function)
        found[name] = [_dump(tree)]
        nonlocals = inspect.getclosurevars(function).nonlocals if isinstance(function, FunctionType) else {}
        for text, value in _references(tree, {**_globals(function), **nonlocals}):
            callee = _function(value)
            if _is_foreign(value if callee is None else callee):
                continue  # the compiler's version stands for it
            if callee is not None:
                waiting.append(callee)
            found[name].append(f"{text} = {_text(value)}")
    return _digest(_qualified(kernel), sorted(found.items()))


def _references(tree: ast.AST, scope: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The names of the tree that are not its own, `a.b` among them, and their values."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name | ast.Attribute):
            continue
        names: list[str] = []
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            names.append(root.attr)
            root = root.value
        if not isinstance(root, ast.Name) or root.id not in scope:
            continue
        value = scope[root.id]
        # Through modules alone: an attribute of a value follows from the value.
        for name in reversed(names):
            value = getattr(value, name, None) if isinstance(value, ModuleType) else None
        if value is not None and not isinstance(value, ModuleType):
            yield ".".join([root.id, *reversed(names)]), value


def _function(value: Any) -> Any:
    """The Python function (or class) behind a compiled or interpreted kernel; None for any other value."""
    if isinstance(value, FunctionType) or inspect.isclass(value):
        return value
    inner = getattr(value, "fn", None)
    return inner if isinstance(inner, FunctionType) else None


def _is_foreign(value: Any) -> bool:
    """Whether it comes with the compiler, PyTorch or Python, not with a room."""
    if _is_constexpr(value):
        return False
    module = getattr(value, "__module__", None) or type(value).__module__
    if _function(value) is None:
        return False
    return module.partition(".")[0] in (
        "triton",
        "torch",
        "builtins",
        "typing",
        "enum",
        "math",
        "collections",
    )


def _is_constexpr(value: Any) -> bool:
    return type(value).__name__ == "constexpr" and hasattr(value, "value")


def _text(value: Any) -> str:
    """A value as text, the same in every process."""
    if _is_constexpr(value):
        return _text(value.value)
    function = _function(value)
    if function is not None:
        return (
            f"{_qualified(function)}" if _is_foreign(function) else f"{_qualified(function)} {_own(function)}"
        )
    if isinstance(value, enum.Enum):
        return f"{_qualified(type(value))}.{value.name}={_text(value.value)}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}({', '.join(map(_text, value))})"
    if isinstance(value, dict):
        return f"dict({', '.join(f'{_text(k)}: {_text(v)}' for k, v in value.items())})"
    text = repr(value)
    return f"{_qualified(type(value))} {'' if ' at 0x' in text else text}"


def _own(function: Any) -> str:
    return _digest(_dump(_tree(function)))


def _qualified(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _globals(function: Any) -> Mapping[str, Any]:
    if isinstance(function, FunctionType):
        return function.__globals__
    module = inspect.getmodule(function)  # of a class
    return vars(builtins if module is None else module)


@functools.cache
def _tree(function: Callable[..., Any] | type) -> ast.AST:
    """Its syntax tree without docstrings."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return _without_docstrings(tree)


def _dump(node: Any) -> str:
    """The tree as text, the same in every version of Python: what a node does not have is left out."""
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__}:{node.value!r}"
    if isinstance(node, list):
        return f"[{', '.join(map(_dump, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [f"{name}={_dump(value)}" for name, value in ast.iter_fields(node) if value not in (None, [])]
    return f"{type(node).__name__}({', '.join(fields)})"


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return tree


@functools.cache
def _compiler(arch: int) -> str:
    """The compiler's version, its assembler's, its settings, and the reader of what it makes."""
    import triton
    from triton import knobs
    from triton._C.libtriton import get_cache_invalidating_env_vars

    assembler = knobs.nvidia.ptxas_blackwell if arch >= 100 else knobs.nvidia.ptxas
    here = Path(__file__)
    readers = [_dump(_without_docstrings(ast.parse(here.with_name(name).read_text()))) for name in _READERS]
    settings = sorted(get_cache_invalidating_env_vars().items())
    return _digest(triton.__version__, assembler.version, settings, readers)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:_DIGITS]
