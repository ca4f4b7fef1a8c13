"""A teacher's logits by many ranks, and students trained on many ranks."""

import functools

import numpy as np
import pytest

import compressrs as cr
from compressrs.distill import kd_loss
from compressrs.distributed import (
    DataParallelDistiller,
    RankError,
    ShardedOptimizer,
    run_local,
    write_teacher,
)

from .runs import same

X = np.random.default_rng(0).standard_normal((101, 6)).astype(np.float32)
Y = np.arange(101) % 3
W = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)


def teacher(rows):
    return rows @ W


def test_ranks_fill_one_cache(tmp_path):
    pytest.importorskip("safetensors")
    expected = cr.distill.TeacherCache.write(tmp_path / "one", teacher, X, k=2, shard_rows=8)

    def work(comm):
        write_teacher(tmp_path / "many", teacher, X, comm, k=2, shard_rows=8)

    run_local(work, 3)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "many").iterdir())
    assert len(files) == 14
    for name in files:
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    many = cr.distill.TeacherCache(tmp_path / "many")[:]
    assert same(parts_of(many), parts_of(expected[:]))
    # Resumed on another number of ranks.
    for name in files[3:8]:
        (tmp_path / "many" / name).unlink()
    run_local(work, 2)
    many = cr.distill.TeacherCache(tmp_path / "many")[:]
    assert same(parts_of(many), parts_of(expected[:]))


def parts_of(found):
    return [found.logits.data, found.logits.indices, found.rest]


def test_a_teacher_that_fails_on_one_rank(tmp_path):
    pytest.importorskip("safetensors")

    def work(comm):
        def failing(rows):
            if comm.rank == 1 and len(rows) > 1:
                raise OSError("no teacher")
            return teacher(rows)

        with pytest.raises(OSError if comm.rank == 1 else RankError, match="no teacher"):
            write_teacher(tmp_path, failing, X, comm, shard_rows=8)

    run_local(work, 2)


def student():
    return cr.nn.Sequential(cr.nn.Linear(6, 8, rng=0), cr.nn.ReLU(), cr.nn.Linear(8, 3, rng=1))


def distill(comm, *, microbatches=4, fail=False, **fit):
    model = student()
    opt = ShardedOptimizer(cr.optim.Adam, model.params, comm, microbatches=microbatches, lr=0.05)

    def teach(rows):
        if fail and comm.rank == 1 and distiller.step_count == 6:
            raise KeyError("teacher")
        return teacher(rows)

    distiller = DataParallelDistiller(
        model,
        teach,
        opt,
        scheduler=cr.optim.lr_scheduler.StepLR(opt, 3),
        ema=cr.optim.EMA(model.params),
        batch_size=20,
    )
    return distiller, model, fit


@pytest.mark.parametrize("weighted", [False, True])
def test_students_are_the_same_on_any_number_of_ranks(weighted):
    weights = np.where(np.arange(101) % 7 < 2, 0.0, 1.5) if weighted else None

    def work(comm):
        distiller, model, _ = distill(comm)
        history = distiller.fit(
            X, Y, epochs=3, hard_epochs=1, validation=(X, Y), sample_weight=weights
        )
        return [h._asdict() for h in history], model.state_dict()

    one = run_local(work, 1)[0]
    for size in (2, 3, 4):
        assert all(same(other, one) for other in run_local(work, size))


def test_it_is_the_distiller_of_one_process():
    model = student()
    opt = cr.optim.Adam(model.params, lr=0.05)
    plain = cr.distill.Distiller(model, teacher, opt, batch_size=20).fit(X, Y, epochs=4)
    own = student()
    sharded = ShardedOptimizer(cr.optim.Adam, own.params, microbatches=4, lr=0.05)
    history = DataParallelDistiller(own, teacher, sharded, batch_size=20).fit(X, Y, epochs=4)
    np.testing.assert_allclose([h.loss for h in history], [h.loss for h in plain], rtol=1e-5)


SOME = np.where(np.arange(101) % 7 == 0, Y, -100)
CLASSES = np.array([0.5, 2.0, 0.25])
#: Options, and labels.
LOSSES = {
    "some labels": ({}, SOME),
    "no label": ({}, np.full(101, -100)),
    "labels alone": ({"alpha": 0.0}, SOME),
    "labels alone, none in a batch": ({"alpha": 0.0}, np.where(np.arange(101) == 3, 1, -100)),
    "a schedule": ({"alpha": lambda step: step / 30}, SOME),
    "classes": ({"loss": functools.partial(kd_loss, class_weight=CLASSES)}, SOME),
    "other label": (
        {"loss": functools.partial(kd_loss, ignore_index=7, label_smoothing=0.1)},
        np.where(SOME < 0, 7, SOME),
    ),
    "all of them": ({"loss": functools.partial(kd_loss, class_weight=CLASSES)}, Y),
    "decoupled": ({"loss": cr.distill.dkd_loss}, Y),
    "user's": ({"loss": lambda logits, teacher, temperature: mean_square(logits, teacher)}, SOME),
}


def mean_square(logits, teacher):
    difference = logits - teacher
    return (difference**2).mean(), difference * np.float32(2 / difference.size)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_one_batch(name, weighted):
    """With labels, or weights, that are not alike in the micro-batches."""
    options, labels = LOSSES[name]
    if weighted and name == "user's":
        pytest.skip("a loss without sample_weight")
    weights = np.where(np.arange(101) % 5 < 2, 0.0, np.arange(101) / 50) if weighted else None
    hard = 0 if (labels == 7).any() else 1

    def train(make, distiller):
        model = student()
        opt = make(model.params)
        history = distiller(model, teacher, opt, batch_size=32, **options).fit(
            X, labels, epochs=2, hard_epochs=hard, sample_weight=weights
        )
        return [epoch.loss for epoch in history], dict(model.state_dict())

    losses, params = train(lambda p: cr.optim.SGD(p, lr=0.2, momentum=0.5), cr.distill.Distiller)

    def work(comm, microbatches):
        return train(
            lambda p: ShardedOptimizer(
                cr.optim.SGD, p, comm, microbatches=microbatches, lr=0.2, momentum=0.5
            ),
            DataParallelDistiller,
        )

    for microbatches, ranks in ((1, 1), (4, 1), (16, 2), (64, 3)):
        for found, own in run_local(work, ranks, microbatches):
            np.testing.assert_allclose(found, losses, rtol=1e-5, atol=1e-7)
            for key, value in params.items():
                np.testing.assert_allclose(own[key], value, rtol=1e-4, atol=1e-5)


FITS = {
    "alpha": lambda rank: ({"alpha": 0.5 + 0.1 * rank}, {}),
    "temperature": lambda rank: ({"temperature": 1.0 + rank}, {}),
    "batch_size": lambda rank: ({"batch_size": 20 + rank}, {}),
    "rng": lambda rank: ({"rng": rank}, {}),
    "loss": lambda rank: ({"loss": [kd_loss, cr.distill.dkd_loss][rank]}, {}),
    "epochs": lambda rank: ({}, {"epochs": 1 + rank}),
    "hard_epochs": lambda rank: ({}, {"hard_epochs": rank}),
    "values of y": lambda rank: ({}, {"y": (Y + rank) % 3}),
    "sample_weight": lambda rank: ({}, {"sample_weight": np.ones(101) if rank else None}),
    "number of rows": lambda rank: ({}, {"x": X[rank:], "y": Y[rank:]}),
    "patience": lambda rank: ({}, {"validation": (X, Y), "patience": 1 + rank}),
    "validation": lambda rank: ({}, {"validation": (X, Y) if rank else None}),
}


@pytest.mark.parametrize("what", FITS)
def test_ranks_that_disagree(what):
    def work(comm):
        options, fit = FITS[what](comm.rank)
        model = student()
        opt = ShardedOptimizer(cr.optim.Adam, model.params, comm)
        before = {name: x.copy() for name, x in model.state_dict().items()}
        distiller = DataParallelDistiller(model, teacher, opt, **options)
        with pytest.raises(ValueError, match=f"same .*{what}.* on rank 1"):
            distiller.fit(**{"x": X, "y": Y, "epochs": 1, **fit})
        assert same(model.state_dict(), before)

    run_local(work, 2)


@pytest.mark.parametrize("where", ["arguments", "after_step", "after_epoch"])
def test_what_fails_on_one_rank_outside_of_a_step(where):
    def work(comm):
        def fail(*_):
            if comm.rank == 1 and failing:
                raise KeyError(where)

        failing = True
        model = student()
        opt = ShardedOptimizer(cr.optim.Adam, model.params, comm)
        hook = {} if where == "arguments" else {where: fail}
        distiller = DataParallelDistiller(model, teacher, opt, **hook)
        before = {name: x.copy() for name, x in model.state_dict().items()}
        wrong = comm.rank == 1 and where == "arguments"
        error = (ValueError if wrong else KeyError) if comm.rank == 1 else RankError
        with pytest.raises(error):
            distiller.fit(X, Y, epochs=-1 if wrong else 1)
        assert same(model.state_dict(), before)
        failing = False
        return distiller.fit(X, Y, epochs=1)[0].loss

    results = run_local(work, 3)
    assert len(set(results)) == 1


def test_an_epoch_that_fails_on_one_rank_is_reverted_on_all():
    def work(comm):
        distiller, model, _ = distill(comm, fail=True)
        distiller.fit(X, Y, epochs=1)
        before = {name: x.copy() for name, x in model.state_dict().items()}
        with pytest.raises(KeyError if comm.rank == 1 else RankError):
            distiller.fit(X, Y, epochs=2)
        assert same(model.state_dict(), before)
        assert len(distiller.history) == 1
        return before

    results = run_local(work, 3)
    assert all(same(other, results[0]) for other in results)


def test_arguments():
    model = student()
    with pytest.raises(TypeError, match="ShardedOptimizer"):
        DataParallelDistiller(model, teacher, cr.optim.Adam(model.params))
    model = cr.nn.Sequential(cr.nn.Linear(6, 3, rng=0), cr.nn.BatchNorm(3))
    with pytest.raises(ValueError, match="buffers"):
        DataParallelDistiller(model, teacher, ShardedOptimizer(cr.optim.Adam, model.params))
