"""Softmax with temperature, and the distillation loss with its gradient."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array
from compressrs._checks import positive, share


def softmax(
    z: Array, temperature: float = 1.0, axis: int = -1, out: Array | None = None
) -> npt.NDArray[Any]:
    r"""Return the softmax of logits at a temperature.

    .. math:: p_j = \frac{\exp(z_j / T)}{\sum_k \exp(z_k / T)}

    Parameters
    ----------
    z : array
        Logits, float32 or float64, of any shape.
    temperature : float, default 1.0
        :math:`T > 0`; the larger, the closer to uniform.
    axis : int, default -1
        The axis that sums to 1. Another than the last costs a copy.
    out : array, optional
        Where to write the result; of the shape and dtype of `z`, and `z` itself
        if it shall be overwritten.

    Returns
    -------
    array
        Of the shape and dtype of `z`. Where a slice along `axis` holds NaN or
        +inf, or only -inf, the result is NaN. The largest logit is subtracted
        first, so no finite logits overflow.

    Raises
    ------
    TypeError
        If `z` or `out` is not an array of such a dtype.
    ValueError
        If `temperature` is not positive and finite, `axis` is out of range, or
        `out` has another shape, is read-only, not C-contiguous, or shares only
        part of its memory with `z`.

    References
    ----------
    Hinton, Vinyals & Dean, arXiv 1503.02531, equation 1.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> z = np.array([1.0, 2.0, 3.0])
    >>> cr.distill.softmax(z).round(3)
    array([0.09 , 0.245, 0.665])
    >>> cr.distill.softmax(z, temperature=10).round(3)
    array([0.301, 0.332, 0.367])
    """
    return _softmax(z, temperature, axis, out, log=False)


def log_softmax(
    z: Array, temperature: float = 1.0, axis: int = -1, out: Array | None = None
) -> npt.NDArray[Any]:
    r"""Return the logarithm of the softmax, without taking that of a small number.

    .. math:: \log p_j = z_j / T - \log \sum_k \exp(z_k / T)

    Parameters, result and errors are those of `softmax`.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.distill.log_softmax(np.array([0.0, -1000.0]))
    array([    0., -1000.])
    """
    return _softmax(z, temperature, axis, out, log=True)


def _softmax(
    z: Array, temperature: float, axis: int, out: Array | None, *, log: bool
) -> npt.NDArray[Any]:
    z = as_array(z, "z")
    temperature = positive(temperature, "temperature")
    axis = _axis(axis, z.ndim)
    out = np.empty(z.shape, z.dtype) if out is None else as_array(out, "out")
    if axis == z.ndim - 1:
        _core.softmax(z, temperature, log, out)
        return out
    if out.shape != z.shape or out.dtype != z.dtype or not out.flags.writeable:
        # Fails, with the message that says why.
        _core.softmax(z, temperature, log, out)
    moved = np.moveaxis(z, axis, -1).copy(order="C")
    _core.softmax(moved, temperature, log, moved)
    out[...] = np.moveaxis(moved, -1, axis)
    return out


def kd_loss(
    student: Array,
    teacher: Array,
    temperature: float = 4.0,
    labels: Array | None = None,
    alpha: float = 1.0,
) -> tuple[float, npt.NDArray[Any]]:
    r"""Return the knowledge-distillation loss and its gradient, from one sweep.

    .. math::
        L = \frac{1}{n} \sum_{i=1}^n \alpha T^2
        \mathrm{KL}\big(p_i \,\|\, q_i\big) - (1 - \alpha) \log \sigma(s_i)_{y_i}

    with :math:`p_i = \sigma(t_i / T)`, :math:`q_i = \sigma(s_i / T)`, :math:`\sigma` the
    softmax, :math:`t_i` and :math:`s_i` the teacher's and the student's logits.

    Parameters
    ----------
    student : array, shape (..., classes)
        The student's logits, float32 or float64, at least two axes; all but the
        last are the batch, of n rows.
    teacher : array
        The teacher's logits, of the same shape and dtype.
    temperature : float, default 4.0
        :math:`T > 0`. The factor :math:`T^2` keeps the gradient's size comparable.
    labels : array of int, shape (...), optional
        The right classes :math:`y_i`; needed unless `alpha` is 1.
    alpha : float, default 1.0
        Weight of the soft term, in [0, 1].

    Returns
    -------
    loss : float
        The mean over the batch. Infinite where the teacher gives weight to a class
        whose logit is -inf for the student; NaN where logits hold NaN or +inf.
    grad : array
        The gradient with respect to `student`, of its shape and dtype.

    Raises
    ------
    TypeError
        If logits are not arrays of such a dtype, dtypes differ, or labels are not
        integers.
    ValueError
        If shapes disagree or are empty, `temperature` is not positive and finite,
        `alpha` is not in [0, 1], or labels are missing or out of range.

    References
    ----------
    Hinton, Vinyals & Dean, "Distilling the knowledge in a neural network",
    arXiv 1503.02531, section 2.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> student = np.array([[1.0, 2.0, 3.0]])
    >>> teacher = np.array([[2.0, 2.0, 2.0]])
    >>> loss, grad = cr.distill.kd_loss(student, teacher, temperature=2.0)
    >>> round(loss, 4)
    0.3266
    >>> grad.round(4)
    array([[-0.294 , -0.0523,  0.3463]])
    """
    student = as_array(student, "student")
    teacher = as_array(teacher, "teacher")
    temperature = positive(temperature, "temperature")
    alpha = share(alpha, "alpha")
    if student.ndim < 2:
        raise ValueError(f"student must have shape (..., classes), got {student.shape}")
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher must have the shape {student.shape} of student, got {teacher.shape}"
        )
    batch, classes = student.shape[:-1], student.shape[-1]
    rows = int(np.prod(batch))
    if labels is not None:
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iu":
            raise TypeError(f"labels must be integers, got {labels.dtype}")
        if labels.shape != batch:
            raise ValueError(f"labels must have the shape {batch} of the batch, got {labels.shape}")
        # Those that do not fit are out of range, and stay so.
        labels = np.minimum(labels, np.iinfo(np.int64).max).astype(np.int64).reshape(rows)
    student = student.reshape(rows, classes)
    teacher = teacher.reshape(rows, classes)
    grad = np.empty(student.shape, student.dtype)
    loss = _core.kd_loss(student, teacher, temperature, labels, alpha, grad)
    return loss, grad.reshape(*batch, classes)


def _axis(axis: int, ndim: int) -> int:
    try:
        axis = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis must be an integer, got {type(axis).__name__}") from None
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis must be from {-ndim} to {ndim - 1} for {ndim} axes, got {axis}")
    return axis % ndim
