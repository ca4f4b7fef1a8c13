r"""Pruning criteria: a larger score means a more important weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, ArrayTree, compute_dtype, named_arrays, rebuild
from compressrs._checks import generator
from compressrs._state import Stateful, Take, Undo, checked_generator, require_keys
from compressrs.nn import RandomState
from compressrs.prune._weights import named_weights
from compressrs.prune.statistics import InputStatistics

_FLOATS = (np.float16, np.float32, np.float64)


class Score(Stateful):
    """Base of the scores used by `Pruner` and `masks`.

    Subclasses implement `scores`, which returns arrays in the structure of the weights; scores
    that accumulate over steps also implement `update`.
    """

    #: Whether `update` must be called with gradients at each step.
    needs_gradients: ClassVar[bool] = False

    def update(self, weights: ArrayTree, grads: ArrayTree) -> None:
        """Accumulate the gradients of a step; does nothing for scores without gradients."""

    def scores(self, weights: ArrayTree) -> ArrayTree:
        """Return the scores in the structure of the weights."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume."""
        return {}

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        if type(self).load_state_dict is not Score.load_state_dict:
            # A subclass of a user's, which checks by itself.

            def take(undo: Undo) -> None:
                undo.remember_state(self)
                self.load_state_dict(state_dict)

            return take
        require_keys(state_dict, ())
        return lambda undo: None

    def _replace(self, change: Callable[[int, Array], Array]) -> None:
        """Cut the accumulated values of each array of weights after some were shrunk."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Magnitude(Score):
    r""":math:`|w|`.

    References
    ----------
    Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    arXiv 1506.02626.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.prune.Magnitude().scores({"a": np.array([1.0, -2.0])})
    {'a': array([1., 2.])}
    """

    def scores(self, weights: ArrayTree) -> ArrayTree:
        """Return the magnitudes."""
        names, arrays = named_weights(weights, "weights")
        for w, name in zip(arrays, names, strict=True):
            _require_float(w, name)
        return rebuild(weights, map(np.abs, arrays))


class Random(Score):
    """Random scores, a baseline for other criteria.

    Parameters
    ----------
    rng : int, Generator or None
        The same seed gives the same scores.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.ones((3, 4))
    >>> int(cr.prune.masks(cr.prune.Random(0).scores(w), 0.5).sum())
    6
    """

    def __init__(self, rng: RandomState = None) -> None:
        self._rng = generator(rng)

    def scores(self, weights: ArrayTree) -> ArrayTree:
        """Draw scores, uniform in [0, 1)."""
        arrays = named_weights(weights, "weights")[1]
        drawn = [self._rng.random(w.shape, compute_dtype(w.dtype).type) for w in arrays]
        return rebuild(weights, iter(drawn))

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state."""
        return {"rng": self._rng.bit_generator.state}

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        require_keys(state_dict, ("rng",))
        return checked_generator(self._rng, state_dict["rng"], "state_dict['rng']")


class _Products(Score):
    """Base of scores that sum a function of weight times gradient over steps."""

    needs_gradients = True
    #: The term that a step adds; see `Form` in the core.
    _term: ClassVar[str]

    def __init__(self) -> None:
        self._sums: list[Array] = []

    def update(self, weights: ArrayTree, grads: ArrayTree) -> None:
        """Add the term of a step.

        Parameters
        ----------
        weights : array, or list or nested dict of arrays
            float32, float64, float16 or bfloat16.
        grads : array, or list or nested dict of arrays
            Gradients in the same structure, of any floating-point dtype.

        Raises
        ------
        TypeError
            If a value is not such an array.
        ValueError
            If structures or shapes differ, or differ from previous steps, or a gradient is
            not finite; nothing is added in that case.
        """
        names, arrays = named_weights(weights, "weights")
        grad_names, given = named_arrays(grads, "grads")
        shapes = [w.shape for w in arrays]
        if [g.shape for g in given] != shapes:
            raise ValueError(
                f"grads must have the shapes {shapes} of weights, got {[g.shape for g in given]}"
            )
        if self._sums and [s.shape for s in self._sums] != shapes:
            raise ValueError(
                f"weights must have the shapes {[s.shape for s in self._sums]} "
                f"they had before, got {shapes}"
            )
        wide = []
        for g, grad_name, w, name in zip(given, grad_names, arrays, names, strict=True):
            for array, its in ((w, name), (g, grad_name)):
                _require_float(array, its)
            if not np.isfinite(g).all():
                # It would remain in the sum.
                raise ValueError(f"{grad_name} must be finite, got NaN or infinity")
            wide.append(g.astype(compute_dtype(w.dtype), copy=False))
        sums = self._sums or [np.zeros(w.shape, compute_dtype(w.dtype)) for w in arrays]
        for total, w, g, name in zip(sums, arrays, wide, names, strict=True):
            _core.accumulate_products(total, w, g, name, self._term)
        self._sums = sums

    def scores(self, weights: ArrayTree) -> ArrayTree:
        """Return the scores accumulated so far, in the structure of the weights.

        Raises
        ------
        ValueError
            If there was no update, or `weights` have other shapes.
        """
        shapes = [w.shape for w in named_weights(weights, "weights")[1]]
        if [s.shape for s in self._sums] != shapes:
            raise ValueError(
                f"update must come first, with weights of shapes {shapes}, "
                f"got {[s.shape for s in self._sums]}"
            )
        return rebuild(weights, (self._score(s) for s in self._sums))

    def _score(self, total: Array) -> Array:
        """Return the scores for a sum over the steps."""
        scores: Array = total.copy()
        return scores

    def state_dict(self) -> dict[str, Any]:
        """Return the accumulated sums."""
        return {"sums": [s.copy() for s in self._sums]}

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        require_keys(state_dict, ("sums",))
        given = state_dict["sums"]
        try:
            if not isinstance(given, (list, tuple)):
                raise TypeError(f"got {type(given).__name__}")
            sums = [np.array(s) for s in given]
        except (TypeError, ValueError) as error:
            raise ValueError(f"state_dict['sums'] must be a list of arrays: {error}") from None
        if any(s.dtype not in (np.float32, np.float64) for s in sums):
            raise ValueError(
                f"state_dict['sums'] must be float32 or float64, got {[str(s.dtype) for s in sums]}"
            )
        if not all(np.isfinite(s).all() for s in sums):
            raise ValueError("state_dict['sums'] must be finite, got NaN or infinity")
        shapes = [s.shape for s in self._sums]
        if self._sums and sums and [s.shape for s in sums] != shapes:
            raise ValueError(
                f"state_dict['sums'] must have the shapes {shapes}, got {[s.shape for s in sums]}"
            )

        def take(undo: Undo) -> None:
            undo.remember_attributes(self)
            self._sums = sums

        return take

    def _replace(self, change: Callable[[int, Array], Array]) -> None:
        """Cut the accumulated values of each array of weights after some were shrunk."""
        self._sums = [change(i, total) for i, total in enumerate(self._sums)]


class Snip(_Products):
    r"""SNIP, the first-order change of the loss: :math:`|\sum_t w g_t|`.

    The gradients of a few batches before training identify important connections. The paper
    normalizes by the sum of all scores, which does not change the ranking and is omitted.

    References
    ----------
    Lee, Ajanthan & Torr, "SNIP: Single-shot Network Pruning based on Connection
    Sensitivity", arXiv 1810.02340.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w, score = np.array([1.0, -2.0]), cr.prune.Snip()
    >>> score.update(w, np.array([3.0, 1.0]))
    >>> score.update(w, np.array([-2.0, 1.0]))
    >>> score.scores(w)
    array([1., 4.])
    """

    _term = "product"

    def _score(self, total: Array) -> Array:
        return np.asarray(np.abs(total))


class Taylor(_Products):
    r"""First-order Taylor expansion: :math:`\sum_t (w g_t)^2`.

    It estimates the squared change of the loss when a weight is removed. For neurons and
    filters, use ``Neurons(norm="sum")``.

    References
    ----------
    Molchanov et al., "Importance Estimation for Neural Network Pruning", arXiv 1906.10771.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w, score = np.array([1.0, -2.0]), cr.prune.Taylor()
    >>> score.update(w, np.array([3.0, 1.0]))
    >>> score.update(w, np.array([-2.0, 1.0]))
    >>> score.scores(w)
    array([13.,  8.])
    """

    _term = "square"


class Movement(_Products):
    r"""Movement pruning: :math:`-\sum_t w_t g_t`.

    It is positive for weights that training moves away from 0, negative for those that move
    towards 0. The paper multiplies by learning rates; for a constant rate the ranking is the same.

    References
    ----------
    Sanh, Wolf & Rush, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", arXiv
    2005.07683.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w, score = np.array([1.0, -2.0]), cr.prune.Movement()
    >>> score.update(w, np.array([3.0, 1.0]))
    >>> score.scores(w)
    array([-3.,  2.])
    """

    _term = "opposite"


class Wanda(Score):
    r"""Wanda, weights times activations: :math:`|w_{ij}| \, \|X_j\|_2`; use ``scope="row"``.

    Parameters
    ----------
    statistics : InputStatistics, or list of them
        One per array of weights, in their order; see `input_statistics`.

    Raises
    ------
    TypeError
        If `statistics` has another type.

    References
    ----------
    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv
    2306.11695.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> statistics = cr.prune.InputStatistics(2)
    >>> statistics.update(np.array([[3.0, 1.0], [4.0, 0.0]]))
    >>> w = np.array([[1.0, -2.0]])
    >>> cr.prune.masks(cr.prune.Wanda(statistics).scores(w), 0.5, scope="row")
    array([[ True, False]])
    """

    def __init__(self, statistics: InputStatistics | Sequence[InputStatistics]) -> None:
        given = list(statistics) if isinstance(statistics, Sequence) else [statistics]
        if not given or not all(isinstance(s, InputStatistics) for s in given):
            raise TypeError("statistics must be InputStatistics, one for each array of weights")
        self.statistics = given

    def scores(self, weights: ArrayTree) -> ArrayTree:
        """Return the scores, in the structure of the weights.

        Raises
        ------
        ValueError
            If the number of arrays and statistics differs, an array does not have as many
            columns as its statistics have features, or no inputs have been seen.
        """
        names, arrays = named_weights(weights, "weights")
        if len(arrays) != len(self.statistics):
            raise ValueError(
                f"weights must be {len(self.statistics)} arrays, one for each of statistics, "
                f"got {len(arrays)}"
            )
        found = []
        for w, name, statistics in zip(arrays, names, self.statistics, strict=True):
            features = statistics.features
            if w.ndim < 2 or int(np.prod(w.shape[1:])) != features:
                raise ValueError(f"{name} must have {features} inputs, got shape {w.shape}")
            if statistics.count == 0:
                raise ValueError(f"statistics must have seen inputs of {name}, got none")
            dtype = compute_dtype(w.dtype)
            norms = statistics.norms.astype(dtype).reshape(w.shape[1:])
            found.append(np.abs(w.astype(dtype, copy=False)) * norms)
        return rebuild(weights, iter(found))


def _require_float(array: Array, name: str) -> None:
    if array.dtype not in _FLOATS and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} must have a floating-point dtype, got {array.dtype}")


def as_score(score: object) -> Score:
    """Return `score` after checking its type; None gives `Magnitude`.

    Raises
    ------
    TypeError
        If it is not.
    """
    if score is None:
        return Magnitude()
    if not isinstance(score, Score):
        raise TypeError(f"score must be a Score, such as Magnitude(), got {score!r}")
    return score
