"""From one version to another: what counts as a change, for records and for revisions that are timed in turn."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from jepa_fast.bench.measure import Machine, Record, Row, Times, save_record
from jepa_fast.bench.measure.budgets import Budgets, load_budgets
from jepa_fast.bench.measure.changes import Change, confirm, measure_changes, record_changes
from jepa_fast.bench.measure.records import SCHEMA_VERSION
from jepa_fast.bench.measure.sides import Side, Worker, WorkerError, compare_sides, of_turns
from jepa_fast.bench.measure.statistics import Interval, judge_change
from jepa_fast.bench.report.changes import markdown, summary, untimed
from jepa_fast.commands.main import main

CASE = ("latent_loss", "latent_prediction_loss", "smooth_l1 fwd+bwd, B=16 N=256 K=4x44 D=384", "float32")
ROOT = Path(__file__).parents[2]

MakeRow = Callable[..., Row]
MakeRecord = Callable[..., Record]


def turns(
    milliseconds: float, random: np.random.Generator, rounds: int = 200
) -> tuple[list[float], list[float]]:
    """Two samples a round on a shared machine: some noise, and one call in five held up for up to ten times as long."""
    quiet = milliseconds * 1e-3 * random.lognormal(0.0, 0.05, (2, rounds))
    held_up = np.where(random.random((2, rounds)) < 0.2, random.uniform(1.0, 10.0, (2, rounds)), 1.0)
    first, second = (quiet * held_up).tolist()
    return first, second


def verdicts(slowdown: float, runs: int = 20) -> list[str]:
    """What two measurements of a version that is slower by that share come to, run by run."""
    found = []
    for seed in range(runs):
        random = np.random.default_rng(seed)
        first, second = (of_turns(turns(1 + slowdown, random), turns(1.0, random)) for _ in range(2))
        found.append(first.verdict if first.verdict == second.verdict else "cannot tell")
    return found


def test_the_same_version_is_never_called_slower_or_faster_on_a_shared_machine() -> None:
    assert set(verdicts(0.0)) <= {"same", "cannot tell"}


def test_a_tenth_more_is_found_nineteen_times_of_twenty() -> None:
    assert verdicts(0.10).count("slower") >= 19
    assert verdicts(-0.10).count("faster") >= 19


def test_inputs_of_different_cost_are_compared_with_their_own_kind() -> None:
    random = np.random.default_rng(0)
    cost = np.tile([1.0, 5.0, 9.0], 40)  # a third of the rounds each

    def side(factor: float) -> tuple[list[float], list[float]]:
        first, second = (factor * cost * random.lognormal(0.0, 0.02, (2, cost.size))).tolist()
        return first, second

    found = of_turns(side(1.1), side(1.0), inputs=3)
    assert 1 / found.ratio == pytest.approx(1.1, rel=0.02)
    assert found.verdict == "slower"


@pytest.mark.parametrize(
    ("low", "high", "floor", "allowed", "verdict"),
    [
        (1.05, 1.15, 1.01, 0.0, "slower"),
        (1.02, 1.15, 1.01, 0.0, "cannot tell"),  # two processes of one program may differ by that
        (1.05, 1.15, 1.08, 0.0, "cannot tell"),  # inside the noise
        (1.05, 1.15, 1.01, 0.06, "cannot tell"),  # inside the budget
        (1.08, 1.15, 1.01, 0.06, "slower"),
        (0.80, 0.90, 1.01, 0.50, "faster"),  # a budget is for slowdowns alone
        (0.99, 1.01, 1.01, 0.0, "same"),
        (0.99, 1.01, 1.10, 0.0, "cannot tell"),
    ],
)
def test_verdicts_on_a_change(low: float, high: float, floor: float, allowed: float, verdict: str) -> None:
    assert judge_change(Interval(math.sqrt(low * high), low, high), floor, allowed) == verdict


class TestRecords:
    def changes(self, make_record: MakeRecord, old: Row, new: Row, **options: object) -> list[Change]:
        budgets = options.pop("budgets", Budgets())
        return list(record_changes(make_record(old), make_record(new), budgets, **options))

    def test_one_record_confirms_nothing_of_itself(self, make_row: MakeRow, make_record: MakeRecord) -> None:
        (change,) = self.changes(make_record, make_row(0.02), make_row(0.023))
        assert (change.verdict, change.confirmed, change.failure) == ("slower", None, "unconfirmed")
        assert change.ratio == pytest.approx(1.15)
        assert change.low < 1.15 < change.high
        assert change.note == "measured once"

    def test_a_second_record_confirms(self, make_row: MakeRow, make_record: MakeRecord) -> None:
        slow = make_row(0.023)
        (change,) = self.changes(make_record, make_row(0.02), slow, again=make_record(slow))
        assert (change.confirmed, change.failure) == (True, "slower")
        (change,) = self.changes(make_record, make_row(0.02), slow, again=make_record(make_row(0.02)))
        assert change.failure is None
        assert change.note.startswith("not confirmed: measured again: 1.00")
        without = make_record(make_row(baseline="another"))
        (change,) = self.changes(make_record, make_row(0.02), slow, again=without)
        assert change.failure == "unconfirmed"

    def test_what_slowed_the_baseline_too_is_the_machine(
        self, make_row: MakeRow, make_record: MakeRecord
    ) -> None:
        (change,) = self.changes(make_record, make_row(0.02, 0.05), make_row(0.03, 0.075))
        assert change.verdict == "same" or change.verdict == "cannot tell"
        assert change.ratio == pytest.approx(1.0)
        assert "baseline's time changed by +50%" in change.note

    def test_rows_that_came_went_or_broke_are_listed(
        self, make_row: MakeRow, make_record: MakeRecord
    ) -> None:
        old = make_record(make_row(shape="one"), make_row(shape="two"))
        new = make_record(make_row(shape="two", reason="no library", time=None), make_row(shape="three"))
        found = {change.shape: change for change in record_changes(old, new, Budgets())}
        assert {shape: change.status for shape, change in found.items()} == {
            "one": "gone",
            "two": "failed",
            "three": "new",
        }
        assert found["two"].note == "NEW: no library"
        assert summary(list(found.values())) == "1 failed, 1 gone, 1 new"

    def test_a_case_that_failed_as_a_whole_stands_for_all_its_rows(
        self, make_row: MakeRow, make_record: MakeRecord
    ) -> None:
        whole = make_record(make_row(baseline="I-JEPA loop"), make_row(baseline="_foreach_lerp_"))
        broken = make_record(make_row(baseline="", reason="output 0: too wrong", time=None, ratio=None))
        for old, new, status, note in (
            (whole, broken, "failed", "NEW: output 0: too wrong"),
            (broken, whole, "new", "OLD: output 0: too wrong"),
            (broken, broken, "failed", "NEW: output 0: too wrong"),
        ):
            (change,) = record_changes(old, new, Budgets())
            assert (change.status, change.note) == (status, note)
        (change,) = record_changes(whole, broken, Budgets())
        assert change.failure == "failed"

    def test_times_below_the_clock_tell_nothing(self, make_row: MakeRow, make_record: MakeRecord) -> None:
        short = {"time": Times(1e-6, 0.0, 2e-6, 9), "ratio_low": None, "ratio_high": None}
        (change,) = self.changes(
            make_record, make_row(**short), make_row(0.5, **{**short, "time": Times(1.0, 0.0, 2.0, 9)})
        )
        assert (change.verdict, change.failure) == ("cannot tell", None)
        assert "[0.00, inf]" in markdown([change], "old", "new")

    def test_rows_of_two_devices_are_different_rows(self, make_row: MakeRow, make_record: MakeRecord) -> None:
        old = make_record(make_row(0.02), make_row(0.002, device="cuda"))
        new = make_record(make_row(0.002, device="cuda"), make_row(0.02))
        changes = list(record_changes(old, new, Budgets()))
        assert [(change.device, change.ratio) for change in changes] == [("cpu", 1.0), ("cuda", 1.0)]
        broken = make_record(make_row(0.02), make_row(device="cuda", baseline="", reason="no", time=None))
        found = {change.device: change.status for change in record_changes(old, broken, Budgets())}
        assert found == {"cpu": "", "cuda": "failed"}

    def test_every_line_names_its_row(self, make_row: MakeRow, make_record: MakeRecord) -> None:
        old = make_record(
            *(make_row(baseline=name) for name in ("I-JEPA loop", "_foreach_lerp_")), make_row(device="cuda")
        )
        assert untimed(list(record_changes(old, make_record(), Budgets()))) == [
            f"gone: ema, ema_update_, ViT-B/16 encoder, float32{where}: only in OLD"
            for where in (" (by I-JEPA loop)", " (by _foreach_lerp_)", " on cuda (by I-JEPA loop)")
        ]

    def test_markdown_shows_the_slow_ones_first_and_escapes(
        self, make_row: MakeRow, make_record: MakeRecord
    ) -> None:
        old, new = make_row(0.02), make_row(0.023)
        other = {"dtype": "float32 <- bfloat16", "shape": "a|b"}
        record = make_record(old, make_row(**other)), make_record(new, make_row(**other))
        text = markdown(list(record_changes(*record, Budgets())), "old", "new", ["remark"])
        assert text.index("**slower**") < text.index("a\\|b")
        assert "float32 &lt;- bfloat16" in text
        assert "1 slower, unconfirmed, 1 cannot tell." in text
        assert "> **remark**" in text


def test_budgets_are_by_case_and_the_last_entry_counts(tmp_path: Path) -> None:
    path = tmp_path / "budgets.toml"
    path.write_text(
        'slower = 0.02\n[[case]]\nsuite = "ema"\nslower = 0.1\n[[case]]\nsuite = "ema"\nshape = "[16, 384]*"\n'
        'slower = 0.2\n[[case]]\nsuite = "host_cost"\nskip = true\n'
        '[[case]]\nop = "rope_*"\nskip = false\n[[case]]\nslower = 0.3\ndtype = "float64"\n'
    )
    budgets = load_budgets(path)
    assert budgets.slower_of("rope", "rope_3d", "x", "float32") == 0.02
    assert budgets.slower_of("ema", "ema_update_", "x", "float32") == 0.1
    assert budgets.slower_of("ema", "ema_update_", "[16, 384] y", "float32") == 0.2
    assert budgets.skipped("host_cost", "ema_update_", "x", "float32")
    assert not budgets.skipped("ema", "ema_update_", "x", "float32")
    assert not budgets.skipped("host_cost", "rope_3d", "x", "float64")
    assert budgets.skipped("host_cost", "ema_update_", "x", "float64")  # an entry that says nothing of it


@pytest.mark.parametrize(
    "text", ["slower = ", "slow = 1.0", "slower = -0.1", 'slower = "much"', "slower = inf"]
)
def test_broken_budgets_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "budgets.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"budgets\.toml: (expected budgets|slower: expected a share)"):
        load_budgets(path)


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["compare", *map(str, arguments)])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    @pytest.fixture
    def records(self, tmp_path: Path, make_row: MakeRow, make_record: MakeRecord) -> tuple[Path, Path]:
        paths = [tmp_path / "old.json", tmp_path / "new.json"]
        for path, ours in zip(paths, (0.02, 0.03), strict=True):
            path.write_bytes(msgspec.json.encode(make_record(make_row(ours))))
        shutil.copy(paths[1], tmp_path / "again.json")
        return paths[0], paths[1]

    def test_a_slowdown_fails_and_is_written_as_markdown(
        self, capsys: pytest.CaptureFixture[str], records: tuple[Path, Path], tmp_path: Path
    ) -> None:
        page = tmp_path / "page.md"
        again = ("--confirm", tmp_path / "again.json")
        code, out, _ = self.run(capsys, *records, *again, "--markdown", page)
        assert code == 1
        assert "slower: ema_update_" in out
        assert "1.50 times the old time" in out
        text = page.read_text()
        assert "**slower**" in text
        assert "Times are of one call, of one record each" in text
        assert "in turn" not in text
        assert self.run(capsys, *records, *again, "--fail-on", "nothing")[0] == 0
        assert self.run(capsys, *reversed(records))[0] == 0

    def test_an_unconfirmed_slowdown_fails_only_if_asked(
        self, capsys: pytest.CaptureFixture[str], records: tuple[Path, Path]
    ) -> None:
        code, out, _ = self.run(capsys, *records)
        assert code == 0
        assert "1 slower, unconfirmed" in out
        assert "--confirm RECORD gives a second measurement" in out
        code, out, _ = self.run(capsys, *records, "--fail-on", "slower", "unconfirmed")
        assert code == 1
        assert "unconfirmed: ema_update_" in out

    def test_records_of_a_busy_machine_come_with_a_warning(
        self,
        capsys: pytest.CaptureFixture[str],
        records: tuple[Path, Path],
        tmp_path: Path,
        make_row: MakeRow,
        make_record: MakeRecord,
    ) -> None:
        path = save_record(make_record(make_row(), load_average=1.7), tmp_path / "busy")
        warning = f"{path} (load average 1.7 on 2 cores): measured while other programs kept the machine busy"
        assert warning in self.run(capsys, records[0], path)[1]
        assert "busy" not in self.run(capsys, *records)[1]

    def test_a_budget_lets_it_pass(
        self, capsys: pytest.CaptureFixture[str], records: tuple[Path, Path], tmp_path: Path
    ) -> None:
        budgets = tmp_path / "budgets.toml"
        budgets.write_text("slower = 0.6")
        again = ("--confirm", tmp_path / "again.json")
        assert self.run(capsys, *records, *again)[0] == 1
        assert self.run(capsys, *records, *again, "--budgets", budgets)[0] == 0

    def test_records_of_other_machines_are_refused_unless_asked(
        self,
        capsys: pytest.CaptureFixture[str],
        records: tuple[Path, Path],
        tmp_path: Path,
        make_row: MakeRow,
        make_record: MakeRecord,
    ) -> None:
        machine: Machine = replace(make_record().machine, cpu="Another CPU")
        path = save_record(make_record(make_row(), machine=machine), tmp_path / "other")
        code, _, err = self.run(capsys, records[0], path)
        assert code == 2
        assert "are of different machines (cpu: Some CPU, Another CPU)" in err
        assert err.count("\n") == 1
        code, out, _ = self.run(capsys, records[0], path, "--different-machines")
        assert code == 0
        assert "different machines (cpu: Some CPU, Another CPU)" in out

    def test_bad_input_is_one_line_and_code_2(
        self, capsys: pytest.CaptureFixture[str], records: tuple[Path, Path], tmp_path: Path
    ) -> None:
        broken, newer = tmp_path / "broken.json", tmp_path / "newer.json"
        broken.write_text("{")
        newer.write_text(f'{{"schema_version": {SCHEMA_VERSION + 1}}}')
        for arguments, message in (
            ((records[0], broken), "expected a benchmark record"),
            ((newer, records[1]), "schema version"),
            ((records[0], tmp_path / "none.json"), "none.json: No such file"),
            ((records[0], "HEAD"), "expected two records or two git revisions, got one of each"),
            (("HEAD", "no-such-branch"), "expected a record file or a git revision, got no-such-branch"),
            ((*records, "--suites", "emma"), "got emma; did you mean ema?"),
            ((*records, "--budgets", tmp_path / "none.toml"), "none.toml: No such file"),
            (("HEAD", "HEAD", "--confirm", records[0]), "--confirm: expected with two records"),
            ((*records, "--fail-on", "typo"), "fail-on"),
            ((*records, "--confirm", records[1]), "--confirm: expected another record of NEW, got "),
        ):
            code, _, err = self.run(capsys, *arguments)
            assert code == 2, arguments
            assert message in err
            assert err.count("\n") == 1


class TestSides:
    def test_a_version_against_itself_and_against_itself_made_slower(self) -> None:
        old, slow = Side("old"), Side("slow", handicap=0.5)
        for new, expected in ((old, {"same", "cannot tell"}), (slow, {"slower"})):
            changes = list(
                measure_changes(
                    old, new, suites=["latent_loss"], quick=True, budget_s=0.4, budgets=Budgets(), first=1
                )
            )
            (change,) = (change for change in changes if change.case == CASE)
            assert change.verdict in expected, change
            assert change.confirmed is (True if new is slow else None) or change.confirmed is False

    def test_what_cannot_be_timed_has_its_reason(self) -> None:
        with Worker(Side("one")) as one, Worker(Side("two")) as two:
            found = compare_sides(one, two, ("ema", "ema_update_", "no such shape", "float32"), budget_s=0.1)
            assert found == "one: StopIteration: "
            two._process.kill()
            two._process.wait()
            with pytest.raises(WorkerError, match="two: its process has ended"):
                two.ask("drop")

    def test_two_measurements_decide(self) -> None:
        first = Change(
            suite="s", op="o", shape="x", dtype="d", ratio=1.1, low=1.08, high=1.12, verdict="slower"
        )
        assert confirm(first, first).confirmed is True
        other = replace(first, verdict="same")
        assert confirm(first, other).verdict == confirm(other, first, other).verdict == "cannot tell"
        assert confirm(other, first, first).failure == confirm(first, other, first).failure == "slower"
        assert confirm(first, replace(first, verdict="faster"), other).verdict == "cannot tell"
        assert confirm(first).failure == "unconfirmed"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_two_revisions_are_built_apart_and_the_slow_one_is_found(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository of this very tree, without the native library, and a commit that sleeps in an op."""
    tree = tmp_path / "tree"
    for name in ("jepa_fast", "kernels", "bench"):
        shutil.copytree(
            ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "results", "*.so")
        )
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    git = ["git", "-C", str(tree), "-c", "user.name=n", "-c", "user.email=e@example.com"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    source = tree / "kernels" / "latent_loss" / "reference.py"
    text = source.read_text()
    source.write_text(
        text + "\n\n_plain = loss_and_gradient\n\n\ndef loss_and_gradient(*a, **k):\n"
        "    import time\n    time.sleep(0.03)\n    return _plain(*a, **k)\n"
    )
    assert "def loss_and_gradient" in text
    subprocess.run([*git, "commit", "-q", "-a", "-m", "two"], check=True)
    monkeypatch.setenv("JEPA_FAST_PURE_PYTHON", "1")
    monkeypatch.chdir(tree)
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-c", "from jepa_fast.commands.main import main; main()"),
            *("compare", "HEAD~1", "HEAD", "--suites", "latent_loss", "--budget", "0.5"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 slower" in done.stdout
    listed = subprocess.run([*git, "worktree", "list"], capture_output=True, text=True, check=True).stdout
    assert listed.count("\n") == 1  # what was made for the comparison is gone
