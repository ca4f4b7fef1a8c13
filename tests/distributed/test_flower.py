"""Flower's ClientApp and ServerApp: the results of `simulate`, to the bit."""

import importlib.util
import os
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

import compressrs as cr
from compressrs.distributed.federated import (
    Client,
    FedAvg,
    FedDF,
    FedMD,
    client_app,
    server_app,
    simulate,
)

from . import federation
from .federation import PUBLIC, ROWS, X, Y, client, server
from .runs import same

pytest.importorskip("flwr")
# No messages to its makers.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")

from flwr.app import Context, Error, Message, RecordDict  # noqa: E402
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto  # noqa: E402
from flwr.serverapp import Grid  # noqa: E402


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """What Flower's processes know of the run they belong to, without which no message is made."""
    try:
        from flwr.supercore.task_identity import TaskIdentity as task
    except ModuleNotFoundError:
        return  # an older version, which asks for nothing
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(task, name, 1)


class LocalGrid(Grid):
    """Nodes in this process, each with a context; messages go through Flower's serialization."""

    def __init__(self, app, nodes):
        self.app = app
        self.contexts = {
            100 + i: Context(1, 100 + i, {"partition-id": i}, RecordDict(), {})
            for i in range(nodes)
        }
        self.lost = set()

    @property
    def run(self):
        raise NotImplementedError

    def set_run(self, run):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError

    def get_node_ids(self):
        # In no order.
        return list(reversed(self.contexts))

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            if node in self.lost:
                continue
            content = recorddict_from_proto(recorddict_to_proto(message.content))
            sent = Message(content=content, metadata=message.metadata)
            try:
                replies.append(self.app(sent, self.contexts[node]))
            except Exception as error:
                replies.append(Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=sent))
        return replies


def start(app, grid):
    app(grid, Context(1, 0, {}, RecordDict(), {}))


def made(same, **options):
    return lambda context: client(int(context.node_config["partition-id"]), same=same, **options)


@pytest.mark.parametrize("kind", [FedMD, FedDF, FedAvg])
def test_the_results_are_those_of_a_simulation(kind):
    expected = server(kind)
    simulate(expected, [client(i, same=kind is FedAvg) for i in range(3)], 3)
    strategy = server(kind)
    rounds = []
    app = server_app(strategy, 3, clients=3, after_round=lambda s: rounds.append(s.round))
    start(app, LocalGrid(client_app(made(kind is FedAvg)), 3))
    assert rounds == [1, 2, 3]
    assert same(strategy.state_dict(), expected.state_dict())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_weights_and_state_of_any_dtype(dtype):
    pytest.importorskip("ml_dtypes")

    class Model:
        """A linear layer with weights of any dtype."""

        def __init__(self):
            self.layer = cr.nn.Linear(6, 3, rng=0)
            self.params = {
                name: array.astype(cr._arrays.dtype_of(dtype))
                for name, array in self.layer.params.items()
            }

        def forward(self, x):
            for name, array in self.params.items():
                self.layer.params[name][...] = array
            return self.layer.forward(x)

        def backward(self, dy):
            return self.layer.backward(dy)

        @property
        def grads(self):
            return dict(self.layer.grads)

        def state_dict(self):
            return dict(self.params)

        def load_state_dict(self, state):
            for name, array in self.params.items():
                array[...] = state[name]

    def make(number):
        model = Model()
        opt = cr.optim.Adam(model.params, state_dtype="bfloat16", lr=0.1)
        return Client(model, opt, X[ROWS[number]], Y[ROWS[number]], epochs=2)

    expected, own = FedAvg(Model()), FedAvg(Model())
    simulate(expected, [make(i) for i in range(3)], 3)
    grid = LocalGrid(client_app(lambda c: make(int(c.node_config["partition-id"]))), 3)
    start(server_app(own, 3), grid)
    assert own.request()["weight"].dtype.name == dtype
    assert same(own.state_dict(), expected.state_dict())
    assert not same(own.state_dict()["model"], Model().state_dict())


def test_a_run_is_continued():
    expected, own = server(FedDF), server(FedDF)
    simulate(expected, [client(i) for i in range(3)], 4)
    grid = LocalGrid(client_app(made(False)), 3)
    start(server_app(own, 2), grid)
    start(server_app(own, 4), grid)
    assert same(own.state_dict(), expected.state_dict())


def test_a_client_that_fails():
    def make(context):
        if context.node_config["partition-id"] == 1:
            raise ValueError("no rows here")
        return made(False)(context)

    strategy = server(FedMD)
    with pytest.raises(RuntimeError, match="client 101 failed: ValueError: no rows here"):
        start(server_app(strategy, 1), LocalGrid(client_app(make), 3))
    assert strategy.round == 0
    with pytest.warns(UserWarning, match="without client 101: client 101 failed"):
        start(server_app(strategy, 1, min_clients=2), LocalGrid(client_app(make), 3))
    expected = server(FedMD)
    simulate(expected, [client(0), client(2)], 1)
    assert same(strategy.state_dict(), expected.state_dict())


def test_a_client_that_does_not_answer():
    grid = LocalGrid(client_app(made(False)), 3)
    grid.lost.add(102)
    with pytest.raises(RuntimeError, match="client 102 did not reply"):
        start(server_app(server(FedMD), 1), grid)
    with pytest.raises(RuntimeError, match="4 clients are needed, got 3"):
        start(server_app(server(FedMD), 1, clients=4, timeout=0.1), grid)


def test_replies_that_are_none():
    grid = LocalGrid(lambda message, context: Message(RecordDict(), reply_to=message), 2)
    with pytest.raises(ValueError, match="client 100 replied with what is no reply"):
        start(server_app(server(FedMD), 1), grid)


def test_other_public_rows_and_classes():
    with pytest.raises(ValueError, match="client 100 must have the public rows"):
        grid = LocalGrid(client_app(made(False, public=PUBLIC[::-1].copy())), 1)
        start(server_app(server(FedMD), 1), grid)
    with pytest.raises(ValueError, match=r"client 100 .*classes"):
        grid = LocalGrid(client_app(made(False)), 1)
        start(server_app(FedMD(PUBLIC, 4), 1), grid)


def test_the_strategies_of_flower_take_its_clients():
    from flwr.app import ArrayRecord
    from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

    ours = server(FedAvg)
    simulate(ours, [client(i, same=True) for i in range(3)], 2)
    grid = LocalGrid(client_app(made(True)), 3)
    strategy = FlowerFedAvg(
        fraction_evaluate=0.0, min_evaluate_nodes=0, min_available_nodes=3, min_train_nodes=3
    )
    initial = federation.network(8, 0).state_dict()
    names = list(initial)
    record = ArrayRecord([np.asarray(a) for a in initial.values()])
    renamed = ArrayRecord({n: record[str(i)] for i, n in enumerate(names)})
    result = strategy.start(grid, renamed, num_rounds=2)
    for name, array in ours.model.state_dict().items():
        np.testing.assert_allclose(result.arrays[name].numpy(), array, rtol=1e-5, atol=1e-6)


def test_arguments():
    with pytest.raises(TypeError, match="make"):
        client_app(3)
    with pytest.raises(TypeError, match="strategy"):
        server_app(3, 1)
    with pytest.raises(ValueError, match="rounds"):
        server_app(server(FedMD), -1)
    with pytest.raises(ValueError, match="clients"):
        server_app(server(FedMD), 1, clients=0)
    with pytest.raises(ValueError, match="timeout"):
        server_app(server(FedMD), 1, timeout=0)
    with pytest.raises(RuntimeError, match="make must return a Client"):
        start(server_app(server(FedMD), 1), LocalGrid(client_app(lambda context: 3), 1))
    with pytest.raises(TypeError, match="strategy must return a Strategy"):
        start(server_app(lambda context: 3, 1), LocalGrid(client_app(made(False)), 1))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
def test_the_simulation_of_flower(tmp_path):
    """Clients in processes of Ray."""
    expected = server(FedDF)
    simulate(expected, [client(i) for i in range(3)], 2)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.flower_run", str(tmp_path / "run.safetensors")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    strategy = server(FedDF)
    cr.TrainState(server=strategy).load(tmp_path / "run.safetensors")
    # Nodes have ids in another order.
    np.testing.assert_allclose(strategy.logits, expected.logits, rtol=1e-5, atol=1e-6)
