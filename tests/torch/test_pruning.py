"""Pruning, shrinking and statistics of modules, and their distillation."""

import copy

import numpy as np
import pytest

import compressrs as cr

torch = pytest.importorskip("torch")
ctorch = pytest.importorskip("compressrs.torch")


def mlp(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8), torch.nn.Linear(8, 3)
    ).to(dtype)


def cnn(dtype=torch.float64):
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding="same"),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Identity(),
        torch.nn.MaxPool2d(2),
        torch.nn.Sequential(torch.nn.Conv2d(8, 6, 3, bias=False), torch.nn.BatchNorm2d(6)),
        torch.nn.GELU(),
        torch.nn.AvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(24, 10),
        torch.nn.BatchNorm1d(10),
        torch.nn.SiLU(),
        torch.nn.Linear(10, 4),
    ).to(dtype)
    for norm in module.modules():
        if isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            with torch.no_grad():
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                norm.weight.normal_()
                norm.bias.normal_()
    return module


def images(dtype=torch.float64, n=5):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 12, 12, dtype=torch.float64, generator=generator).to(dtype)


OPTIMIZERS = [torch.optim.AdamW, ctorch.optim.AdamW]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scope", ["global", "layer", "row"])
def test_masks_are_those_of_arrays_and_hold_through_steps(optimizer, scope):
    module = mlp()
    names = ["0.weight", "2.weight"]
    weights = {name: module.get_parameter(name).detach().numpy().copy() for name in names}
    expected = cr.prune.masks({k: np.abs(w) for k, w in weights.items()}, 0.6, scope)
    opt = optimizer(module.parameters(), lr=0.01)
    before = dict(module.named_parameters())
    loss = module(torch.ones(2, 6)).sum()
    found = ctorch.prune(module, 0.6, names, scope=scope, optimizer=opt)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    for _ in range(3):
        module.zero_grad()
        module(torch.ones(2, 6)).square().sum().backward()
        opt.step()
    assert list(found) == names
    for name, p in module.named_parameters():
        assert p is before[name]
        if name in names:
            np.testing.assert_array_equal(found[name].numpy(), expected[name])
            np.testing.assert_array_equal(p.detach().numpy() != 0, expected[name])
        elif p.ndim == 2:
            assert p.detach().all()


def test_by_default_all_matrices_are_pruned_together():
    module = mlp()
    ctorch.prune(module, 0.75)
    weights = [p for p in module.parameters() if p.ndim > 1]
    zeros = sum(int((p == 0).sum()) for p in weights)
    assert zeros == 0.75 * sum(p.numel() for p in weights)
    assert all(p.detach().all() for p in module.parameters() if p.ndim == 1)


def test_other_scores_and_granularities():
    module = mlp()
    score = cr.prune.Taylor()
    module(torch.ones(2, 6)).square().sum().backward()
    names = ["0.weight", "2.weight"]
    named = {name: module.get_parameter(name) for name in names}
    arrays = {name: p.detach().numpy() for name, p in named.items()}
    score.update(arrays, {name: p.grad.numpy() for name, p in named.items()})
    units = cr.prune.NM(2, 4, 0)
    expected = cr.prune.masks(score.scores(arrays), 0.5, granularity=units)
    found = ctorch.prune(module, 0.5, names, score=score, granularity=units)
    for name, mask in found.items():
        np.testing.assert_array_equal(mask.numpy(), expected[name])
        assert (mask.reshape(-1, 4, mask.shape[1]).sum(1) == 2).all()
    module = mlp()
    with pytest.raises(ValueError, match="multiple of"):
        ctorch.prune(module, 0.5, granularity=units)
    assert all(p.detach().all() for p in module.parameters())


def test_what_cannot_be_pruned_is_named_before_anything_changes():
    module = mlp()
    tied = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 4), "b": torch.nn.Linear(4, 4)})
    tied["b"].weight = tied["a"].weight
    other = ctorch.optim.Adam(mlp().parameters())
    meta = torch.nn.Linear(3, 3, device="meta")
    last = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    for call, error, match in (
        (lambda: ctorch.prune(module, 0.5, ["0.weigth"]), ValueError, "names must be among"),
        (lambda: ctorch.prune(module, 0.5, "0.weight"), TypeError, "names must be a sequence"),
        (lambda: ctorch.prune(module, 0.5, []), ValueError, "at least one parameter"),
        (lambda: ctorch.prune(module, 1.5), ValueError, "sparsity"),
        (lambda: ctorch.prune(module, 0.5, optimizer=other), ValueError, "0.weight must be a par"),
        (lambda: ctorch.prune(module, 0.5, optimizer=1), TypeError, "torch.optim.Optimizer"),
        (lambda: ctorch.prune([1], 0.5), TypeError, "module must be a torch.nn.Module"),
        (lambda: ctorch.prune(tied, 0.5, ["a.weight", "b.weight"]), ValueError, "one tied"),
        (lambda: ctorch.prune(meta, 0.5), ValueError, "weight must have memory"),
        (lambda: ctorch.prune(last, 0.5), ValueError, "weight must be contiguous"),
    ):
        with pytest.raises(error, match=match):
            call()
    assert all(p.detach().all() for p in module.parameters())
    ctorch.prune(tied, 0.5, ["b.weight"])
    assert int((tied["a"].weight == 0).sum()) == 8
    last.to(memory_format=torch.contiguous_format)
    ctorch.prune(last, 0.5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_converted_module_computes_the_same_on_the_same_memory(dtype, training):
    module = cnn(dtype).train(training)
    model = ctorch.to_nn(module)
    twin = copy.deepcopy(module)
    x = images(dtype)
    expected = twin(x)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    np.testing.assert_allclose(
        model(x.numpy()), expected.detach().numpy(), rtol=tolerance, atol=tolerance
    )
    if training:  # running means as well
        for name, value in twin.named_buffers():
            torch.testing.assert_close(
                module.get_buffer(name), value, rtol=tolerance, atol=tolerance
            )
    with torch.no_grad():
        module[0].weight.zero_()
    assert not model[0].weight.any()


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (torch.nn.Sequential(torch.nn.LSTM(2, 2)), "module 0 must be one of .*got LSTM"),
        (torch.nn.Sequential(torch.nn.MaxPool2d(2, ceil_mode=True)), "ceil_mode=False, got True"),
        (torch.nn.Sequential(torch.nn.BatchNorm1d(2, affine=False)), "affine=True, got False"),
        (torch.nn.Sequential(torch.nn.BatchNorm1d(2, momentum=None)), "momentum, got None"),
        (torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3, padding_mode="reflect")), "padding_mode"),
        (torch.nn.Sequential(torch.nn.Conv2d(1, 1, 2, padding="same")), "even on both sides"),
        (torch.nn.Sequential(torch.nn.Flatten(0)), "start_dim=1"),
        (torch.nn.Sequential(torch.nn.Linear(2, 2).half()), "float32 or float64, got torch.float"),
        (torch.nn.Linear(2, 2), "must be a torch.nn.Sequential, got Linear"),
    ],
)
def test_modules_that_cannot_be_converted_are_named(module, match):
    with pytest.raises(TypeError, match=match):
        ctorch.to_nn(module)


def test_tied_and_meta_parameters_are_not_converted():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    module[1].weight = module[0].weight
    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight are one"):
        ctorch.to_nn(module)
    with pytest.raises(ValueError, match=r"0\.weight must have memory"):
        ctorch.shrink(torch.nn.Sequential(torch.nn.Linear(2, 2, device="meta")), {})


def test_a_shrunk_module_computes_what_the_masked_one_does_and_trains_on():
    module = cnn().eval()
    opt = ctorch.optim.AdamW(module.parameters(), lr=0.01)
    module(images()).square().mean().backward()
    opt.step()
    parameters = list(module.parameters())
    keep = {
        0: torch.tensor([1, 0, 1, 1, 0, 1, 1, 1], dtype=torch.bool),
        "5.0": np.array([1, 0, 1, 0, 1, 1], bool),
        "9": torch.arange(10) % 3 > 0,
    }
    masked = copy.deepcopy(module)
    with torch.no_grad():
        for (conv, norm), mask in zip(
            ((masked[0], masked[1]), (masked[5][0], masked[5][1]), (masked[9], masked[10])),
            keep.values(),
            strict=True,
        ):
            gone = ~torch.as_tensor(mask)
            conv.weight[gone] = 0
            if conv.bias is not None:
                conv.bias[gone] = 0
            norm.weight[gone] = 0
            norm.bias[gone] = 0
    ctorch.shrink(module, keep, opt)
    torch.testing.assert_close(module(images()), masked(images()), rtol=1e-9, atol=1e-11)
    first, second, third = module[0], module[5][0], module[9]
    assert (first.out_channels, second.in_channels, second.out_channels) == (6, 6, 4)
    assert (module[1].num_features, third.in_features, third.out_features) == (6, 16, 6)
    assert module[1].running_mean.shape == (6,)
    for p, old in zip(module.parameters(), parameters, strict=True):
        assert p is old
        assert p.grad is None or p.grad.shape == p.shape
        assert opt.state[p]["exp_avg"].shape == p.shape
        assert opt.state[p]["step"] == 1
    before = copy.deepcopy(module.state_dict())
    other, other_opt = copy.deepcopy((module, opt))
    for each, its_opt in ((module, opt), (other, other_opt)):
        its_opt.zero_grad()
        each(images()).square().mean().backward()
        its_opt.step()
    for name, p in module.named_parameters():
        assert not torch.equal(p, before[name])
        assert torch.equal(p, other.get_parameter(name))


def test_what_cannot_be_shrunk_changes_nothing():
    module = mlp()
    state = copy.deepcopy(module.state_dict())
    mask = torch.arange(16) < 4
    for call, error, match in (
        (lambda: ctorch.shrink(module, {7: mask}), ValueError, "keep must be of modules"),
        (lambda: ctorch.shrink(module, {0: mask, "0": mask}), ValueError, "once"),
        (lambda: ctorch.shrink(module, {0: mask[:5]}), ValueError, "5 rows"),
        (lambda: ctorch.shrink(module, {3: mask[:3]}), ValueError, "outputs"),
        (lambda: ctorch.shrink(module, [mask]), TypeError, "keep must be a dict"),
        (
            lambda: ctorch.shrink(module, {0: mask}, torch.optim.Adam(module.parameters())),
            TypeError,
            "compressrs.torch.optim",
        ),
    ):
        with pytest.raises(error, match=match):
            call()
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name])


def test_input_statistics_are_those_of_the_model_of_arrays():
    module = cnn(torch.float64).train()
    x = images(n=8)
    before = copy.deepcopy(module.state_dict())
    found = ctorch.input_statistics(module, [x[:3], x[3:]], gram=True)
    assert module.training and module[5][1].training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    expected = cr.prune.input_statistics(ctorch.to_nn(module).eval(), x.numpy(), gram=True)
    assert list(found) == ["9", "12"]
    for one, other in zip(found.values(), expected, strict=True):
        assert one.count == other.count == 8
        np.testing.assert_allclose(one.gram, other.gram, rtol=1e-10, atol=1e-12)


def test_input_statistics_of_any_module():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(3, 3)

        def forward(self, x, y):
            return self.inner(self.inner(x)) + self.inner(input=y)

    module = Twice().eval()
    x = torch.ones(2, 4, 3)
    found = ctorch.input_statistics(module, [(x, x)])
    assert found["inner"].count == 24
    with pytest.raises(ValueError, match="batches must not require gradients"):
        ctorch.input_statistics(mlp(), torch.ones(2, 6, requires_grad=True))
    with pytest.raises(TypeError, match=r"batches\[0\] must be a torch.Tensor"):
        ctorch.input_statistics(mlp(), [np.ones((2, 6))])
    with pytest.raises(TypeError, match="batches must be a tensor or an iterable"):
        ctorch.input_statistics(mlp(), 3)
    with pytest.raises(ValueError, match="finite"):
        ctorch.input_statistics(mlp(), torch.full((2, 6), torch.inf))
    module = mlp()
    assert not module[0]._forward_pre_hooks


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 8, generator=generator)
    y = (x[:, :3].sum(1) > 0).long() + (x[:, 3] > 0).long()
    return x, y


def student():
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 16, bias=False),
        torch.nn.BatchNorm1d(16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 3),
    )


def distiller(module, **kwargs):
    torch.manual_seed(1)
    teacher = torch.nn.Sequential(
        torch.nn.Linear(8, 32), torch.nn.Dropout(0.5), torch.nn.Linear(32, 3)
    )
    opt = ctorch.optim.AdamW(module.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 100)
    return ctorch.Distiller(module, teacher, opt, scheduler=scheduler, **kwargs)


def test_a_distiller_does_what_a_loop_in_torch_does():
    x, y = data()
    module, twin = student(), student()
    found = distiller(module, alpha=0.3, temperature=2.0)
    history = found.fit(x, y, epochs=2, validation=(x, y))
    teacher = found._members[0]
    opt = torch.optim.AdamW(twin.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 100)
    for epoch in range(2):
        order = np.random.default_rng([0, epoch]).permutation(len(x))
        for start in range(0, len(x), 32):
            rows = order[start : start + 32]
            opt.zero_grad()
            z = twin(x[rows])
            t = torch.from_numpy(teacher(x[rows]))
            soft = torch.nn.functional.kl_div(
                torch.log_softmax(z / 2, 1), torch.softmax(t / 2, 1), reduction="batchmean"
            )
            loss = 0.3 * 4 * soft + 0.7 * torch.nn.functional.cross_entropy(z, y[rows])
            loss.backward()
            opt.step()
            scheduler.step()
    for (name, a), b in zip(module.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)
    twin.eval()
    assert history[-1].accuracy == pytest.approx(float((twin(x).argmax(1) == y).float().mean()))
    assert found._torch_scheduler.last_epoch == 14


def test_a_distillation_that_is_interrupted_goes_on_to_the_same_bits(tmp_path):
    x, y = data()
    whole = student()
    distiller(whole).fit(x, y, epochs=4)
    parts = student()
    distiller(parts).fit(x, y, epochs=2, checkpoint=tmp_path / "run.safetensors")
    resumed = student()
    found = distiller(resumed)
    found.fit(x, y, epochs=4, checkpoint=tmp_path / "run.safetensors")
    assert len(found.history) == 4
    for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    # An exception takes back the whole epoch, with the learning rate and the schedule.
    failing = student()

    def fail(found):
        if found.step_count == 10:
            raise KeyboardInterrupt

    found = distiller(failing, after_step=fail)
    with pytest.raises(KeyboardInterrupt):
        found.fit(x, y, epochs=4)
    found._after_step = None
    found.fit(x, y, epochs=4)
    for a, b in zip(failing.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_teachers_in_tensors_pruners_and_copies():
    x, y = data()
    module = student()
    opt = ctorch.optim.Adam(module.parameters(), lr=0.01, state_dtype="int8")
    weights = [module[0].weight, module[3].weight]
    pruner = cr.prune.MagnitudePruner(
        weights, cr.prune.CubicSchedule(final=0.5, end=6), optimizer=opt.array_optimizer
    )
    logits = torch.nn.functional.one_hot(y, 3).float() * 5
    found = ctorch.Distiller(module, [logits, logits.numpy()], opt, pruner=pruner)
    found.fit(x, y, epochs=1, sample_weight=torch.ones(len(x)))
    other = copy.deepcopy(found)
    for each in (found, other):
        each.fit(x, y, epochs=3)
    for a, b in zip(module.parameters(), other._module.parameters(), strict=True):
        assert a is not b
        assert torch.equal(a, b)
    assert sum(int((w == 0).sum()) for w in weights) == 0.5 * sum(w.numel() for w in weights)


def test_wrong_parts_of_a_distiller_are_named():
    module = student()
    opt = ctorch.optim.Adam(module.parameters())
    logits = torch.ones(200, 3)
    for call, error, match in (
        (lambda: ctorch.Distiller(1, logits, opt), TypeError, "student must be a torch.nn.Module"),
        (
            lambda: ctorch.Distiller(module, logits, torch.optim.Adam(module.parameters())),
            TypeError,
            "compressrs.torch.optim",
        ),
        (lambda: ctorch.Distiller(module, 3, opt), TypeError, "teacher must be callable"),
        (
            lambda: ctorch.Distiller(module, logits.requires_grad_(), opt),
            ValueError,
            "must not require gradients",
        ),
        (
            lambda: ctorch.Distiller(module, logits.detach(), opt, scheduler=3),
            TypeError,
            "LRScheduler",
        ),
        (lambda: ctorch.Distiller(module, [], opt), ValueError, "empty"),
    ):
        with pytest.raises(error, match=match):
            call()
