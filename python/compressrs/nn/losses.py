"""Losses and their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressrs._arrays import Array, as_array
from compressrs._checks import choice
from compressrs.distill.kd import kd_loss


def cross_entropy(logits: Array, labels: Array, **options: Any) -> tuple[float, Array]:
    r"""Return the cross-entropy with labels, and its gradient.

    .. math:: -\frac{1}{n} \sum_i \ln \mathrm{softmax}(z_i)_{y_i}

    Parameters
    ----------
    logits : array, shape (n, classes)
        float32, float64, float16 or bfloat16.
    labels : array of int, shape (n,)
        Classes; -100 for rows that do not count.
    **options
        Of `compressrs.distill.kd_loss`, of which this is the hard term: `label_smoothing`,
        `class_weight`, `sample_weight`, `ignore_index`, `reduction`, `out`.

    Returns
    -------
    loss : float
    grad : array, shape (n, classes)
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
    if logits.dtype.kind != "f" and logits.dtype.name != "bfloat16":
        raise TypeError(f"logits must have a floating-point dtype, got {logits.dtype}")
    if logits.ndim < 2:
        raise ValueError(f"logits must have shape (n, classes), got {logits.shape}")
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
    difference = p - t
    loss = float(np.sum(np.square(difference), dtype=np.float64)) * share
    difference *= p.dtype.type(2 * share)
    return loss, difference
