"""Clients with models of different architectures and rows of different classes."""

import numpy as np

import compressrs as cr
from compressrs.distributed.federated import Client, FedAvg, FedDF, FedMD

CLASSES = 3
RNG = np.random.default_rng(0)
X = RNG.standard_normal((150, 6)).astype(np.float32)
Y = (X @ RNG.standard_normal((6, CLASSES))).argmax(axis=1)
PUBLIC = RNG.standard_normal((70, 6)).astype(np.float32)
#: Of two of three classes each, and of different numbers.
ROWS = [np.flatnonzero(Y != 0)[:40], np.flatnonzero(Y != 1)[:30], np.flatnonzero(Y != 2)]


def network(hidden, rng):
    return cr.nn.Sequential(
        cr.nn.Linear(6, hidden, rng=rng), cr.nn.ReLU(), cr.nn.Linear(hidden, CLASSES, rng=rng + 1)
    )


def client(number, same=False, public=PUBLIC, rule=cr.optim.Adam, **options):
    model = network(8 if same else 4 + number, 0 if same else number)
    rows = ROWS[number]
    options = {"epochs": 2, "batch_size": 8, **options}
    return Client(model, rule(model.params, lr=0.02), X[rows], Y[rows], public, **options)


def server(kind):
    model = network(10, 50)
    if kind is FedMD:
        return FedMD(PUBLIC, CLASSES)
    if kind is FedAvg:
        return FedAvg(network(8, 0))
    return FedDF(model, cr.optim.Adam(model.params, lr=0.02), PUBLIC, epochs=3, batch_size=8)


def accuracy(model):
    return float(np.mean(model(X).argmax(axis=1) == Y))
