"""Sparse and quantized modules, with autograd."""

import copy
import io

import numpy as np
import pytest

import compressrs as cr

torch = pytest.importorskip("torch")
ctorch = pytest.importorskip("compressrs.torch")


def pair(dtype=torch.float64, bias=True, shape=(9, 13)):
    """Return a dense module with zeros and its sparse counterpart."""
    torch.manual_seed(0)
    dense = torch.nn.Linear(shape[1], shape[0], bias=bias, dtype=dtype)
    ctorch.prune(dense, 0.7)
    return dense, ctorch.SparseLinear.from_linear(dense)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 13), (2, 3, 13), (13,), (0, 13)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_are_those_of_the_dense_module(dtype, shape, bias):
    dense, sparse = pair(dtype, bias)
    x = torch.randn(shape, dtype=dtype)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(z) for module, z in zip((dense, sparse), inputs, strict=True)]
    upstream = torch.randn(outputs[0].shape, dtype=dtype)
    for y in outputs:
        y.backward(upstream)
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    stored = dense.weight.detach() != 0
    torch.testing.assert_close(sparse.weight.grad, dense.weight.grad[stored])
    if bias:
        torch.testing.assert_close(sparse.bias.grad, dense.bias.grad)


def test_gradcheck_and_inputs_that_need_no_gradient():
    _, sparse = pair()
    x = torch.randn(4, 13, dtype=torch.float64)
    assert torch.autograd.gradcheck(sparse, x.requires_grad_())
    sparse.weight.requires_grad_(False)
    sparse(x).sum().backward()
    assert sparse.weight.grad is None
    assert sparse.bias.grad is not None
    # Not contiguous, as an upstream gradient that was expanded is.
    y = sparse(torch.randn(13, 4, dtype=torch.float64).t())
    y.sum().backward()


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, ctorch.optim.AdamW])
def test_it_trains_as_the_masked_dense_module(optimizer):
    dense, sparse = pair()
    mask = dense.weight.detach() != 0
    opts = [optimizer(m.parameters(), lr=0.01) for m in (dense, sparse)]
    for step in range(5):
        x = torch.randn(6, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for module, opt in zip((dense, sparse), opts, strict=True):
            opt.zero_grad()
            module(x).square().sum().backward()
            if module is dense:
                module.weight.grad *= mask
            opt.step()
    torch.testing.assert_close(sparse.weight.detach(), dense.weight.detach()[mask])
    np.testing.assert_allclose(sparse.matrix.to_dense(), dense.weight.detach().numpy(), rtol=1e-9)


def test_a_stale_backward_raises():
    _, sparse = pair()
    opt = ctorch.optim.SGD(sparse.parameters(), lr=0.1)
    y = sparse(torch.ones(2, 13, dtype=torch.float64)).sum()
    y.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("how", ["deepcopy", "torch.save", "state_dict"])
def test_copies_are_independent_and_equal(how):
    _, sparse = pair()
    x = torch.ones(2, 13, dtype=torch.float64)
    expected = sparse(x).detach()
    if how == "deepcopy":
        other = copy.deepcopy(sparse)
    elif how == "torch.save":
        file = io.BytesIO()
        torch.save(sparse, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = pair()[1]
        with torch.no_grad():
            other.weight.zero_()
        other.load_state_dict(copy.deepcopy(sparse.state_dict()))
    assert torch.equal(other(x), expected)
    with torch.no_grad():
        other.weight.zero_()
        other.bias.zero_()
    assert not other(x).any()
    assert torch.equal(sparse(x), expected)


def test_state_dicts_go_to_the_layer_of_arrays_and_other_patterns_are_refused():
    dense, sparse = pair()
    layer = cr.nn.SparseLinear(sparse.matrix.copy(), np.zeros(9))
    layer.load_state_dict(sparse.state_dict())
    x = np.ones((2, 13))
    np.testing.assert_array_equal(layer(x), sparse(torch.from_numpy(x)).detach().numpy())
    rolled = torch.nn.Linear(13, 9, dtype=torch.float64)
    rolled.weight.data = dense.weight.detach().roll(1, 0)
    other = ctorch.SparseLinear.from_linear(rolled)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(RuntimeError, match="must be the pattern of this module's weight"):
        other.load_state_dict(sparse.state_dict())
    assert torch.equal(other.state_dict()["weight.indices"], before["weight.indices"])
    whole = torch.nn.Sequential(sparse)
    assert "0.weight.indptr" in whole.state_dict()
    state = whole.state_dict()
    del state["0.weight.indptr"]
    with pytest.raises(RuntimeError, match="Missing key"):
        whole.load_state_dict(state)
    whole.load_state_dict(state, strict=False)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        whole.load_state_dict({**whole.state_dict(), "0.other": torch.ones(1)})


def test_another_dtype_or_device():
    _, sparse = pair()
    single = copy.deepcopy(sparse).float()
    x = torch.ones(2, 13)
    torch.testing.assert_close(single(x).double(), sparse(x.double()), rtol=1e-5, atol=1e-6)
    single(x).sum().backward()
    assert single.weight.grad.dtype == torch.float32
    with pytest.raises(TypeError, match="dtype"):
        single(x.double())
    with pytest.raises(ValueError, match=r"x must be on the CPU|x must have memory"):
        single(x.to("meta"))
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 13\)"):
        single(torch.ones(2, 12))
    with pytest.raises(TypeError, match="weight must be a sparse matrix"):
        ctorch.SparseLinear(torch.eye(3))
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Linear"):
        ctorch.SparseLinear.from_linear(torch.nn.ReLU())
    with pytest.raises(ValueError, match="bias must be"):
        ctorch.SparseLinear(sparse.matrix, torch.ones(4, dtype=torch.float64))


def test_a_mask_keeps_zeros_that_are_to_be_trained():
    dense, _ = pair()
    mask = torch.zeros(9, 13, dtype=torch.bool)
    mask[:, 0] = True
    assert ctorch.SparseLinear.from_linear(dense, mask=mask).matrix.nnz == 9


@pytest.mark.parametrize("input", ["float32", "int8"])
def test_quantized_linear_is_the_layer_of_arrays(input):
    torch.manual_seed(0)
    dense = torch.nn.Linear(64, 32)
    scheme = cr.quantize.Scheme(bits=8)
    small = ctorch.QuantizedLinear.from_linear(dense, scheme, input=input)
    linear = cr.nn.Linear.from_arrays(
        dense.weight.detach().numpy().copy(), dense.bias.detach().numpy().copy()
    )
    layer = cr.nn.QuantizedLinear.from_linear(linear, scheme, input=input)
    x = torch.randn(3, 5, 64, requires_grad=True)
    y = small(x)
    np.testing.assert_array_equal(y.detach().numpy(), layer(x.detach().numpy()))
    upstream = torch.randn(3, 5, 32)
    y.backward(upstream)
    np.testing.assert_array_equal(x.grad.numpy(), layer.backward(upstream.numpy()))
    assert not list(small.parameters())
    torch.testing.assert_close(y, dense(x), rtol=0.05, atol=0.05)


def test_quantized_linear_is_saved_and_loaded():
    torch.manual_seed(0)
    scheme = cr.quantize.Scheme(bits=4, granularity="group", group_size=32)
    first, second = (
        torch.nn.Sequential(
            ctorch.QuantizedLinear.from_linear(torch.nn.Linear(64, 32), scheme), torch.nn.ReLU()
        )
        for _ in range(2)
    )
    x = torch.randn(2, 64)
    assert not torch.equal(first(x), second(x))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(first(x), second(x))
    assert torch.equal(copy.deepcopy(first)(x), first(x))
    other = ctorch.QuantizedLinear.from_linear(torch.nn.Linear(64, 32), cr.quantize.Scheme(bits=8))
    with pytest.raises(ValueError, match="must be that of a layer"):
        other.load_state_dict({"_extra_state": first[0].get_extra_state()})
    with pytest.raises(TypeError, match=r"layer must be a compressrs.nn.QuantizedLinear"):
        ctorch.QuantizedLinear(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sparse_layers_in_half_precision(dtype):
    dense = torch.nn.Linear(13, 9)
    ctorch.prune(dense, 0.6)
    layer = ctorch.SparseLinear.from_linear(dense).to(dtype)
    dense = dense.to(dtype)
    x = torch.randn(7, 13).to(dtype).requires_grad_()
    y = x.detach().clone().requires_grad_()
    ours, theirs = layer(x), dense(y)
    assert ours.dtype == dtype and layer.matrix.data.itemsize == 2
    torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.05)
    (ours**2).sum().backward()
    (theirs**2).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=0.1, rtol=0.05)
    assert layer.weight.grad.dtype == dtype
