"""Tensors that are not dense are refused with the name of the argument, wherever they enter."""

import numpy as np
import pytest

import compressrs as cr

torch = pytest.importorskip("torch")
ctorch = pytest.importorskip("compressrs.torch")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DENSE = torch.ones(4, 4)
LAYOUTS = {
    "sparse_coo": DENSE.to_sparse,
    "sparse_csr": DENSE.to_sparse_csr,
    "sparse_csc": DENSE.to_sparse_csc,
    "sparse_bsr": lambda: DENSE.to_sparse_bsr((2, 2)),
    "_mkldnn": DENSE.to_mkldnn,
    "nested": lambda: torch.nested.nested_tensor([torch.ones(4)] * 4),
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged
    ),
}
SCHEME = cr.quantize.Scheme(bits=8)


def linear(weight):
    module = torch.nn.Linear(4, 4)
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    return module


def masked(mask):
    p = torch.nn.Parameter(torch.ones(4, 4))
    ctorch.optim.SGD([p], lr=0.1).set_masks({p: mask})


def shrunk(mask):
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
    ctorch.shrink(module, {0: mask})


def matrix():
    return cr.sparse.CSRMatrix.from_dense(np.ones((4, 4), np.float32))


#: By what takes a tensor: how the error names it.
ENTRIES = {
    "SparseLinear": (lambda t: ctorch.SparseLinear(matrix())(t), "x"),
    "SparseLinear-bias": (lambda t: ctorch.SparseLinear(matrix(), t), "bias"),
    "SparseLinear.from_linear": (
        lambda t: ctorch.SparseLinear.from_linear(linear(t)),
        r"module\.weight",
    ),
    "SparseLinear-mask": (
        lambda t: ctorch.SparseLinear.from_linear(torch.nn.Linear(4, 4), mask=t),
        "mask",
    ),
    "QuantizedLinear": (
        lambda t: ctorch.QuantizedLinear.from_linear(torch.nn.Linear(4, 4), SCHEME)(t),
        "x",
    ),
    "QuantizedLinear.from_linear": (
        lambda t: ctorch.QuantizedLinear.from_linear(linear(t), SCHEME),
        r"module\.weight",
    ),
    "to_nn": (lambda t: ctorch.to_nn(torch.nn.Sequential(linear(t))), r"0\.weight"),
    "shrink": (shrunk, r"keep\[0\]"),
    "prune": (lambda t: ctorch.prune(linear(t), 0.5), "weight"),
    "input_statistics": (
        lambda t: ctorch.input_statistics(torch.nn.Sequential(torch.nn.Linear(4, 4)), t),
        "batches",
    ),
    "set_masks": (masked, r"masks\[0\]"),
}
for _name in ctorch.__all__:
    if _name.endswith(("_loss", "cross_entropy")):
        _loss = getattr(ctorch, _name)
        _more = {"labels": torch.zeros(4, dtype=torch.int64)} if _name == "dkd_loss" else {}
        _first = next(iter(_loss.__annotations__))
        _second = list(_loss.__annotations__)[1]
        ENTRIES[_name] = (lambda t, f=_loss, m=_more: f(t, DENSE, **m), _first)
        ENTRIES[f"{_name}-data"] = (lambda t, f=_loss, m=_more: f(DENSE, t, **m), _second)
for _name in ctorch.optim.__all__:
    if _name != "Optimizer":
        ENTRIES[_name] = (lambda t, n=_name: getattr(ctorch.optim, n)([t]), r"params\[0\]\[0\]")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_are_refused(layout):
    tensor = LAYOUTS[layout]()
    for entry, (use, name) in ENTRIES.items():
        with pytest.raises(TypeError, match=rf"^{name} must be a dense tensor, got .*; use \.to_"):
            use(tensor)
            pytest.fail(f"{entry} took a tensor of layout {layout}")


def test_negated_views_are_refused_and_not_read_with_the_wrong_sign():
    z = torch.complex(torch.zeros(4, 4), torch.ones(4, 4))
    negated = z.conj().imag
    assert negated.is_neg()
    assert (negated == -1).all()
    for use, name in ENTRIES.values():
        with pytest.raises(TypeError, match=rf"^{name} must .*resolve_neg"):
            use(negated)
    for take in (cr.optim.SGD, lambda t: cr.nn.mse_loss(t, DENSE)):
        with pytest.raises(TypeError, match="resolve_neg"):
            take(negated)
    p = torch.nn.Parameter(torch.zeros(4, 4))
    opt = ctorch.optim.SGD([p], lr=1.0)
    p.grad = negated
    with pytest.raises(TypeError, match=r"gradient of params\[0\]\[0\].*resolve_neg"):
        opt.step()
    assert not p.any()
    p.grad = negated.resolve_neg()
    opt.step()
    assert (p == 1).all()
    arrays = cr.optim.SGD(np.zeros((4, 4), np.float32), lr=1.0)
    with pytest.raises(TypeError, match="resolve_neg"):
        arrays.step(negated)
