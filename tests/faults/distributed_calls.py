"""Valid arguments of the public callables of `distributed`."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from compressrs import distributed, optim
from tests.faults.optim_calls import Arguments, Method, w


def sharded(microbatches: int = 1) -> Any:
    return distributed.ShardedOptimizer(optim.SGD, w(), microbatches=microbatches, lr=0.1)


def saved() -> str:
    folder = tempfile.mkdtemp()
    sharded().save(folder)
    return folder


CALLS: dict[str, Arguments] = {
    "distributed.ShardedOptimizer": lambda: dict(
        rule=optim.SGD, params=w(), comm=None, microbatches=2
    ),
    "distributed.as_communicator": lambda: dict(comm=None),
    "distributed.read_state": lambda: dict(path=saved()),
    "distributed.run_local": lambda: dict(run=lambda comm: comm.rank, size=2),
}

METHODS: dict[str, Method] = {
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
    "Communicator.exchange": (
        distributed.LocalCommunicator,
        "exchange",
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

#: An abstract class, what takes no arguments, and an exception.
LEFT_OUT = {
    "distributed.Communicator",
    "distributed.LocalCommunicator",
    "distributed.RankError",
}
