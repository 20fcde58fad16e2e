"""The entry point `jepa-fast`: reads the command line, runs one command, turns errors into one line."""

import contextlib
import functools
import importlib.metadata
import inspect
import io
import operator
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from jepa_fast.commands import bench, codegen, compare, doctor, export, probe, report, train
from jepa_fast.commands.errors import UsageError

DESCRIPTION = """Accelerated training of joint-embedding predictive architectures (JEPA).

`jepa-fast COMMAND --help` explains a command, `jepa-fast --version` prints the version.
With JEPA_FAST_DEBUG=1 in the environment an error shows where it comes from."""

# A command is a dataclass, whose fields are its arguments, and a function from it to the exit code.
COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "train": (train.Train, train.run),
    "probe": (probe.Probe, probe.run),
    "bench": (bench.Bench, bench.run),
    "compare": (compare.Compare, compare.run),
    "export": (export.Export, export.run),
    "report": (report.Report, report.run),
    "codegen": (codegen.Codegen, codegen.run),
    "doctor": (doctor.Doctor, doctor.run),
}

# Where the defaults of a command come from, if not from its dataclass.
DEFAULTS: dict[str, Callable[[Sequence[str]], Any]] = {"train": train.from_file}

BAD_USAGE = 2  # as tyro exits
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
CLOSED_PIPE = 141  # 128 + SIGPIPE

# In the message of these library code names the argument, the system the file; any other exception is a fault of the
# program.
_BAD_ARGUMENT = (UsageError, ValueError, OSError)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that `argv` (default: the process's arguments) asks for and exit with its code.

    Exit code: the command's own, 1 if the program fails, 2 for bad usage or a file that cannot be read or written,
    130 if interrupted.
    """
    code = 0
    try:
        try:
            code = _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()  # the reader has gone (`| head`)
        code = CLOSED_PIPE
    except OSError as error:  # a full disk behind stdout, which the command may have met and told already
        _discard_stdout()
        code = code or _fail(f"error: stdout: {_message(error)}", BAD_USAGE)
    except KeyboardInterrupt:
        code = _fail("interrupted", INTERRUPTED)
    sys.exit(code)


def _run(argv: list[str]) -> int:
    if argv == ["--version"]:
        print(f"jepa-fast {importlib.metadata.version('jepa-fast')}")
        return 0
    if argv and argv[0] not in COMMANDS and not argv[0].startswith("-"):
        return _fail(f"error: command: expected one of {', '.join(COMMANDS)}, got {argv[0]}", BAD_USAGE)
    if not argv or argv[0] not in COMMANDS:
        _overview(argv)
    arguments, run = COMMANDS[argv[0]]
    try:
        default = DEFAULTS[argv[0]](argv[1:]) if argv[0] in DEFAULTS else None
        description = inspect.getdoc(arguments) or ""
        return run(_parse(arguments, argv[1:], f"jepa-fast {argv[0]}", description, default))
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get("JEPA_FAST_DEBUG") == "1":
            raise
        if isinstance(error, _BAD_ARGUMENT):
            return _fail(f"error: {_message(error)}", BAD_USAGE)
        return _fail(f"failed: {type(error).__name__}: {_message(error)} (JEPA_FAST_DEBUG=1 shows where)", 1)


def _discard_stdout() -> None:
    """Python's own flush at exit must not complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _overview(argv: list[str]) -> None:
    """Show the commands, or what is wrong with the command's name, and exit."""
    forms = []
    for name, (arguments, _) in COMMANDS.items():
        summary = " ".join((inspect.getdoc(arguments) or "").partition("\n\n")[0].split())
        forms.append(Annotated[arguments, tyro.conf.subcommand(name, description=summary)])
    _parse(functools.reduce(operator.or_, forms), argv, "jepa-fast", DESCRIPTION)


def _parse(form: Any, argv: list[str], prog: str, description: str, default: Any = None) -> Any:
    # tyro joins lines that start with a letter and leaves the wrapping to the terminal, which breaks words.
    wrap = textwrap.TextWrapper(
        shutil.get_terminal_size().columns, initial_indent="  ", subsequent_indent="  "
    )
    wrapped = "\n".join(wrap.fill(paragraph) for paragraph in description.split("\n\n"))
    config = (tyro.conf.FlagCreatePairsOff,)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = {} if default is None else {"default": default}
            args = getattr(form, "arguments", list)(argv)  # without those that the command reads itself
            return tyro.cli(form, prog=prog, args=args, description=wrapped, config=config, **options)
    except SystemExit as stop:
        if stop.code == BAD_USAGE:
            _fail(f"error: {_unboxed(complaint.getvalue())} ({prog} --help)", BAD_USAGE)
        raise


def _unboxed(complaint: str) -> str:
    """The message inside the frame that tyro draws: its text up to the rule, or to the bottom."""
    lines = []
    for line in complaint.splitlines():
        text = line.strip().strip("│").strip()
        if text.startswith(("─", "╰")):
            break
        if not text.startswith("╭"):
            lines.append(text)
    text = " ".join(lines)
    refusal = re.search(
        r"Error parsing \w+: (.*?)(?: -{5,}|$)", text
    )  # what a dataclass says about its fields
    return refusal[1] if refusal else text


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _fail(message: str, code: int) -> int:
    """One line on stderr."""
    print(f"jepa-fast: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":  # torchrun -m
    main()
