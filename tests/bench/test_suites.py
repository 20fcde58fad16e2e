"""Every suite is found, and every quick case it declares builds its inputs and passes its error check."""

import pytest
import torch

from jepa_fast.bench import suites
from jepa_fast.bench.measure import Case

CASES = [
    pytest.param(name, case, id=f"{name}-{case.op}-{case.shape}-{case.dtype}")
    for name in suites.names()
    for case in suites.load(name).cases()
    if case.quick
    and not case.needs_cuda  # the rest is too large for a test: `jepa-fast bench` checks it before timing
]


def test_suites_are_the_modules_of_the_folder() -> None:
    assert {"attention", "ema", "host_cost", "ijepa_step", "latent_loss", "rope"} <= set(suites.names())


@pytest.mark.parametrize("name", suites.names())
def test_a_suite_says_what_it_measures_and_has_a_quick_case(name: str) -> None:
    suite = suites.load(name)
    assert suite.__doc__
    assert any(case.quick for case in suite.cases())


def test_an_unknown_suite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"suite: expected one of .*ema.*, got 'emu'"):
        suites.load("emu")


@pytest.mark.parametrize(("suite", "case"), CASES)
def test_a_case_builds_and_is_right(suite: str, case: Case) -> None:
    trial = case.build(torch.device("cpu"))
    assert trial.inputs
    assert trial.implementation
    assert bool(trial.baselines) != (trial.raw_launch is not None)
    if suite in ("ijepa_step", "ijepa_ablation", "steps"):
        return  # their check trains for half a minute; the tests of the models do so on small ones
    found = trial.check()
    assert found.passed, found.reason
    for call in (trial.ours, *trial.baselines.values(), *filter(None, [trial.raw_launch])):
        call(*trial.inputs[0])
