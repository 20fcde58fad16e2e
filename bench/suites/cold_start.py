"""What a new process pays before its first result: the import, the first call of each op, and a compilation.

Each case is a process of its own, which tells its times. The import is held against that of torch alone, which every
user pays; a first call against a warm one; a compilation of our op against that of the published formulation.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partial

import torch

from jepa_fast.bench.measure import Case, ErrorCheck, OwnTimes, Times, Trial
from jepa_fast.kernels.runtime import rooms

QUICK_OPS = ("ema", "latent_loss", "attention")
PROCESSES = 2

# Prints seconds by name. What is imported for the example's inputs is none of the first call.
IMPORTS = """
import json, time
begin = time.perf_counter(); import torch; alone = time.perf_counter()
import jepa_fast; jepa_fast.ema_update_; end = time.perf_counter()
print(json.dumps({"cold": end - begin, "warm": alone - begin}))
"""
FIRST_CALL = """
import json, sys, time
import torch
from jepa_fast.kernels.runtime import rooms
name, device = sys.argv[1], torch.device(sys.argv[2])
api = rooms.api(name)
inputs = api.example_inputs(device)
op = getattr(api, CALLS[name])
def call():
    begin = time.perf_counter(); op(*inputs)
    if device.type == "cuda": torch.cuda.synchronize()
    return time.perf_counter() - begin
cold = call()
print(json.dumps({"cold": cold, "warm": min(call() for _ in range(5))}))
"""
COMPILE = """
import json, sys, time
import torch, jepa_fast
from functools import partial
from jepa_fast.bench.suites import latent_loss
from jepa_fast.bench.baselines.latent_loss import latent_loss as published
device = torch.device(sys.argv[1])
tensors = latent_loss.tensors((16, 256, 384), 44, torch.float32, device)
def seconds(function, *arguments):
    torch.compiler.reset(); compiled = torch.compile(function)
    begin = time.perf_counter(); compiled(*arguments).backward()
    return time.perf_counter() - begin
theirs = seconds(published, tensors[0], tensors[1], tensors[2].chunk(4))
print(json.dumps({"cold": seconds(jepa_fast.latent_prediction_loss, *tensors), "warm": theirs}))
"""


def cases() -> Iterator[Case]:
    yield Case("import jepa_fast", "new process", "", partial(_build, "import", "import torch"))
    for name in rooms.names():
        if name in _calls():
            build = partial(_build, name, "warm")
            yield Case(f"first call of {name}", "new process", "float32", build, quick=name in QUICK_OPS)
    build = partial(_build, "compile", "torch.compile of eager")
    yield Case("torch.compile of latent_loss", "new process", "float32", build, quick=False)


def _build(what: str, baseline: str, device: torch.device) -> Trial:
    return Trial(
        ours=lambda: None,
        check=lambda: ErrorCheck(0.0, 0.0, 0.0, 0.0),  # there is nothing to compute but time
        implementation="new process",
        own_times=partial(_measure, what, baseline, device),
    )


def _measure(what: str, baseline: str, device: torch.device) -> OwnTimes:
    if what == "import":
        program, arguments = IMPORTS, []
    elif what == "compile":
        program, arguments = COMPILE, [str(device)]
    else:
        program, arguments = f"CALLS = {_calls()!r}\n{FIRST_CALL}", [what, str(device)]
    found = [_ask(program, arguments) for _ in range(PROCESSES)]
    cold, warm = (Times.of([one[name] for one in found]) for name in ("cold", "warm"))
    return OwnTimes(cold, baseline, warm)


def _ask(program: str, arguments: list[str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


@cache
def _calls() -> dict[str, str]:
    """The function of each room that takes its example inputs."""
    return {
        "attention": "masked_attention",
        "covariance": "vicreg_loss",
        "ema": "ema_update_",
        "gelu_mlp": "gelu_mlp",
        "latent_loss": "latent_prediction_loss",
        "layer_norm": "add_layer_norm",
        "patch_embed": "masked_patch_embed",
        "rope": "rope_3d",
        "sigreg": "sigreg_loss",
    }
