"""Exported models run in a process that has nothing but NumPy."""

import math
import subprocess
import sys

import numpy as np
import pytest

from compressrs import nn
from compressrs.quantize import Scheme, quantize_model


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

    model = nn.Sequential(nn.ReLU(), nn.Residual(Own()))
    with pytest.raises(TypeError, match=r"layer 1\.body\.0 is a Own"):
        model.export(tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(bits=8),
        Scheme(bits=4, granularity="group", group_size=8),
        Scheme(bits=4, granularity="group", group_size=8, symmetric=False),
        Scheme(bits=5, granularity="block", group_size=(3, 5)),
        Scheme(bits=8, dtype="uint", granularity="tensor", symmetric=False),
        Scheme(dtype="nf4"),
        Scheme(dtype="fp8_e4m3"),
        Scheme(dtype="fp8_e5m2"),
        Scheme(dtype="codebook", bits=3, granularity="tensor"),
    ],
    ids=str,
)
def test_quantized_models(scheme, tmp_path):
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Embedding(20, 16, rng=rng),
        nn.Residual(nn.LayerNorm(16), nn.MultiHeadAttention(16, 4, causal=True, rng=rng)),
        nn.Linear(16, 12, bias=False, rng=rng),
    )
    ids = rng.integers(0, 20, (3, 7))
    small = quantize_model(model, scheme).eval()
    code = small.export(tmp_path / "model.npz", show=False)
    np.testing.assert_allclose(run(code, ids, tmp_path), small(ids), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_quantized_inputs_and_their_scales(method, tmp_path):
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(32, 16, rng=rng), nn.GELU(), nn.Linear(16, 4, rng=rng))
    x = rng.standard_normal((64, 32)).astype(np.float32)
    scheme = Scheme(bits=4, granularity="group", group_size=8)
    small = quantize_model(model, scheme, x, method=method, input="int8").eval()
    code = small.export(tmp_path / "model.npz", show=False)
    np.testing.assert_allclose(run(code, x, tmp_path), small(x), rtol=1e-3, atol=1e-3)


def test_attention(tmp_path):
    rng = np.random.default_rng(0)
    for causal, bias in ((False, True), (True, False)):
        model = nn.Sequential(nn.MultiHeadAttention(12, 3, causal=causal, bias=bias, rng=rng))
        x = rng.standard_normal((2, 5, 12)).astype(np.float32)
        code = model.export(tmp_path / "model.npz", show=False)
        np.testing.assert_allclose(run(code, x, tmp_path), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantized", [False, True])
def test_attention_takes_lengths(quantized, tmp_path):
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Embedding(30, 16, rng=rng),
        nn.Residual(nn.LayerNorm(16), nn.MultiHeadAttention(16, 4, rng=rng)),
        nn.Residual(nn.MultiHeadAttention(16, 2, causal=True, rng=rng)),
        nn.Linear(16, 8, rng=rng),
        nn.GELU(),
    )
    if quantized:
        model = quantize_model(model, Scheme(bits=8))
    model.eval()
    namespace = {}
    exec(model.export(tmp_path / "model.npz", show=False), namespace)
    ids, lengths = rng.integers(0, 30, (4, 7)), np.array([7, 1, 3, 5])
    expected = model(ids, lengths=lengths)
    assert np.abs(expected - model(ids)).max() > 1e-3
    loaded = namespace["load"](tmp_path / "model.npz")
    (tmp_path / "model.npz").rename(tmp_path / "other.npz")
    for given in (lengths, lengths.tolist()):
        np.testing.assert_allclose(loaded(ids, given), expected, rtol=1e-3, atol=1e-5)
    found = namespace["predict"](ids, tmp_path / "other.npz", lengths=lengths)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(loaded(ids), model(ids), rtol=1e-3, atol=1e-5)
    for bad in ([7, 0, 3, 5], [8, 1, 3, 5], [7, 1, 3], [7.0, 1.0, 3.0, 5.0]):
        with pytest.raises(ValueError, match="lengths must hold 4 integers from 1 to 7"):
            loaded(ids, bad)


def test_gelu_is_exact_where_its_tail_is_small(tmp_path):
    namespace = {}
    exec(nn.Sequential(nn.GELU()).export(tmp_path / "model.npz", show=False), namespace)
    special = [0.0, -0.0, 1e-300, np.inf, np.nan, 40, -40]
    x = np.concatenate([np.linspace(-9, 9, 20001), np.logspace(-9, 1, 500), special])
    found = namespace["load"](tmp_path / "model.npz")(x)
    exact = np.array([v * (1 + math.erf(v / 2**0.5)) / 2 for v in x])
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-13)
    single = namespace["load"](tmp_path / "model.npz")(x[:-7].astype(np.float32))
    assert single.dtype == np.float32


@pytest.mark.parametrize("symmetric", [None, False, True])
def test_quantized_convolutions(symmetric, tmp_path):
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1, rng=rng),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, groups=2, bias=False, rng=rng),
        nn.Flatten(),
        nn.Linear(32 * 9, 5, rng=rng),
    )
    x = rng.standard_normal((20, 4, 8, 8)).astype(np.float32)
    fixed = None if symmetric is None else Scheme(granularity="tensor", symmetric=symmetric)
    small = quantize_model(model, Scheme(bits=6), x, input="int8", activations=fixed).eval()
    code = small.export(tmp_path / "model.npz", show=False)
    found, y = run(code, x, tmp_path), small(x)
    # Inputs at the middle between two codes may become either.
    np.testing.assert_allclose(found, y, atol=0.02 * np.abs(y).max())


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors"])
def test_names_of_other_formats_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"an \.npz file"):
        nn.Linear(3, 2, rng=0).export(tmp_path / name, show=False)
    assert not (tmp_path / name).exists()
