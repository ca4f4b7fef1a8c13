"""A rank that runs out of memory anywhere tells the others, which would wait for it for ever."""

import sys
import threading

import numpy as np
import pytest

import compressrs as cr
from compressrs.distributed import RankError, ShardedOptimizer

from .test_failures import outcomes

SIZE = 2
ALLOCATING = (
    "ascontiguousarray",
    "concatenate",
    "empty",
    "empty_like",
    "full_like",
    "zeros",
    "zeros_like",
)


class Scarce:
    """Memory that ends on one rank: its allocation number `n` in `compressrs.distributed` fails."""

    def __init__(self, monkeypatch):
        self.thread, self.left, self.failed = None, 0, False
        for name in ALLOCATING:
            monkeypatch.setattr(np, name, self.wrapped(getattr(np, name)))

    def wrapped(self, function):
        def allocate(*args, **kwargs):
            caller = sys._getframe(1).f_globals.get("__name__", "")
            ours = threading.get_ident() == self.thread and "out" not in kwargs
            if ours and caller.startswith("compressrs.distributed"):
                self.left -= 1
                if self.left < 0:
                    self.failed = True
                    raise MemoryError("no memory is left")
            return function(*args, **kwargs)

        return allocate

    def from_here(self, n):
        self.thread, self.left = threading.get_ident(), n


def sharded(stage, **kwargs):
    def make(comm):
        w = {"a": np.ones(40_000, np.float32), "b": np.ones(3), "c": np.ones(7)}
        opt = ShardedOptimizer(cr.optim.Adam, w, comm, microbatches=4, stage=stage)

        def act():
            for i in opt.indices:
                opt.accumulate(i, {name: np.full_like(x, i + 1) for name, x in w.items()})
            opt.step(**kwargs)

        return act, w

    return make


def gathered(comm):
    opt = ShardedOptimizer(cr.optim.Adam, w := np.ones(9), comm)
    return opt.state_dict, {"w": w}


def means(cls, **kwargs):
    def make(comm):
        mean = cls(comm, **kwargs)
        g = {"w": np.arange(800.0, dtype=np.float32).reshape(40, 20), "b": np.ones(3)}
        return lambda: mean.mean(g), {}

    return make


ACTIONS = {
    "step": sharded(1),
    "step of stage 2": sharded(2),
    "clipped step": sharded(1, max_grad_norm=1.0),
    "clipped step of stage 2": sharded(2, max_grad_norm=1.0, nonfinite="raise"),
    "state_dict": gathered,
    "ExactMean": means(cr.distributed.ExactMean),
    "RoundedMean": means(cr.distributed.RoundedMean, dtype="int8"),
    "TopKMean": means(cr.distributed.TopKMean, density=0.1),
    "PowerSGD": means(cr.distributed.PowerSGD, rank=2),
}


def test_every_mean_is_tried():
    found = set(cr.distributed.__all__) & {n for n in dir(cr.distributed) if n.endswith("Mean")}
    assert found - {"GradientMean"} <= set(ACTIONS)


@pytest.mark.parametrize("what", ACTIONS)
def test_the_others_are_told(what, monkeypatch):
    scarce = Scarce(monkeypatch)
    for n in range(200):
        scarce.thread, scarce.failed = None, False

        def work(comm, n=n):
            act, w = ACTIONS[what](comm)
            before = {name: x.copy() for name, x in w.items()}
            comm.barrier()
            if comm.rank == 1:
                scarce.from_here(n)
            try:
                act()
            except (MemoryError, RankError):
                assert all((x == before[name]).all() for name, x in w.items())
                raise

        other, own = outcomes(work, SIZE)
        if not scarce.failed:
            assert (other, own) == (None, None)
            break
        assert isinstance(own, MemoryError), own
        assert isinstance(other, RankError), other
        assert "MemoryError: no memory is left" in str(other), (n, str(other))
    assert n > 0, "nothing was allocated"
