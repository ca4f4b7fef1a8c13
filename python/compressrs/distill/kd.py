"""Knowledge-distillation losses of Hinton et al. and of Zhao et al., with gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array, gradient_like
from compressrs._checks import choice, converted, flag, number, share, whole
from compressrs._warnings import warn
from compressrs.distill.probabilities import temperatures
from compressrs.distill.teachers import TopK, as_teacher, name_rows

_DIVERGENCES = ("forward_kl", "reverse_kl", "js")
_REDUCTIONS = ("mean", "sum", "none")

#: Logits or probabilities, the logits of several teachers, or top-k logits.
AnyTeacher = Array | Sequence[Array] | TopK


@overload
def kd_loss(
    student: Array,
    teacher: AnyTeacher,
    temperature: float | Array = ...,
    labels: Array | None = ...,
    alpha: float = ...,
    *,
    teacher_kind: Literal["logits", "probabilities"] = ...,
    divergence: Literal["forward_kl", "reverse_kl", "js"] = ...,
    standardize: bool = ...,
    label_smoothing: float = ...,
    class_weight: Array | None = ...,
    sample_weight: Array | None = ...,
    ignore_index: int = ...,
    reduction: Literal["mean", "sum"] = ...,
    out: Array | None = ...,
) -> tuple[float, npt.NDArray[Any]]: ...


@overload
def kd_loss(
    student: Array,
    teacher: AnyTeacher,
    temperature: float | Array = ...,
    labels: Array | None = ...,
    alpha: float = ...,
    *,
    teacher_kind: Literal["logits", "probabilities"] = ...,
    divergence: Literal["forward_kl", "reverse_kl", "js"] = ...,
    standardize: bool = ...,
    label_smoothing: float = ...,
    class_weight: Array | None = ...,
    sample_weight: Array | None = ...,
    ignore_index: int = ...,
    reduction: Literal["none"],
    out: Array | None = ...,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[Any]]: ...


def kd_loss(
    student: Array,
    teacher: AnyTeacher,
    temperature: float | Array = 4.0,
    labels: Array | None = None,
    alpha: float = 1.0,
    *,
    teacher_kind: Literal["logits", "probabilities"] = "logits",
    divergence: Literal["forward_kl", "reverse_kl", "js"] = "forward_kl",
    standardize: bool = False,
    label_smoothing: float = 0.0,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    out: Array | None = None,
) -> tuple[float | npt.NDArray[np.float64], npt.NDArray[Any]]:
    r"""Return the knowledge-distillation loss and its gradient, computed in a single pass.

    .. math::
        L = \alpha \frac{\sum_i v_i T_i^2 D(p_i, q_i)}{\sum_i v_i}
        + (1 - \alpha) \frac{\sum_i v_i H_i}{\sum_i v_i w_{y_i}}

    with :math:`p_i = \sigma(t_i / T_i)`, :math:`q_i = \sigma(s_i / T_i)`, :math:`\sigma` the
    softmax, :math:`t_i` and :math:`s_i` the teacher's and the student's logits, D a divergence,
    and the cross-entropy of :math:`h_i = \sigma(s_i)` with the label :math:`y_i`, with label
    smoothing :math:`\epsilon` over K classes as in PyTorch:

    .. math::
        H_i = -(1 - \epsilon) w_{y_i} \log h_{i y_i} - \frac{\epsilon}{K} \sum_c w_c \log h_{i c}

    The weights :math:`v_i` of rows and :math:`w_c` of classes default to 1.

    Parameters
    ----------
    student : array, shape (..., classes)
        The student's logits, float32, float64, float16 or bfloat16, with at least two
        axes; all but the last are batch axes.
    teacher : array, or list of array, or TopK
        The teacher's logits, of the same shape and dtype. A list holds the logits of several
        teachers: p is the mean of their probabilities at the temperature. With a `TopK`, the
        known classes are compared individually and the rest as a single bucket.
    temperature : float or array of shape (...), default 4.0
        :math:`T > 0`, for all rows or one per row. The factor :math:`T^2` keeps the
        magnitude of the gradient comparable between temperatures.
    labels : array of int, shape (...), optional
        The true classes :math:`y_i`, of any integer dtype; required unless `alpha` is 1, and
        without effect on the result if it is.
    alpha : float, default 1.0
        Weight of the soft term, in [0, 1]. With the default labels do not count: give a smaller
        `alpha` to learn from both.
    teacher_kind : {"logits", "probabilities"}, default "logits"
        "probabilities" are those at T = 1, as returned by `predict_proba`; their
        logarithms are used as logits.
    divergence : {"forward_kl", "reverse_kl", "js"}, default "forward_kl"
        :math:`\mathrm{KL}(p \,\|\, q)`, :math:`\mathrm{KL}(q \,\|\, p)`, or
        Jensen-Shannon, :math:`\frac12 \mathrm{KL}(p \,\|\, m) + \frac12 \mathrm{KL}(q \,\|\, m)`
        with :math:`m = (p + q) / 2`.
    standardize : bool, default False
        Whether the soft term uses :math:`(z - \bar z) / (\sigma(z) + 10^{-7})` instead of the
        logits z of each row, with the population standard deviation as in the paper (the
        authors' code divides by K - 1). Requires finite logits.
    label_smoothing : float, default 0.0
        :math:`\epsilon` in [0, 1).
    class_weight : array, shape (classes,), optional
        :math:`w_c \geq 0`.
    sample_weight : array, shape (...), optional
        :math:`v_i \geq 0`, not all 0. Rows with weight 0 are ignored, even if they contain
        NaN.
    ignore_index : int, default -100
        The label of unlabelled rows, which have no hard term and are not counted in its mean.
        (To ignore the soft term as well, set their `sample_weight` to 0.)
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" is the formula above; "sum" and "none" omit the denominators and return the
        sum over the rows, or one loss per row.
    out : array, optional
        Where to write the gradient, with the shape and dtype of `student`. It must not share
        memory with an input.

    Returns
    -------
    loss : float, or array of float64 of shape (...) for "none"
        Infinite if the teacher assigns probability to a class whose student logit is -inf,
        and with "reverse_kl" if the student assigns probability to a class whose teacher
        logit is -inf. NaN if logits contain NaN or +inf, with a warning that names the rows.
    grad : array
        The gradient of the loss (for "none", of the sum) with respect to `student`, with its
        shape and dtype. It is finite even where the loss is infinite: for "reverse_kl", a
        class with a teacher probability of 0 is treated as if the probability were the
        smallest normal number.

    Warns
    -----
    RuntimeWarning
        If the loss of a row is NaN.

    Raises
    ------
    TypeError
        If logits are not arrays of such a dtype, dtypes differ, or labels are not
        integers.
    ValueError
        If shapes disagree or are empty, a number is out of range, labels are missing or out
        of range, a `TopK` was made at another temperature, or options conflict: a `TopK`
        requires "forward_kl", and `standardize` requires logits of one teacher.

    References
    ----------
    Hinton, Vinyals & Dean, "Distilling the knowledge in a neural network",
    arXiv 1503.02531, section 2. Sun et al., "Logit standardization in knowledge
    distillation", arXiv 2403.01427, equations 9 to 11.

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
    >>> loss, _ = cr.distill.kd_loss(student, teacher, 2.0, divergence="reverse_kl")
    >>> round(loss, 4)
    0.3137
    """
    choice(divergence, "divergence", _DIVERGENCES)
    choice(teacher_kind, "teacher_kind", ("logits", "probabilities"))
    standardize = flag(standardize, "standardize")
    if isinstance(teacher, TopK) and divergence != "forward_kl":
        raise ValueError(f"divergence must be 'forward_kl' for TopK, got {divergence!r}")
    if standardize and (teacher_kind != "logits" or not hasattr(teacher, "dtype")):
        raise ValueError("standardize takes one teacher's logits, got another kind of teacher")
    return _loss(
        student,
        teacher,
        temperature,
        labels,
        share(alpha, "alpha"),
        teacher_kind=teacher_kind,
        divergence=divergence,
        standardize=standardize,
        label_smoothing=number(label_smoothing, "label_smoothing", 0, below=1),
        class_weight=class_weight,
        sample_weight=sample_weight,
        ignore_index=whole(ignore_index, "ignore_index", -(2**63)),
        reduction=reduction,
        out=out,
    )


def dkd_loss(
    student: Array,
    teacher: Array | Sequence[Array],
    temperature: float | Array = 4.0,
    labels: Array | None = None,
    alpha: float = 1.0,
    beta: float = 8.0,
    *,
    teacher_kind: Literal["logits", "probabilities"] = "logits",
    sample_weight: Array | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    out: Array | None = None,
) -> tuple[float | npt.NDArray[np.float64], npt.NDArray[Any]]:
    r"""Return the decoupled knowledge-distillation loss and its gradient.

    .. math::
        L = \frac{1}{n} \sum_i T^2 \big( \alpha\, \mathrm{KL}(b_i \,\|\, c_i)
        + \beta\, \mathrm{KL}(\hat p_i \,\|\, \hat q_i) \big)

    with :math:`b_i = (p_{i y_i}, 1 - p_{i y_i})` and :math:`c_i = (q_{i y_i}, 1 - q_{i y_i})` the
    binary probabilities of the label against all other classes, and :math:`\hat p_i` and
    :math:`\hat q_i` the distributions over the non-target classes. With
    :math:`\beta = 1 - p_{i y_i}` this equals `kd_loss`, whose weight of the second term is small
    where the teacher is confident. If all non-target probabilities of the teacher are 0, as with
    one-hot probabilities, :math:`\hat p_i` is undefined and the second term is omitted.

    Parameters
    ----------
    student, teacher, temperature, teacher_kind, sample_weight, reduction, out
        As in `kd_loss`.
    labels : array of int, shape (...)
        The true classes :math:`y_i`; every row needs one.
    alpha, beta : float, default 1.0 and 8.0
        Weights of the target-class and the non-target-class term, at least 0.

    Returns
    -------
    loss, grad
        As `kd_loss` returns them.

    Raises
    ------
    TypeError, ValueError
        As for `kd_loss`.

    References
    ----------
    Zhao et al., "Decoupled knowledge distillation", arXiv 2203.08679, equation 7; with
    the factor :math:`T^2` of the authors' code.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> student, teacher = np.array([[1.0, 2.0, 3.0]]), np.array([[4.0, 1.0, 0.0]])
    >>> loss, grad = cr.distill.dkd_loss(student, teacher, labels=np.array([0]))
    >>> round(loss, 4)
    6.9984
    """
    choice(teacher_kind, "teacher_kind", ("logits", "probabilities"))
    if isinstance(teacher, TopK):
        raise TypeError("teacher must be logits of all classes, got TopK")
    if labels is None:
        raise ValueError("labels must be given, got None")
    return _loss(
        student,
        teacher,
        temperature,
        labels,
        1.0,
        teacher_kind=teacher_kind,
        divergence="decoupled",
        decoupled=(number(alpha, "alpha", 0), number(beta, "beta", 0)),
        sample_weight=sample_weight,
        # Which labels may not be.
        ignore_index=-(2**63),
        reduction=reduction,
        out=out,
    )


def _loss(
    student: Array,
    teacher: Any,
    temperature: float | Array,
    labels: Array | None,
    alpha: float,
    *,
    teacher_kind: str,
    divergence: str,
    decoupled: tuple[float, float] = (0.0, 0.0),
    standardize: bool = False,
    label_smoothing: float = 0.0,
    class_weight: Array | None = None,
    sample_weight: Array | None,
    ignore_index: int,
    reduction: str,
    out: Array | None,
) -> tuple[float | npt.NDArray[np.float64], npt.NDArray[Any]]:
    choice(reduction, "reduction", _REDUCTIONS)
    student = as_array(student, "student")
    if student.ndim < 2:
        raise ValueError(f"student must have shape (..., classes), got {student.shape}")
    batch, classes = student.shape[:-1], student.shape[-1]
    kind, value = as_teacher(teacher, teacher_kind, student.shape, temperature)
    t = temperatures(temperature, batch)
    if labels is not None:
        labels = _labels(labels, batch)
    if class_weight is not None:
        class_weight = _weights(class_weight, "class_weight", (classes,))
    if sample_weight is not None:
        sample_weight = _weights(sample_weight, "sample_weight", batch)
        if not sample_weight.any():
            raise ValueError("sample_weight must not be 0 in all rows")
    grad = gradient_like(student, out, "student")
    losses = np.empty(math.prod(batch))
    total = _core.kd_loss(
        _rows(student),
        kind,
        value,
        t,
        divergence,
        decoupled,
        standardize,
        alpha,
        labels,
        ignore_index,
        label_smoothing,
        class_weight,
        sample_weight,
        reduction == "mean",
        losses,
        _rows(grad),
    )
    if math.isnan(total):
        wrong = np.isnan(losses)
        if wrong.any():
            warn(
                f"the loss is NaN in {name_rows(wrong)}, whose logits hold NaN, or infinities "
                "that leave no distribution",
                RuntimeWarning,
            )
    return losses.reshape(batch) if reduction == "none" else total, grad


def _rows(z: Array) -> Array:
    """Return a view with all axes but the last merged."""
    return z.reshape(math.prod(z.shape[:-1]), z.shape[-1])


def _labels(given: Any, batch: tuple[int, ...]) -> Array:
    labels = converted(given, "labels")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != batch:
        raise ValueError(
            f"labels must have shape {batch}, one label per row of logits, got {labels.shape}"
        )
    if labels.dtype == np.uint64 and labels.size and (largest := labels.max()) >= 2**63:
        raise ValueError(f"labels must be from 0 to 2**63 - 1, got {largest}")
    return labels.astype(np.int64, copy=False).reshape(-1)


def _weights(given: Any, name: str, shape: tuple[int, ...]) -> Array:
    weights = converted(given, name)
    if weights.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be numbers, got {weights.dtype}")
    if weights.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {weights.shape}")
    weights = np.ascontiguousarray(weights, np.float64).reshape(-1)
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"{name} must be finite and at least 0")
    return weights
