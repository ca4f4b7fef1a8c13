"""A line search for the strong Wolfe conditions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

G = TypeVar("G")


@dataclass
class Point(Generic[G]):
    """A point of the line: its position, and the function's value, gradient and slope there."""

    at: float
    value: float
    gradient: G
    slope: float


def strong_wolfe(
    evaluate: Callable[[float], Point[G]],
    start: Point[G],
    step: float,
    length: float,
    *,
    decrease: float = 1e-4,
    curvature: float = 0.9,
    tolerance: float = 1e-9,
    evaluations: int = 25,
) -> tuple[Point[G], int]:
    r"""Return a point at which the strong Wolfe conditions hold.

    .. math::
        f(t) \le f(0) + c_1 t f'(0), \quad |f'(t)| \le c_2 |f'(0)|

    First the steps grow until an interval contains such a point; then the interval is divided
    at the minimum of the cubic through its ends, kept off them by a tenth of its length where
    two divisions in a row came close to an end.

    Parameters
    ----------
    evaluate : callable
        ``evaluate(t)`` returns the `Point` at t.
    start : Point
        At 0, with a negative slope.
    step : float
        The first position that is tried.
    length : float
        Largest component of the direction: a shorter interval than `tolerance` over it is
        accepted as it is.
    decrease, curvature : float
        :math:`c_1, c_2`.
    tolerance : float
        See `length`.
    evaluations : int
        After so many beyond the first, the best end of the interval is returned.

    Returns
    -------
    tuple of Point and int
        The point, and how often the function was evaluated.

    References
    ----------
    Nocedal & Wright, "Numerical Optimization", 2nd edition, algorithms 3.5 and 3.6 and equation
    3.59; details such as the growth of steps are those of Schmidt's minFunc, which PyTorch has.
    """

    def falls_short(new: Point[G]) -> bool:
        return new.value > start.value + decrease * new.at * start.slope

    def is_flat(new: Point[G]) -> bool:
        return abs(new.slope) <= -curvature * start.slope

    before, new = start, evaluate(step)
    used = 1
    for attempt in range(evaluations):
        if falls_short(new) or (attempt > 1 and new.value >= before.value):
            break
        if is_flat(new):
            return new, used
        if new.slope >= 0:
            break
        bounds = new.at + 0.01 * (new.at - before.at), 10 * new.at
        before, new = new, evaluate(cubic_minimum(before, new, bounds))
        used += 1
    else:
        before = start
    ends = [before, new]
    low = _lower(ends)
    close = False
    while used <= evaluations and abs(ends[1].at - ends[0].at) * length >= tolerance:
        left, right = sorted(end.at for end in ends)
        at = cubic_minimum(ends[0], ends[1], (left, right))
        margin = 0.1 * (right - left)
        if min(right - at, at - left) >= margin:
            close = False
        elif close or not left < at < right:
            at = right - margin if right - at < at - left else left + margin
            close = False
        else:
            close = True
        tried = evaluate(at)
        used += 1
        if falls_short(tried) or tried.value >= ends[low].value:
            ends[1 - low] = tried
            low = _lower(ends)
            continue
        if is_flat(tried):
            return tried, used
        if tried.slope * (ends[1 - low].at - ends[low].at) >= 0:
            ends[1 - low] = ends[low]
        ends[low] = tried
    return ends[low], used


def _lower(ends: list[Point[G]]) -> int:
    """Return the index of the end with the smaller value."""
    return 0 if ends[0].value <= ends[1].value else 1


def cubic_minimum(a: Point[G], b: Point[G], bounds: tuple[float, float]) -> float:
    """Return where the cubic through two points with their slopes is least, within bounds.

    The middle of the bounds if the cubic has no minimum.
    """
    low, high = bounds
    if a.at > b.at:
        a, b = b, a
    d = a.slope + b.slope - 3 * (a.value - b.value) / (a.at - b.at)
    square = d * d - a.slope * b.slope
    if not square >= 0:
        return (low + high) / 2
    root = math.sqrt(square)
    bend = b.slope - a.slope + 2 * root
    if bend == 0:
        # A line, which has no minimum: where it is less.
        return high if a.slope < 0 else low
    at = b.at - (b.at - a.at) * ((b.slope + root - d) / bend)
    return min(max(at, low), high) if math.isfinite(at) else (low + high) / 2
