"""Losses on intermediate features and on relations between samples.

Each returns the loss and its gradient with respect to the student's features, to be passed
to `backward` of the layer that produced them. If student and teacher differ in width, train
a projection, for example a `compressrs.nn.Linear`, and pass its output as `student`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array, gradient_like
from compressrs._checks import number
from compressrs.distill.probabilities import one_temperature

_Result = tuple[float, npt.NDArray[Any]]


def hint_loss(student: Array, teacher: Array, *, out: Array | None = None) -> _Result:
    r"""Return half the squared distance of hidden features (FitNets) and its gradient.

    .. math:: L = \frac{1}{2n} \sum_{i=1}^n \lVert s_i - t_i \rVert^2

    Parameters
    ----------
    student, teacher : array, shape (n, ...)
        Features of n samples, of the same shape and dtype, float32 or float64.
    out : array, optional
        Where to write the gradient; C-contiguous, with the shape and dtype of `student`.

    Returns
    -------
    loss : float
    grad : array
        :math:`(s_i - t_i) / n`.

    Raises
    ------
    TypeError
        If an input is not an array of such a dtype, or dtypes differ.
    ValueError
        If shapes differ or are empty, or `out` does not match or shares memory with an
        input.

    References
    ----------
    Romero et al., "FitNets", arXiv 1412.6550, equation 3, averaged over the batch.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> loss, grad = cr.distill.hint_loss(np.array([[1.0, 2.0]]), np.array([[0.0, 4.0]]))
    >>> loss, grad
    (2.5, array([[ 1., -2.]]))
    """
    student = as_array(student, "student")
    if student.ndim == 0:
        raise ValueError("student must have shape (n, ...), got ()")
    return _run(_core.hint_loss, student, teacher, out)


def attention_loss(student: Array, teacher: Array, *, out: Array | None = None) -> _Result:
    r"""Return the attention-transfer loss and its gradient.

    .. math::
        L = \frac{1}{n P} \sum_{i=1}^n \Big\lVert
        \frac{Q(s_i)}{\lVert Q(s_i) \rVert} - \frac{Q(t_i)}{\lVert Q(t_i) \rVert}
        \Big\rVert^2, \qquad Q(x)_p = \sum_c x_{cp}^2

    over n samples and P positions, as in the authors' code (the paper has the norm without
    the square, and a factor).

    Parameters
    ----------
    student, teacher : array, shape (n, channels, ...)
        Feature maps of the same dtype, float32 or float64; only the number of channels
        may differ.
    out : array, optional
        Where to write the gradient.

    Returns
    -------
    loss : float
    grad : array
        Of the shape and dtype of `student`.

    Raises
    ------
    TypeError, ValueError
        As for `hint_loss`; there must be at least three axes.

    References
    ----------
    Zagoruyko & Komodakis, "Paying more attention to attention", arXiv 1612.03928,
    equation 2.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> student, teacher = np.array([[[1.0, 0.0]]]), np.array([[[0.0, 2.0]]])
    >>> loss, grad = cr.distill.attention_loss(student, teacher)
    >>> loss
    1.0
    """
    student, teacher = as_array(student, "student"), as_array(teacher, "teacher")
    for name, x in (("student", student), ("teacher", teacher)):
        if x.ndim < 3:
            raise ValueError(f"{name} must have shape (n, channels, ...), got {x.shape}")
    if teacher.shape[:1] + teacher.shape[2:] != student.shape[:1] + student.shape[2:]:
        raise ValueError(
            f"teacher must have the shape {student.shape} of student but for the channels, "
            f"got {teacher.shape}"
        )

    def flat(x: Array) -> Array:
        return x.reshape(*x.shape[:2], int(np.prod(x.shape[2:])))

    return _run(_core.attention_loss, student, teacher, out, view=flat)


def rkd_distance_loss(student: Array, teacher: Array, *, out: Array | None = None) -> _Result:
    r"""Return the distance-wise relational distillation loss and its gradient.

    .. math::
        L = \frac{1}{n^2} \sum_{i,j} \ell\big( d(t_i, t_j), d(s_i, s_j) \big), \qquad
        d(x_i, x_j) = \frac{\lVert x_i - x_j \rVert}{\mu}

    with :math:`\mu` the mean of the distances that are not 0, and Huber's loss
    :math:`\ell(x, y) = \frac12 (x - y)^2` for :math:`|x - y| \leq 1`, else
    :math:`|x - y| - \frac{1}{2}`.

    Parameters
    ----------
    student, teacher : array, shape (n, features)
        Embeddings of the same dtype, float32 or float64; their widths may differ.
    out : array, optional
        Where to write the gradient.

    Returns
    -------
    loss : float
    grad : array
        Of the shape and dtype of `student`. Coincident pairs contribute 0.

    Raises
    ------
    TypeError, ValueError
        As for `hint_loss`.

    References
    ----------
    Park et al., "Relational knowledge distillation", arXiv 1904.05068, equations 5 to 7;
    the mean is over all pairs, as in the authors' code.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> student = np.array([[0.0], [1.0], [3.0]])
    >>> loss, grad = cr.distill.rkd_distance_loss(student, 10 * student + 1)
    >>> loss, grad.ravel().round(12) + 0.0
    (0.0, array([0., 0., 0.]))
    """
    return _run(_core.rkd_loss, student, teacher, out, False)


def rkd_angle_loss(student: Array, teacher: Array, *, out: Array | None = None) -> _Result:
    r"""Return the angle-wise relational distillation loss and its gradient.

    .. math::
        L = \frac{1}{n^3} \sum_{i,j,k} \ell\big( a(t_i, t_j, t_k), a(s_i, s_j, s_k) \big), \qquad
        a(x_i, x_j, x_k) = \Big\langle \frac{x_j - x_i}{\lVert x_j - x_i \rVert},
        \frac{x_k - x_i}{\lVert x_k - x_i \rVert} \Big\rangle

    and Huber's loss as in `rkd_distance_loss`. The cost grows with :math:`n^3`.

    Parameters, result and errors are those of `rkd_distance_loss`.

    References
    ----------
    Park et al., arXiv 1904.05068, equations 8 to 10; the mean is over all triples, as in
    the authors' code.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> student = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> loss, _ = cr.distill.rkd_angle_loss(student, student @ np.array([[0.0, 2.0], [2.0, 0.0]]))
    >>> loss
    0.0
    """
    return _run(_core.rkd_loss, student, teacher, out, True)


def dist_loss(
    student: Array,
    teacher: Array,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    *,
    out: Array | None = None,
) -> _Result:
    r"""Return the DIST loss, one minus the correlation with the teacher, and its gradient.

    .. math::
        L = T^2 \Big( \beta \Big(1 - \frac1n \sum_i \rho(q_i, p_i)\Big)
        + \gamma \Big(1 - \frac1K \sum_j \rho(q_{:j}, p_{:j})\Big) \Big)

    with p and q the softmax of the teacher's and the student's logits at T, and
    :math:`\rho` Pearson's correlation, over the classes of a row (inter-class) and over the
    rows of a class (intra-class).

    Parameters
    ----------
    student, teacher : array, shape (n, classes)
        Logits of the same shape and dtype, float32 or float64.
    temperature : float, default 1.0
        :math:`T > 0`.
    beta, gamma : float, default 1.0
        Weights, at least 0.
    out : array, optional
        Where to write the gradient.

    Returns
    -------
    loss : float
        The correlation with a constant counts as 0.
    grad : array
        Of the shape and dtype of `student`.

    Raises
    ------
    TypeError, ValueError
        As for `hint_loss`, or if a number is out of range.

    References
    ----------
    Huang et al., "Knowledge distillation from a stronger teacher", arXiv 2205.10536,
    equations 8 to 10; with the factor :math:`T^2` of the authors' code.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> student = np.array([[1.0, 2.0, 3.0], [2.0, 0.0, 1.0]])
    >>> loss, grad = cr.distill.dist_loss(student, student + 5)
    >>> abs(round(loss, 6))
    0.0
    """
    temperature = one_temperature(temperature)
    beta, gamma = number(beta, "beta", 0), number(gamma, "gamma", 0)
    return _run(_core.dist_loss, student, teacher, out, temperature, beta, gamma)


def _run(
    loss: Callable[..., float],
    student: Array,
    teacher: Array,
    out: Array | None,
    *options: float,
    view: Callable[[Array], Array] = lambda x: x,
) -> _Result:
    """Call a loss of the core; `view` reshapes arrays to the axes that it expects."""
    student, teacher = as_array(student, "student"), as_array(teacher, "teacher")
    if student.ndim and teacher.ndim != student.ndim:
        raise ValueError(
            f"teacher must have as many axes as student, of shape {student.shape}, "
            f"got shape {teacher.shape}"
        )
    for name, x in (("student", student), ("teacher", teacher)):
        if x.size == 0:
            raise ValueError(f"{name} must not be empty, got shape {x.shape}")
    grad = gradient_like(student, out, "student")
    return loss(view(student), view(teacher), *options, view(grad)), grad
