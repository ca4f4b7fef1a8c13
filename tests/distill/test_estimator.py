"""Distillation of scikit-learn's classifiers."""

import functools
import pickle
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
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
        small = cr.distill.DistilledClassifier(
            fitted, (8,), epochs=60, keep_teacher=True, random_state=0
        ).fit(x, y)
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


@parametrize_with_checks([cr.distill.DistilledRegressor(Ridge(), epochs=60, random_state=0)])
def test_scikit_learn_s_own_checks_of_the_regressor(estimator, check):
    check(estimator)


def test_pickles_hold_neither_teacher_nor_data(iris):
    x, y = iris
    forest = RandomForestClassifier(100, random_state=0).fit(x, y)
    small = cr.distill.DistilledClassifier(forest, (4,), epochs=5, random_state=0).fit(x, y)
    assert not hasattr(small, "teacher_")
    data = pickle.dumps(small)
    assert len(data) < 12_000 < len(pickle.dumps(forest))
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.predict_proba(x), small.predict_proba(x))
    assert again.estimator.n_estimators == 100
    # As many bytes however many rows it has seen.
    more = clone(small).fit(np.repeat(x, 9, axis=0), np.repeat(y, 9))
    assert abs(len(pickle.dumps(more)) - len(data)) < 200
    kept = small.set_params(keep_teacher=True).fit(x, y)
    assert kept.teacher_ is forest and len(pickle.dumps(kept)) > len(pickle.dumps(forest))


def test_rows_without_labels_are_learnt_from_the_teacher(iris):
    x, y = load_iris(return_X_y=True)
    rng = np.random.default_rng(0)
    hidden = rng.random(150) < 0.9
    partly = np.where(hidden, -1, y)
    fit = {"epochs": 60, "random_state": 0}
    forest = RandomForestClassifier(random_state=0).fit(x, y)
    small = cr.distill.DistilledClassifier(forest, (8,), **fit).fit(x, partly)
    assert small.classes_.tolist() == [0, 1, 2] and small.score(x, y) > 0.93
    # The teacher is fitted to the labelled rows alone.
    small = cr.distill.DistilledClassifier(
        LogisticRegression(max_iter=500), (8,), keep_teacher=True, **fit
    ).fit(x, partly)
    expected = LogisticRegression(max_iter=500).fit(x[~hidden], y[~hidden])
    np.testing.assert_array_equal(small.teacher_.coef_, expected.coef_)
    assert small.score(x, y) > 0.85
    # Of two labels, -1 is one.
    signs = np.where(y == 0, 1, -1)
    small = cr.distill.DistilledClassifier(LogisticRegression(), (4,), **fit).fit(x, signs)
    assert small.classes_.tolist() == [-1, 1] and small.score(x, signs) > 0.95


def test_weights_of_rows_count_for_teacher_and_student(iris):
    x, y = iris
    rows = np.arange(150) % 3 != 0
    weight = rows.astype(float)
    for kind, target in (
        (cr.distill.DistilledClassifier, y),
        (cr.distill.DistilledRegressor, x[:, 0] * 3),
    ):
        teacher = LogisticRegression(max_iter=500) if target is y else Ridge()
        make = functools.partial(kind, teacher, (4,), epochs=5, batch_size=200, random_state=0)
        weighted = make().fit(x, target, sample_weight=weight)
        alone = make().fit(x[rows], target[rows])
        np.testing.assert_allclose(weighted.mean_, alone.mean_)
        if target is y:
            assert np.mean(weighted.predict(x) == alone.predict(x)) > 0.98
        else:
            np.testing.assert_allclose(weighted.predict(x), alone.predict(x), rtol=1e-6)
        for bad in (-weight, 0 * weight, weight[:3]):
            with pytest.raises(ValueError, match=r"(?i)sample.weight"):
                make().fit(x, target, sample_weight=bad)


def test_regressors_learn_gradient_boosting(tmp_path):
    x, y = load_diabetes(return_X_y=True)
    boosted = GradientBoostingRegressor(random_state=0).fit(x[:300], y[:300])
    small = cr.distill.DistilledRegressor(boosted, (16,), alpha=1.0, random_state=0)
    small.fit(x[:300], y[:300])
    agree = np.corrcoef(small.predict(x[:300]), boosted.predict(x[:300]))[0, 1]
    assert agree > 0.95
    assert not hasattr(small, "teacher_")
    namespace = {}
    code = small.export(tmp_path / "small.npz", show=False)
    assert len(code.splitlines()) <= 12
    exec(code, namespace)
    np.testing.assert_allclose(namespace["predict"](x)[:, 0], small.predict(x), rtol=1e-9)
    with pytest.raises(TypeError, match="estimator must have predict, got int"):
        cr.distill.DistilledRegressor(3).fit(x, y)


def test_exported_classifiers_give_the_same_probabilities(iris, tmp_path, capsys):
    x, y = iris
    teacher = LogisticRegression(max_iter=500)
    small = cr.distill.DistilledClassifier(teacher, epochs=5, random_state=0).fit(x, y)
    code = small.export(tmp_path / "small.npz")
    assert capsys.readouterr().out == code + "\n" and len(code.splitlines()) <= 12
    namespace = {}
    exec(code, namespace)
    np.testing.assert_allclose(namespace["predict"](x), small.predict_proba(x), rtol=1e-9)
