"""Exported models run in a process that has nothing but NumPy."""

import subprocess
import sys

import numpy as np
import pytest

from compressrs import nn


def run(code, x, folder):
    """Run the printed lines alone."""
    np.save(folder / "x.npy", x)
    blocked = (
        "import sys\n"
        "sys.modules['compressrs'] = sys.modules['sklearn'] = sys.modules['scipy'] = None\n"
    )
    tail = f"\nnp.save({str(folder / 'y.npy')!r}, predict(np.load({str(folder / 'x.npy')!r})))"
    subprocess.run([sys.executable, "-c", blocked + code + tail], check=True)
    return np.load(folder / "y.npy")


def test_perceptrons_need_twelve_lines(tmp_path, capsys):
    model = nn.Sequential(nn.Linear(4, 8, rng=0), nn.ReLU(), nn.Linear(8, 3, rng=1), nn.Softmax())
    code = model.export(tmp_path / "model.npz")
    assert capsys.readouterr().out == code + "\n"
    assert len(code.splitlines()) <= 12
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    np.testing.assert_allclose(run(code, x, tmp_path), model.eval()(x), rtol=1e-5, atol=1e-7)


def test_all_that_can_be_exported(tmp_path):
    rng = np.random.default_rng(1)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=(2, 1), rng=rng),
        nn.BatchNorm(4),
        nn.GELU(),
        nn.BatchNorm(4),
        nn.Residual(
            nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, rng=rng),
            nn.SiLU(),
            shortcut=nn.Conv2d(4, 4, 1, rng=rng),
        ),
        nn.MaxPool(2, stride=1, padding=1),
        nn.AvgPool((2, 1), padding=(1, 0)),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.LayerNorm(4 * 3 * 10),
        nn.SparseLinear.from_linear(nn.Linear(120, 6, rng=rng), 0.05),
        nn.GELU("tanh"),
        nn.Linear(6, 3, bias=False, rng=rng),
    )
    x = rng.standard_normal((3, 2, 7, 9)).astype(np.float32)
    for _ in range(3):
        model(x)
    model.eval()
    code = model.export(tmp_path / "model.npz", show=False)
    np.testing.assert_allclose(run(code, x, tmp_path), model(x), rtol=2e-4, atol=2e-5)


def test_tables_of_rows(tmp_path):
    model = nn.Sequential(nn.Embedding(9, 4, rng=0), nn.Linear(4, 2, rng=1))
    ids = np.array([[1, 8], [0, 3]])
    code = model.export(tmp_path / "model.npz", show=False)
    np.testing.assert_allclose(run(code, ids, tmp_path), model(ids), rtol=1e-5)


def test_what_cannot_be_exported_is_named(tmp_path):
    class Own(nn.Layer):
        pass

    for layer in (Own(), nn.MultiHeadAttention(4, 2)):
        model = nn.Sequential(nn.ReLU(), nn.Residual(layer))
        with pytest.raises(TypeError, match=rf"layer 1\.body\.0 is a {type(layer).__name__}"):
            model.export(tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())
