"""The command line as a whole: help, exit codes, one line for an error."""

import errno
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from jepa_fast.commands import main as entry
from jepa_fast.commands.errors import UsageError


@dataclass(frozen=True)
class Fake:
    """A command that fails.

    As it is told.
    """


def call(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `jepa-fast *argv`."""
    with pytest.raises(SystemExit) as exit_:
        entry.main(argv)
    out, err = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, out, err


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("columns", [80, 120])
def test_overview_names_every_command(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = call(["--help"], capsys)
    assert code == 0
    for name in entry.COMMANDS:
        assert f"• {name} " in out
    assert max(map(len, out.splitlines())) <= columns


@pytest.mark.parametrize("name", entry.COMMANDS)
def test_each_command_explains_itself(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call([name, "--help"], capsys)
    assert code == 0
    assert out.startswith(f"usage: jepa-fast {name} ")
    _, rest = out.split("\n", 1)
    assert max(map(len, rest.splitlines())) <= 80
    arguments, _ = entry.COMMANDS[name]
    assert str(arguments.__doc__).split("\n", 1)[0].split()[0] in rest


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(["--version"], capsys)
    assert code == 0
    assert out.startswith("jepa-fast ")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "train, probe, bench, compare, export, report, codegen, doctor"),
        (["nonsense"], "nonsense"),
        (["codegen", "--nonsense"], "--nonsense"),
        (["codegen", "--arch", "ninety"], "--arch"),
        (["doctor", "nonsense"], "nonsense"),
    ],
)
def test_bad_command_lines_exit_with_2(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(argv, capsys)
    assert code == 2
    assert named in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("--arch: got 70"), 2, "error: --arch: got 70"),
        (ValueError("momentum: expected\n  [0, 1], got 2"), 2, "error: momentum: expected [0, 1], got 2"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a/b"), 2, "error: /a/b: No such file"),
        (NotADirectoryError("data: /a/b is a file"), 2, "error: data: /a/b is a file"),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), 2, "error: /a/b: Read-only file system"),
        (OSError(errno.ELOOP, "Too many levels", "/a/b"), 2, "error: /a/b: Too many levels"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: No space left on device"),
        (TypeError("broken"), 1, "failed: TypeError: broken (JEPA_FAST_DEBUG=1 shows where)"),
        (RuntimeError("broken"), 1, "failed: RuntimeError: broken (JEPA_FAST_DEBUG=1 shows where)"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_is_one_line(
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(config: Fake) -> int:
        raise error

    monkeypatch.delenv("JEPA_FAST_DEBUG", raising=False)
    monkeypatch.setitem(entry.COMMANDS, "fake", (Fake, fail))
    assert call(["fake"], capsys) == (code, "", f"jepa-fast: {line}\n")


def test_developers_see_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Fake) -> int:
        raise ValueError("momentum: got 2")

    monkeypatch.setenv("JEPA_FAST_DEBUG", "1")
    monkeypatch.setitem(entry.COMMANDS, "fake", (Fake, fail))
    with pytest.raises(ValueError, match="momentum: got 2"):
        entry.main(["fake"])


def test_help_does_not_load_torch() -> None:
    finished = run_python(
        "import sys; from jepa_fast.commands.main import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'torch', 'triton', 'scipy'} & set(sys.modules)), file=sys.stderr)"
    )
    assert finished.returncode == 0
    assert finished.stderr == "[]\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "from jepa_fast.commands import doctor, main\n"
        "main.COMMANDS['doctor'] = (doctor.Doctor, lambda config: print('line\\n' * 100_000) or 0)\n"
        "main.main(['doctor'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("lines", [1, 100_000])  # written at the end, or while the command runs
def test_a_full_disk_behind_stdout_is_one_line(lines: int) -> None:
    code = (
        "from jepa_fast.commands import doctor, main\n"
        f"main.COMMANDS['doctor'] = (doctor.Doctor, lambda config: print('line\\n' * {lines}) or 0)\n"
        "main.main(['doctor'])"
    )
    with Path("/dev/full").open("w") as full:
        finished = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert finished.stderr.endswith("No space left on device\n")
