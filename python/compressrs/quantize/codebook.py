"""Codebooks: levels found by k-means, which can be trained like weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array, compute_dtype
from compressrs._checks import flag, whole
from compressrs.quantize.rounding import checked_weight
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.tensor import QuantizedTensor, kind


def kmeans(
    w: Array, scheme: Scheme, *, keep_zero: bool = False, rounds: int = 300
) -> QuantizedTensor:
    r"""Quantize each block of an array to its own :math:`2^b` levels, found by k-means.

    The means are initialized at equal distances from the smallest to the largest value, which
    Han et al. found better than random and density-based initialization, since it keeps levels
    near the few large weights.

    Parameters
    ----------
    w : array
        float32, float64, float16 or bfloat16, at least one axis.
    scheme : Scheme
        With dtype "codebook".
    keep_zero : bool, default False
        For pruned weights: 0 is one of the levels, and zeros do not influence the others.
    rounds : int, default 300
        Maximum number of iterations; k-means stops when no assignment changes.

    Returns
    -------
    QuantizedTensor
        With `codebook`; all scales are 1.

    Raises
    ------
    TypeError
        If `w` is not such an array.
    ValueError
        If `w` holds NaN or infinity, the scheme has no codebooks, or, with `keep_zero`, only
        one level.

    References
    ----------
    Han, Mao & Dally, "Deep Compression", arXiv 1510.00149, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import Scheme, kmeans
    >>> w = np.array([[0.0, 0.9, 1.1, 0.0, -2.0, 0.0]], np.float32)
    >>> q = kmeans(w, Scheme(bits=2, dtype="codebook"), keep_zero=True)
    >>> q.codes
    array([[2, 3, 3, 2, 0, 2]], dtype=uint8)
    >>> q.dequantize()
    array([[ 0.,  1.,  1.,  0., -2.,  0.]], dtype=float32)
    """
    w, matrix = checked_weight(w, scheme)
    if scheme.dtype != "codebook":
        raise ValueError(f"scheme must have dtype 'codebook', got {scheme.dtype!r}")
    keep_zero = flag(keep_zero, "keep_zero")
    rounds = whole(rounds, "rounds", 1, 100_000)
    if not np.isfinite(matrix).all():
        raise ValueError("w must be finite, got NaN or infinity")
    shape, block = scheme.scale_shape(w.shape), scheme.block(w.shape)
    compute = compute_dtype(w.dtype)
    codebook = np.empty((shape[0] * shape[1], 2**scheme.bits), compute)
    _core.kmeans(matrix, block, keep_zero, rounds, codebook)
    return assign(w, scheme, codebook)


def assign(w: npt.NDArray[Any], scheme: Scheme, codebook: npt.NDArray[Any]) -> QuantizedTensor:
    """Return the nearest levels of given codebooks; of two equally near, the lower one."""
    matrix = w.reshape(scheme.matrix(w.shape))
    scale = np.ones(scheme.scale_shape(w.shape), codebook.dtype)
    codes = np.empty(matrix.shape, np.uint8)
    zero = np.zeros(scale.shape, np.uint8)
    block = scheme.block(w.shape)
    _core.quantize(matrix, "w", block, kind(scheme, codebook), False, scale, zero, codes)
    return QuantizedTensor._of(
        scheme, w.dtype, codes=codes.reshape(w.shape), scale=scale, codebook=codebook
    )


def codebook_gradient(q: QuantizedTensor, dw: Array) -> npt.NDArray[Any]:
    r"""Return the gradient of the levels: for each level, the sum over its weights.

    .. math::
        \frac{\partial L}{\partial c_k} = \sum_{i : q_i = k} \frac{\partial L}{\partial w_i}

    Parameters
    ----------
    q : QuantizedTensor
        With codebooks.
    dw : array
        Gradient with respect to the dequantized weights, of the shape of `q`.

    Returns
    -------
    array
        In the shape and dtype of ``q.codebook``, for any optimizer. Trained levels need not stay
        in ascending order.

    Raises
    ------
    TypeError
        If `q` is not a QuantizedTensor with codebooks, or `dw` not an array of numbers.
    ValueError
        If `dw` has another shape.

    References
    ----------
    Han, Mao & Dally, arXiv 1510.00149, equation 3.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import Scheme, codebook_gradient, kmeans
    >>> scheme = Scheme(bits=1, dtype="codebook")
    >>> q = kmeans(np.array([[-1.0, 1.0, -1.0]]), scheme)
    >>> codebook_gradient(q, np.array([[0.5, 2.0, 0.25]]))
    array([[0.75, 2.  ]])
    """
    if not isinstance(q, QuantizedTensor) or q.codebook is None:
        raise TypeError("q must be a QuantizedTensor with codebooks")
    dw = as_array(dw, "dw")
    if dw.shape != q.shape:
        raise ValueError(f"dw must have the shape {q.shape} of q, got {dw.shape}")
    if dw.dtype.kind != "f":
        raise TypeError(f"dw must have a floating-point dtype, got {dw.dtype}")
    rows, columns = q.scheme.matrix(q.shape)
    height, width = q.scheme.block(q.shape)
    across = q.scale.shape[1]
    block = np.arange(rows)[:, None] // height * across + np.arange(columns) // width
    levels = q.codebook.shape[1]
    place = block * levels + q.codes.reshape(rows, columns)
    sums = np.bincount(
        place.ravel(), weights=dw.ravel().astype(np.float64), minlength=q.codebook.size
    )
    gradient: npt.NDArray[Any] = sums.reshape(q.codebook.shape).astype(q.codebook.dtype)
    return gradient
