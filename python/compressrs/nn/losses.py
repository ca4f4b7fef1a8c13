"""Losses and their gradients."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, as_array, is_floating
from compressrs._checks import choice
from compressrs.distill.kd import kd_loss


@overload
def cross_entropy(
    logits: Array,
    labels: Array,
    *,
    label_smoothing: float = ...,
    class_weight: Array | None = ...,
    sample_weight: Array | None = ...,
    ignore_index: int = ...,
    reduction: Literal["mean", "sum"] = ...,
    out: Array | None = ...,
) -> tuple[float, npt.NDArray[Any]]: ...


@overload
def cross_entropy(
    logits: Array,
    labels: Array,
    *,
    label_smoothing: float = ...,
    class_weight: Array | None = ...,
    sample_weight: Array | None = ...,
    ignore_index: int = ...,
    reduction: Literal["none"],
    out: Array | None = ...,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[Any]]: ...


def cross_entropy(
    logits: Array,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    out: Array | None = None,
) -> tuple[float | npt.NDArray[np.float64], npt.NDArray[Any]]:
    r"""Return the cross-entropy with labels, and its gradient.

    .. math:: -\frac{1}{n} \sum_i \ln \mathrm{softmax}(z_i)_{y_i}

    This is the hard term of `compressrs.distill.kd_loss`, which has the formula with all options.

    Parameters
    ----------
    logits : array, shape (..., classes)
        float32, float64, float16 or bfloat16.
    labels : array of int, shape (...)
        The classes; with at least one axis.
    label_smoothing : float, default 0.0
        In [0, 1]; the share of the target that is spread over all classes.
    class_weight : array, shape (classes,), optional
    sample_weight : array, shape (...), optional
    ignore_index : int, default -100
        The label of rows that are ignored.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of the weights, as PyTorch does; "none" returns the loss of each
        row.
    out : array, optional
        Receives the gradient; of the logits' shape and dtype.

    Returns
    -------
    loss : float, or array of float64, shape (...)
    grad : array, shape (..., classes)
        With respect to the logits.

    Raises
    ------
    TypeError, ValueError
        If they do not fit; see `kd_loss`.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> loss, grad = cr.nn.cross_entropy(np.zeros((1, 2)), np.array([0]))
    >>> round(loss, 4), grad
    (0.6931, array([[-0.5,  0.5]]))
    """
    logits = as_array(logits, "logits")
    if not is_floating(logits.dtype):
        raise TypeError(f"logits must have a floating-point dtype, got {logits.dtype}")
    if logits.ndim < 2:
        raise ValueError(f"logits must have shape (n, classes), got {logits.shape}")
    options: Any = {
        "label_smoothing": label_smoothing,
        "class_weight": class_weight,
        "sample_weight": sample_weight,
        "ignore_index": ignore_index,
        "reduction": reduction,
        "out": out,
    }
    # The teacher does not matter at alpha = 0.
    loss, grad = kd_loss(logits, logits, 1.0, labels, 0.0, **options)
    return loss, grad


def mse_loss(prediction: Array, target: Array, *, reduction: str = "mean") -> tuple[float, Array]:
    r"""Return the mean of the squared differences, and its gradient.

    .. math:: \frac{1}{n} \sum_i (p_i - t_i)^2, \quad \frac{2}{n} (p_i - t_i)

    Parameters
    ----------
    prediction, target : array
        float32 or float64, of the same shape and dtype.
    reduction : {"mean", "sum"}, default "mean"
        Over all elements.

    Returns
    -------
    loss : float
    grad : array
        With respect to the prediction.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes differ, or there are no elements.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.nn.mse_loss(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    (2.0, array([ 0., -2.]))
    """
    p, t = as_array(prediction, "prediction"), as_array(target, "target")
    choice(reduction, "reduction", ("mean", "sum"))
    if p.dtype not in (np.float32, np.float64):
        raise TypeError(f"prediction must have dtype float32 or float64, got {p.dtype}")
    if t.dtype != p.dtype:
        raise TypeError(f"target must have dtype {p.dtype} like the prediction, got {t.dtype}")
    if t.shape != p.shape:
        raise ValueError(f"target must have the shape {p.shape} of the prediction, got {t.shape}")
    if p.size == 0:
        raise ValueError("prediction must not be empty, got no elements")
    share = 1 / p.size if reduction == "mean" else 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        difference = p - t
        loss = float(np.sum(np.square(difference), dtype=np.float64)) * share
        if np.isfinite(loss):
            info = np.finfo(p.dtype)
            if loss < share * p.size * float(info.tiny / info.eps):
                # Squares of single precision were rounded to 0, or nearly.
                loss = float(np.sum(np.square(difference, dtype=np.float64))) * share
            difference *= p.dtype.type(2 * share)
            return loss, difference
        # Of half the difference, which does not overflow, and in double precision.
        half = p.dtype.type(0.5) * p - p.dtype.type(0.5) * t
        loss = float(np.sum(np.square(half.astype(np.float64) * (2 * math.sqrt(share)))))
        return loss, half * p.dtype.type(4 * share)
