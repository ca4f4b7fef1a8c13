"""Valid arguments of the public callables of `distributed.federated`."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressrs import nn, optim
from compressrs.distributed import federated
from tests.faults.optim_calls import Arguments, Method

X = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)
Y = np.arange(8) % 3


def client() -> Any:
    model = nn.Linear(4, 3, rng=0)
    return federated.Client(model, optim.Adam(model.params), X, Y, public=X)


def fedmd() -> Any:
    return federated.FedMD(X, 3)


def feddf() -> Any:
    model = nn.Linear(4, 3, rng=1)
    return federated.FedDF(model, optim.Adam(model.params), X)


def fedavg() -> Any:
    return federated.FedAvg(nn.Linear(4, 3, rng=1))


def trained() -> dict[str, Any]:
    model = nn.Linear(4, 3, rng=1)
    return dict(
        model=model,
        optimizer=optim.Adam(model.params),
        public=X,
        epochs=1,
        temperature=2.0,
        batch_size=4,
        rng=0,
    )


def reply(make: Any) -> Any:
    own = client()
    return own.answer(make().action, make().request())


CALLS: dict[str, Arguments] = {
    "distributed.federated.Client": lambda: {**trained(), "x": X, "y": Y, "digest_epochs": 1},
    "distributed.federated.FedAvg": lambda: dict(model=nn.Linear(4, 3, rng=1)),
    "distributed.federated.FedDF": trained,
    "distributed.federated.FedMD": lambda: dict(public=X, classes=3),
    "distributed.federated.simulate": lambda: dict(
        strategy=fedmd(), clients=[client()], rounds=1, min_clients=1, after_round=lambda s: None
    ),
}


def methods(make: Any, name: str) -> dict[str, Method]:
    return {
        f"{name}.check": (make, "check", lambda: dict(reply=reply(make))),
        f"{name}.receive": (make, "receive", lambda: dict(replies=[reply(make)])),
        f"{name}.load_state_dict": (
            make,
            "load_state_dict",
            lambda: dict(state_dict=make().state_dict()),
        ),
    }


METHODS: dict[str, Method] = {
    "Client.answer": (
        client,
        "answer",
        lambda: dict(action="logits", arrays={"logits": np.ones((8, 3), np.float32)}),
    ),
    "Client.load_state_dict": (
        client,
        "load_state_dict",
        lambda: dict(state_dict=client().state_dict()),
    ),
    **methods(fedmd, "FedMD"),
    **methods(feddf, "FedDF"),
    **methods(fedavg, "FedAvg"),
}

#: An abstract class, a tuple, and what needs Flower (tests/distributed/test_flower.py).
LEFT_OUT = {
    "distributed.federated.Reply",
    "distributed.federated.Strategy",
    "distributed.federated.client_app",
    "distributed.federated.server_app",
}
