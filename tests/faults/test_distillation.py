"""Teachers, caches and training: faults that must not be silent."""

import copy
import functools
import itertools
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import compressrs as cr

D = cr.distill


def blobs(n=300, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centers = 4 * np.random.default_rng(1).standard_normal((classes, 5))
    return centers[y] + rng.standard_normal((n, 5)), y


class Shuffled:
    """A classifier whose classes are not sorted."""

    def __init__(self, inner, order):
        self.inner, self.order = inner, order
        self.classes_ = inner.classes_[order]
        self.is_fitted_ = True

    def fit(self, x, y):
        raise AssertionError("is fitted")

    def predict_proba(self, x):
        return self.inner.predict_proba(x)[:, self.order]

    def __sklearn_tags__(self):
        return self.inner.__sklearn_tags__()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("names", [None, ["b", "a", "c"]])
def test_classes_of_the_teacher_in_any_order(order, names):
    x, y = blobs(classes=3)
    if names:
        y = np.array(names)[y]
    inner = LogisticRegression().fit(x, y)
    teacher = Shuffled(inner, list(order))
    small = D.DistilledClassifier(teacher, (8,), epochs=15, random_state=0).fit(x, y)
    assert small.score(x, y) > 0.95
    assert (small.classes_ == np.unique(y)).all()
    plain = D.DistilledClassifier(inner, (8,), epochs=15, random_state=0).fit(x, y)
    np.testing.assert_array_equal(small.predict_proba(x), plain.predict_proba(x))


def test_classes_that_do_not_fit_the_probabilities_are_refused():
    x, y = blobs(classes=3)
    inner = LogisticRegression().fit(x, y)
    for order in ([0, 1, 2, 2], [0, 1, 1]):
        teacher = Shuffled(inner, order)
        with pytest.raises(ValueError, match=r"classes_|know all labels"):
            D.DistilledClassifier(teacher, epochs=1).fit(x, y)
    teacher = Shuffled(inner, [0, 1, 2])
    teacher.predict_proba = lambda rows: np.ones((len(rows), 2)) / 2
    with pytest.raises(ValueError, match="probability for each of its different classes_"):
        D.DistilledClassifier(teacher, epochs=1).fit(x, y)


def test_a_fitted_teacher_stays_itself_in_copies():
    x, y = blobs()
    fitted = RandomForestClassifier(10, random_state=0).fit(x, y)
    small = D.DistilledClassifier(fitted, (8,), epochs=2, keep_teacher=True, random_state=0)
    assert clone(small).estimator is fitted
    assert clone(make_pipeline(StandardScaler(), small))[-1].estimator is fitted
    search = GridSearchCV(small, {"temperature": [1.0, 2.0]}, cv=2).fit(x, y)
    assert search.best_estimator_.teacher_ is fitted
    cross_val_score(small, x, y, cv=2)
    # One that is not is fitted anew each time.
    unfitted = RandomForestClassifier(10)
    other = clone(D.DistilledClassifier(unfitted))
    assert other.estimator is not unfitted
    assert isinstance(other.estimator, RandomForestClassifier)
    assert clone(D.DistilledClassifier()).estimator is None
    # Parameters of the teacher are set in a copy: the caller's is not changed.
    search = GridSearchCV(small, {"estimator__n_estimators": [3, 5]}, cv=2).fit(x, y)
    assert search.best_estimator_.teacher_.n_estimators in (3, 5)
    assert fitted.n_estimators == len(fitted.estimators_) == 10


def teacher_of(w):
    return lambda rows: rows @ w


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("n", [40, 100, 97])
def test_a_full_cache_of_another_teacher_is_refused(tmp_path, k, n):
    rng = np.random.default_rng(0)
    x, w, other = (rng.standard_normal(s).astype("f4") for s in ((n, 6), (6, 10), (6, 10)))
    write = functools.partial(D.TeacherCache.write, tmp_path / "t", k=k, shard_rows=40)
    first = write(teacher_of(w), x)
    for teacher, rows in ((teacher_of(other), x), (teacher_of(w), x[::-1])):
        with pytest.raises(ValueError, match="begun with another teacher or data set"):
            write(teacher, rows)
    again = write(teacher_of(w), x)
    np.testing.assert_array_equal(
        again[:] if k is None else again[:].logits.data,
        first[:] if k is None else first[:].logits.data,
    )


def test_ties_that_another_machine_breaks_are_the_same_teacher(tmp_path):
    x = np.zeros((5, 1), np.float32)
    logits = np.array([[3, 2, 1, 1, 0]], np.float32)

    def says(noise):
        return lambda rows: np.repeat(logits + np.array(noise, np.float32), len(rows), axis=0)

    write = functools.partial(D.TeacherCache.write, tmp_path / "t", k=3)
    kept = write(says([0, 0, 1e-6, 0, 0]), x)
    again = write(says([0, 0, 0, 1e-6, 0]), x)
    np.testing.assert_array_equal(again[:].logits.indices, kept[:].logits.indices)
    with pytest.raises(ValueError, match="another teacher"):
        write(says([0, -3, 0, 0, 0]), x)


class Interrupt(BaseException):
    """As KeyboardInterrupt: no Exception."""


def loss_name(loss):
    """Return the name of a loss and its options, without addresses."""
    options = "".join(f"-{k}={v}" for k, v in getattr(loss, "keywords", {}).items())
    return getattr(loss, "func", loss).__name__ + options


LOSSES = [
    D.kd_loss,
    D.dkd_loss,
    D.dist_loss,
    functools.partial(D.kd_loss, divergence="js"),
    functools.partial(D.dkd_loss, beta=2.0),
    functools.partial(D.dist_loss, gamma=0.5),
]


@pytest.mark.parametrize("where", ["forward", "loss", "step", "schedule"])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: cr.optim.Adam(p, lr=0.02),
        lambda p: cr.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: cr.optim.NAdam(p, lr=0.02),
    ],
    ids=["adam", "sgd", "nadam"],
)
def test_an_epoch_that_was_interrupted_is_taken_back(where, make):
    x, y = blobs()
    teacher = 3 * np.eye(4)[y]
    calls = []

    def start():
        model = cr.nn.Linear(5, 4, dtype=np.float64, rng=0)
        opt = make(model.params)
        schedule = cr.optim.lr_scheduler.ExponentialLR(opt, 0.99)
        return model, opt, D.Distiller(model, teacher, opt, scheduler=schedule, rng=2), schedule

    model, _, distiller, _ = start()
    history = distiller.fit(x, y, epochs=4, hard_epochs=2)
    broken, opt, again, schedule = start()

    def interrupted(function):
        def call(*args, **kwargs):
            calls.append(1)
            if len(calls) in (13, 40):
                raise Interrupt
            return function(*args, **kwargs)

        return call

    if where == "forward":
        again._forward = interrupted(again._forward)
    elif where == "loss":
        again._loss = interrupted(again._loss)
    elif where == "step":
        opt.step = interrupted(opt.step)
    else:
        schedule.step = interrupted(schedule.step)
    for _ in range(2):
        with pytest.raises(Interrupt):
            again.fit(x, y, epochs=4, hard_epochs=2)
        assert again.step_count == 10 * len(again.history)
    assert again.fit(x, y, epochs=4, hard_epochs=2) == history
    for name in model.params:
        np.testing.assert_array_equal(broken.params[name], model.params[name])


@pytest.mark.parametrize("loss", LOSSES, ids=loss_name)
def test_every_loss_of_logits_trains_in_a_distiller(loss):
    x, y = blobs()
    x = (x / 4).astype(np.float32)
    teacher = (3 * np.eye(4)[y] + 0.1 * np.arange(4)).astype(np.float32)
    model = cr.nn.Linear(5, 4, rng=0)
    opt = cr.optim.Adam(model.params, lr=0.02)
    history = D.Distiller(model, teacher, opt, loss=loss, temperature=2.0).fit(x, y, epochs=15)
    assert history[-1].loss < history[0].loss
    assert np.mean(model(x).argmax(axis=1) == y) > 0.95


@pytest.mark.parametrize("loss", [D.dkd_loss, D.dist_loss])
def test_losses_without_a_hard_term_get_one(loss):
    _, y = blobs(40)
    z, t = np.random.default_rng(0).standard_normal((2, 40, 4))
    model = cr.nn.Linear(5, 4, dtype=np.float64, rng=0)
    distiller = D.Distiller(model, t, cr.optim.SGD(model.params, lr=0.1), loss=loss)
    soft = D.dkd_loss(z, t, 3.0, y) if loss is D.dkd_loss else D.dist_loss(z, t, 3.0)
    hard = D.kd_loss(z, t, 1.0, y, 0.0)
    got = distiller._loss(z, t, 3.0, y, 0.25)
    for a, b, c in zip(got, soft, hard, strict=True):
        np.testing.assert_allclose(a, 0.25 * b + 0.75 * c, rtol=1e-12)
    np.testing.assert_array_equal(distiller._loss(z, t, 3.0, y, 1.0)[1], soft[1])
    with pytest.raises(ValueError, match="labels must be given"):
        distiller._loss(z, t, 3.0, None, 0.25)


def test_losses_of_users_are_called_by_position():
    _, y = blobs(40)
    z = np.zeros((40, 4))
    seen = []

    def positional(a, b, c, d, e):
        seen.append((c, d is y, e))
        return 0.0, np.zeros_like(a)

    def any_number(*args):
        seen.append((args[2], args[3] is y, args[4]))
        return 0.0, np.zeros_like(args[0])

    model = cr.nn.Linear(5, 4, dtype=np.float64, rng=0)
    for loss in (positional, any_number):
        distiller = D.Distiller(model, z, cr.optim.SGD(model.params, lr=0.1), loss=loss)
        distiller._loss(z, z, 3.0, y, 0.25)
    assert seen == [(3.0, True, 0.25)] * 2


def weighted(loss, alpha, y, z, t):
    """Return alpha times a loss, and the cross-entropy times the rest, with the gradient."""
    soft, hard = loss(z, t), D.kd_loss(z, z, 1.0, y, 0.0)
    return [alpha * a + (1 - alpha) * b for a, b in zip(soft, hard, strict=True)]


class Margin:
    """A loss of two arguments with options, as an object."""

    def __call__(self, student, teacher, margin=0.5, scale=1.0, power=2.0):
        assert (margin, scale, power) == (0.5, 1.0, 2.0)
        return cr.nn.mse_loss(student, teacher)


#: Losses of the outputs of student and teacher alone.
OF_TWO = {
    "hint": D.hint_loss,
    "attention": D.attention_loss,
    "rkd_distance": D.rkd_distance_loss,
    "rkd_angle": D.rkd_angle_loss,
    "mse": cr.nn.mse_loss,
    "own": lambda a, b: cr.nn.mse_loss(a, b),
    "partial": functools.partial(cr.nn.mse_loss, reduction="sum"),
    "object": Margin(),
    "method": Margin().__call__,
}


def test_every_exported_loss_is_tried_in_a_distiller():
    exported = {f for m in (D, cr.nn) for n in m.__all__ if callable(f := getattr(m, n))}
    losses = {f for f in exported if f.__name__.endswith("_loss")}
    assert losses <= {D.kd_loss, D.dkd_loss, D.dist_loss, *OF_TWO.values()}


@pytest.mark.parametrize("name", OF_TWO)
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_losses_of_two_arguments_are_weighted(name, alpha):
    loss = OF_TWO[name]
    _, y = blobs(40)
    shape = (40, 2, 4) if name == "attention" else (40, 4)
    x = np.random.default_rng(0).standard_normal((*shape[:-1], 5))
    t = np.random.default_rng(1).standard_normal(shape)
    model = cr.nn.Linear(5, 4, dtype=np.float64, rng=0)
    opt = cr.optim.Adam(model.params, lr=0.01)
    distiller = D.Distiller(model, t, opt, loss=loss, alpha=alpha, batch_size=40)
    if alpha < 1 and name != "attention":
        for a, b in zip(
            distiller._loss(model(x), t, 3.0, y, alpha),
            weighted(loss, alpha, y, model(x), t),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-12)
        with pytest.raises(ValueError, match="labels must be given"):
            distiller.fit(x, epochs=1)
        distiller.fit(x, y, epochs=2)
    elif alpha == 1:
        history = distiller.fit(x, epochs=10)
        assert history[-1].loss < history[0].loss
        distiller.fit(x, y, epochs=11)


def test_the_teacher_may_give_classes():
    x, y = blobs(100)
    model = cr.nn.Linear(5, 4, dtype=np.float64, rng=0)
    opt = cr.optim.Adam(model.params, lr=0.05)
    D.Distiller(model, y, opt, loss=cr.nn.cross_entropy, alpha=1.0).fit(x, epochs=20)
    assert np.mean(model(x).argmax(axis=1) == y) > 0.95


def test_arguments_are_given_by_name_where_they_stand_elsewhere():
    seen = []

    def otherwise(a, b, alpha, labels, temperature):
        seen.append((temperature, labels, alpha))
        return 0.0, np.zeros_like(a)

    def by_keyword(a, b, *, alpha):
        seen.append(alpha)
        return 0.0, np.zeros_like(a)

    def temperature_alone(a, b, temperature):
        seen.append(temperature)
        return 0.0, np.zeros_like(a)

    z = np.zeros((40, 4))
    _, y = blobs(40)
    model = cr.nn.Linear(5, 4, dtype=np.float64, rng=0)

    def made(loss):
        return D.Distiller(model, z, cr.optim.SGD(model.params, lr=0.1), loss=loss)

    for loss in (otherwise, by_keyword, temperature_alone):
        made(loss)._loss(z, z, 3.0, y, 0.25)
    assert seen[0][0] == 3.0 and seen[0][1] is y and seen[0][2] == 0.25
    assert seen[1:] == [0.25, 3.0]
    # What a partial sets is kept, and the rest still arrives.
    t = np.random.default_rng(0).standard_normal((40, 4))
    for options, expected in (
        ({"temperature": 2.0}, D.kd_loss(z, t, 2.0, y, 0.25)),
        ({"alpha": 1.0}, weighted(lambda a, b: D.kd_loss(a, b, 3.0, y, 1.0), 0.25, y, z, t)),
    ):
        got = made(functools.partial(D.kd_loss, **options))._loss(z, t, 3.0, y, 0.25)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
    for bad in (lambda a: (0.0, a), lambda a, b, c: (0.0, a)):
        with pytest.raises(TypeError, match=r"loss must take \(logits, teacher\)"):
            made(bad)


def test_missing_safetensors_is_noticed_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    x, y = blobs(40)

    def never(*args):
        raise AssertionError("called before the check")

    with pytest.raises(ModuleNotFoundError, match=r"pip install 'compressrs\[save\]'"):
        D.TeacherCache.write(tmp_path / "t", never, x)
    assert list(tmp_path.iterdir()) == []
    model = cr.nn.Linear(5, 4, dtype=np.float64, rng=0)
    distiller = D.Distiller((never, never), never, cr.optim.SGD(model.params, lr=0.1))
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'compressrs\[save\]'"):
        distiller.fit(x, y, epochs=1, checkpoint=tmp_path / "run")


def test_a_checkpoint_whose_schedule_does_not_fit_changes_nothing(tmp_path):
    pytest.importorskip("safetensors")

    def start(factor):
        student = cr.nn.Linear(3, 2, rng=0)
        opt = cr.optim.Adam(student.params, lr=0.1)
        scheduler = cr.optim.lr_scheduler.LambdaLR(opt, factor)
        teacher = np.zeros((4, 2), np.float32)
        return student, opt, D.Distiller(student, teacher, opt, scheduler=scheduler)

    x, y = np.ones((4, 3), np.float32), np.zeros(4, int)
    start(lambda t: 0.5)[2].fit(x, y, epochs=1, checkpoint=tmp_path / "a")
    student, opt, distiller = start(lambda t: 0.5 if t == 0 else float("nan"))
    before = copy.deepcopy((student.params, opt.state_dict()))
    with pytest.raises(ValueError, match="finite rates"):
        distiller.load(tmp_path / "a")
    np.testing.assert_equal((student.params, opt.state_dict()), before)
    assert distiller.step_count == 0
    assert distiller.history == []


def test_an_epoch_taken_back_keeps_what_a_pruner_removed():
    student = cr.nn.Linear(3, 2, rng=0)
    opt = cr.optim.SGD(student.params, lr=0.1)
    pruner = cr.prune.Pruner(student.weight, cr.prune.OneShot(0.5))

    def teacher(x):
        pruner.step()
        raise KeyboardInterrupt

    distiller = D.Distiller(student, teacher, opt, alpha=1.0)
    with pytest.raises(KeyboardInterrupt):
        distiller.fit(np.ones((4, 3), np.float32), epochs=1)
    assert (student.weight == 0).sum() == 3


def test_rows_that_do_not_exist_are_refused_by_name():
    kept = D.top_k(np.ones((4, 5)), 2)
    for rows in (np.array([4]), np.ones(3, bool), "x"):
        with pytest.raises(IndexError, match="rows must select some of 4 rows"):
            kept[rows]


def test_fit_within_fit_is_refused():
    x, model = np.ones((8, 4), np.float32), cr.nn.Linear(4, 3, rng=0)
    distiller = D.Distiller(
        model,
        np.ones((8, 3), np.float32),
        cr.optim.Adam(model.params),
        after_step=lambda d: d.fit(x, np.arange(8) % 3, epochs=1),
    )
    before = model.weight.copy()
    with pytest.raises(RuntimeError, match="fit must not be called while it runs"):
        distiller.fit(x, np.arange(8) % 3, epochs=2)
    assert distiller.history == []
    np.testing.assert_array_equal(model.weight, before)


def test_overlapping_contexts_restore_scikit_learn():
    mlp = pytest.importorskip("sklearn.neural_network._multilayer_perceptron")
    own = mlp.AdamOptimizer
    first, second = cr.optim.sklearn_mlp(), cr.optim.sklearn_mlp()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert mlp.AdamOptimizer is not own
    second.__exit__(None, None, None)
    assert mlp.AdamOptimizer is own
