"""Common base of the estimators for scikit-learn: a small network and its training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    has_fit_parameter,
    validate_data,
)

from compressrs._checks import file_path, whole
from compressrs.distill.distiller import Distiller
from compressrs.nn import Linear, ReLU, Sequential
from compressrs.nn.export import export
from compressrs.optim import Adam

Floats = npt.NDArray[np.float64]

_D = TypeVar("_D", bound="Distilled")


class Distilled(BaseEstimator):  # type: ignore[misc]
    """A perceptron on standardized features, trained on the outputs of a teacher."""

    estimator: Any
    hidden_layer_sizes: int | tuple[int, ...]
    temperature: float
    alpha: float
    epochs: int
    hard_epochs: int
    learning_rate: float
    batch_size: int
    keep_teacher: bool
    random_state: Any

    def set_params(self: _D, **params: Any) -> _D:
        """Set parameters, by ``estimator__...`` those of the teacher, in a clone of it."""
        of_teacher = any(name.startswith("estimator__") for name in params)
        if of_teacher and "estimator" not in params and self.estimator is not None:
            self.estimator = clone(self.estimator)
        super().set_params(**params)
        return self

    def __sklearn_clone__(self: _D) -> _D:
        # A fitted teacher is used as it is: a clone of it would be fitted again.
        params = self.get_params(deep=False)
        teacher = params.pop("estimator")
        kept = teacher if teacher is None or is_fitted(teacher) else clone(teacher, safe=False)
        return type(self)(kept, **{k: clone(value, safe=False) for k, value in params.items()})

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "student_" in state and not self.keep_teacher and is_fitted(self.estimator):
            # The fitted teacher is not needed any more; its hyperparameters are kept.
            state["estimator"] = clone(self.estimator)
        return state

    def _train(
        self,
        X: Floats,
        teacher: Floats,
        labels: Any,
        weight: Floats | None,
        outputs: int,
        loss: Callable[..., Any],
        rng: Any,
    ) -> None:
        """Standardize the features and train a new student."""
        self.mean_ = np.average(X, axis=0, weights=weight)
        scale = np.sqrt(np.average((X - self.mean_) ** 2, axis=0, weights=weight))
        self.scale_ = np.where(scale > 0, scale, 1.0)
        given = self.hidden_layer_sizes
        # One number is one layer, as in scikit-learn.
        listed = given if isinstance(given, Iterable) else [given]
        hidden = [whole(size, "hidden_layer_sizes", 1) for size in listed]
        sizes = [X.shape[1], *hidden, outputs]
        seeds = [int(seed) for seed in rng.randint(0, 2**31 - 1, len(sizes))]
        layers: list[Any] = []
        for (inputs, units), seed in zip(itertools.pairwise(sizes), seeds[1:], strict=True):
            layers += [Linear(inputs, units, dtype=np.float64, rng=seed), ReLU()]
        student = Sequential(*layers[:-1])
        distiller = Distiller(
            student,
            teacher,
            Adam(student.params, lr=self.learning_rate),
            loss=loss,
            temperature=self.temperature,
            alpha=self.alpha,
            batch_size=self.batch_size,
            rng=seeds[0],
        )
        self.history_ = distiller.fit(
            self._standardized(X),
            labels,
            epochs=self.epochs,
            hard_epochs=self.hard_epochs,
            sample_weight=weight,
        )
        self.student_ = student.eval()

    def _outputs(self, X: Any) -> Floats:
        check_is_fitted(self, "student_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        outputs: Floats = self.student_(self._standardized(X))
        return outputs

    def _standardized(self, X: Floats) -> Floats:
        standardized: Floats = (X - self.mean_) / self.scale_
        return standardized

    def _fitted(
        self,
        teacher: Any,
        X: Floats,
        y: npt.NDArray[Any],
        weight: Floats | None,
        labelled: npt.NDArray[np.bool_],
        rng: Any,
    ) -> Any:
        """Return the teacher, or a clone fitted to the rows with labels."""
        if is_fitted(teacher):
            return teacher
        teacher = clone(teacher)
        if teacher.get_params().get("random_state", 0) is None:
            teacher.set_params(random_state=rng.randint(0, 2**31 - 1))
        options = {}
        if weight is not None and has_fit_parameter(teacher, "sample_weight"):
            options["sample_weight"] = weight[labelled]
        return teacher.fit(X[labelled], y[labelled], **options)

    def _keep(self, teacher: Any) -> None:
        if self.keep_teacher:
            self.teacher_ = teacher
        elif hasattr(self, "teacher_"):
            del self.teacher_

    def _export(self, path: Any, after: str | None, show: bool) -> str:
        check_is_fitted(self, "student_")
        code = export(self.student_, file_path(path), (self.mean_, self.scale_), after)
        if show:
            print(code)
        return code


def weights_of(sample_weight: Any, X: Floats) -> Floats | None:
    """Return the weights of the rows, or None.

    Raises
    ------
    ValueError
        If they are not one number of at least 0 for each row, or all 0.
    """
    if sample_weight is None:
        return None
    weight: Floats = _check_sample_weight(sample_weight, X, dtype=np.float64)
    if not (weight >= 0).all() or not weight.any():
        raise ValueError("sample_weight must be at least 0, and not all 0")
    return weight


def is_fitted(estimator: Any) -> bool:
    """Whether an estimator is fitted."""
    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError):
        # Objects that are not estimators are rejected by `fit`.
        return False
    return True
