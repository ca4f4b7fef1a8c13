"""Flower: clients and strategies as a ClientApp and a ServerApp of its Message API."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from compressrs._arrays import Array, dtype_of
from compressrs._checks import count, function, positive, sequence, whole
from compressrs._json import parse_json
from compressrs.distributed.federated.client import ACTIONS, Client
from compressrs.distributed.federated.exchange import Reply, Strategy
from compressrs.distributed.federated.rounds import checked_least, finish_round
from compressrs.train_state import pack, unpack

#: Names of the records of a message; as those of Flower's own strategies.
_ARRAYS, _METRICS, _ABOUT, _ROWS = "arrays", "metrics", "about", "num-examples"

#: Records of a client's context, which hold its state between rounds.
_STATE = "compressrs"


def require_flower() -> Any:
    """Return what is used of Flower.

    Raises
    ------
    ModuleNotFoundError
        If flwr is not installed.
    """
    try:
        from flwr import app, clientapp, serverapp
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "messages of federated learning need Flower: pip install 'compressrs[flower]'"
        ) from None
    return SimpleNamespace(app=app, ClientApp=clientapp.ClientApp, ServerApp=serverapp.ServerApp)


def client_app(make: Callable[[Any], Client], *, mods: Sequence[Any] = ()) -> Any:
    """Return a ClientApp of Flower whose nodes are clients.

    Flower may handle each message in another process: the client is made anew for each, and its
    state, that of model and optimizer, is kept in the node's context in between.

    Parameters
    ----------
    make : callable
        ``make(context)`` returns the `Client` of a node, with the rows of
        ``context.node_config["partition-id"]`` for example.
    mods : sequence of callable
        Flower's modifiers of messages, such as those of differential privacy.

    Returns
    -------
    flwr.clientapp.ClientApp
        It answers ``"train.logits"`` and ``"train.weights"``, and ``"train"``, as Flower's own
        strategies send it, with weights.

    Raises
    ------
    ModuleNotFoundError
        If flwr is not installed.
    TypeError
        If `make` is not callable, or does not return a `Client`.
    """
    flwr = require_flower()
    function(make, "make")
    app = flwr.ClientApp(mods=sequence(mods, "mods"))

    def answering(action: str) -> Callable[[Any, Any], Any]:
        def answer(message: Any, context: Any) -> Any:
            client = make(context)
            if not isinstance(client, Client):
                raise TypeError(f"make must return a Client, got {type(client).__name__}")
            _restore(client, context)
            arrays = _arrays(message.content, _ARRAYS)
            reply = client.answer(action, arrays)
            _keep(flwr, client, context)
            content = _content(flwr, reply.arrays)
            content[_METRICS] = flwr.app.MetricRecord({_ROWS: reply.rows})
            content[_ABOUT] = flwr.app.ConfigRecord({"public": reply.public})
            return flwr.app.Message(content, reply_to=message)

        return answer

    app.train()(answering("weights"))
    for action in ACTIONS:
        app.train(action)(answering(action))
    return app


def server_app(
    strategy: Callable[[Any], Strategy] | Strategy,
    rounds: int,
    *,
    clients: int = 1,
    min_clients: int | None = None,
    timeout: float = 3600.0,
    after_round: Callable[[Strategy], object] | None = None,
) -> Any:
    """Return a ServerApp of Flower that runs rounds of a strategy on all nodes.

    Parameters
    ----------
    strategy : Strategy, or callable
        `FedMD`, `FedDF` or `FedAvg`; or ``strategy(context)``, which returns one when the run
        starts. Rounds that it has completed count, so that a run can be continued.
    rounds : int
        Number of rounds in all.
    clients : int, default 1
        Nodes to wait for before the first round.
    min_clients : int, optional
        Go on with the clients that answered as they should, if there are so many, and warn of the
        others. By default all nodes must.
    timeout : float, default 3600.0
        Seconds to wait for nodes, and for the replies of a round.
    after_round : callable, optional
        Called after each round, with the strategy: to save it, for example.

    Returns
    -------
    flwr.serverapp.ServerApp
        Its call raises a ValueError for a reply that cannot be used, and a RuntimeError for
        clients that fail or too few of them, which name the client. The strategy is unchanged
        then; clients that had answered have finished the round.

    Raises
    ------
    ModuleNotFoundError
        If flwr is not installed.
    TypeError, ValueError
        If an argument is invalid.
    """
    flwr = require_flower()
    if not isinstance(strategy, Strategy):
        function(strategy, "strategy")
    rounds, clients = count(rounds, "rounds"), whole(clients, "clients", 1)
    least, timeout = checked_least(min_clients), positive(timeout, "timeout")
    if after_round is not None:
        function(after_round, "after_round")
    app = flwr.ServerApp()

    @app.main()  # type: ignore[untyped-decorator,unused-ignore]
    def main(grid: Any, context: Any) -> None:
        own = strategy if isinstance(strategy, Strategy) else strategy(context)
        if not isinstance(own, Strategy):
            raise TypeError(f"strategy must return a Strategy, got {type(own).__name__}")
        _wait_for(grid, clients, timeout)
        while own.round < rounds:
            answers = sorted(_ask(flwr, grid, own, timeout), key=lambda pair: pair[0])
            finish_round(own, answers, len(answers), least)
            if after_round is not None:
                after_round(own)

    return app


def _wait_for(grid: Any, clients: int, timeout: float) -> None:
    """Wait until there are so many nodes."""
    end = time.monotonic() + timeout
    while (found := len(list(grid.get_node_ids()))) < clients:
        if time.monotonic() > end:
            raise RuntimeError(f"{clients} clients are needed, got {found} in {timeout} s")
        time.sleep(0.2)


def _ask(
    flwr: Any, grid: Any, strategy: Strategy, timeout: float
) -> Iterable[tuple[int, Reply | Exception]]:
    """Send the request of a round to all nodes; return what each answered."""
    nodes = sorted(grid.get_node_ids())
    content = _content(flwr, strategy.request())
    messages = [
        flwr.app.Message(
            content, node, f"train.{strategy.action}", group_id=str(strategy.round), ttl=timeout
        )
        for node in nodes
    ]
    answers: dict[int, Reply | Exception] = {
        node: RuntimeError(f"client {node} did not reply within {timeout} s") for node in nodes
    }
    for reply in grid.send_and_receive(messages, timeout=timeout):
        node = reply.metadata.src_node_id
        answers[node] = _reply(node, reply)
    return answers.items()


def _reply(node: int, message: Any) -> Reply | Exception:
    if message.has_error():
        return RuntimeError(f"client {node} failed: {message.error.reason}")
    try:
        content = message.content
        rows = int(content[_METRICS][_ROWS])
        public = str(content[_ABOUT]["public"]) if _ABOUT in content else ""
        return Reply(node, _arrays(content, _ARRAYS), rows, public)
    except (KeyError, TypeError, ValueError) as error:
        return ValueError(f"client {node} replied with what is no reply: {error!r}")


def _content(flwr: Any, arrays: Mapping[str, Array]) -> Any:
    """Return arrays as the content of a message."""
    content = flwr.app.RecordDict()
    content[_ARRAYS], kinds = _record(flwr, arrays)
    if kinds:
        content[f"{_ARRAYS}-dtypes"] = flwr.app.ConfigRecord(kinds)
    return content


def _record(flwr: Any, arrays: Mapping[str, Array]) -> tuple[Any, dict[str, str]]:
    """Return arrays as a record; bfloat16, which its files do not know, as float32."""
    kinds = {name: "bfloat16" for name, a in arrays.items() if a.dtype.name == "bfloat16"}
    record = flwr.app.ArrayRecord()
    for name, array in arrays.items():
        values = array.astype(np.float32) if name in kinds else np.asarray(array, order="C")
        record[name] = flwr.app.Array(values)
    return record, kinds


def _arrays(content: Any, name: str) -> dict[str, Array]:
    """Return the arrays of a record."""
    kinds = dict(content.get(f"{name}-dtypes", {}))
    arrays: dict[str, Array] = {}
    for key, array in content.get(name, {}).items():
        values = array.numpy()
        arrays[key] = values.astype(dtype_of(str(kinds[key]))) if key in kinds else values
    return arrays


def _keep(flwr: Any, client: Client, context: Any) -> None:
    """Write a client's state to the context of its node."""
    arrays: dict[str, Array] = {}
    structure = pack(client.state_dict(), "", arrays)
    context.state[_STATE], kinds = _record(flwr, arrays)
    context.state[f"{_STATE}-dtypes"] = flwr.app.ConfigRecord(kinds)
    context.state[f"{_STATE}-structure"] = flwr.app.ConfigRecord({"json": json.dumps(structure)})


def _restore(client: Client, context: Any) -> None:
    """Load the state that an earlier round left."""
    if _STATE in context.state:
        structure = parse_json(str(context.state[f"{_STATE}-structure"]["json"]))
        client.load_state_dict(unpack(structure, _arrays(context.state, _STATE)))
