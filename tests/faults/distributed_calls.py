"""Valid arguments of the public callables of `distributed`."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from compressrs import distributed, nn, optim
from tests.faults.optim_calls import Arguments, Method, w


def sharded(microbatches: int = 1) -> Any:
    return distributed.ShardedOptimizer(optim.SGD, w(), microbatches=microbatches, lr=0.1)


def saved() -> str:
    folder = tempfile.mkdtemp()
    sharded().save(folder)
    return folder


CALLS: dict[str, Arguments] = {
    "distributed.ShardedOptimizer": lambda: dict(
        rule=optim.SGD, params=w(), comm=None, microbatches=2, stage=2, offload=tempfile.mkdtemp()
    ),
    "distributed.as_communicator": lambda: dict(comm=None),
    "distributed.read_state": lambda: dict(path=saved()),
    "distributed.run_local": lambda: dict(run=lambda comm: comm.rank, size=2),
}


def student() -> Any:
    return nn.Linear(16, 3, rng=0)


def distilling() -> Any:
    model = student()
    opt = distributed.ShardedOptimizer(optim.Adam, model.params, microbatches=2)
    return dict(student=model, teacher=np.ones((8, 3), np.float32), optimizer=opt)


def local_steps() -> Any:
    return distributed.DiLoCo(optim.SGD(w(), lr=0.1), every=2)


CALLS |= {
    "distributed.DataParallelDistiller": distilling,
    "distributed.DiLoCo": lambda: dict(
        optimizer=optim.SGD(w(), lr=0.1),
        comm=None,
        every=2,
        outer_lr=0.5,
        outer_momentum=0.9,
        mean=None,
    ),
    "distributed.ExactMean": lambda: dict(comm=None),
    "distributed.PowerSGD": lambda: dict(comm=None, rank=2, rng=0),
    "distributed.RoundedMean": lambda: dict(comm=None, dtype="int8", rng=0),
    "distributed.TopKMean": lambda: dict(comm=None, density=0.5),
    "distributed.executor": lambda: dict(kind="processes", workers=2),
    "distributed.write_teacher": lambda: dict(
        path=tempfile.mkdtemp(),
        teacher=lambda rows: rows,
        x=w().astype(np.float32),
        comm=None,
        k=None,
        temperature=1.0,
        dtype="float32",
        batch_size=4,
        shard_rows=4,
        progress=False,
    ),
}


def loading(make: Any) -> Method:
    return make, "load_state_dict", lambda: dict(state_dict=make().state_dict())


METHODS: dict[str, Method] = {
    "DataParallelDistiller.fit": (
        lambda: distributed.DataParallelDistiller(**distilling()),
        "fit",
        lambda: dict(
            x=w().astype(np.float32),
            y=np.arange(8) % 3,
            epochs=1,
            hard_epochs=1,
            sample_weight=np.ones(8),
            validation=(w().astype(np.float32), np.arange(8) % 3),
            patience=1,
            checkpoint=None,
            progress=False,
        ),
    ),
    "Communicator.agree": (
        distributed.LocalCommunicator,
        "agree",
        lambda: dict(what="a test", error=None, value=1),
    ),
    "Communicator.allgather": (distributed.LocalCommunicator, "allgather", lambda: dict(value=1)),
    "Communicator.broadcast": (
        distributed.LocalCommunicator,
        "broadcast",
        lambda: dict(value=1, root=0),
    ),
    "Communicator.drop_on_errors": (
        distributed.LocalCommunicator,
        "drop_on_errors",
        lambda: dict(accumulated=sharded()._sums),
    ),
    "Communicator.exchange": (
        distributed.LocalCommunicator,
        "exchange",
        lambda: dict(send=[[]], receive=[[]]),
    ),
    "Communicator.start_exchange": (
        distributed.LocalCommunicator,
        "start_exchange",
        lambda: dict(send=[[]], receive=[[]]),
    ),
    "Communicator.require_same": (
        distributed.LocalCommunicator,
        "require_same",
        lambda: dict(what={"name": "value"}),
    ),
    "Communicator.tell": (
        distributed.LocalCommunicator,
        "tell",
        lambda: dict(what="a test", error=ValueError()),
    ),
    "Communicator.together": (
        distributed.LocalCommunicator,
        "together",
        lambda: dict(what="a test"),
    ),
    "DiLoCo.step": (local_steps, "step", lambda: dict(grads=w())),
    "DiLoCo.load_state_dict": loading(local_steps),
    "GradientMean.mean": (distributed.ExactMean, "mean", lambda: dict(grads=w())),
    "GradientMean.load_state_dict": loading(distributed.TopKMean),
    "ShardedOptimizer.accumulate": (
        lambda: sharded(2),
        "accumulate",
        lambda: dict(index=0, grads=w()),
    ),
    "ShardedOptimizer.add_param_group": (
        sharded,
        "add_param_group",
        lambda: dict(group={"params": np.ones(3)}),
    ),
    "ShardedOptimizer.load": (sharded, "load", lambda: dict(path=saved())),
    "ShardedOptimizer.load_state_dict": (
        sharded,
        "load_state_dict",
        lambda: dict(state_dict=sharded().state_dict()),
    ),
    "ShardedOptimizer.save": (
        sharded,
        "save",
        lambda: dict(path=tempfile.mkdtemp(), weights=True),
    ),
    "ShardedOptimizer.set_masks": (
        sharded,
        "set_masks",
        lambda: dict(masks=np.ones((8, 16), bool)),
    ),
    "ShardedOptimizer.step": (
        sharded,
        "step",
        lambda: dict(grads=w(), max_grad_norm=1.0, grad_scale=1.0, nonfinite="raise"),
    ),
}

#: Abstract classes, what takes no arguments, and an exception.
LEFT_OUT = {
    "distributed.Communicator",
    "distributed.GradientMean",
    "distributed.LocalCommunicator",
    "distributed.RankError",
}
