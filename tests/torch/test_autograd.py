"""Gradients of gradients are refused, never dropped, by every function of `compressrs.torch`."""

import importlib
import pkgutil

import numpy as np
import pytest

import compressrs as cr

torch = pytest.importorskip("torch")
ctorch = pytest.importorskip("compressrs.torch")
_autograd = pytest.importorskip("compressrs.torch._autograd")

TEACHER = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


def loss(name, **options):
    return lambda x: getattr(ctorch, name)(x, TEACHER, **options)


def sparse():
    matrix = np.arange(12.0).reshape(3, 4) % 3
    return ctorch.SparseLinear(cr.sparse.CSRMatrix.from_dense(matrix))


def quantized(input):
    torch.manual_seed(0)
    dense = torch.nn.Linear(4, 3, dtype=torch.float64)
    return ctorch.QuantizedLinear.from_linear(dense, cr.quantize.Scheme(bits=8), input=input)


CASES = {
    "_Loss": [
        loss("kd_loss"),
        loss("mse_loss"),
        loss("hint_loss"),
        lambda x: ctorch.kd_loss(x, TEACHER, reduction="none").exp().sum(),
        lambda x: ctorch.cross_entropy(x, torch.tensor([0, 1, 2])),
        lambda x: 3 * ctorch.dist_loss(x, TEACHER) ** 2,
    ],
    "_SparseAffine": [sparse(), lambda x: sparse()(x).square()],
    "_QuantizedAffine": [quantized("float32"), lambda x: quantized("int8")(x).square()],
}
TABLE = [
    pytest.param(f, id=f"{name}-{i}") for name, cases in CASES.items() for i, f in enumerate(cases)
]


def subclasses(kind):
    for sub in kind.__subclasses__():
        yield sub
        yield from subclasses(sub)


def test_every_function_is_tested():
    for module in pkgutil.iter_modules(ctorch.__path__, "compressrs.torch."):
        importlib.import_module(module.name)
    found = {
        kind.__name__
        for kind in subclasses(torch.autograd.Function)
        if kind.__module__.startswith("compressrs.") and not kind.__name__.endswith("Backward")
    }
    assert found == {*CASES, "_Refused"}


def penalty(function, x):
    (g,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    return g.pow(2).sum()


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize("function", TABLE)
def test_a_gradient_that_is_not_differentiated_is_the_same_with_create_graph(function):
    x = torch.linspace(-2, 1, 12, dtype=torch.float64).reshape(3, 4).requires_grad_()
    (plain,) = torch.autograd.grad(function(x).sum(), x)
    (recorded,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    assert recorded.requires_grad
    assert torch.equal(plain, recorded)
    function(x).sum().backward(create_graph=True)
    assert torch.equal(x.grad, plain)
    # As by zero_grad(set_to_none=False).
    x.grad.detach_().zero_()
    assert not x.grad.any()


@pytest.mark.parametrize("function", TABLE)
@pytest.mark.parametrize("leaf", [True, False])
def test_a_gradient_penalty_is_refused(function, leaf):
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(-2, 1, 12, dtype=torch.float64).reshape(3, 4).requires_grad_()
    # Behind a module whose weight the gradient depends on, autograd visits only the paths to it.
    behind = function if leaf else lambda x: function((x * weight).sin())
    wanted = x if leaf else weight
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice.*create_graph"):
        penalty(behind, x).backward()
    assert wanted.grad is None
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(penalty(behind, x), wanted)


@pytest.mark.parametrize("wanted", ["weight", "bias"])
def test_gradients_of_parameters_are_refused_too(wanted):
    layer = sparse()
    layer.bias = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    x = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    parameter = getattr(layer, wanted)
    (g,) = torch.autograd.grad(layer(x).square().sum(), parameter, create_graph=True)
    for t in (x, layer.weight, layer.bias):
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            torch.autograd.grad(g.sum(), t, retain_graph=True)


def test_a_kept_gradient_is_not_changed_through_one_that_was_returned():
    x = torch.linspace(-2, 1, 12, dtype=torch.float64).reshape(3, 4).requires_grad_()
    value = ctorch.mse_loss(x, TEACHER)
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    expected = first.clone()
    first.zero_()
    assert torch.equal(torch.autograd.grad(value, x)[0], expected)


def test_a_loss_does_not_keep_the_memory_of_the_student():
    x = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ctorch.mse_loss(x.exp(), TEACHER)
    # That of `exp`, and an empty tensor.
    assert [t.numel() for t in kept] == [12, 0]
    assert kept[1].untyped_storage().nbytes() == 0
