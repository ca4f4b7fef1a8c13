"""Global search: adapters to SciPy's basin hopping and to CMA-ES, and restarts from seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from compressrs._arrays import Array, ArrayTree, allocating, flatten_like, require_in_place
from compressrs._checks import function, number, positive, returned_number, whole
from compressrs._state import all_or_nothing
from compressrs.optim._complex import ParameterViews, gradient_pairs, named_parameters
from compressrs.optim._vectors import joined, parts_of
from compressrs.optim.base import Optimizer

#: What a point of a generation of `cma_es` takes besides its numbers, at least.
_BYTES_OF_POINT = 128


class Found(NamedTuple):
    """What a global search found; the parameters hold it.

    Attributes
    ----------
    loss : float
        The least loss.
    losses : list of float
        The loss of each restart, or the least one of each generation.
    """

    loss: float
    losses: list[float]


def scipy_minimizer(
    make: Callable[[Array], Optimizer], steps: int = 100, *, tolerance: float = 0.0
) -> Callable[..., Any]:
    """Return a method for ``scipy.optimize.minimize`` that takes steps of an optimizer.

    It is meant as the local minimizer of ``scipy.optimize.basinhopping``; see the example, and
    `flat_function` for parameters that are not one vector.

    Parameters
    ----------
    make : callable
        ``make(x)`` returns an optimizer of the float64 vector `x`.
    steps : int, default 100
        Most steps of each minimization, at least 1.
    tolerance : float, default 0
        A minimization ends where no element of the gradient is larger.

    Returns
    -------
    callable
        To be passed as ``method``, with ``jac=True`` or a function of the gradient. It returns
        the best point that was seen. It refuses bounds and constraints with a ValueError, and
        ends without success where the loss or its gradient is not finite.

    Raises
    ------
    ModuleNotFoundError
        If SciPy is not installed (``pip install 'compressrs[scipy]'``).
    TypeError, ValueError
        If an argument is of a wrong type or out of range.

    References
    ----------
    Wales & Doye, "Global optimization by basin-hopping", J. Phys. Chem. A 101 (1997).

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> from scipy.optimize import basinhopping
    >>> def fun(x):  # many minima; the least one is at 0
    ...     return float(np.sum(x**2 - np.cos(4 * x))), 2 * x + 4 * np.sin(4 * x)
    >>> adam = cr.optim.scipy_minimizer(lambda x: cr.optim.Adam(x, lr=0.05), steps=200)
    >>> found = basinhopping(
    ...     fun,
    ...     np.full(3, 3.0),
    ...     niter=30,
    ...     stepsize=1.5,
    ...     minimizer_kwargs={"method": adam, "jac": True},
    ...     rng=0,
    ... )
    >>> bool(np.abs(found.x).max() < 0.01)
    True
    """
    optimize = _required("scipy.optimize", "scipy_minimizer", "scipy")
    function(make, "make")
    whole(steps, "steps", 1)
    tolerance = number(tolerance, "tolerance", 0)

    def minimize(
        fun: Callable[..., Any],
        x0: Any,
        args: tuple[Any, ...] = (),
        jac: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Callable[[Array], Any] | None = None,
        **others: Any,
    ) -> Any:
        if not callable(jac):
            raise ValueError("jac must be True or a function: optimizers need gradients")
        if bounds is not None or constraints:
            raise ValueError("bounds and constraints must not be given: optimizers take none")
        if unknown := sorted(k for k, v in others.items() if k not in ("hess", "hessp") or v):
            raise ValueError(f"options must be none, got {unknown[0]!r}")
        x = np.array(x0, np.float64)
        optimizer = make(x)
        if not isinstance(optimizer, Optimizer) or optimizer._arrays()[0] is not x:
            raise TypeError("make must return an Optimizer of the vector that it is given")
        best, least = x.copy(), math.inf
        message, done, step = "the steps are taken", True, 0
        for step in range(steps + 1):
            loss, gradient = float(fun(x, *args)), np.asarray(jac(x, *args), np.float64)
            if not (math.isfinite(loss) and np.isfinite(gradient).all()):
                message, done = "the loss or its gradient is not finite", False
                break
            if loss < least:
                best, least = x.copy(), loss
            if np.abs(gradient).max(initial=0.0) <= tolerance:
                message = "the gradient is within the tolerance"
                break
            if step == steps:
                break
            optimizer.step(gradient)
            if callback is not None:
                callback(x.copy())
        return optimize.OptimizeResult(
            x=best, fun=least, nit=step, nfev=step + 1, njev=step + 1, success=done, message=message
        )

    return minimize


def flat_function(
    evaluate: Callable[[], tuple[float, ArrayTree]], params: ArrayTree
) -> tuple[Callable[[Array], tuple[float, Array]], Array]:
    """Return a function of one vector in place of one of many arrays, and the vector they hold.

    Parameters
    ----------
    evaluate : callable
        ``evaluate()`` returns the loss of `params` as they are, and its gradients in their
        structure.
    params : array, list or nested dict of arrays
        As of an `Optimizer`.

    Returns
    -------
    fun : callable
        ``fun(x)`` writes the float64 vector `x` to `params` and returns the loss and its gradient
        as one vector. It raises a ValueError, and writes nothing, if `x` is not of that length.
    x0 : array
        `params` as one vector.

    Raises
    ------
    TypeError, ValueError
        If `params` are not arrays that an optimizer takes.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> params = {"w": np.ones((2, 2)), "b": np.zeros(2)}
    >>> def evaluate():
    ...     loss = sum(float(np.square(p).sum()) for p in params.values())
    ...     return loss, {name: 2 * p for name, p in params.items()}
    >>> fun, x0 = cr.optim.flat_function(evaluate, params)
    >>> fun(x0 + 1)[1]
    array([4., 4., 4., 4., 2., 2.])
    >>> params["b"]
    array([1., 1.])
    """
    function(evaluate, "evaluate")
    arrays = _arrays(params)
    size = sum(array.size for array in arrays)

    def fun(x: Array) -> tuple[float, Array]:
        x = np.asarray(x, np.float64)
        if x.shape != (size,):
            raise ValueError(f"x must have the shape ({size},), got {x.shape}")
        _write(arrays, x)
        loss, gradients = evaluate()
        flat = flatten_like(params, gradients, "gradients")
        parts = []
        for array, gradient, is_complex, name in zip(
            arrays, flat, arrays.complex, arrays.names, strict=True
        ):
            if is_complex:
                gradient = gradient_pairs(gradient, array, f"the gradient of {name}", name)
            part = np.zeros(array.shape) if gradient is None else np.asarray(gradient, np.float64)
            if part.shape != array.shape:
                raise ValueError(f"gradients must have the shape {array.shape}, got {part.shape}")
            parts.append(part.ravel())
        return float(loss), np.concatenate(parts) if parts else np.zeros(0)

    return fun, _flat(arrays)


def cma_es(
    loss: Callable[[], float],
    params: ArrayTree,
    sigma: float,
    *,
    generations: int = 100,
    population: int | None = None,
    rng: int = 0,
) -> Found:
    """Search for the least loss without gradients, by CMA-ES of the package cmaes.

    Parameters
    ----------
    loss : callable
        ``loss()`` returns the loss of `params` as they are. NaN counts as infinite.
    params : array, list or nested dict of arrays
        As of an `Optimizer`; the search starts from them, and leaves the best ones there. Its
        memory grows with the square of their number.
    sigma : float
        Standard deviation of the first generation, > 0.
    generations : int, default 100
        At least 1. The search ends earlier where cmaes says that it has converged.
    population : int, optional
        Points of a generation, at least 4; by default ``4 + 3 log(n)``.
    rng : int, default 0
        From 0 to 2**32 - 1. Seed; the same one gives the same search.

    Returns
    -------
    Found

    Raises
    ------
    ModuleNotFoundError
        If cmaes is not installed (``pip install 'compressrs[cmaes]'``).
    TypeError, ValueError
        If an argument is of a wrong type or out of range, a loss is -inf, or no loss is finite.
        After any exception, also of `loss`, parameters are as before.
    MemoryError
        If there is no memory for a generation.

    References
    ----------
    Hansen, "The CMA evolution strategy: a tutorial", arXiv 1604.00772; Nomura & Shibata, "cmaes: a
    simple yet practical Python library for CMA-ES", arXiv 2402.01373.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> params = {"w": np.full((2, 2), 3.0), "b": np.zeros(1)}
    >>> def loss():  # steps have no gradient
    ...     return float(np.abs(np.round(4 * params["w"])).sum() + np.abs(params["b"] - 1)[0])
    >>> found = cr.optim.cma_es(loss, params, 1.0, rng=1)
    >>> bool(np.abs(params["w"]).max() < 0.2)
    True
    """
    cmaes = _required("cmaes", "cma_es", "cmaes")
    function(loss, "loss")
    arrays = _arrays(params)
    sigma = positive(sigma, "sigma")
    whole(generations, "generations", 1)
    if population is not None:
        whole(population, "population", 4)
    rng = whole(rng, "rng", 0, 2**32 - 1)
    start = _flat(arrays)
    if start.size < 2:
        raise ValueError(f"params must hold 2 numbers or more for CMA-ES, got {start.size}")
    if population is not None:
        # cmaes lists weights of all points first, one after another until memory ends.
        with allocating(f"a population of {population}"):
            np.empty((population, start.size + _BYTES_OF_POINT // 8))
    engine = cmaes.CMA(mean=start, sigma=sigma, seed=rng, population_size=population)
    least, best = math.inf, start
    losses = []
    with all_or_nothing() as undo:
        undo.remember(*arrays)
        for _ in range(generations):
            points = []
            for _ in range(engine.population_size):
                x = engine.ask()
                _write(arrays, x)
                value = _number(loss(), "loss")
                points.append((x, value))
                if value < least:
                    least, best = value, x
            # cmaes takes finite numbers only.
            engine.tell([(x, min(value, float(np.finfo(np.float64).max))) for x, value in points])
            losses.append(min(value for _, value in points))
            if engine.should_stop():
                break
        if not math.isfinite(least):
            raise ValueError("loss must be finite somewhere near params")
        _write(arrays, best)
    return Found(least, losses)


def restarts(
    train: Callable[[], float],
    params: ArrayTree,
    initialize: Callable[[np.random.Generator], object],
    seeds: Iterable[int] = range(10),
) -> Found:
    """Train from several starting points, and keep the parameters of the least loss.

    Parameters
    ----------
    train : callable
        ``train()`` trains `params` from where they are, with an optimizer of its own, and returns
        the loss at the end. NaN counts as infinite.
    params : array, list or nested dict of arrays
        As of an `Optimizer`.
    initialize : callable
        ``initialize(rng)`` writes new starting values to `params`, drawn from
        ``np.random.default_rng(seed)``.
    seeds : iterable of int, default range(10)
        One for each restart.

    Returns
    -------
    Found

    Raises
    ------
    TypeError, ValueError
        If an argument is of a wrong type, there is no seed, a loss is -inf, or no loss is finite.
        After any exception, also of `train`, parameters are as before.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.zeros(1)
    >>> def initialize(rng):
    ...     w[:] = rng.uniform(-4, 4, 1)
    >>> def train():
    ...     opt = cr.optim.Adam(w, lr=0.05)
    ...     for _ in range(200):
    ...         opt.step(2 * w + 4 * np.sin(4 * w))
    ...     return float(w[0] ** 2 - np.cos(4 * w[0]))
    >>> found = cr.optim.restarts(train, w, initialize)
    >>> bool(abs(w[0]) < 0.01), len(found.losses)
    (True, 10)
    """
    function(train, "train")
    function(initialize, "initialize")
    arrays = _arrays(params)
    try:
        numbers = [whole(seed, "seeds", 0) for seed in seeds]
    except TypeError:
        raise TypeError(f"seeds must be whole numbers, got {seeds!r}") from None
    if not numbers:
        raise ValueError("seeds must hold a number, got none")
    least, best = math.inf, None
    losses = []
    with all_or_nothing() as undo:
        undo.remember(*arrays)
        for seed in numbers:
            initialize(np.random.default_rng(seed))
            loss = _number(train(), "train")
            losses.append(loss)
            if loss < least:
                least, best = loss, [array.copy() for array in arrays]
        if best is None:
            raise ValueError("train must return a finite loss for one of the seeds")
        for array, value in zip(arrays, best, strict=True):
            np.copyto(array, value)
    return Found(least, losses)


def _required(module: str, caller: str, extra: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{caller} needs {extra}: pip install 'compressrs[{extra}]'"
        ) from None


def _arrays(params: ArrayTree) -> ParameterViews:
    """Return the arrays of a tree, complex ones as pairs, checked as an optimizer does."""
    names, arrays = named_parameters(params, "params")
    require_in_place(list(arrays), names)
    return arrays


def _flat(arrays: list[Array]) -> Array:
    return joined(arrays, np.dtype(np.float64))


def _write(arrays: list[Array], x: Array) -> None:
    for array, part in zip(arrays, parts_of(x, arrays), strict=True):
        array[...] = part


def _number(value: object, name: str) -> float:
    """Return a loss that is to be compared, NaN as infinite.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is -inf, which no other would be less than: it comes of an overflow.
    """
    found = returned_number(value, name)
    if found == -math.inf:
        raise ValueError(f"{name} must return a number above -inf, got -inf")
    return math.inf if math.isnan(found) else found
