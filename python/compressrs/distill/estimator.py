"""Distillation of a scikit-learn classifier into a small network."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from compressrs.distill.kd import kd_loss
from compressrs.distill.probabilities import softmax
from compressrs.distill.students import Distilled, Floats, weights_of

#: The label of a row that has none.
UNLABELLED = -1


class DistilledClassifier(ClassifierMixin, Distilled):  # type: ignore[misc]
    """A small network that is trained on the outputs of a classifier's `predict_proba`.

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
        Temperature of the soft targets; predictions use temperature 1.
    alpha : float, default 0.5
        Weight of the soft targets; that of the labels is ``1 - alpha``.
    epochs, hard_epochs : int, default 100 and 0
        Epochs with soft targets, and then with labels alone.
    learning_rate : float, default 0.01
    batch_size : int, default 32
    keep_teacher : bool, default False
        Whether to keep the fitted teacher as `teacher_`, also in pickles.
    random_state : int, RandomState or None
        Of the initial weights, the order of the rows, and a teacher that is fitted here
        and has no `random_state` of its own.

    Attributes
    ----------
    classes_ : array
        Those of the teacher, sorted.
    teacher_ : classifier
        The fitted teacher, with `keep_teacher`.
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
        keep_teacher: bool = False,
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
        self.keep_teacher = keep_teacher
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> DistilledClassifier:
        """Fit the teacher unless it is fitted, and train the student on its outputs.

        Parameters
        ----------
        X : array, shape (n, features)
        y : array, shape (n,)
            Labels, all of which the teacher must know. Rows of label -1 have none, if a
            fitted teacher knows no class -1, or else if there are at least two other labels:
            the student learns from the teacher alone there.
        sample_weight : array, shape (n,), optional
            Weight of each row, for the student and for a teacher that is fitted here and
            accepts weights.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If the teacher has no `predict_proba`.
        ValueError
            If X or y are invalid, or the teacher does not know a label.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        weight = weights_of(sample_weight, X)
        rng = check_random_state(self.random_state)
        teacher = RandomForestClassifier() if self.estimator is None else self.estimator
        if not hasattr(teacher, "predict_proba"):
            hint = "; SVC has it with probability=True" if hasattr(teacher, "probability") else ""
            raise TypeError(
                f"estimator must have predict_proba, got {type(teacher).__name__}{hint}"
            )
        labelled = self._labelled(teacher, y)
        teacher = self._fitted(teacher, X, y, weight, labelled, rng)
        classes = np.asarray(teacher.classes_)
        # Of the teacher's columns, whose classes may come in any order.
        self.classes_, columns = np.unique(classes, return_index=True)
        unknown = np.setdiff1d(y[labelled], self.classes_)
        if len(unknown):
            raise ValueError(f"the estimator must know all labels of y, but not {unknown[0]!r}")
        labels = np.full(len(y), -100)
        labels[labelled] = np.searchsorted(self.classes_, y[labelled])
        probabilities = np.asarray(teacher.predict_proba(X), np.float64)
        if len(columns) != len(classes) or probabilities.shape != (len(X), len(classes)):
            raise ValueError(
                f"the estimator must give a probability for each of its different classes_, of "
                f"which there are {len(columns)}, got {len(classes)} classes_ and probabilities "
                f"of shape {probabilities.shape}"
            )
        probabilities = np.ascontiguousarray(probabilities[:, columns])
        loss = functools.partial(kd_loss, teacher_kind="probabilities")
        self._train(X, probabilities, labels, weight, len(self.classes_), loss, rng)
        self._keep(teacher)
        return self

    def predict_proba(self, X: Any) -> Floats:
        """Return the student's probabilities, shape (n, classes)."""
        return softmax(self._outputs(X))

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the most probable class of each row."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: npt.NDArray[Any] = self.classes_[best]
        return labels

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
            The lines: a function ``predict(x, path)`` that gives the probabilities, in the
            order of `classes_`. Neither compressrs nor scikit-learn is needed there.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        return self._export(path, "softmax", show)

    def _labelled(self, teacher: Any, y: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return which rows have a label."""
        if y.dtype.kind not in "iuf" or not (y == UNLABELLED).any():
            return np.ones(len(y), np.bool_)
        try:
            check_is_fitted(teacher)
            is_class = bool(np.isin(UNLABELLED, teacher.classes_))
        except (AttributeError, TypeError, ValueError):
            # Of labels -1 and 1 both are classes.
            is_class = len(np.unique(y)) < 3
        return np.ones(len(y), np.bool_) if is_class else y != UNLABELLED
