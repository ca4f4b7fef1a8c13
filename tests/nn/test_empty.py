"""Batches, images and sequences without elements, for all layers and losses."""

import numpy as np
import pytest

import compressrs as cr
from compressrs import nn
from tests.faults.calls import CALLS
from tests.faults.public import EXAMPLES, classes

LAYERS = sorted(
    name
    for name, kind in classes().items()
    if name in EXAMPLES and issubclass(kind, nn.Layer) and EXAMPLES[name].shape is not None
)

#: The layers that are given something else than numbers.
OF_INDICES = {"nn.Embedding", "nn.QuantizedEmbedding"}


def test_all_layers_are_tried():
    layers = {n for n, k in classes().items() if n.startswith("nn.") and issubclass(k, nn.Layer)}
    assert layers - {*LAYERS} - OF_INDICES == {"nn.Layer", "nn.Affine"}


@pytest.fixture
def stale(monkeypatch):
    """Let new arrays hold what is not 0, and let kernels leave such numbers in their memory."""
    for name in ("empty", "empty_like"):
        original = getattr(np, name)

        def filled(*args, original=original, **kwargs):
            array = original(*args, **kwargs)
            if array.dtype.kind == "f":
                array[...] = np.nan
            return array

        monkeypatch.setattr(np, name, filled)


def given(name):
    """The layer, and an input of the dtype of its parameters."""
    layer = EXAMPLES[name].make()[0]
    shape = EXAMPLES[name].shape
    if hasattr(layer, "padding"):
        # So that there are results where there is no image.
        layer.padding = (1, 1) if isinstance(layer, nn.MaxPool | nn.AvgPool) else (3, 3)
    for kind in (np.float64, np.float32):
        x = np.full(shape, 1e6, kind)
        try:
            layer(x)
        except (TypeError, ValueError):
            continue
        return layer, x
    raise AssertionError(f"{name} takes no numbers")


def without(shape):
    """Yield shapes without elements along some axes."""
    for axes in range(1, 1 << len(shape)):
        yield tuple(0 if axes >> i & 1 else n for i, n in enumerate(shape))


def truth(layer, shape):
    """The constant of each channel that a layer has where there is nothing but padding."""
    if isinstance(layer, nn.MaxPool):
        return np.full(1, -np.inf)
    bias = getattr(layer, "bias", None)
    return np.zeros(1) if bias is None else bias.reshape(-1, *[1] * (len(shape) - 2))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_without_elements(name, stale):
    layer, x = given(name)
    for shape in without(x.shape):
        # Kernels keep memory for later calls: these numbers must not come back.
        layer(x)
        layer.backward(np.full_like(layer(x), 1e6))
        before = {k: v.copy() for k, v in layer.grads.items() if isinstance(v, np.ndarray)}
        try:
            y = layer(x[tuple(slice(n) for n in shape)])
        except ValueError as error:
            # Of an axis that the layer has a size for, or the moments of nothing.
            assert "x must have" in str(error) or "kernel" in str(error), (shape, error)
            continue
        if y.size:
            expected = np.broadcast_to(truth(layer, y.shape).astype(y.dtype), y.shape)
            np.testing.assert_array_equal(y, expected, str(shape))
        dx = layer.backward(np.ones_like(y))
        assert dx.shape == shape
        for key, grad in layer.grads.items():
            if key in before:
                # Without inputs only the bias has a gradient, that of padding.
                total = y.size / len(grad) if key == "bias" and y.ndim > 2 else 0
                np.testing.assert_array_equal(grad, np.full_like(grad, total), f"{shape} {key}")


@pytest.mark.parametrize("name", sorted(OF_INDICES))
def test_embeddings_without_indices(name, stale):
    layer = EXAMPLES[name].make()
    layer = layer[0] if isinstance(layer, tuple) else layer
    for shape in ((0,), (0, 3), (2, 0), (0, 0)):
        y = layer(np.zeros(shape, np.int64))
        assert y.shape == (*shape, 3)
        if layer.params:
            layer.backward(y)
            assert not np.any(layer.grads["weight"])


#: Losses that return a gradient, by the names of their arrays.
LOSSES = sorted(
    name
    for name in CALLS
    if name.endswith("_loss") or name == "nn.cross_entropy"
    if name.startswith(("nn.", "distill.", "optim."))
)


def test_losses_are_found():
    assert {"nn.mse_loss", "nn.cross_entropy", "distill.kd_loss", "distill.dist_loss"} <= {*LOSSES}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_without_elements(name, stale):
    function = cr
    for part in name.split("."):
        function = getattr(function, part)
    arguments = CALLS[name]()
    few = {
        key: value[:0] if isinstance(value, np.ndarray) and key != "class_weight" else value
        for key, value in arguments.items()
    }
    try:
        loss, grad = function(**few)
    except ValueError as error:
        # Means of nothing.
        assert any(key in str(error) for key in few), error
        return
    assert grad.size == 0
    assert np.isfinite(loss).all()
