"""State dicts of every kind of object, with entries replaced, removed, swapped and shared."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from attacks.programs._tools import attack, report

HOSTILE: list[Any] = [
    None,
    float("nan"),
    -1,
    2**70,
    "x",
    b"",
    [],
    {},
    [[]],
    object(),
    np.zeros(0),
    np.zeros((7, 7), complex),
    np.array([None]),
    np.ma.masked_array(np.zeros(3), True),
]


def replaced(tree: Any, rng: np.random.Generator, others: list[Any]) -> Any:
    """Return a copy of a tree in which one thing at any depth is another."""
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        key = list(tree)[int(rng.integers(len(tree)))]
        if rng.random() < 0.1:
            return {k: v for k, v in tree.items() if k != key}
        return {**tree, key: replaced(tree[key], rng, others)}
    if isinstance(tree, list) and tree and rng.random() < 0.9:
        i = int(rng.integers(len(tree)))
        return [*tree[:i], replaced(tree[i], rng, others), *tree[i + 1 :]]
    return others[int(rng.integers(len(others)))]


def main() -> None:
    """Load hostile states; whatever is refused must have changed nothing."""
    import compressrs as cr

    rng = np.random.default_rng(0)
    model = cr.nn.Sequential(cr.nn.Linear(6, 5, rng=0), cr.nn.ReLU(), cr.nn.Linear(5, 3, rng=1))
    opt = cr.optim.Adam(model.params)
    run = cr.TrainState(
        model=model,
        optimizer=opt,
        ema=cr.optim.EMA(model.params),
        pruner=cr.prune.MagnitudePruner(model[0].weight, cr.prune.OneShot(0.5), optimizer=opt),
        scheduler=cr.optim.lr_scheduler.StepLR(opt, 2),
        rng=np.random.default_rng(1),
    )
    good = copy.deepcopy(run.state_dict())
    others = [*HOSTILE, good, good["parts"], good["parts"]["optimizer"]["state"]]

    def load() -> None:
        bad = replaced(good, rng, others)
        before = repr(run.state_dict())
        try:
            run.load_state_dict(bad)
        except ValueError:
            assert repr(run.state_dict()) == before
            raise
        finally:
            run.load_state_dict(good)

    report(attack(load, least=5), refused=True)
    assert repr(run.state_dict()) == repr(good)


if __name__ == "__main__":
    main()
