"""Distillation of a scikit-learn regressor into a small network."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import RegressorMixin
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from compressrs._arrays import Array
from compressrs._checks import share
from compressrs.distill.students import Distilled, Floats, weights_of


class DistilledRegressor(RegressorMixin, Distilled):  # type: ignore[misc]
    r"""A small network that is trained on the predictions of a regressor.

    Features and targets are standardized first. Then a multi-layer perceptron with ReLU is
    trained with Adam on the squared distance to the teacher's predictions and to the targets.

    Parameters
    ----------
    estimator : regressor, optional
        The teacher: gradient boosting, a forest, anything with `predict`. One that is fitted
        is used as it is; else a clone is fitted first. None is a GradientBoostingRegressor.
    hidden_layer_sizes : int or tuple of int, default (32,)
    alpha : float, default 0.5
        Weight of the teacher's predictions; the targets have the rest.
    epochs : int, default 200
    learning_rate : float, default 0.01
    batch_size : int, default 32
    keep_teacher : bool, default False
        Whether to keep the fitted teacher as `teacher_`, also in pickles.
    random_state : int, RandomState or None
        Of the initial weights, the order of the rows, and a teacher that is fitted here
        and has no `random_state` of its own.

    Attributes
    ----------
    teacher_ : regressor
        The fitted teacher, with `keep_teacher`.
    student_ : compressrs.nn.Sequential
        The network, of standardized features and targets of float64.
    history_ : list of Epoch
    n_features_in_ : int

    Examples
    --------
    >>> import compressrs as cr
    >>> from sklearn.datasets import load_diabetes
    >>> x, y = load_diabetes(return_X_y=True)
    >>> small = cr.distill.DistilledRegressor(random_state=0, epochs=20).fit(x, y)
    >>> bool(small.score(x, y) > 0.4)
    True
    """

    temperature = 1.0
    hard_epochs = 0

    def __init__(
        self,
        estimator: Any = None,
        hidden_layer_sizes: int | tuple[int, ...] = (32,),
        *,
        alpha: float = 0.5,
        epochs: int = 200,
        learning_rate: float = 0.01,
        batch_size: int = 32,
        keep_teacher: bool = False,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.hidden_layer_sizes = hidden_layer_sizes
        self.alpha = alpha
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.keep_teacher = keep_teacher
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> DistilledRegressor:
        """Fit the teacher if need be, and the student to it.

        Parameters
        ----------
        X : array, shape (n, features)
        y : array, shape (n,)
            Targets.
        sample_weight : array, shape (n,), optional
            What each row counts, for the student and for a teacher that is fitted here and
            takes it.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If the teacher has no `predict`.
        ValueError
            If X or y are invalid, or the teacher's predictions are not finite.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        y = np.asarray(y, np.float64)
        weight = weights_of(sample_weight, X)
        alpha = share(self.alpha, "alpha")
        rng = check_random_state(self.random_state)
        teacher = GradientBoostingRegressor() if self.estimator is None else self.estimator
        if not hasattr(teacher, "predict"):
            raise TypeError(f"estimator must have predict, got {type(teacher).__name__}")
        teacher = self._fitted(teacher, X, y, weight, np.ones(len(y), np.bool_), rng)
        predicted = np.asarray(teacher.predict(X), np.float64)
        if predicted.shape != y.shape or not np.isfinite(predicted).all():
            raise ValueError(
                f"the estimator must predict a finite number for each row, got predictions of "
                f"shape {predicted.shape}"
            )
        # Squared distances to two points are, but for a constant, one to a point between.
        targets = alpha * predicted + (1 - alpha) * y
        self.y_mean_ = float(np.average(targets, weights=weight))
        scale = float(np.sqrt(np.average((targets - self.y_mean_) ** 2, weights=weight)))
        self.y_scale_ = scale if scale > 0 else 1.0
        standardized = (targets - self.y_mean_) / self.y_scale_
        self._train(X, standardized[:, None], None, weight, 1, _squared, rng)
        # The last layer gives targets as they are.
        last: Any = self.student_[-1]
        last.weight *= self.y_scale_
        last.bias = last.bias * self.y_scale_ + self.y_mean_
        self._keep(teacher)
        return self

    def predict(self, X: Any) -> Floats:
        """Return the student's predictions, shape (n,)."""
        predictions: Floats = self._outputs(X)[:, 0]
        return predictions

    def export(self, path: Any, *, show: bool = True) -> str:
        """Write the student to an ``.npz`` file that a few lines of NumPy run.

        Parameters
        ----------
        path : path
        show : bool, default True
            Whether to print the lines.

        Returns
        -------
        str
            The lines: a function ``predict(x, path)`` that gives predictions of shape (n, 1).
            Neither compressrs nor scikit-learn is needed there.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        return self._export(path, None, show)


def _squared(
    outputs: Array,
    teacher: Array,
    temperature: float,
    labels: npt.NDArray[Any] | None,
    alpha: float,
    sample_weight: Floats | None = None,
) -> tuple[float, Array]:
    """Return half the mean squared distance to the teacher, and its gradient."""
    weight = np.ones(len(outputs)) if sample_weight is None else sample_weight
    gradient = (outputs - teacher) * (weight / weight.sum())[:, None]
    return 0.5 * float(np.sum(gradient * (outputs - teacher))), gradient
