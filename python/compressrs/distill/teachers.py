"""Teachers as logits, probabilities, ensembles, or the top-k logits of many classes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array, compute_dtype
from compressrs._checks import whole
from compressrs.distill.probabilities import logsumexp, one_temperature
from compressrs.sparse import CSRMatrix


class TopK:
    r"""The largest logits of each row, and the log-sum-exp of the rest.

    `kd_loss` accepts it as a teacher: the known classes are compared individually, the rest as
    a single bucket, so nothing is assumed about the distribution of the rest.

    Parameters
    ----------
    logits : CSRMatrix, shape (rows, classes)
        The known logits, in ascending order of classes within each row.
    rest : array, shape (rows,)
        :math:`\log \sum \exp(z_j / T)` over the classes that are not stored; -inf if all
        are stored.
    temperature : float
        The temperature :math:`T > 0` of `rest`, at which losses must be computed.

    Attributes
    ----------
    logits, rest, temperature
        As above.
    shape : pair of int
        Rows and classes.

    Raises
    ------
    TypeError
        If `logits` is not a CSRMatrix.
    ValueError
        If `rest` has the wrong shape or contains NaN or +inf, or classes do not ascend.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> teacher = cr.distill.top_k(np.array([[3.0, 0.0, 2.0, 1.0]]), k=2, temperature=4.0)
    >>> teacher
    <TopK of shape (1, 4) at temperature 4.0, with 2 stored logits>
    >>> student = np.array([[1.0, 1.0, 2.0, 1.0]])
    >>> loss, grad = cr.distill.kd_loss(student, teacher, temperature=4.0)
    >>> round(loss, 4)
    0.5695
    """

    def __init__(self, logits: CSRMatrix, rest: Array, temperature: float) -> None:
        if not isinstance(logits, CSRMatrix):
            raise TypeError(f"logits must be a CSRMatrix, got {type(logits).__name__}")
        rest = as_array(rest, "rest")
        if rest.shape != logits.shape[:1]:
            raise ValueError(
                f"rest must have the shape {logits.shape[:1]} of the rows, got {rest.shape}"
            )
        rest = rest.astype(np.float64)
        if not (rest < np.inf).all():
            row = int(np.argmin(rest < np.inf))
            raise ValueError(f"rest must be finite or -inf, got {rest[row]} in row {row}")
        if np.isnan(logits.data).any():
            raise ValueError("logits must not hold NaN")
        self.logits = logits
        self.rest: npt.NDArray[np.float64] = rest
        self.temperature = one_temperature(temperature)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and classes."""
        return self.logits.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Array) -> TopK:
        """Return the rows given by a slice or an array of indices or bool."""
        wanted = indices_of(rows, len(self))
        starts, ends = self.logits.indptr[wanted], self.logits.indptr[wanted + 1]
        lengths = (ends - starts).astype(np.int64)
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        # The position of each entry: the start of its row plus its offset in the row.
        places = np.repeat(starts - indptr[:-1], lengths) + np.arange(indptr[-1])
        parts = self.logits.data[places], self.logits.indices[places], indptr
        return TopK(
            CSRMatrix(parts, (len(wanted), self.shape[1])), self.rest[wanted], self.temperature
        )

    def __repr__(self) -> str:
        return (
            f"<TopK of shape {self.shape} at temperature {self.temperature}, "
            f"with {self.logits.nnz} stored logits>"
        )

    def parts(self) -> tuple[Array, Array, Array, Array]:
        """Return logits, classes, offsets and rest for the core."""
        logits = self.logits
        return (
            logits.data.astype(np.float64),
            logits.indices.astype(np.int32),
            logits.indptr.astype(np.int64),
            self.rest,
        )


def top_k(z: Array, k: int, temperature: float = 1.0) -> TopK:
    """Return the `k` largest logits of each row and the log-sum-exp of the rest.

    Parameters
    ----------
    z : array, shape (rows, classes)
        Logits, float32, float64, float16 or bfloat16.
    k : int
        From 1 to the number of classes. Among equal logits the first are kept.
    temperature : float, default 1.0
        The temperature of the losses that will use the result.

    Returns
    -------
    TopK
        With ``k`` entries per row; float64 for float64 logits, else float32.

    Raises
    ------
    TypeError
        If `z` is not an array of such a dtype, or `k` not an integer.
    ValueError
        If `z` does not have two axes, `k` is out of range, the temperature is not positive,
        or a row contains NaN or +inf, or only -inf.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.distill.top_k(np.array([[3.0, 0.0, 2.0, 1.0]]), k=2).logits.indices
    array([0, 2], dtype=int32)
    """
    z = as_array(z, "z")
    temperature = one_temperature(temperature)
    if z.ndim != 2:
        raise ValueError(f"z must have shape (rows, classes), got {z.shape}")
    rows, classes = z.shape
    k = whole(k, "k", 1)
    if k > classes:
        raise ValueError(f"k must be at most the {classes} classes, got {k}")
    finite = np.isfinite(logsumexp(z))
    if not finite.all():
        raise ValueError(f"z must hold finite logits, got none or others in {name_rows(~finite)}")
    chosen, rest = np.empty((rows, k), np.int32), np.empty(rows)
    if rows:
        _core.top_k(z, temperature, chosen, rest)
    data = np.take_along_axis(z, chosen, axis=1).astype(compute_dtype(z.dtype)).reshape(-1)
    indptr = np.arange(0, rows * k + 1, k, dtype=np.int64)
    return TopK(CSRMatrix((data, chosen.reshape(-1), indptr), z.shape).copy(), rest, temperature)


def indices_of(rows: slice | Array, count: int) -> npt.NDArray[np.intp]:
    """Return the row indices that a slice or an array selects from `count` rows.

    Raises
    ------
    IndexError
        If one is out of range.
    TypeError
        If `rows` is neither a slice nor a one-dimensional array.
    """
    try:
        indices: npt.NDArray[np.intp] = np.arange(count)[rows]
    except IndexError as error:
        raise IndexError(f"rows must select some of {count} rows: {error}") from None
    except (TypeError, ValueError):
        raise TypeError(
            f"rows must be a slice or an array of indices, got {type(rows).__name__}"
        ) from None
    if indices.ndim != 1:
        raise TypeError("rows must be a slice or a one-dimensional array of indices")
    return indices


def name_rows(wrong: npt.NDArray[np.bool_]) -> str:
    """Return a description of the first few rows that are True, for messages."""
    rows = np.flatnonzero(wrong)
    names = ", ".join(map(str, rows[:5]))
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {names}{more}"


class Teacher(NamedTuple):
    """A teacher in the form that the core expects."""

    kind: str
    value: Any


def as_teacher(
    teacher: Any, kind: str, shape: tuple[int, ...], temperature: float | Array
) -> Teacher:
    """Return a `Teacher` from logits, probabilities, a list of logits, or a `TopK`.

    Raises
    ------
    TypeError, ValueError
        If it does not match student logits of this shape.
    """
    rows = math.prod(shape[:-1])
    if isinstance(teacher, TopK):
        if kind != "logits":
            raise ValueError(f"teacher_kind must be 'logits' for TopK, got {kind!r}")
        if teacher.shape != (rows, shape[-1]):
            raise ValueError(f"teacher must have the shape {shape} of student, got {teacher.shape}")
        if not (np.ndim(temperature) == 0 and float(temperature) == teacher.temperature):
            raise ValueError(
                f"temperature must be {teacher.temperature}, at which the teacher's rest was "
                f"taken, got {temperature}"
            )
        return Teacher("top_k", teacher.parts())
    if isinstance(teacher, (list, tuple)):
        if kind != "logits":
            raise ValueError(f"teacher_kind must be 'logits' for several teachers, got {kind!r}")
        if not teacher:
            raise ValueError("teacher must hold at least one array of logits, got none")
        members = [as_array(z, f"teacher[{i}]") for i, z in enumerate(teacher)]
        for i, z in enumerate(members):
            _require_shape(z, shape, f"teacher[{i}]")
        return Teacher("ensemble", [z.reshape(rows, shape[-1]) for z in members])
    teacher = as_array(teacher, "teacher")
    _require_shape(teacher, shape, "teacher")
    return Teacher(kind, teacher.reshape(rows, shape[-1]))


def _require_shape(z: Array, shape: tuple[int, ...], name: str) -> None:
    if z.shape != shape:
        raise ValueError(f"{name} must have the shape {shape} of student, got {z.shape}")
