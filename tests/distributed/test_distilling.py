"""A teacher's logits by many ranks, and students trained on many ranks."""

import numpy as np
import pytest

import compressrs as cr
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
