"""Federated digits: the server's student against clients on their own, for docs/distributed.md.

python -m benches.quality.federated     # two minutes

The digits of scikit-learn, 5 seeds. A quarter is for testing; a quarter is public, without
labels; the rest is divided among 8 clients, each class by shares of a Dirichlet distribution: the
smaller its parameter, the fewer classes has a client. Clients have networks of different widths
and depths, except for FedAvg, whose networks are the student's. All clients train for the same
number of epochs on their own rows.
"""

import argparse
import itertools

import numpy as np
from sklearn.model_selection import train_test_split

import compressrs as cr
from benches.quality.report import interval
from compressrs.demo import Data
from compressrs.distributed import federated

CLIENTS, ROUNDS, EPOCHS = 8, 20, 2
SKEWS = (0.1, 0.3, 1.0)
STUDENT = (64,)
HIDDEN = [(16,), (32,), (64,), (128,), (24, 24), (32, 16), (64, 32), (48, 48)]
ROWS = [
    "best client alone",
    "mean client alone",
    "best client, FedMD",
    "mean client, FedMD",
    "student, FedDF",
    "student, FedAvg",
    "student, rows of all clients in one place",
]


def dirichlet_split(y, clients, skew, rng):
    """Return the rows of each client, at least one."""
    while True:
        parts = [[] for _ in range(clients)]
        for label in np.unique(y):
            rows = rng.permutation(np.flatnonzero(y == label))
            ends = (np.cumsum(rng.dirichlet(np.full(clients, skew))) * len(rows)).round()
            for part, own in zip(parts, np.split(rows, ends[:-1].astype(int))):
                part.append(own)
        joined = [np.sort(np.concatenate(part)) for part in parts]
        if all(map(len, joined)):
            return joined


def network(hidden, seed):
    layers = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise((64, *hidden, 10))):
        layers += [cr.nn.Linear(inputs, outputs, rng=1000 * seed + i), cr.nn.ReLU()]
    return cr.nn.Sequential(*layers[:-1])


def adam(model):
    return cr.optim.Adam(model.params, lr=3e-3)


def run(skew, seed):
    """Return the accuracies of one seed, in the order of `ROWS`."""
    data = Data.digits(seed)
    rows, public = train_test_split(
        np.arange(len(data.x)), test_size=1 / 3, random_state=seed, stratify=data.y
    )
    public, x, y = data.x[public], data.x[rows], data.y[rows]
    parts = dirichlet_split(y, CLIENTS, skew, np.random.default_rng([seed, int(100 * skew)]))

    def client(i, hidden, epochs, start):
        model = network(hidden, start)
        own = parts[i]
        return federated.Client(
            model, adam(model), x[own], y[own], public, epochs=epochs, digest_epochs=2, rng=i
        )

    def clients(epochs, same=False):
        return [
            client(i, STUDENT if same else HIDDEN[i], epochs, seed if same else 10 * seed + i)
            for i in range(CLIENTS)
        ]

    alone = clients(ROUNDS * EPOCHS)
    for one in alone:
        one.answer("logits", {})
    of_alone = [data.accuracy(one.model) for one in alone]

    model = network(STUDENT, seed)
    own = clients(EPOCHS)
    server = federated.FedDF(model, adam(model), public, epochs=EPOCHS, rng=seed)
    federated.simulate(server, own, ROUNDS)
    # What the clients are sent does not depend on the student: these are those of FedMD.
    of_fedmd = [data.accuracy(one.model) for one in own]
    of_feddf = data.accuracy(model)

    average = network(STUDENT, seed)
    federated.simulate(federated.FedAvg(average), clients(EPOCHS, same=True), ROUNDS)

    whole = network(STUDENT, seed)
    federated.Client(whole, adam(whole), x, y, epochs=ROUNDS * EPOCHS, rng=seed).answer(
        "weights", whole.state_dict()
    )
    return [
        max(of_alone),
        np.mean(of_alone),
        max(of_fedmd),
        np.mean(of_fedmd),
        of_feddf,
        data.accuracy(average),
        data.accuracy(whole),
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="default: %(default)s")
    seeds = parser.parse_args().seeds
    if seeds < 2:
        parser.error("an interval needs at least 2 seeds")
    cells = {}
    for skew in SKEWS:
        results = 100 * np.array([run(skew, seed) for seed in range(seeds)])
        for name, values in zip(ROWS, results.T):
            cells[name, skew] = f"{values.mean():.1f} ± {interval(values):.1f}"
        gain = results[:, ROWS.index("student, FedDF")] - results[:, 0]
        cells["gain of FedDF over the best client alone", skew] = (
            f"{gain.mean():+.1f} ± {interval(gain):.1f}"
        )
    print("| Accuracy, % | " + " | ".join(f"Dirichlet({skew:g})" for skew in SKEWS) + " |")
    print("|---|" + "---:|" * len(SKEWS))
    for name in dict.fromkeys(name for name, _ in cells):
        print(f"| {name} | " + " | ".join(cells[name, skew] for skew in SKEWS) + " |")


if __name__ == "__main__":
    main()
