"""L-BFGS."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from compressrs import _core
from compressrs._arrays import (
    Array,
    ArrayTree,
    compute_dtype,
    flatten_like,
    rebuild,
    require_in_place,
)
from compressrs._checks import choice, converted, count, function, number, positive, whole
from compressrs._state import Stateful, Take, Undo, all_or_nothing, require_keys
from compressrs.optim._closure import Closure, evaluated, gradient_of
from compressrs.optim._complex import named_parameters
from compressrs.optim._guard import Guarded
from compressrs.optim._vectors import joined, parts_of
from compressrs.optim._weights import Weights
from compressrs.optim.line_search import Point, strong_wolfe

Vector: TypeAlias = NDArray[Any]

#: Products y's below this are left out: the inverse Hessian would not stay positive.
_LEAST_CURVATURE = 1e-10


class LBFGS(Guarded, Stateful):
    r"""L-BFGS: quasi-Newton steps from the last changes of the gradient.

    .. math::
        \theta \leftarrow \theta - t H g, \quad
        H \approx (\nabla^2 f)^{-1} \text{ from the last } m \text{ pairs }
        s = \Delta\theta, \; y = \Delta g

    For losses of all data at once that are smooth and not noisy: fits, last layers, small
    networks. With mini-batches use `Adam` or `SGD`. It takes :math:`2 m` vectors of memory.

    Parameters
    ----------
    params : array, or list or nested dict of arrays
        float32, float64, float16, bfloat16, complex64 or complex128, C-contiguous and writable,
        updated in place. Everything is computed in float64 if one of them is float64 or
        complex128, else in float32.
    lr : float, default 1.0
        The step :math:`t`, or the first one that the line search tries.
    max_iter : int, default 20
        Iterations of one call of `step`.
    max_eval : int, optional
        Evaluations of the closure after which a call of `step` ends; by default
        ``max_iter * 5 // 4``.
    tolerance_grad : float, default 1e-7
        `step` ends when no component of the gradient is larger.
    tolerance_change : float, default 1e-9
        `step` ends when neither a parameter nor the loss changes by more.
    history_size : int, default 100
        :math:`m`.
    line_search_fn : {None, "strong_wolfe"}
        With None each step has the length `lr`.

    Attributes
    ----------
    step_count : int
        Iterations so far.
    evaluations : int
        Calls of the closure so far.

    Raises
    ------
    TypeError
        If a parameter is not such an array.
    ValueError
        If a number is out of range, or an array cannot be changed in place.

    See Also
    --------
    scipy.optimize.minimize : its L-BFGS-B takes one vector, and bounds.

    References
    ----------
    Liu & Nocedal, "On the limited memory BFGS method for large scale optimization", 1989;
    ``torch.optim.LBFGS`` of PyTorch 2.15, whose iterates these are.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> x = np.array([-1.2, 1.0])  # Rosenbrock's function
    >>> def closure():
    ...     a, b = x
    ...     loss = (1 - a) ** 2 + 100 * (b - a * a) ** 2
    ...     return loss, np.array([2 * (a - 1) - 400 * a * (b - a * a), 200 * (b - a * a)])
    >>> opt = cr.optim.LBFGS(x, max_iter=100, line_search_fn="strong_wolfe")
    >>> loss = opt.step(closure)
    >>> x.round(3)
    array([1., 1.])
    """

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: Literal["strong_wolfe"] | None = None,
    ) -> None:
        self.lr = positive(lr, "lr")
        self.max_iter = whole(max_iter, "max_iter", 1)
        self.max_eval = (
            self.max_iter * 5 // 4 if max_eval is None else whole(max_eval, "max_eval", 1)
        )
        self.tolerance_grad = number(tolerance_grad, "tolerance_grad", 0)
        self.tolerance_change = number(tolerance_change, "tolerance_change", 0)
        self.history_size = whole(history_size, "history_size", 1)
        if line_search_fn is not None:
            choice(line_search_fn, "line_search_fn", ("strong_wolfe",))
        self.line_search_fn = line_search_fn
        super().__init__()
        if isinstance(params, Iterator):
            params = list(params)
        self._names, self._weights = named_parameters(params, "params")
        if not self._weights:
            raise ValueError("params must hold at least one array, got none")
        self._shared = Weights("LBFGS", self._names, self._weights)
        require_in_place(self._weights, self._names)
        self._structure = rebuild(params, iter([None] * len(self._weights)))
        dtypes = [compute_dtype(w.dtype) for w in self._weights]
        self._dtype = np.result_type(*dtypes)
        self.step_count = 0
        self.evaluations = 0
        # The gradient before the last step, the step, and the pairs of both's changes.
        self._last_gradient: Vector | None = None
        self._last_change: Vector | None = None
        # (s, y, y's) of the last changes.
        self._pairs: list[tuple[Vector, Vector, float]] = []
        self._scale = 1.0

    def step(self, closure: Closure) -> float:
        """Take up to `max_iter` iterations.

        Parameters
        ----------
        closure : callable
            ``closure()`` returns the loss and the gradients at the current parameters, in
            the structure of these, and must not change them. A loss of NaN or infinity in a
            line search counts as too long a step.

        Returns
        -------
        float
            The loss before the first iteration.

        Raises
        ------
        FloatingPointError
            If the loss or a gradient is not finite where a line search cannot help, or a
            parameter after the last iteration.
        TypeError, ValueError
            If the closure does not return a loss and such gradients, or changes a parameter.
            After any exception, of the closure as well, parameters and state are as before
            the call.
        """
        function(closure, "closure")
        with self._changing("step"), all_or_nothing() as undo:
            self._shared.require_unchanged()
            undo.remember_attributes(self, without=("_doing", "_lock"))
            undo.remember(*self._weights)
            self._pairs = list(self._pairs)
            loss = self._iterate(closure)
            for name, w in zip(self._names, self._weights, strict=True):
                if not np.isfinite(w).all():
                    raise FloatingPointError(
                        f"the step gives {name} values that are not finite; nothing was changed; "
                        "a smaller lr may help, or line_search_fn='strong_wolfe'"
                    )
            return loss

    def _iterate(self, closure: Closure) -> float:
        self._shared.apply_masks(self._weights)
        loss, gradient = self._evaluate(closure)
        first, used = loss, 1
        _require_finite(loss, gradient)
        if _largest(gradient) <= self.tolerance_grad:
            return first
        for iteration in range(1, self.max_iter + 1):
            direction = self._direction(gradient)
            step = self.lr
            if self.step_count == 1:
                step *= min(1.0, 1.0 / _sum_of_magnitudes(gradient))
            slope = _dot(gradient, direction)
            before = loss
            if slope > -self.tolerance_change:
                break
            start = self._values()
            if self.line_search_fn is not None:
                point, more = strong_wolfe(
                    lambda t: self._at(closure, start, direction, t),  # noqa: B023
                    Point(0.0, loss, gradient, slope),
                    step,
                    _largest(direction),
                    evaluations=self.max_eval - used,
                )
                step, loss, gradient = point.at, point.value, point.gradient
                self._set(start + step * direction)
                _require_finite(loss, gradient)
            else:
                self._set(start + step * direction)
                more = 0
                if iteration < self.max_iter:
                    loss, gradient = self._evaluate(closure)
                    _require_finite(loss, gradient)
                    more = 1
            used += more
            self._last_change = step * direction
            if (
                iteration == self.max_iter
                or used >= self.max_eval
                or _largest(gradient) <= self.tolerance_grad
                or _largest(self._last_change) <= self.tolerance_change
                or abs(loss - before) < self.tolerance_change
            ):
                break
        return first

    def _direction(self, gradient: Vector) -> Vector:
        """Return minus the inverse Hessian times the gradient, by the two-loop recursion."""
        self.step_count += 1
        if self._last_gradient is not None and self._last_change is not None:
            change, bend = self._last_change, gradient - self._last_gradient
            curvature = _dot(bend, change)
            if _LEAST_CURVATURE < curvature < math.inf:
                del self._pairs[: max(0, len(self._pairs) - self.history_size + 1)]
                self._pairs.append((change, bend, curvature))
                self._scale = _quotient(change, bend)
        self._last_gradient = gradient
        direction = -gradient
        weights = []
        for change, bend, curvature in reversed(self._pairs):
            weights.append(_dot(change, direction) / curvature)
            direction -= weights[-1] * bend
        direction *= self._scale
        for (change, bend, curvature), weight in zip(self._pairs, reversed(weights), strict=True):
            direction += (weight - _dot(bend, direction) / curvature) * change
        return direction

    def _at(self, closure: Closure, start: Vector, direction: Vector, t: float) -> Point[Vector]:
        """Return the point of the line at `t`."""
        self._set(start + t * direction)
        loss, gradient = self._evaluate(closure)
        if not math.isfinite(loss):
            return Point(t, math.inf, gradient, math.inf)
        return Point(t, loss, gradient, _dot(gradient, direction))

    def _evaluate(self, closure: Closure) -> tuple[float, Vector]:
        """Call the closure; return the loss and the gradients as one vector."""
        loss, grads = evaluated(closure, self._weights, self._names)
        self.evaluations += 1
        return loss, self._joined(grads)

    def _joined(self, grads: ArrayTree) -> Vector:
        """Return gradients as one vector, 0 where there is none or a weight is masked."""
        flat = flatten_like(self._structure, grads, "the gradients of closure")
        out = np.zeros(sum(w.size for w in self._weights), self._dtype)
        parts = self._parts(out)
        of_pairs = self._weights.complex
        for name, part, leaf, is_complex in zip(self._names, parts, flat, of_pairs, strict=True):
            if leaf is not None:
                part[...] = gradient_of(part, leaf, name, is_complex=is_complex)
        self._shared.apply_masks(parts)
        return out

    def _parts(self, vector: Vector) -> list[Array]:
        """Return views of a vector with the shapes of the parameters."""
        return parts_of(vector, self._weights)

    def _values(self) -> Vector:
        return joined(self._weights, self._dtype)

    def _set(self, values: Vector) -> None:
        # What half precision does not hold is an error, or too long a step of a line search.
        with np.errstate(over="ignore"):
            self._shared.assign(self._parts(values))

    def state_dict(self) -> dict[str, Any]:
        """Return the pairs of changes, the last step and the counts; arrays are not copied."""
        with self._reading("state_dict"):
            return {
                "step_count": self.step_count,
                "evaluations": self.evaluations,
                "scale": self._scale,
                "last_gradient": self._last_gradient,
                "last_change": self._last_change,
                "changes": [change for change, _, _ in self._pairs],
                "bends": [bend for _, bend, _ in self._pairs],
                "param_names": list(self._names),
            }

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        keys = ("step_count", "evaluations", "scale", "last_gradient", "last_change")
        require_keys(state_dict, (*keys, "changes", "bends"), ("param_names",))
        self._shared.require_unchanged(loading=True)
        names = state_dict.get("param_names", self._names)
        known = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        if not known or list(names) != self._names:
            raise ValueError(f"param_names must be {self._names}, got {names}")
        counts = {key: count(state_dict[key], key) for key in ("step_count", "evaluations")}
        scale = positive(state_dict["scale"], "scale")
        last = {
            key: None if state_dict[key] is None else self._vector(state_dict[key], key)
            for key in ("last_gradient", "last_change")
        }
        if (last["last_gradient"] is None) != (last["last_change"] is None):
            raise ValueError("last_gradient and last_change must both be given, or both be None")
        lists = {}
        for key in ("changes", "bends"):
            given = state_dict[key]
            if not isinstance(given, (list, tuple)):
                raise TypeError(f"{key} must be a list, got {type(given).__name__}")
            lists[key] = [self._vector(v, f"{key}[{i}]") for i, v in enumerate(given)]
        if len(lists["changes"]) != len(lists["bends"]):
            raise ValueError(
                f"changes and bends must have the same length, got {len(lists['changes'])} and "
                f"{len(lists['bends'])}"
            )
        pairs = [(s, y, _dot(y, s)) for s, y in zip(*lists.values(), strict=True)]
        pairs = pairs[-self.history_size :]
        if any(not curvature > 0 for *_, curvature in pairs):
            raise ValueError("the products of changes and bends must be positive")

        def take(undo: Undo) -> None:
            with self._changing("load_state_dict"):
                undo.remember_attributes(self, without=("_doing", "_lock"))
                self.step_count, self.evaluations = counts["step_count"], counts["evaluations"]
                self._scale = scale
                self._last_gradient, self._last_change = last["last_gradient"], last["last_change"]
                self._pairs = pairs
                self._shared.state_loaded(undo)

        return take

    def _vector(self, value: Any, name: str) -> Vector:
        """Return a copy of a vector of all parameters."""
        array = np.array(converted(value, name))
        shape = (sum(w.size for w in self._weights),)
        if array.shape != shape or array.dtype.kind != "f":
            raise ValueError(
                f"{name} must be floating-point numbers of shape {shape}, got {array.dtype} of "
                f"shape {array.shape}"
            )
        return array.astype(self._dtype)


def _dot(a: Vector, b: Vector) -> float:
    """Return the scalar product, with the same bits for any number of threads."""
    out = np.empty((1, 1), a.dtype)
    _core.linear(a[None], b[None], None, out)
    return float(out[0, 0])


def _quotient(change: Vector, bend: Vector) -> float:
    r"""Return :math:`s^\top y / y^\top y`, whose square may be beyond the range of the type."""
    exponent = math.frexp(_largest(bend))[1]
    unit = np.ldexp(bend, -exponent)
    return math.ldexp(_dot(unit, change) / _dot(unit, unit), -exponent)


def _sum_of_magnitudes(vector: Vector) -> float:
    return _core.norm([vector], ["gradient"], 1.0, math.inf)[0]


def _largest(vector: Vector) -> float:
    return float(np.abs(vector).max(initial=0.0))


def _require_finite(loss: float, gradient: Vector) -> None:
    if not math.isfinite(loss) or not np.isfinite(gradient).all():
        raise FloatingPointError(
            f"the loss is {loss} and gradients are "
            f"{'finite' if np.isfinite(gradient).all() else 'not finite'}; nothing was changed"
        )
