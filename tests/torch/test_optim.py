"""The optimizers for PyTorch behave as PyTorch's, with the arithmetic of compressrs."""

import contextlib
import copy
import inspect
import io
import pickle
import re

import numpy as np
import pytest

import compressrs as cr
from compressrs import _core

torch = pytest.importorskip("torch")
ctorch = pytest.importorskip("compressrs.torch")

RULES = [name for name in ctorch.optim.__all__ if name != "Optimizer"]
STEPS = 6


def network(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 70), torch.nn.Tanh(), torch.nn.Linear(70, 61), torch.nn.Linear(61, 3)
    ).to(dtype)


def backward(module, step=0):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(5, 6, generator=generator).to(next(module.parameters()).dtype)
    loss = module(x).square().mean()
    loss.backward()
    return loss


def matrices(module):
    return [p for p in module.parameters() if p.ndim == 2]


def trained(name):
    """Return what a rule trains: Muon takes matrices alone."""
    return matrices if name == "Muon" else lambda module: list(module.parameters())


def storages(name):
    """Return the precisions that a rule can have its state in."""
    found = []
    for state_dtype in ("float32", "bfloat16", "int8"):
        with contextlib.suppress(ValueError):
            getattr(cr.optim, name)(np.zeros((2, 2)), state_dtype=state_dtype)
            found.append(state_dtype)
    return found


def test_every_rule_is_there_once():
    assert {getattr(ctorch.optim, name).rule._rule for name in RULES} == set(_core.rules())
    for name in RULES:
        kind, ours = getattr(ctorch.optim, name), getattr(cr.optim, name)
        assert kind.rule is ours
        assert issubclass(kind, torch.optim.Optimizer)
        assert inspect.signature(kind) == inspect.signature(ours)
        assert kind.__module__ == "compressrs.torch.optim"


@pytest.mark.parametrize(
    ("name", "state_dtype"), [(name, storage) for name in RULES for storage in storages(name)]
)
def test_steps_are_those_of_the_array_optimizer(name, state_dtype):
    module = network()
    params = trained(name)(module)
    arrays = [p.detach().numpy().copy() for p in params]
    opt = getattr(ctorch.optim, name)(params, state_dtype=state_dtype, seed=3)
    ours = getattr(cr.optim, name)(arrays, state_dtype=state_dtype, seed=3)
    for step in range(STEPS):
        opt.zero_grad()
        backward(module, step)
        ours.step([p.grad.numpy() for p in params])
        opt.step()
    for p, array in zip(params, arrays, strict=True):
        np.testing.assert_array_equal(p.detach().numpy(), array)
    for i, p in enumerate(params):
        assert opt.state[p]["step"] == STEPS
        for key, value in ours.state[i].items():
            assert opt.state[p][key].shape == value.shape
            got = opt.state[p][key].to(torch.float64).numpy()
            np.testing.assert_array_equal(got, value.astype(np.float64))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
        ("Adam", {"lr": 0.01, "amsgrad": True}),
        ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
        ("RMSprop", {"lr": 0.01}),
        ("NAdam", {"lr": 0.01}),
        ("RAdam", {"lr": 0.01}),
        ("Adagrad", {"lr": 0.01}),
    ],
)
@pytest.mark.parametrize(
    "schedule",
    [
        lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 5),
        lambda opt: torch.optim.lr_scheduler.OneCycleLR(
            opt, 0.02, total_steps=20, cycle_momentum="momentum" in opt.defaults
        ),
        lambda opt: torch.optim.lr_scheduler.SequentialLR(
            opt,
            [
                torch.optim.lr_scheduler.LinearLR(opt, 0.1, total_iters=3),
                torch.optim.lr_scheduler.StepLR(opt, 2),
            ],
            [3],
        ),
    ],
    ids=["cosine", "one cycle", "sequential"],
)
def test_a_loop_with_a_schedule_gives_what_torch_gives(name, kwargs, schedule):
    models = []
    for package in (torch.optim, ctorch.optim):
        module = network(torch.float64)
        opt = getattr(package, name)(module.parameters(), **kwargs)
        scheduler = schedule(opt)
        for step in range(12):
            opt.zero_grad()
            backward(module, step)
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            opt.step()
            scheduler.step()
        models.append((module, opt))
    (theirs, their_opt), (ours, our_opt) = models
    assert our_opt.param_groups[0]["lr"] == their_opt.param_groups[0]["lr"]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_reduce_on_plateau_and_lr_in_a_tensor():
    module = network()
    opt = ctorch.optim.SGD(module.parameters(), lr=torch.tensor(0.5))
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0)
    for _ in range(3):
        scheduler.step(1.0)
    before = module[0].bias.detach().clone()
    backward(module)
    rate = float(opt.param_groups[0]["lr"])
    assert rate < 0.5
    opt.step()
    torch.testing.assert_close(module[0].bias, before - rate * module[0].bias.grad)
    opt.param_groups[0]["lr"] = torch.tensor(0.25)
    before = module[0].bias.detach().clone()
    opt.step()
    torch.testing.assert_close(module[0].bias, before - 0.25 * module[0].bias.grad)


def test_a_stale_backward_raises():
    module = network()
    opt = ctorch.optim.SGD(module.parameters(), lr=0.1)
    loss = backward_graph = module(torch.ones(2, 6)).square().sum()
    loss.backward(retain_graph=True)
    version = module[2].weight._version
    opt.step()
    assert module[2].weight._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        backward_graph.backward()


def test_parameters_without_gradient_and_frozen_ones_stay():
    module = network()
    opt = ctorch.optim.Adam(module.parameters(), lr=0.1)
    module[0].weight.requires_grad_(False)
    backward(module)
    before = copy.deepcopy(module.state_dict())
    version = module[0].weight._version
    opt.step()
    assert torch.equal(module[0].weight, before["0.weight"])
    assert module[0].weight._version == version
    assert not torch.equal(module[0].bias, before["0.bias"])
    assert opt.state[module[0].weight]["step"] == 0


def test_groups_have_their_hyperparameters():
    module = network()
    opt = ctorch.optim.AdamW(
        [{"params": module[0].parameters(), "lr": 0.0}, {"params": module[2].parameters()}], lr=0.1
    )
    opt.add_param_group({"params": module[3].parameters(), "lr": 0.2, "betas": (0.5, 0.9)})
    before = copy.deepcopy(module.state_dict())
    backward(module)
    opt.step()
    assert torch.equal(module[0].weight, before["0.weight"])
    change = (module[3].bias - before["3.bias"]).abs()
    torch.testing.assert_close(change, torch.full((3,), 0.2), rtol=0.05, atol=0)
    with pytest.raises(ValueError, match="more than one parameter group"):
        opt.add_param_group({"params": [module[0].weight]})
    extra = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="lr must be"):
        opt.add_param_group({"params": [extra], "lr": -1.0})
    assert len(opt.param_groups) == 3 == len(opt.array_optimizer.param_groups)


def test_named_parameters_name_errors():
    module = network()
    opt = ctorch.optim.SGD(module.named_parameters(), lr=0.1)
    assert opt.param_groups[0]["param_names"][0] == "0.weight"
    backward(module)
    module[2].weight.grad[0, 0] = torch.nan
    with pytest.raises(cr.optim.NonFiniteGradientError, match=r"2\.weight"):
        opt.step(nonfinite="raise")


def test_closure_and_hooks():
    module = network()
    opt = ctorch.optim.SGD(module.parameters(), lr=0.1)
    seen = []
    opt.register_step_pre_hook(lambda *_: seen.append("before"))
    opt.register_step_post_hook(lambda *_: seen.append("after"))

    def closure():
        opt.zero_grad()
        seen.append("closure")
        return backward(module)

    with torch.no_grad():
        loss = opt.step(closure)
    assert seen == ["before", "closure", "after"]
    assert loss.requires_grad
    second = opt.step(closure)
    assert second.item() < loss.item()


def test_clipping_in_the_step_is_clip_grad_norm():
    ours, theirs = network(torch.float64), network(torch.float64)
    for module, opt in ((ours, ctorch.optim.SGD), (theirs, torch.optim.SGD)):
        opt = opt(module.parameters(), lr=1.0)
        backward(module)
        if module is theirs:
            norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 0.01)
            opt.step()
        else:
            opt.step(max_grad_norm=0.01)
            found = opt.grad_norm
    assert found == pytest.approx(norm.item(), rel=1e-12)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_grad_scaler_skips_infinite_gradients_and_unscales_others():
    module, plain = network(), network()
    opt = ctorch.optim.SGD(module.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    for poisoned in (True, False):
        opt.zero_grad()
        scaler.scale(module(torch.ones(1, 6)).sum()).backward()
        if poisoned:
            module[0].weight.grad[0, 0] = torch.inf
        before = module[2].weight.detach().clone()
        scaler.step(opt)
        scaler.update()
        assert torch.equal(module[2].weight, before) == poisoned
    assert scaler.get_scale() == 2.0**10  # halved once, doubled once
    plain(torch.ones(1, 6)).sum().backward()
    for p, q in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad)


def test_bfloat16_training_with_8_bit_state_and_a_schedule():
    """Fine-tuning as it is meant: weights in bfloat16, state in 8 bits, PyTorch's schedule."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 4)
    ).to(torch.bfloat16)
    x = torch.randn(256, 64)
    y = x[:, :4].argmax(1)
    opt = ctorch.optim.AdamW(
        module.parameters(), lr=5e-3, state_dtype="int8", precision="stochastic"
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 120)
    for _ in range(120):
        opt.zero_grad()
        ctorch.cross_entropy(module(x.to(torch.bfloat16)), y).backward()
        opt.step(max_grad_norm=1.0)
        scheduler.step()
    assert opt.state[module[0].weight]["exp_avg"].dtype == torch.int8
    assert (module(x.to(torch.bfloat16)).argmax(1) == y).float().mean() > 0.95


@pytest.mark.parametrize("package", ["deepspeed", "torch", "compressrs"])
def test_a_loop_with_the_interface_of_deepspeed_s_cpu_adam(package):
    """The same loop for all: model_params by position, betas, eps, weight_decay by name."""
    if package == "deepspeed":
        kind = pytest.importorskip("deepspeed.ops.adam").DeepSpeedCPUAdam
    else:
        kind = {"torch": torch.optim.AdamW, "compressrs": ctorch.optim.AdamW}[package]
    module = network()
    opt = kind(module.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses = []
    for _ in range(40):
        opt.zero_grad()
        losses.append(backward(module).item())
        opt.step()
        opt.param_groups[0]["lr"] *= 0.99
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict", "torch.save"])
def test_copies_go_on_to_the_same_bits(name, how):
    module = network()
    opt = getattr(ctorch.optim, name)(trained(name)(module), state_dtype=storages(name)[-1])
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
    for step in range(3):
        opt.zero_grad()
        backward(module, step)
        opt.step()
        scheduler.step()
    if how == "deepcopy":
        other, other_opt = copy.deepcopy((module, opt))
    elif how == "pickle":
        other, other_opt = pickle.loads(pickle.dumps((module, opt)))
    else:
        state = opt.state_dict()
        if how == "torch.save":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        other = network(seed=1)
        other.load_state_dict(module.state_dict())
        other_opt = getattr(ctorch.optim, name)(
            trained(name)(other), state_dtype=storages(name)[-1]
        )
        other_opt.load_state_dict(state)
    assert other_opt.param_groups[0]["lr"] == opt.param_groups[0]["lr"]
    before = copy.deepcopy(module.state_dict())
    other_opt.zero_grad()
    backward(other, 9)
    other_opt.step()
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])
    opt.zero_grad()
    backward(module, 9)
    opt.step()
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "NAdam", "RAdam"])
def test_state_dicts_go_to_torch_and_back(name):
    kwargs = {"momentum": 0.9} if name == "SGD" else {}
    ours, theirs = network(torch.float64), network(torch.float64)
    opt = getattr(ctorch.optim, name)(ours.parameters(), lr=0.01, **kwargs)
    their_opt = getattr(torch.optim, name)(theirs.parameters(), lr=0.01, **kwargs)
    for turn in range(3):
        for module, each in ((ours, opt), (theirs, their_opt)):
            each.zero_grad()
            backward(module, turn)
            each.step()
        if turn == 0:
            new = getattr(torch.optim, name)(theirs.parameters(), lr=9.0, **kwargs)
            new.load_state_dict(copy.deepcopy(opt.state_dict()))
            their_opt = new
        elif turn == 1:
            opt = getattr(ctorch.optim, name)(ours.parameters(), lr=9.0, **kwargs)
            opt.load_state_dict(copy.deepcopy(their_opt.state_dict()))
    # PyTorch has the product of NAdam's momenta in single precision.
    rtol = 1e-6 if name == "NAdam" else 1e-9
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-3 * rtol)


def test_a_state_dict_that_does_not_fit_changes_nothing():
    module = network()
    opt = ctorch.optim.Adam(module.parameters())
    backward(module)
    opt.step()
    before = copy.deepcopy(opt.state_dict())
    wrong = copy.deepcopy(before)
    wrong["state"][0]["exp_avg"] = torch.ones(3)
    for bad in (
        wrong,
        {},
        {"param_groups": [], "state": {}},
        ctorch.optim.SGD(module.parameters()).state_dict(),
        ctorch.optim.Adam(matrices(module)).state_dict(),
    ):
        with pytest.raises(ValueError):
            opt.load_state_dict(bad)
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for i, values in before["state"].items():
        for key, value in values.items():
            assert torch.equal(after["state"][i][key], value)


def test_state_can_be_written_to_but_not_replaced():
    p = torch.nn.Parameter(torch.ones(3))
    opt = ctorch.optim.SGD([p], lr=1.0, momentum=1.0)
    p.grad = torch.zeros(3)
    opt.step()
    opt.state[p]["momentum_buffer"].fill_(2.0)
    opt.step()
    assert torch.equal(p.detach(), torch.full((3,), -1.0))
    opt.state[p]["momentum_buffer"] = torch.ones(3)
    opt.step()
    assert torch.equal(p.detach(), torch.full((3,), -2.0))
    with pytest.raises(TypeError, match="state cannot be replaced"):
        opt.state = {p: {}}


def test_masks_hold_and_are_saved():
    module = network()
    opt = ctorch.optim.Adam(module.parameters())
    mask = torch.rand(61, 70, generator=torch.Generator().manual_seed(0)) < 0.5
    version = module[2].weight._version
    opt.set_masks({module[2].weight: mask})
    assert module[2].weight._version > version
    for step in range(3):
        backward(module, step)
        opt.step()
    assert not module[2].weight[~mask].any()
    assert module[2].weight[mask].all()
    other = ctorch.optim.Adam(module.parameters())
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    backward(module, 5)
    other.step()
    assert not module[2].weight[~mask].any()
    with pytest.raises(ValueError, match="masks must be of parameters of the optimizer"):
        opt.set_masks({torch.ones(2): mask})
    with pytest.raises(ValueError, match="shape"):
        opt.set_masks({module[0].weight: mask})
    with pytest.raises(TypeError, match="masks must be a dict"):
        opt.set_masks([mask])


def test_convert_state():
    module = network()
    opt = ctorch.optim.Adam(module.parameters())
    assert opt.state[module[2].weight]["exp_avg"].dtype == torch.float32
    opt.convert_state("bfloat16")
    assert opt.state[module[2].weight]["exp_avg"].dtype == torch.bfloat16
    assert opt.param_groups[0]["state_dtype"] == "bfloat16"
    backward(module)
    opt.step()


def test_memory_that_a_module_was_given_since_is_trained():
    module = network()
    opt = ctorch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    backward(module)
    opt.step()
    new = torch.ones(70, 6)
    module[0].weight.data = new
    opt.step()
    assert not torch.equal(new, torch.ones(70, 6))
    assert torch.equal(module[0].weight, new)
    assert opt.state[module[0].weight]["step"] == 2
    # A copy that is trained later is that of the module.
    other, other_opt = copy.deepcopy((module, opt))
    backward(other)
    before = other[0].weight.detach().clone()
    other_opt.step()
    assert not torch.equal(other[0].weight, before)


def test_parameters_that_were_replaced_are_named():
    module = network()
    opt = ctorch.optim.SGD(module.parameters(), lr=0.1)
    backward(module)
    module[0].weight.grad = None
    module[0].weight.data = torch.ones(71, 6)
    before = module[2].weight.detach().clone()
    with pytest.raises(ValueError, match=r"params\[0\]\[0\] must be float32 of shape \(70, 6\)"):
        opt.step()
    assert torch.equal(module[2].weight, before)
    module = network()
    opt = ctorch.optim.SGD(module.parameters(), lr=0.1)
    backward(module)
    opt.param_groups[0]["params"][1] = torch.nn.Parameter(torch.ones(70))
    with pytest.raises(ValueError, match="must be those that the optimizer was made with"):
        opt.step()


def test_gradients_are_looked_at_anew():
    """Small gradients are remembered while they are the same tensors with the same memory."""
    p = torch.nn.Parameter(torch.zeros(3))
    opt = ctorch.optim.SGD([p], lr=1.0)
    p.grad = torch.ones(3)
    opt.step()
    p.grad.fill_(2.0)
    opt.step()
    assert torch.equal(p.detach(), torch.full((3,), -3.0))
    p.grad.data = torch.full((3,), 3.0)
    opt.step()
    assert torch.equal(p.detach(), torch.full((3,), -6.0))
    p.grad = torch.full((3,), 4.0)
    opt.step()
    assert torch.equal(p.detach(), torch.full((3,), -10.0))
    opt.zero_grad(set_to_none=False)
    opt.step()
    assert torch.equal(p.detach(), torch.full((3,), -10.0))
    opt.zero_grad()
    opt.step()
    assert torch.equal(p.detach(), torch.full((3,), -10.0))


def channels_last():
    return torch.nn.Parameter(torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last))


SHARED = torch.ones(6)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: [torch.nn.Parameter(torch.ones(2, device="meta"))], ValueError, "meta tensor"),
        (lambda: [channels_last()], ValueError, r"p.data = p.data.contiguous\(\)"),
        (lambda: [torch.nn.Parameter(torch.ones(3, 2).t())], ValueError, "must be contiguous"),
        (lambda: [torch.ones(2, dtype=torch.int64)], TypeError, "int64"),
        (lambda: [torch.ones(2, dtype=torch.complex64)], TypeError, "complex64"),
        (lambda: [torch.eye(2).to_sparse()], TypeError, "to_dense"),
        (lambda: [SHARED[:4], SHARED[2:]], ValueError, "memory"),
        (lambda: [torch.ones(2, requires_grad=True) * 2], ValueError, "non-leaf"),
        (lambda: [np.ones(2)], TypeError, "can only optimize Tensors"),
        (list, ValueError, "at least one tensor, got none"),
    ],
)
def test_parameters_that_cannot_be_updated_are_named(make, error, match):
    with pytest.raises(error, match=match):
        ctorch.optim.AdamW(make())


def transposed():
    module = torch.nn.Linear(3, 4)
    module.weight = torch.nn.Parameter(torch.ones(3, 4).t())
    return module, torch.ones(2, 3)


def in_channels_last():
    module = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    return module, torch.ones(2, 3, 5, 5)


def in_channels_last_3d():
    module = torch.nn.Conv3d(3, 4, 3).to(memory_format=torch.channels_last_3d)
    return module, torch.ones(2, 3, 5, 5, 5)


def expanded():
    module = torch.nn.LayerNorm(3)
    module.weight = torch.nn.Parameter(torch.ones(1).expand(3))
    return module, torch.ones(2, 3)


@pytest.mark.parametrize("make", [transposed, in_channels_last, in_channels_last_3d, expanded])
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_advice_for_weights_that_are_not_contiguous_works(make, when):
    module, x = make()
    strided = dict(module.named_parameters())
    with pytest.raises(ValueError, match=r"params.0..0. must be contiguous") as raised:
        ctorch.optim.AdamW(module.parameters())
    (advice,) = re.findall(
        r"call (\S+ = \S+) first, for each p in module.parameters", str(raised.value)
    )
    values = {name: p.detach().clone() for name, p in strided.items()}
    if when == "after":  # an optimizer that was made before the memory was replaced
        kept = {name: p.data for name, p in strided.items()}
        for p in module.parameters():
            p.data = p.data.contiguous()
        opt = ctorch.optim.SGD(module.parameters(), lr=0.5)
        for name, p in strided.items():
            p.data = kept[name]
        module(x).sum().backward()
        with pytest.raises(ValueError, match="must be contiguous"):
            opt.step()
    for p in module.parameters():
        exec(advice, {"p": p})
    if when == "before":
        opt = ctorch.optim.SGD(module.parameters(), lr=0.5)
        module(x).sum().backward()
    opt.step()
    for name, p in module.named_parameters():
        assert p is strided[name]
        torch.testing.assert_close(p.detach(), values[name] - 0.5 * p.grad)


def test_gradients_in_channels_last_are_taken():
    module = torch.nn.Conv2d(3, 4, 3)
    opt = ctorch.optim.AdamW(module.parameters(), lr=0.1)
    x = torch.ones(2, 3, 5, 5).to(memory_format=torch.channels_last)
    module(x).sum().backward()
    module.weight.grad = module.weight.grad.to(memory_format=torch.channels_last)
    before = module.weight.detach().clone()
    opt.step()
    torch.testing.assert_close(module.weight, before * (1 - 0.1 * 1e-2) - 0.1)


def test_sparse_gradients_and_wrong_hyperparameters_are_refused_before_anything_changes():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    opt = ctorch.optim.SGD(embedding.parameters(), lr=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match=r"the gradient of params\[0\]\[0\].*to_dense"):
        opt.step()
    with pytest.raises(TypeError, match="fused"):
        ctorch.optim.AdamW(embedding.parameters(), fused=True)
    with pytest.raises(ValueError, match="lr"):
        ctorch.optim.AdamW(embedding.parameters(), lr=-1)
    module = network()
    opt = ctorch.optim.SGD(module.parameters(), lr=0.1)
    backward(module)
    before = copy.deepcopy(module.state_dict())
    opt.param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match="lr"):
        opt.step()
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])
    opt.param_groups[0]["lr"] = 0.1
    opt.step()


def test_tied_weights_are_trained_once():
    embedding = torch.nn.Embedding(5, 4)
    module = torch.nn.Sequential(embedding, torch.nn.Linear(4, 5, bias=False))
    module[1].weight = embedding.weight
    twin = copy.deepcopy(module)
    for each, package in ((module, ctorch.optim), (twin, torch.optim)):
        opt = package.SGD(each.parameters(), lr=0.1)
        each(torch.arange(3)).square().sum().backward()
        opt.step()
    torch.testing.assert_close(module[0].weight, twin[0].weight)
    assert module[1].weight is module[0].weight


def test_pruner_and_averages_work_on_the_array_optimizer():
    module = network()
    opt = ctorch.optim.Adam(module.parameters(), lr=0.01)
    ema = cr.optim.EMA(list(module.parameters()), decay=0.9)
    pruner = cr.prune.MagnitudePruner(
        matrices(module), cr.prune.CubicSchedule(final=0.8, end=4), optimizer=opt.array_optimizer
    )
    for step in range(8):
        opt.zero_grad()
        backward(module, step)
        opt.step()
        pruner.step()
        ema.update()
    zeros = sum(int((p == 0).sum()) for p in matrices(module))
    assert zeros / sum(p.numel() for p in matrices(module)) == pytest.approx(0.8, abs=1e-3)
