"""Arrays of others: views without copies, and refusals where there is none."""

import array

import numpy as np
import pytest

import compressrs as cr


class Tensor:
    """Something that speaks DLPack, as CPU tensors do."""

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
    # Reading is another matter.
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
        with pytest.raises(TypeError, match="params must be a NumPy array or give a view"):
            cr.optim.SGD(value)
    with pytest.raises(TypeError, match="z must be a NumPy array or give a view"):
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
