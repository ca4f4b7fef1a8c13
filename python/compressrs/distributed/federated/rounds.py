"""Rounds of a strategy and clients, in one process or wherever the clients are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from compressrs._arrays import Array
from compressrs._checks import count, function, sequence, whole
from compressrs._state import Stateful, Undo, all_or_nothing
from compressrs._warnings import warn
from compressrs.distributed.federated.client import Client
from compressrs.distributed.federated.exchange import Reply, Strategy, checked_reply


def finish_round(
    strategy: Strategy,
    answers: Iterable[tuple[int, Reply | Exception]],
    clients: int,
    min_clients: int | None,
) -> None:
    """Check what clients answered, and hand it to the strategy.

    No further answer is taken once the round cannot succeed.

    Parameters
    ----------
    strategy : Strategy
    answers : iterable of (client, reply or error)
        In the order of clients: sums must not depend on who answers first.
    clients : int
        How many there are.
    min_clients : int or None
        How many clients are enough; None requires all.

    Raises
    ------
    Exception
        That of a client, if all are required.
    RuntimeError
        If too few clients give replies that can be used.
    """
    good: list[Reply] = []
    need, failed = max(1, min_clients or 1), 0
    for client, answer in answers:
        try:
            if isinstance(answer, Exception):
                raise answer
            strategy.check(answer)
        except Exception as error:
            if min_clients is None:
                raise
            failed += 1
            if clients - failed < need:
                raise RuntimeError(
                    f"round {strategy.round} needs {need} clients, got {failed} of {clients} "
                    f"without a reply that can be used, the last one client {client}: {error}"
                ) from error
            warn(f"round {strategy.round} goes on without client {client}: {error}", UserWarning)
            continue
        good.append(answer)
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
        If an argument is invalid, or a client's reply; the message names the client.
    RuntimeError
        If a client fails, whose own exception is the cause, or so many that fewer than
        `min_clients` are left; the message names the client. No other client is asked then.
    FloatingPointError
        If the strategy's result is not finite.

    Notes
    -----
    A round that raises, or is interrupted, leaves strategy and clients as they were before it, so
    that it can be run again with the same result. Clients and strategies of your own are restored
    if they have `state_dict` and `load_state_dict`; all clients' states are copied meanwhile.

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
    rounds = count(rounds, "rounds")
    min_clients = checked_least(min_clients)
    if min_clients is not None and min_clients > len(clients):
        raise ValueError(
            f"min_clients must be at most the number of clients, {len(clients)}, got {min_clients}"
        )
    if after_round is not None:
        function(after_round, "after_round")
    for _ in range(rounds):
        with all_or_nothing() as undo:
            _remember(strategy, undo)
            request = strategy.request()
            answers = (
                (i, _answer(i, client, strategy, request, undo)) for i, client in enumerate(clients)
            )
            finish_round(strategy, answers, len(clients), min_clients)
        if after_round is not None:
            after_round(strategy)


def _answer(
    number: int, client: Client, strategy: Strategy, request: Mapping[str, Array], undo: Undo
) -> Reply | Exception:
    restore = _remember(client, undo)
    try:
        reply = client.answer(strategy.action, request)
    except Exception as error:
        restore()  # a `Client` has done so itself
        failure = RuntimeError(f"client {number} failed: {type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure
    try:
        return checked_reply(reply, f"the reply of client {number}")._replace(client=number)
    except TypeError as error:
        return error


def _remember(part: Any, undo: Undo) -> Callable[[], None]:
    """Note the state of a client or a strategy, if it has one; return what restores it."""
    if getattr(type(part), "state_dict", None) in (None, Stateful.state_dict) or not hasattr(
        part, "load_state_dict"
    ):
        return lambda: None
    return undo.remember_state(part)


def checked_least(min_clients: Any) -> int | None:
    """Return `min_clients` after checking it."""
    return None if min_clients is None else whole(min_clients, "min_clients", 1)
