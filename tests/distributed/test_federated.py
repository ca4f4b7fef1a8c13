"""Rounds of federated learning, without Flower."""

import copy
import pickle
import sys

import numpy as np
import pytest

import compressrs as cr
from compressrs.distributed import federated
from compressrs.distributed.federated import Client, FedAvg, FedDF, FedMD, Reply, simulate
from compressrs.distributed.federated.client import logits_of
from tests.reference import distributed as reference

from . import federation
from .federation import PUBLIC, ROWS, X, Y, accuracy, client, server
from .runs import same

KINDS = [FedMD, FedDF, FedAvg]


def clients(kind, **options):
    return [client(i, same=kind is FedAvg, **options) for i in range(3)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (33, 5)])
def test_means_are_those_of_the_formula(dtype, shape):
    from compressrs.distributed.federated.strategies import weighted_mean

    rng = np.random.default_rng(1)
    arrays = [np.asarray(rng.standard_normal(shape), dtype) for _ in range(5)]
    weights = [3.0, 1.0, 100.0, 2.0, 7.0]
    mean = weighted_mean(arrays, weights)
    assert mean.dtype == dtype
    np.testing.assert_allclose(
        mean, reference.weighted_mean(arrays, weights).astype(dtype), rtol=8 * np.finfo(dtype).eps
    )
    # A mean of equal arrays is that array; of float64, which is summed as such, almost.
    if dtype != np.float64:
        assert same(weighted_mean([arrays[0]] * 5, weights), arrays[0])


def test_the_first_round_of_fedmd():
    own, twins = clients(FedMD), clients(FedMD)
    strategy = server(FedMD)
    simulate(strategy, own, 1)
    for twin in twins:
        twin._train()
    logits = [logits_of(twin.model, PUBLIC) for twin in twins]
    assert same(strategy.logits, reference.weighted_mean(logits, [1, 1, 1]).astype(np.float32))
    assert strategy.round == 1
    assert [c.round for c in own] == [1, 1, 1]


def test_fedavg_is_the_mean_by_rows():
    own, twins = clients(FedAvg), clients(FedAvg)
    strategy = server(FedAvg)
    simulate(strategy, own, 1)
    for twin in twins:
        twin._train()
    for name, array in strategy.model.state_dict().items():
        arrays = [twin.model.state_dict()[name] for twin in twins]
        expected = reference.weighted_mean(arrays, [len(rows) for rows in ROWS])
        np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-8)


def test_fedavg_with_one_client_and_no_epochs_changes_nothing():
    strategy = server(FedAvg)
    before = copy.deepcopy(strategy.model.state_dict())
    simulate(strategy, [client(0, same=True, epochs=0)], 2)
    assert same(dict(strategy.model.state_dict()), dict(before))


@pytest.mark.parametrize("kind", KINDS)
def test_clients_learn_of_classes_that_they_do_not_have(kind):
    alone = [client(i, same=kind is FedAvg, epochs=30) for i in range(3)]
    for one in alone:
        one._train()
    together = clients(kind)
    strategy = server(kind)
    simulate(strategy, together, 15)
    best = max(accuracy(one.model) for one in alone)
    if kind is FedMD:
        assert min(accuracy(one.model) for one in together) > best
        assert (
            strategy.logits.argmax(axis=1) == together[0].model(PUBLIC).argmax(axis=1)
        ).mean() > 0.8
    else:
        assert accuracy(strategy.model) > best


@pytest.mark.parametrize("kind", KINDS)
def test_runs_are_continued_to_the_same_bits(kind, tmp_path):
    whole, all_of = server(kind), clients(kind)
    simulate(whole, all_of, 4)
    first, half = server(kind), clients(kind)
    simulate(first, half, 2)
    run = cr.TrainState(server=first, **{f"client{i}": c for i, c in enumerate(half)})
    run.save(tmp_path / "run.safetensors")
    second, others = server(kind), clients(kind)
    run = cr.TrainState(server=second, **{f"client{i}": c for i, c in enumerate(others)})
    run.load(tmp_path / "run.safetensors")
    copies = pickle.loads(pickle.dumps((first, half))), copy.deepcopy((second, others))
    for strategy, own in [(second, others), *copies]:
        simulate(strategy, own, 2)
        assert same(strategy.state_dict(), whole.state_dict())
        assert same([c.state_dict() for c in own], [c.state_dict() for c in all_of])


def with_counts(rng):
    return cr.nn.Sequential(
        cr.nn.Linear(6, 5, rng=rng),
        cr.nn.BatchNorm(5),
        cr.nn.Dropout(0.5, rng=rng),
        cr.nn.Linear(5, 3, rng=rng),
    )


def test_counts_and_seeds_are_not_averaged():
    own = []
    for i in range(2):
        model = with_counts(i)
        opt = cr.optim.SGD(model.params, lr=0.1)
        own.append(Client(model, opt, X[ROWS[i]], Y[ROWS[i]], batch_size=8))
    strategy = FedAvg(with_counts(7))
    counts = {n: x.copy() for n, x in strategy.model.state_dict().items() if x.dtype.kind == "i"}
    assert len(counts) == 3
    simulate(strategy, own, 2)
    mine = strategy.model.state_dict()
    assert all(same(mine[name], x) for name, x in counts.items())
    assert mine["1.running_mean"].any()
    for i, one in enumerate(own):
        state = one.model.state_dict()
        # Another mask in each batch of both rounds.
        assert state["2.calls"] == state["1.num_batches_tracked"] == 2 * -(-len(ROWS[i]) // 8)
        assert state["2.seed"] == with_counts(i).state_dict()["2.seed"]
    # Strategies of others send all that a model has.
    own[0].answer("weights", mine)
    # Arrays of integers, such as codes of quantized weights, have no mean.
    model = with_counts(0)
    model[0].buffers["codes"] = np.zeros(3, np.int8)
    with pytest.raises(TypeError, match=r"int8 for '0\.codes'"):
        FedAvg(model)


def test_optimizers_of_another_model():
    model, other = federation.network(4, 0), federation.network(4, 1)
    opt = cr.optim.Adam(other.params)
    for make in (
        lambda: Client(model, opt, X, Y),
        lambda: FedDF(model, opt, PUBLIC),
        lambda: Client(model, cr.distributed.ShardedOptimizer(cr.optim.Adam, other.params), X, Y),
    ):
        with pytest.raises(ValueError, match="optimizer must have parameters of the model"):
            make()


def test_arguments():
    model = federation.network(4, 0)
    opt = cr.optim.Adam(model.params)
    with pytest.raises(ValueError, match="x must have at least one row, got none"):
        Client(model, opt, X[:0], Y[:0])
    with pytest.raises(ValueError, match="y must have the shape"):
        Client(model, opt, X, Y[:3])
    with pytest.raises(TypeError, match="y must hold integers"):
        Client(model, opt, X, Y.astype(float))
    with pytest.raises(TypeError, match="model must have forward"):
        Client(abs, opt, X, Y)
    with pytest.raises(TypeError, match="optimizer must be an Optimizer"):
        Client(model, "adam", X, Y)
    with pytest.raises(ValueError, match="public must have at least one row"):
        Client(model, opt, X, Y, PUBLIC[:0])
    with pytest.raises(ValueError, match="temperature"):
        Client(model, opt, X, Y, temperature=0)
    with pytest.raises(ValueError, match="action"):
        client(0).answer("gradients", {})
    with pytest.raises(TypeError, match="arrays"):
        client(0).answer("logits", [])
    with pytest.raises(ValueError, match="public must be given"):
        client(0, public=None).answer("logits", {})
    with pytest.raises(ValueError, match="classes"):
        FedMD(PUBLIC, 0)
    with pytest.raises(ValueError, match="public"):
        FedMD(PUBLIC[:0], 3)
    with pytest.raises(TypeError, match="public"):
        FedMD(np.array(["a", None], object), 3)
    with pytest.raises(TypeError, match="model"):
        FedAvg(3)
    with pytest.raises(TypeError, match="strategy"):
        simulate(model, [client(0)], 1)
    with pytest.raises(ValueError, match="clients"):
        simulate(server(FedMD), [], 1)
    with pytest.raises(TypeError, match=r"clients\[0\]"):
        simulate(server(FedMD), [model], 1)
    with pytest.raises(ValueError, match="min_clients"):
        simulate(server(FedMD), [client(0)], 1, min_clients=0)
    with pytest.raises(TypeError, match="after_round"):
        simulate(server(FedMD), [client(0)], 1, after_round=1)
    with pytest.raises(ValueError, match="logits must be float32 of the shape"):
        server(FedMD).load_state_dict({"round": 1, "logits": np.ones((3, 3))})


@pytest.mark.parametrize(
    "call", [lambda: federated.client_app(client), lambda: federated.server_app(server(FedMD), 1)]
)
def test_what_needs_flower_says_so(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'compressrs\[flower\]'"):
        call()


def test_replies_have_copies():
    one = client(0, same=True)
    reply = one.answer("weights", one.model.state_dict())
    assert isinstance(reply, Reply)
    assert reply.rows == len(ROWS[0])
    for name, array in one.model.state_dict().items():
        assert same(reply.arrays[name], array)
        assert not np.shares_memory(reply.arrays[name], array)


def test_evaluation_leaves_the_mode_of_each_layer():
    model = cr.nn.Sequential(cr.nn.Linear(6, 4, rng=0), cr.nn.BatchNorm(4))
    model[1].training = False
    logits_of(model, PUBLIC)
    assert [model.training, model[0].training, model[1].training] == [True, True, False]
