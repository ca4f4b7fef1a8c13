"""Distillation of scikit-learn's classifiers."""

import sys

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks

import compressrs as cr


@parametrize_with_checks(
    [cr.distill.DistilledClassifier(LogisticRegression(), epochs=60, random_state=0)]
)
def test_scikit_learn_s_own_checks(estimator, check):
    check(estimator)


@pytest.fixture
def iris():
    x, y = load_iris(return_X_y=True)
    return x, np.array(["setosa", "versicolor", "virginica"])[y]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "teacher",
    [
        RandomForestClassifier(50, random_state=0),
        SVC(probability=True, random_state=0),
        MLPClassifier((32,), max_iter=500, random_state=0, learning_rate_init=0.01),
        None,
    ],
    ids=["forest", "svc", "mlp", "default"],
)
def test_students_of_several_teachers(iris, teacher):
    x, y = iris
    small = cr.distill.DistilledClassifier(teacher, (8,), epochs=60, random_state=0)
    assert cross_val_score(small, x, y, cv=3).min() > 0.9
    if teacher is not None:
        fitted = teacher.fit(x, y)
        small = cr.distill.DistilledClassifier(fitted, (8,), epochs=60, random_state=0).fit(x, y)
        assert small.teacher_ is fitted
        agree = np.mean(small.predict(x) == fitted.predict(x))
        assert agree > 0.95
    small.fit(x, y)
    p = small.predict_proba(x)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (small.classes_[p.argmax(axis=1)] == small.predict(x)).all()


def test_the_same_seed_gives_the_same_student(iris):
    x, y = iris

    def make(seed):
        return cr.distill.DistilledClassifier(epochs=3, random_state=seed).fit(x, y)

    np.testing.assert_array_equal(make(1).predict_proba(x), make(1).predict_proba(x))
    assert not np.array_equal(make(1).predict_proba(x), make(2).predict_proba(x))


def test_bad_teachers(iris):
    x, y = iris
    with pytest.raises(TypeError, match="must have predict_proba, got SVC; SVC has it with"):
        cr.distill.DistilledClassifier(SVC()).fit(x, y)
    teacher = LogisticRegression().fit(x[:100], y[:100])
    with pytest.raises(ValueError, match=r"must know all labels of y, but not .*virginica"):
        cr.distill.DistilledClassifier(teacher).fit(x, y)
    with pytest.raises(ValueError, match="hidden_layer_sizes must be at least 1"):
        cr.distill.DistilledClassifier(teacher, (0,)).fit(x[:100], y[:100])
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        cr.distill.Nothing  # noqa: B018


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "compressrs.distill.estimator")
    with pytest.raises(ModuleNotFoundError, match="DistilledClassifier needs scikit-learn"):
        cr.distill.DistilledClassifier  # noqa: B018
