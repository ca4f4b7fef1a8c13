"""Clients and servers of federated learning that fail, or reply with what cannot be used."""

import copy
import warnings

import numpy as np
import pytest

import compressrs as cr
from compressrs.distributed.federated import Client, FedAvg, FedDF, FedMD, Reply, simulate

from .federation import PUBLIC, client, server
from .runs import same

KINDS = [FedMD, FedDF, FedAvg]


def clients(kind, **options):
    return [client(i, same=kind is FedAvg, **options) for i in range(3)]


class Broken(Client):
    """A client whose replies are changed."""

    def answer(self, action, arrays):
        return self.change(super().answer(action, arrays))


def broken(change, number=1, same=False, **options):
    made = client(number, same=same, **options)
    made.__class__ = Broken
    made.change = change
    return made


def with_logits(array):
    return lambda reply: reply._replace(arrays={"logits": array})


def nan(reply):
    name = next(iter(reply.arrays))
    reply.arrays[name].flat[-1] = np.nan
    return reply


BAD_LOGITS = {
    "classes": (with_logits(np.ones((70, 4), np.float32)), r"client 1 .*\(70, 3\).*\(70, 4\)"),
    "rows": (with_logits(np.ones((69, 3), np.float32)), r"client 1 .*\(70, 3\).*\(69, 3\)"),
    "nan": (nan, "client 1 .*finite"),
    "beyond float32": (with_logits(np.full((70, 3), 1e300)), "client 1 .*finite in float32"),
    "integers": (with_logits(np.ones((70, 3), int)), "client 1 .*finite"),
    "nothing": (lambda reply: reply._replace(arrays={}), "client 1 .*logits, got nothing"),
    "public": (lambda reply: reply._replace(public="x"), "client 1 .*public rows"),
}


@pytest.mark.parametrize("kind", [FedMD, FedDF])
@pytest.mark.parametrize("fault", BAD_LOGITS)
def test_logits_that_cannot_be_used(kind, fault):
    change, message = BAD_LOGITS[fault]
    strategy = server(kind)
    before = copy.deepcopy(strategy.state_dict())
    own = [client(0), broken(change), client(2)]
    with pytest.raises(ValueError, match=message):
        simulate(strategy, own, 1)
    assert same(strategy.state_dict(), before)
    # Or without that client.
    expected = server(kind)
    simulate(expected, [client(0), client(2)], 1)
    with pytest.warns(UserWarning, match="round 0 goes on without client 1"):
        simulate(strategy, [client(0), broken(change), client(2)], 1, min_clients=2)
    assert same(strategy.state_dict(), expected.state_dict())
    with pytest.raises(
        RuntimeError, match=r"round 1 needs 3 clients, got 1 of 3 without .*client 1"
    ):
        simulate(strategy, own, 1, min_clients=3)
    with pytest.raises(ValueError, match=r"min_clients must be at most .* 3, got 4"):
        simulate(strategy, own, 1, min_clients=4)


BAD_WEIGHTS = {
    "shape": (lambda r: r._replace(arrays={k: a[:1] for k, a in r.arrays.items()}), "shape"),
    "dtype": (
        lambda r: r._replace(arrays={k: a.astype(float) for k, a in r.arrays.items()}),
        "float64",
    ),
    "names": (lambda r: r._replace(arrays={"w": np.ones(3)}), "got w"),
    "nan": (nan, "finite"),
    "rows": (lambda r: r._replace(rows=0), "at least one row, got 0"),
    "lists": (
        lambda r: r._replace(arrays={k: a.tolist() for k, a in r.arrays.items()}),
        "float64",
    ),
}


@pytest.mark.parametrize("fault", BAD_WEIGHTS)
def test_weights_that_cannot_be_used(fault):
    change, message = BAD_WEIGHTS[fault]
    strategy = server(FedAvg)
    before = copy.deepcopy(strategy.state_dict())
    with pytest.raises(ValueError, match=f"client 1 .*{message}"):
        simulate(strategy, [client(0, True), broken(change, same=True)], 1)
    assert same(strategy.state_dict(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r._replace(
                arrays={k: np.ma.masked_all(a.shape, a.dtype) for k, a in r.arrays.items()}
            ),
            "of client 1 must be an array without a mask",
        ),
        (lambda r: r._replace(rows="7"), "rows of client 1 must be an integer"),
        (lambda r: r._replace(arrays=list(r.arrays)), "client 1 must have a dict of arrays"),
        (lambda r: r.arrays, "the reply of client 1 must be a Reply, got dict"),
    ],
)
def test_replies_of_other_types(change, message):
    strategy = server(FedAvg)
    before = copy.deepcopy(strategy.state_dict())
    with pytest.raises(TypeError, match=message):
        simulate(strategy, [client(0, True), broken(change, same=True)], 1)
    assert same(strategy.state_dict(), before)


class Failing(Client):
    """A client that fails after it has trained, as long as it is told to."""

    failing = True

    def answer(self, action, arrays):
        reply = super().answer(action, arrays)
        if self.failing:
            raise KeyError("a bug")
        return reply


class Counting:
    """A client of a user's, without a state."""

    def __init__(self, inner):
        self.inner, self.asked = inner, 0

    def answer(self, action, arrays):
        self.asked += 1
        return self.inner.answer(action, arrays)


def failing(number, **options):
    made = client(number, **options)
    made.__class__ = Failing
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_that_fails_is_repeated_to_the_same_bits(kind):
    whole, all_of = server(kind), clients(kind)
    simulate(whole, all_of, 2)
    equal = kind is FedAvg
    strategy, own = server(kind), [client(0, equal), failing(1, same=equal), client(2, equal)]
    own[1].failing = False
    simulate(strategy, own, 1)
    own[1].failing = True
    before = copy.deepcopy([part.state_dict() for part in (strategy, *own)])
    for least in (None, 3):
        with pytest.raises(RuntimeError, match="client 1 failed: KeyError"):
            simulate(strategy, own, 1, min_clients=least)
        assert same([part.state_dict() for part in (strategy, *own)], before)
    own[1].failing = False
    simulate(strategy, own, 1)
    assert same(strategy.state_dict(), whole.state_dict())
    assert same([c.state_dict() for c in own], [c.state_dict() for c in all_of])


@pytest.mark.parametrize("stage", ["mean", "interrupt"])
def test_clients_are_restored_when_the_server_fails(stage, monkeypatch):
    strategy, own = server(FedMD), clients(FedMD)
    before = copy.deepcopy([part.state_dict() for part in (strategy, *own)])
    error = KeyboardInterrupt if stage == "interrupt" else MemoryError

    def fail(replies):
        strategy.round += 1
        raise error

    monkeypatch.setattr(strategy, "receive", fail)
    with pytest.raises(error):
        simulate(strategy, own, 1)
    assert same([part.state_dict() for part in (strategy, *own)], before)


def test_those_who_answered_go_on_without_the_one_that_failed():
    strategy, own = server(FedMD), [client(0), failing(1), client(2)]
    before = copy.deepcopy(own[1].state_dict())
    with pytest.warns(UserWarning, match="without client 1: client 1 failed: KeyError"):
        simulate(strategy, own, 1, min_clients=2)
    assert [c.round for c in own] == [1, 0, 1]
    assert same(own[1].state_dict(), before)


@pytest.mark.parametrize(("least", "asked"), [(None, 0), (4, 0), (3, 1), (2, 2)])
def test_nobody_is_asked_in_a_round_that_cannot_succeed(least, asked):
    rest = [Counting(client(2)), Counting(client(0))]
    own = [failing(0), rest[0], failing(1), rest[1]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if least == 2:
            simulate(server(FedMD), own, 1, min_clients=least)
        else:
            with pytest.raises(RuntimeError, match=r"client [02] failed"):
                simulate(server(FedMD), own, 1, min_clients=least)
    assert sum(one.asked for one in rest) == asked


def blown_up(one):
    """Have the next training end with weights that are not finite."""
    train = one._train

    def train_and_overflow():
        train()
        one.model[0].weight[...] = np.inf

    one._train = train_and_overflow
    return one


@pytest.mark.parametrize("action", ["logits", "weights"])
def test_a_client_does_not_reply_with_what_is_not_finite(action):
    one = client(0, same=True)
    request = {} if action == "logits" else one.model.state_dict()
    one.answer(action, request)
    before = copy.deepcopy(one.state_dict())
    blown_up(one)
    with (
        np.errstate(all="ignore"),
        pytest.raises(FloatingPointError, match="must be finite after training"),
    ):
        one.answer(action, request)
    assert same(one.state_dict(), before)


def test_a_mean_beyond_the_range_of_float64():
    model = cr.nn.Linear(2, 2, rng=0)
    model = cr.nn.Linear.from_arrays(model.weight.astype(np.float64), model.bias.astype(np.float64))
    strategy = FedAvg(model)
    before = copy.deepcopy(strategy.state_dict())
    large = {name: np.full_like(x, 1e308) for name, x in model.state_dict().items()}
    replies = [Reply(i, large, 100) for i in range(3)]
    for reply in replies:
        strategy.check(reply)
    with pytest.raises(FloatingPointError, match="the mean of weight must be finite"):
        strategy.receive(replies)
    assert same(strategy.state_dict(), before)


@pytest.mark.parametrize("who", ["client", "server", "both"])
@pytest.mark.parametrize("kind", [FedMD, FedDF])
def test_public_rows_that_are_written_to(kind, who):
    rows = PUBLIC.copy()
    strategy, own = server(kind), [client(0), client(1, public=rows)]
    if who != "client":
        strategy.public = rows if who == "both" else rows.copy()
    simulate(strategy, own, 1)
    before = copy.deepcopy([part.state_dict() for part in (strategy, *own)])
    (strategy if who == "server" else own[1]).public[0, 0] += 1
    match = "public must be the rows" if who == "server" else "client 1 must have the public rows"
    with pytest.raises(ValueError, match=match):
        simulate(strategy, own, 1)
    assert same([part.state_dict() for part in (strategy, *own)], before)


def test_clients_with_public_rows_in_another_order():
    with pytest.raises(ValueError, match="client 2 must have the public rows of the server"):
        simulate(server(FedMD), [client(0), client(1), client(2, public=PUBLIC[::-1])], 1)


def test_a_client_of_another_architecture_cannot_average_weights():
    own = [client(0, same=True), client(1)]
    before = copy.deepcopy(own[1].state_dict())
    with pytest.raises(RuntimeError, match=r"client 1 failed: ValueError: .*shape") as caught:
        simulate(server(FedAvg), own, 1)
    assert isinstance(caught.value.__cause__, ValueError)
    assert same(own[1].state_dict(), before)


@pytest.mark.parametrize("action", ["logits", "weights"])
def test_a_client_that_fails_is_unchanged(action, monkeypatch):
    one = client(0, same=True)
    request = {"logits": np.ones((70, 3), np.float32)} if action == "logits" else {}
    if action == "weights":
        request = {k: a + 1 for k, a in one.model.state_dict().items()}
    one.answer(action, request)
    before = copy.deepcopy(one.state_dict())

    def fail():
        raise KeyError("a bug")

    monkeypatch.setattr(one, "_train", fail)
    with pytest.raises(KeyError):
        one.answer(action, request)
    assert same(one.state_dict(), before)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.ones((69, 3)), "70 rows"),
        (np.ones(70), "70 rows"),
        (np.full((70, 3), np.inf), "finite"),
        (np.ones((70, 4)), "logits|teacher|shape"),
    ],
)
def test_means_that_a_client_cannot_learn_from(logits, message):
    one = client(0)
    before = copy.deepcopy(one.state_dict())
    with pytest.raises(ValueError, match=message):
        one.answer("logits", {"logits": logits})
    assert same(one.state_dict(), before)


@pytest.mark.parametrize("dtype", [np.int64, str, object])
def test_means_of_other_types(dtype):
    one = client(0)
    before = copy.deepcopy(one.state_dict())
    with pytest.raises(TypeError, match="logits must be of a floating-point dtype"):
        one.answer("logits", {"logits": np.ones((70, 3)).astype(dtype)})
    assert same(one.state_dict(), before)


def test_a_server_that_fails_is_unchanged(monkeypatch):
    strategy = server(FedDF)
    simulate(strategy, clients(FedDF), 1)
    before = copy.deepcopy(strategy.state_dict())
    backward = strategy.model.backward
    calls = iter(range(12))
    monkeypatch.setattr(
        strategy.model, "backward", lambda dy: (next(calls), backward(dy))[1], raising=False
    )
    with pytest.raises((StopIteration, RuntimeError)):
        simulate(strategy, clients(FedDF), 1)
    assert same(strategy.state_dict(), before)
