"""What `optimize_` does to a model besides making it faster: nothing."""

import copy
import io
import pickle
from collections.abc import Iterator

import accelerate_standin_losses as standin_losses
import accelerate_standins as standins
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from jepa_fast import OptimizeConfig, Report, optimize_, restore_
from jepa_fast.accelerate import probe
from jepa_fast.accelerate.patching import adapter_of

X = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(standins.Timm.Block(48, 2) for _ in range(2)), nn.Linear(48, 3)).eval()


def test_report_names_every_module(model) -> None:
    report = optimize_(model)
    assert isinstance(report, Report)
    assert {entry.name for entry in report.replaced} == {
        f"{i}{part}" for i in (0, 1) for part in ("", ".attn", ".mlp")
    }
    assert report.without_adapter["Linear"] == 9
    text = str(report)
    for word in ("6 replaced", "masked_attention", "gelu_mlp", "add_layer_norm", "no adapter"):
        assert word in text


def test_parameters_buffers_and_keys_stay(model) -> None:
    keys, tensors = list(model.state_dict()), list(model.parameters())
    modules = list(model.modules())
    optimize_(model)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), tensors, strict=True))
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert isinstance(model[0], standins.Timm.Block)
    assert type(model[0]).__name__ == "Block"
    model.load_state_dict(copy.deepcopy(model.state_dict()), strict=True)


def test_idempotent(model) -> None:
    first = optimize_(model)
    classes = [type(module) for module in model.modules()]
    second = optimize_(model)
    assert [type(module) for module in model.modules()] == classes
    assert second.replaced == first.replaced


def test_restore(model) -> None:
    classes = [type(module) for module in model.modules()]
    state = [set(module.__dict__) for module in model.modules()]
    before = model(X)
    optimize_(model)
    assert (model(X) - before).abs().max() < 1e-5
    report = restore_(model)
    assert len(report.entries) == 6
    assert [type(module) for module in model.modules()] == classes
    assert [set(module.__dict__) for module in model.modules()] == state
    assert torch.equal(model(X), before)
    assert restore_(model).entries == ()


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_optimized_too(model, how: str) -> None:
    optimize_(model)
    if how == "deepcopy":
        other = copy.deepcopy(model)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert type(other[0].attn) is type(model[0].attn)
    assert other[0].attn is not model[0].attn
    assert torch.equal(other(X), model(X))
    with torch.no_grad():
        other[0].attn.qkv.weight.zero_()
    assert not torch.equal(other(X), model(X))  # its own parameters
    restore_(other)
    assert adapter_of(other[0]) is None
    assert adapter_of(model[0]) is not None


def test_filter(model) -> None:
    seen = []

    def refuse(module: nn.Module, name: str) -> bool:
        seen.append((type(module).__name__, name))
        return name.startswith("1")

    report = optimize_(model, filter_fn=refuse)
    assert {entry.name for entry in report.replaced} == {"1", "1.attn", "1.mlp"}
    assert {entry.outcome for entry in report.left_alone} == {"left alone: filter_fn refused it"}
    assert ("Attention", "0.attn") in seen


def test_config(model) -> None:
    report = optimize_(model, OptimizeConfig(attention=False, mlp=False))
    assert {entry.name for entry in report.replaced} == {"0", "1"}
    assert "left alone: OptimizeConfig.attention is off" in {entry.outcome for entry in report.left_alone}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("model",), "model"),
        ((nn.Identity(), {"mlp": False}), "config"),
        ((nn.Identity(), OptimizeConfig(), "attn"), "filter_fn"),
    ],
)
def test_bad_arguments(arguments, name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        optimize_(*arguments)


def test_bad_config() -> None:
    with pytest.raises(TypeError, match=r"^mlp: expected a bool, got 'no'"):
        OptimizeConfig(mlp="no")


RENAMED = [
    (lambda: standins.Timm.Attention(48, 2), name)
    for name in ("qkv", "proj", "num_heads", "scale", "attn_drop")
]
RENAMED += [(lambda: standins.Timm.Block(48, 2), name) for name in ("norm1", "attn", "norm2", "mlp", "ls1")]
RENAMED += [(lambda: standins.MLP(48, 96), name) for name in ("fc1", "act", "fc2")]
RENAMED += [
    (lambda: standins.VJEPA2.RoPEAttention(48, 2, 4), name)
    for name in ("qkv", "d_dim", "grid_size", "use_sdpa")
]
RENAMED += [(lambda: standin_losses.LightlySIGReg.SIGReg(), name) for name in ("t", "num_vectors")]
RENAMED += [(lambda: standin_losses.VCReg(), "eps")]


@pytest.mark.parametrize(("build", "name"), RENAMED, ids=[name for _, name in RENAMED])
def test_renamed_attributes_are_reported(build, name: str) -> None:
    """As after an upstream change that moves an attribute."""
    module = build()
    value = getattr(module, name)
    delattr(module, name)
    setattr(module, f"{name}_renamed", value)
    before = type(module)
    (entry,) = [entry for entry in optimize_(module).entries if entry.name == ""]
    assert entry.outcome.startswith("left alone: ")
    missing = entry.outcome.removeprefix("left alone: ").split("; ")
    assert any(
        reason.startswith("expected attribute ")
        and name in reason.removeprefix("expected attribute ").split(" or ")
        for reason in missing
    )
    assert type(module) is before


def test_changed_signatures_and_types_are_reported() -> None:
    class Attention(standins.Timm.Attention):
        def forward(self, x, rope, attn_mask=None):
            return x

    (entry,) = optimize_(Attention(48, 2)).entries
    assert "expected forward(" in entry.outcome
    module = standins.Timm.Attention(48, 2)
    module.num_heads = "two"
    (entry,) = optimize_(module).entries
    assert "attribute num_heads: expected int, got str" in entry.outcome


def test_hooks_on_what_is_not_called_run_the_published_code(model) -> None:
    """A replacement reads the weights of some submodules itself; who hooks into those must still be called."""
    optimize_(model)
    expected = model(X)
    for name in ("0.mlp.fc1", "1.norm2", "0.mlp.act"):
        calls = []
        handle = model.get_submodule(name).register_forward_hook(lambda *_, calls=calls: calls.append(1))
        found = model(X)
        handle.remove()
        assert calls == [1]
        assert (found - expected).abs().max() < 1e-5


def test_replaced_linears_are_called(model) -> None:
    """Such as adapters of low rank, put in after `optimize_`."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    reference = copy.deepcopy(model)
    optimize_(model)
    for some in (model, reference):
        fc1 = some[0].mlp.fc1
        some[0].mlp.fc1 = Doubled(48, 192)
        some[0].mlp.fc1.load_state_dict(fc1.state_dict())
    assert (model(X) - reference(X)).abs().max() < 1e-5


def test_models_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = standins.Timm.Block(48, 2)
    assert optimize_(model).left_alone == ()


def test_probe_is_made_once_for_a_class(model, monkeypatch) -> None:
    optimize_(model)
    restore_(model)
    monkeypatch.setattr(probe, "_compare", lambda *_: pytest.fail("a second comparison"))
    optimize_(model)


def test_random_generators_stay(model) -> None:
    probe._proven.clear()
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    optimize_(model)
    assert torch.equal(torch.randn(3), expected)


@pytest.fixture
def one_process(tmp_path) -> Iterator[None]:
    if not dist.is_available():
        pytest.skip("this torch has no torch.distributed")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_data_parallel_before_and_after(model, one_process) -> None:
    expected = model(X)
    expected.sum().backward()
    gradient = model[0].attn.qkv.weight.grad.clone()
    wrapped = DistributedDataParallel(copy.deepcopy(model))
    assert len(optimize_(wrapped).replaced) == 6
    optimize_(model)
    for other in (wrapped, DistributedDataParallel(model)):
        other.zero_grad()
        found = other(X)
        found.sum().backward()
        assert (found - expected).abs().max() < 1e-5
        assert (other.module[0].attn.qkv.weight.grad - gradient).abs().max() < 1e-4


def test_fully_sharded_before_and_after(model, one_process) -> None:
    """FSDP derives a class of its own for the module that it shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    expected = model(X)
    for order in ("before", "after"):
        other = copy.deepcopy(model)
        if order == "before":
            optimize_(other)
        for block in other[:2]:
            fully_shard(block, mesh=mesh)
        fully_shard(other, mesh=mesh)
        if order == "after":
            assert len(optimize_(other).replaced) == 6
        found = other(X)
        found.sum().backward()
        assert (found - expected).abs().max() < 1e-5
        restore_(other)
        assert type(other[0]).__name__.startswith("FSDP")
        assert adapter_of(other[0]) is None
        assert (other(X) - expected).abs().max() < 1e-5
