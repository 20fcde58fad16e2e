"""`AdamWEMA` under DistributedDataParallel and on DTensor shards (FSDP2), two processes over gloo."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from jepa_fast import AdamWEMA

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
STEPS, MAX_NORM = 3, 0.05
TIMEOUT = timedelta(seconds=60)


def model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(7, 9), torch.nn.Tanh(), torch.nn.Linear(9, 5))


def inputs(step: int) -> Tensor:
    return torch.randn(8, 7, generator=torch.Generator().manual_seed(step))


def optimize(
    student: torch.nn.Module, teacher: torch.nn.Module, network: torch.nn.Module, share: slice
) -> AdamWEMA:
    optimizer = AdamWEMA(
        student.parameters(), lr=1e-2, teacher=teacher.parameters(), copies=torch.bfloat16, max_norm=MAX_NORM
    )
    for step in range(STEPS):
        optimizer.zero_grad()
        network(inputs(step)[share]).square().mean().backward()
        optimizer.step()
    return optimizer


def work(rank: int, kind: str, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2, timeout=TIMEOUT
    )
    torch.set_num_threads(1)
    student, teacher = model(0), model(1)
    share = slice(4 * rank, 4 * rank + 4)
    if kind == "ddp":
        network = torch.nn.parallel.DistributedDataParallel(student, gradient_as_bucket_view=True)
        optimizer = optimize(student, teacher, network, share)
        held = [*student.parameters(), *teacher.parameters()]
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Shard, distribute_tensor

        mesh = init_device_mesh("cpu", (2,))
        # FSDP2 hands the optimizer such parameters and such gradients; only its communication is left out.
        shards = {
            name: torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)]))
            for name, p in student.named_parameters()
        }
        followers = [distribute_tensor(p.detach(), mesh, [Shard(0)]) for p in teacher.parameters()]
        optimizer = AdamWEMA(
            shards.values(), lr=1e-2, teacher=followers, copies=torch.bfloat16, max_norm=MAX_NORM
        )
        for step in range(STEPS):
            whole = {n: p.full_tensor().detach().requires_grad_() for n, p in shards.items()}
            torch.func.functional_call(student, whole, inputs(step)).square().mean().backward()
            for name, parameter in shards.items():
                parameter.grad = distribute_tensor(whole[name].grad, mesh, [Shard(0)])
            optimizer.step()
        assert isinstance(next(iter(optimizer.state.values()))["exp_avg"], DTensor)
        copies = [optimizer.copy_of(t).full_tensor() for t in followers]
        held = [t.full_tensor() for t in (*shards.values(), *followers)]
        assert all(map(torch.equal, copies, [t.bfloat16() for t in held[len(followers) :]]))
    if rank == 0:
        torch.save([[t.detach() for t in held], optimizer.grad_norm], f"{folder}/result.pt")
    dist.barrier()  # neither leaves while the other may still be reading
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "dtensor"])
def test_two_processes_are_one(kind: str, tmp_path: Path) -> None:
    mp.spawn(work, args=(kind, str(tmp_path)), nprocs=2)
    held, norm = torch.load(tmp_path / "result.pt")
    student, teacher = model(0), model(1)
    optimizer = optimize(student, teacher, student, slice(None))
    torch.testing.assert_close(held, [*student.parameters(), *teacher.parameters()], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm, optimizer.grad_norm, rtol=1e-5, atol=0)
