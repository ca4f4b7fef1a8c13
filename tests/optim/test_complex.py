"""Complex parameters as pairs of real numbers, against PyTorch's trajectories."""

import json
from pathlib import Path

import numpy as np
import pytest

import compressrs as cr

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "complex.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['optimizer']}-{c['id']}")
def test_recorded_trajectories(case):
    with np.load(DATA / "complex.npz") as data:
        keys = ("p0", "target", "grads", "traj")
        z, target, grads, truth = (data[f"{case['id']}/{key}"] for key in keys)
    opt = getattr(cr.optim, case["optimizer"])(z.view(np.float64), **case["kwargs"])
    for recorded, expected in zip(grads, truth, strict=True):
        # PyTorch's convention: of |z - c|^2 it is 2 (z - c), the direction of steepest ascent.
        gradient = 2 * (z - target)
        np.testing.assert_allclose(gradient, recorded, rtol=1e-11, atol=1e-11)
        opt.step(gradient.view(np.float64))
        np.testing.assert_allclose(z, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_optax_targets_are_reached(dtype):
    """The complex parabola |x - (1 + i)|^2 and Rosenbrock's function of two complex numbers."""
    real = np.float32 if dtype == np.complex64 else np.float64
    minimum = np.array([1 + 1j, 2 - 3j], dtype)
    z = np.array([-1 - 1j, 0], dtype)
    opt = cr.optim.Adam(z.view(real), lr=0.05)
    for _ in range(1500):
        opt.step((2 * (z - minimum)).view(real))
    np.testing.assert_allclose(z, minimum, atol=1e-3)
    z = np.zeros(2, dtype)
    opt = cr.optim.Adam(z.view(real), lr=0.02)
    for _ in range(6000):
        x, y = z
        # |1 - x|^2 + 100 |y - x^2|^2: 2 df/d(conj) of each.
        rest = y - x * x
        gradient = np.array([-2 * (1 - x) - 400 * np.conj(x) * rest, 200 * rest], dtype)
        opt.step(gradient.view(real))
    np.testing.assert_allclose(z, [1, 1], atol=5e-2)


def test_masks_clipping_and_averages_of_pairs():
    z = np.array([3 + 4j, 1 + 1j])
    pairs = z.view(np.float64)
    opt, ema = cr.optim.SGD(pairs, lr=1.0), cr.optim.EMA(pairs, decay=0.5)
    opt.set_masks(np.repeat([True, False], 2))
    norm = opt.step((z * 1).view(np.float64), max_grad_norm=1.0)
    assert norm == 5
    np.testing.assert_allclose(z, [(3 + 4j) * 0.8, 0], rtol=1e-6)
    ema.update()
    np.testing.assert_allclose(ema.average.view(np.complex128)[0], (3 + 4j) * 0.9, rtol=1e-6)
    ema.copy_to_params()
    assert z[1] == 0


def test_complex_arrays_themselves_are_refused():
    with pytest.raises(TypeError, match="params must have dtype float32, float64"):
        cr.optim.Adam(np.ones(2, np.complex128))
