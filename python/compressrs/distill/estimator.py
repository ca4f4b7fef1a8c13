"""Distillation of a scikit-learn classifier into a small network."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from compressrs._checks import whole
from compressrs.distill.distiller import Distiller
from compressrs.distill.kd import kd_loss
from compressrs.distill.probabilities import softmax
from compressrs.nn import Linear, ReLU, Sequential
from compressrs.optim import Adam

Floats = npt.NDArray[np.float64]


class DistilledClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A small network that learns what a classifier says, through its `predict_proba`.

    Features are standardized first. Then a multi-layer perceptron with ReLU is trained
    with Adam on the classifier's probabilities and on the labels.

    Parameters
    ----------
    estimator : classifier, optional
        The teacher: a random forest, an ``SVC(probability=True)``, an MLPClassifier,
        anything with `predict_proba`. One that is fitted is used as it is, also by
        copies that `sklearn.base.clone` makes, as in GridSearchCV; else a clone is
        fitted first, and again once `set_params` changes a parameter of the teacher.
        None is a RandomForestClassifier.
    hidden_layer_sizes : int or tuple of int, default (16,)
    temperature : float, default 2.0
        Of the soft targets. Probabilities are those at 1.
    alpha : float, default 0.5
        Weight of the soft targets; the labels have the rest.
    epochs, hard_epochs : int, default 100 and 0
        Epochs with soft targets, and then with labels alone.
    learning_rate : float, default 0.01
    batch_size : int, default 32
    random_state : int, RandomState or None
        Of the initial weights, the order of the rows, and a teacher that is fitted here
        and has no `random_state` of its own.

    Attributes
    ----------
    classes_ : array
        Those of the teacher, sorted.
    teacher_ : classifier
        The fitted teacher.
    student_ : compressrs.nn.Sequential
        The network, on standardized features of float64.
    history_ : list of Epoch
    n_features_in_ : int

    Examples
    --------
    >>> import compressrs as cr
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> x, y = load_iris(return_X_y=True)
    >>> forest = RandomForestClassifier(random_state=0).fit(x, y)
    >>> small = cr.distill.DistilledClassifier(forest, (4,), epochs=30, random_state=0).fit(x, y)
    >>> bool(small.score(x, y) > 0.9)
    True
    """

    def __init__(
        self,
        estimator: Any = None,
        hidden_layer_sizes: int | tuple[int, ...] = (16,),
        *,
        temperature: float = 2.0,
        alpha: float = 0.5,
        epochs: int = 100,
        hard_epochs: int = 0,
        learning_rate: float = 0.01,
        batch_size: int = 32,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.hidden_layer_sizes = hidden_layer_sizes
        self.temperature = temperature
        self.alpha = alpha
        self.epochs = epochs
        self.hard_epochs = hard_epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> DistilledClassifier:
        """Fit the teacher if need be, and the student to it.

        Parameters
        ----------
        X : array, shape (n, features)
        y : array, shape (n,)
            Labels, all of which the teacher must know.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If the teacher has no `predict_proba`.
        ValueError
            If X or y are not such, or the teacher does not know a label.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        rng = check_random_state(self.random_state)
        self.teacher_ = self._fitted_teacher(X, y, rng)
        classes = np.asarray(self.teacher_.classes_)
        # Of the teacher's columns, whose classes may come in any order.
        self.classes_, columns = np.unique(classes, return_index=True)
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(f"the estimator must know all labels of y, but not {unknown[0]!r}")
        labels = np.searchsorted(self.classes_, y)
        probabilities = np.asarray(self.teacher_.predict_proba(X), np.float64)
        if len(columns) != len(classes) or probabilities.shape != (len(X), len(classes)):
            raise ValueError(
                f"the estimator must give a probability for each of its different classes_, of "
                f"which there are {len(columns)}, got {len(classes)} classes_ and probabilities "
                f"of shape {probabilities.shape}"
            )
        probabilities = np.ascontiguousarray(probabilities[:, columns])

        self.mean_ = X.mean(axis=0)
        scale = X.std(axis=0)
        self.scale_ = np.where(scale > 0, scale, 1.0)
        given = self.hidden_layer_sizes
        # One number is one layer, as in scikit-learn.
        listed = given if isinstance(given, Iterable) else [given]
        hidden = [whole(size, "hidden_layer_sizes", 1) for size in listed]
        sizes = [X.shape[1], *hidden, len(self.classes_)]
        seeds = [int(seed) for seed in rng.randint(0, 2**31 - 1, len(sizes))]
        layers: list[Any] = []
        for (inputs, outputs), seed in zip(itertools.pairwise(sizes), seeds[1:], strict=True):
            layers += [Linear(inputs, outputs, dtype=np.float64, rng=seed), ReLU()]
        self.student_ = Sequential(*layers[:-1])
        distiller = Distiller(
            self.student_,
            probabilities,
            Adam(self.student_.params, lr=self.learning_rate),
            loss=functools.partial(kd_loss, teacher_kind="probabilities"),
            temperature=self.temperature,
            alpha=self.alpha,
            batch_size=self.batch_size,
            rng=seeds[0],
        )
        self.history_ = distiller.fit(
            self._standardized(X), labels, epochs=self.epochs, hard_epochs=self.hard_epochs
        )
        return self

    def predict_proba(self, X: Any) -> Floats:
        """Return the student's probabilities, shape (n, classes)."""
        check_is_fitted(self, "student_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        logits = self.student_(self._standardized(X))
        return softmax(logits)

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the likeliest class of each row."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: npt.NDArray[Any] = self.classes_[best]
        return labels

    def set_params(self, **params: Any) -> DistilledClassifier:
        """Set parameters, by ``estimator__...`` those of the teacher, in a clone of it."""
        of_teacher = any(name.startswith("estimator__") for name in params)
        if of_teacher and "estimator" not in params and self.estimator is not None:
            self.estimator = clone(self.estimator)
        super().set_params(**params)
        return self

    def __sklearn_clone__(self) -> DistilledClassifier:
        # A fitted teacher is used as it is: a clone of it would be fitted again.
        params = self.get_params(deep=False)
        teacher = params.pop("estimator")
        kept = teacher if teacher is None or _is_fitted(teacher) else clone(teacher, safe=False)
        return type(self)(kept, **{k: clone(value, safe=False) for k, value in params.items()})

    def _standardized(self, X: Floats) -> Floats:
        standardized: Floats = (X - self.mean_) / self.scale_
        return standardized

    def _fitted_teacher(self, X: Floats, y: npt.NDArray[Any], rng: Any) -> Any:
        teacher = RandomForestClassifier() if self.estimator is None else self.estimator
        if not hasattr(teacher, "predict_proba"):
            hint = "; SVC has it with probability=True" if hasattr(teacher, "probability") else ""
            raise TypeError(
                f"estimator must have predict_proba, got {type(teacher).__name__}{hint}"
            )
        if not _is_fitted(teacher):
            teacher = clone(teacher)
            if teacher.get_params().get("random_state", 0) is None:
                teacher.set_params(random_state=rng.randint(0, 2**31 - 1))
            teacher.fit(X, y)
        return teacher


def _is_fitted(estimator: Any) -> bool:
    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError):
        # What is no estimator at all is refused by `fit`.
        return False
    return True
