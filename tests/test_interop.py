"""Arrays of other libraries: views without copies, or an error."""

import array
import pickle

import numpy as np
import pytest

import compressrs as cr


class Tensor:
    """An object that supports DLPack, like CPU tensors."""

    def __init__(self, data):
        self.data = data

    def __dlpack__(self, **kwargs):
        return self.data.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.data.__dlpack_device__()


class GradTensor(Tensor):
    """One that must be detached first."""

    def detach(self):
        return Tensor(self.data)

    def __dlpack__(self, **kwargs):
        raise BufferError("Can't export tensors that require gradient")


@pytest.mark.parametrize("wrap", [Tensor, GradTensor, memoryview])
def test_the_caller_s_memory_is_updated(wrap):
    data = np.ones(5)
    opt = cr.optim.SGD([wrap(data)], lr=0.5)
    opt.step([wrap(np.ones(5))])
    np.testing.assert_array_equal(data, np.full(5, 0.5))


def test_array_module():
    data = array.array("f", [1, 2, 3])
    cr.optim.SGD(data, lr=1.0).step(array.array("f", [1, 1, 1]))
    assert data.tolist() == [0, 1, 2]


def test_memory_map(tmp_path):
    path = tmp_path / "weights.bin"
    w = np.memmap(path, np.float32, "w+", shape=(100, 10))
    opt = cr.optim.Adam(w, lr=0.1)
    opt.step(np.ones((100, 10), np.float32))
    w.flush()
    np.testing.assert_allclose(np.fromfile(path, np.float32), -0.1, rtol=1e-5)
    read_only = np.memmap(path, np.float32, "r")
    with pytest.raises(ValueError, match="params must be writable"):
        cr.optim.Adam(read_only)
    # Reading is allowed.
    assert cr.prune.magnitude_threshold(read_only, 0.5) == pytest.approx(0.1)


def test_read_only_gradients_are_fine():
    w = np.ones(3)
    g = np.ones(3)
    g.flags.writeable = False
    cr.optim.SGD(w, lr=1.0).step(g)
    assert (w == 0).all()


@pytest.mark.parametrize("value", [[1.0, 2.0], 1.0, "text", None, object(), {1, 2}])
def test_what_gives_no_view_is_refused(value):
    if not isinstance(value, list):
        with pytest.raises(TypeError, match="params must be a NumPy array or export a view"):
            cr.optim.SGD(value)
    with pytest.raises(TypeError, match="z must be a NumPy array or export a view"):
        cr.distill.softmax(value)


def test_torch_parameters_are_updated_in_place():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(7, 3), torch.nn.Linear(7, 3)
    theirs.load_state_dict(ours.state_dict())
    opt = cr.optim.AdamW(list(ours.parameters()), lr=0.01)
    truth = torch.optim.AdamW(theirs.parameters(), lr=0.01)
    for _ in range(10):
        x = torch.randn(4, 7)
        for model in (ours, theirs):
            model.zero_grad()
            model(x).square().sum().backward()
        opt.step([p.grad for p in ours.parameters()])
        truth.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("Adam", {"amsgrad": True}),
        ("AdamW", {"weight_decay": 0.1}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("SGD", {}),
        ("Adafactor", {}),
    ],
)
def test_state_goes_to_torch_and_comes_back(name, kwargs):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    p = [rng.standard_normal((3, 4)), rng.standard_normal(5), rng.standard_normal(2)]
    grads = [[rng.standard_normal(a.shape) for a in p[:2]] + [None] for _ in range(9)]
    tensors = [torch.nn.Parameter(torch.tensor(a)) for a in p]
    theirs = getattr(torch.optim, name)(tensors, lr=0.01, **kwargs)
    ours = getattr(cr.optim, name)(p, lr=0.01, **kwargs)

    def step_theirs(g):
        for tensor, grad in zip(tensors, g, strict=True):
            tensor.grad = None if grad is None else torch.tensor(grad)
        theirs.step()

    for g in grads[:3]:
        step_theirs(g)
    # From PyTorch to compressrs.
    for a, tensor in zip(p, tensors, strict=True):
        a[...] = tensor.detach().numpy()
    ours.load_state_dict(theirs.state_dict())
    for g in grads[3:6]:
        step_theirs(g)
        ours.step(g)
    for a, tensor in zip(p, tensors, strict=True):
        np.testing.assert_allclose(a, tensor.detach().numpy(), rtol=1e-12)
    # Back to a new PyTorch optimizer.
    theirs = getattr(torch.optim, name)(tensors, lr=123.0, **kwargs)
    theirs.load_state_dict(cr.optim.to_torch(ours.state_dict()))
    for g in grads[6:]:
        step_theirs(g)
        ours.step(g)
    for a, tensor in zip(p, tensors, strict=True):
        np.testing.assert_allclose(a, tensor.detach().numpy(), rtol=1e-12)


def test_adamw_is_not_continued_as_adam():
    torch = pytest.importorskip("torch")
    tensor = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="decoupled_weight_decay=True for AdamW, got False"):
        cr.optim.AdamW(np.ones(2, np.float32)).load_state_dict(
            torch.optim.Adam([tensor]).state_dict()
        )
    # Adam's weight decay can be of either kind, as the state says.
    p, q = np.ones(2, np.float32), np.ones(2, np.float32)
    adam, adamw = cr.optim.Adam(p), cr.optim.AdamW(q, weight_decay=0.5)
    state = torch.optim.AdamW([tensor], weight_decay=0.5).state_dict()
    for opt in (adam, adamw):
        opt.load_state_dict(state)
        opt.step(np.ones(2, np.float32))
    np.testing.assert_array_equal(p, q)


def test_a_torch_model_trains_on_its_own_memory():
    """`model.parameters()`, a generator, is accepted."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    x = torch.randn(64, 4)
    y = x.sum(1, keepdim=True)
    opt = cr.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(200):
        model.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        opt.step([p.grad for p in model.parameters()], max_grad_norm=10.0)
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


def test_torch_s_bfloat16_is_updated_in_place():
    torch = pytest.importorskip("torch")
    tensor = torch.nn.Parameter(torch.ones(5000, dtype=torch.bfloat16))
    opt = cr.optim.Adam([tensor], lr=0.5, state_dtype="int8", precision="stochastic")
    tensor.sum().backward()
    opt.step([tensor.grad])
    assert torch.equal(tensor.detach(), torch.full((5000,), 0.5, dtype=torch.bfloat16))
    state = cr.optim.to_torch(opt.state_dict())["state"][0]
    assert state["exp_avg"].dtype == torch.float32
    torch_opt = torch.optim.Adam([torch.nn.Parameter(torch.ones(5000))], lr=0.5)
    torch_opt.load_state_dict(cr.optim.to_torch(opt.state_dict()))
    torch_opt.step()


def test_gradients_of_jax_in_bfloat16():
    jax = pytest.importorskip("jax")
    w = np.ones(100, np.float32)
    cr.optim.SGD(w, lr=1.0).step(jax.numpy.full(100, 0.25, jax.numpy.bfloat16))
    assert (w == 0.75).all()


def test_gradients_of_jax():
    jax = pytest.importorskip("jax")
    params = {"w": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)}
    x = np.arange(12, dtype=np.float32).reshape(4, 3) / 10

    def loss(p):
        return ((x @ p["w"] + p["b"] - 1) ** 2).mean()

    gradient = jax.jit(jax.grad(loss))
    opt = cr.optim.AdamW(params, lr=0.05)
    before = float(loss(params))
    for _ in range(100):
        opt.step(gradient(params))
    assert float(loss(params)) < 0.05 * before


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scikit_learn_s_mlp_predicts_the_same(solver, dtype):
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(dtype)
    settings = {"solver": solver, "random_state": 0, "max_iter": 12, "tol": 0.0}
    with pytest.warns(UserWarning, match="hasn't converged"):
        plain = MLPClassifier((32,), **settings).fit(x, y)
        with cr.optim.sklearn_mlp():
            ours = MLPClassifier((32,), **settings).fit(x, y)
    assert type(plain._optimizer) is not type(ours._optimizer)
    tolerance = 2e-3 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(
        ours.predict_proba(x), plain.predict_proba(x), rtol=tolerance, atol=tolerance
    )
    assert np.mean(ours.predict(x) == plain.predict(x)) > 0.999
    assert pickle.loads(pickle.dumps(ours)).predict(x[:5]).tolist() == ours.predict(x[:5]).tolist()
    with cr.optim.sklearn_mlp():
        MLPRegressor(hidden_layer_sizes=(8,), solver=solver, learning_rate="adaptive", tol=0.1).fit(
            x[:99], y[:99]
        )
