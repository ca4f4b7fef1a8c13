"""Rounds of a strategy and clients, in one process or wherever the clients are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from compressrs._arrays import Array
from compressrs._checks import function, sequence, whole
from compressrs._warnings import warn
from compressrs.distributed.federated.client import Client
from compressrs.distributed.federated.exchange import Reply, Strategy


def finish_round(
    strategy: Strategy, answers: Iterable[tuple[int, Reply | Exception]], min_clients: int | None
) -> None:
    """Check what clients answered, and hand it to the strategy, in the order of clients.

    Parameters
    ----------
    strategy : Strategy
    answers : iterable of (client, reply or error)
    min_clients : int or None
        How many clients are enough; None requires all.

    Raises
    ------
    Exception
        That of a client, if all are required.
    RuntimeError
        If too few clients gave replies that can be used.
    """
    good: list[Reply] = []
    last: Exception | None = None
    # Sums do not depend on who answers first.
    for client, answer in sorted(answers, key=lambda pair: pair[0]):
        try:
            if isinstance(answer, Exception):
                raise answer
            strategy.check(answer)
        except Exception as error:
            if min_clients is None:
                raise
            warn(f"round {strategy.round} goes on without client {client}: {error}", UserWarning)
            last = error
            continue
        good.append(answer)
    need = max(1, min_clients or 1)
    if len(good) < need:
        raise RuntimeError(
            f"round {strategy.round} needs {need} clients, got {len(good)} replies that can be used"
        ) from last
    strategy.receive(good)


def simulate(
    strategy: Strategy,
    clients: Sequence[Client],
    rounds: int,
    *,
    min_clients: int | None = None,
    after_round: Callable[[Strategy], object] | None = None,
) -> None:
    """Run rounds with clients in this process, one after the other.

    The results are the same, to the bit, as those of `server_app` and `client_app` with these
    clients on other machines.

    Parameters
    ----------
    strategy : FedMD, FedDF or FedAvg
    clients : sequence of Client
    rounds : int
    min_clients : int, optional
        Go on with the clients that answered as they should, if there are so many, and warn of the
        others. By default all must.
    after_round : callable, optional
        Called after each round, with the strategy.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or a client's reply; the message names the client. The strategy
        is unchanged then.
    RuntimeError
        If fewer than `min_clients` gave replies that can be used.

    Warns
    -----
    UserWarning
        Of a client without which a round goes on.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> federated = cr.distributed.federated
    >>> rng = np.random.default_rng(0)
    >>> public, x = rng.standard_normal((2, 60, 4)).astype(np.float32)
    >>> y = (x[:, 0] > 0).astype(int)
    >>> def client(i):
    ...     model = cr.nn.Linear(4, 2, rng=i)
    ...     rows = slice(20 * i, 20 * i + 20)
    ...     opt = cr.optim.Adam(model.params, lr=0.1)
    ...     return federated.Client(model, opt, x[rows], y[rows], public)
    >>> student = cr.nn.Linear(4, 2, rng=9)
    >>> server = federated.FedDF(student, cr.optim.Adam(student.params, lr=0.1), public)
    >>> federated.simulate(server, [client(i) for i in range(3)], rounds=5)
    >>> bool(np.mean(student(x).argmax(axis=1) == y) > 0.8)
    True
    """
    if not isinstance(strategy, Strategy):
        raise TypeError(f"strategy must be a Strategy, got {type(strategy).__name__}")
    clients = sequence(clients, "clients")
    if not clients:
        raise ValueError("clients must hold at least one client, got none")
    for i, client in enumerate(clients):
        if not hasattr(client, "answer"):
            raise TypeError(f"clients[{i}] must be a Client, got {type(client).__name__}")
    rounds = whole(rounds, "rounds", 0)
    min_clients = checked_least(min_clients)
    if min_clients is not None and min_clients > len(clients):
        raise ValueError(
            f"min_clients must be at most the number of clients, {len(clients)}, got {min_clients}"
        )
    if after_round is not None:
        function(after_round, "after_round")
    for _ in range(rounds):
        request = strategy.request()
        answers = [(i, _answer(i, client, strategy, request)) for i, client in enumerate(clients)]
        finish_round(strategy, answers, min_clients)
        if after_round is not None:
            after_round(strategy)


def _answer(
    number: int, client: Client, strategy: Strategy, request: Mapping[str, Array]
) -> Reply | Exception:
    try:
        return client.answer(strategy.action, request)._replace(client=number)
    except Exception as error:
        if hasattr(error, "add_note"):
            error.add_note(f"raised by client {number}")
        return error


def checked_least(min_clients: Any) -> int | None:
    """Return `min_clients` after checking it."""
    return None if min_clients is None else whole(min_clients, "min_clients", 1)
