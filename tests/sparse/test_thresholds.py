"""A threshold that the dtype of the weights does not have is rounded to it, everywhere."""

import inspect

import numpy as np
import pytest

import compressrs as cr
from tests.faults.public import names

ml_dtypes = pytest.importorskip("ml_dtypes")


def kept_by_mask(w, threshold):
    return cr.prune.magnitude_mask(w, threshold=threshold, allow_empty=True)


def kept_by(matrix):
    return matrix.to_dense() != 0


def sparse_linear(w, threshold):
    linear = cr.nn.Linear.from_arrays(np.ascontiguousarray(w))
    return cr.nn.SparseLinear.from_linear(linear, threshold).weight


#: What has a threshold of magnitudes, and the blocks that are kept or removed.
KEPT = {
    "prune.magnitude_mask": (kept_by_mask, (1, 1)),
    "sparse.CSRMatrix.from_dense": (
        lambda w, t: kept_by(cr.sparse.CSRMatrix.from_dense(w, t)),
        (1, 1),
    ),
    "sparse.BSRMatrix.from_dense": (
        lambda w, t: kept_by(cr.sparse.BSRMatrix.from_dense(w, (1, 16), t)),
        (1, 16),
    ),
    "nn.SparseLinear.from_linear": (lambda w, t: kept_by(sparse_linear(w, t)), (1, 1)),
}

#: Thresholds of other things, or what calls one of the above.
OTHERS = {
    "nn.QuantizedSparseLinear.from_linear",
    "nn.recommend",
    "optim.lr_scheduler.ReduceLROnPlateau",
}


def test_all_thresholds_are_tried():
    found = set()
    for name, value in names().items():
        calls = {name: value}
        if inspect.isclass(value):
            own = [(f"{name}.{key}", key) for key in vars(value) if not key.startswith("_")]
            calls |= {path: getattr(value, key) for path, key in own}
        for path, call in calls.items():
            try:
                parameters = inspect.signature(call).parameters
            except (TypeError, ValueError):
                continue
            if "threshold" in parameters and not path.startswith("torch."):
                found.add(path)
    assert found == {*KEPT} | OTHERS


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("threshold", [0.1, 0.7, 1 / 3, 1e-3, 0.5, 1e-9, 1e6, 1e300])
def test_equal_to_a_rounded_threshold_is_kept(name, kind, threshold):
    kept, block = KEPT[name]
    dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    if name.startswith("nn.") and dtype.itemsize < 4:
        pytest.skip("layers are float32 or float64")
    with np.errstate(over="ignore"):
        rounded = dtype.type(threshold)
    around = np.array([rounded] * 3, dtype)
    if np.isfinite(float(rounded)):
        above = np.nextafter(rounded, dtype.type(np.inf))
        around = np.array([np.nextafter(rounded, dtype.type(-np.inf)), rounded, above], dtype)
    around[~np.isfinite(around.astype(float))] = 1
    w = np.repeat(np.concatenate([around, -around])[:, None], 16, axis=1)
    # A mask may keep zeros.
    expected = (np.abs(w) >= rounded) & ((w != 0) | (name == "prune.magnitude_mask"))
    assert w.shape[1] % block[1] == 0
    np.testing.assert_array_equal(kept(w, threshold), expected)
