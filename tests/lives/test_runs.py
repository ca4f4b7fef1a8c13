"""Lives of whole runs: training, pruning, rewiring, shrinking, files and copies, in any order.

One run is also saved, loaded, copied, forked and given what must be refused; its twin only
trains, in one thread. All bits of both remain equal.
"""

from __future__ import annotations

import copy
import functools
import os
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import compressrs as cr
from compressrs import nn, optim, prune
from tests.lives.common import (
    Life,
    both_profiles,
    digest,
    in_fork,
    pickled,
    refused,
    same,
    seeds,
    threads,
)

INPUTS, HIDDEN, OUTPUTS = 20, 24, 5
SCORES = {
    "magnitude": prune.Magnitude,
    "movement": prune.Movement,
    "taylor": prune.Taylor,
    "snip": prune.Snip,
    "random": lambda: prune.Random(0),
}
DYNAMIC = {
    "set": functools.partial(prune.SET, frequency=2, rng=0),
    "rigl": functools.partial(prune.RigL, frequency=2, end=1000),
}
KINDS = [*SCORES, "neurons", "blocks", "alone", "groups", *DYNAMIC]
RULES = ["SGD", "Adam", "RMSprop", "Lion", "Adafactor"]


def make(kind: str, rule: str, hidden: int, state_dtype: str = "float32") -> cr.TrainState:
    """Return a new run; `kind` says how it is pruned."""
    rng = np.random.default_rng(5)
    first: Any = nn.Linear(INPUTS, hidden, rng=rng)
    if kind in DYNAMIC:
        mask = rng.random(first.weight.shape) < 0.4
        first = nn.SparseLinear.from_linear(first, mask=mask)
    model = nn.Sequential(first, nn.ReLU(), nn.Dropout(0.1, rng=1), nn.Linear(hidden, OUTPUTS))
    for value in model[3].params.values():
        value[...] = rng.standard_normal(value.shape)
    optimizer = getattr(optim, rule)(model.params, lr=0.02, state_dtype=state_dtype)
    parts: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": optim.lr_scheduler.StepLR(optimizer, 4, 0.7),
        "rng": np.random.default_rng(3),
    }
    if kind not in DYNAMIC:
        parts["ema"] = optim.EMA(model.params, 0.9, warmup=True)
    schedule = prune.CubicSchedule(final=0.7, begin=1, end=9)
    weights = [layer.weight for layer in (model[0], model[3]) if hasattr(layer, "weight")]
    if kind in DYNAMIC:
        parts["pruner"] = DYNAMIC[kind](model, optimizer)
    elif kind == "groups":
        parts["pruner"] = prune.GroupPruner(model, schedule, optimizer)
    elif kind == "alone":
        parts["pruner"] = prune.MagnitudePruner(weights, schedule)
    elif kind == "neurons":
        parts["pruner"] = prune.Pruner(
            weights[:1], schedule, optimizer=optimizer, granularity=prune.Neurons()
        )
    elif kind == "blocks":
        parts["pruner"] = prune.Pruner(
            weights[:1], schedule, optimizer=optimizer, granularity=prune.Blocks((1, 4))
        )
    else:
        scope = "layer" if kind in ("taylor", "random") else "global"
        parts["pruner"] = prune.Pruner(
            weights, schedule, SCORES[kind](), scope, optimizer, allow_empty=True
        )
    return cr.TrainState(**parts)


def train(run: cr.TrainState, steps: int = 1) -> None:
    p = run.parts
    model, pruner = p["model"], p["pruner"]
    for _ in range(steps):
        x = p["rng"].standard_normal((8, INPUTS)).astype(np.float32)
        model.backward(model(x) - 1)
        p["optimizer"].step(model.grads, max_grad_norm=5.0)
        p["scheduler"].step()
        if isinstance(pruner, prune.Pruner):
            grads = [model.grads[i]["weight"] for i in ("0", "3")]
            pruner.step(grads[: len(pruner.state_dict()["masks"])])
        else:
            pruner.step()
        if "ema" in p:
            p["ema"].update()
        run.step_count += 1


class Runs(Life):
    """Two runs, `lived` and `plain`."""

    lived: Any = None

    @initialize(
        kind=st.sampled_from(KINDS),
        rule=st.sampled_from(RULES),
        state_dtype=st.sampled_from(["float32", "bfloat16"]),
    )
    def start(self, kind: str, rule: str, state_dtype: str) -> None:
        if rule == "Adafactor":
            state_dtype = "float32"  # its state must not be rounded
        self.made = kind, rule
        self.hidden, self.state_dtype = HIDDEN, state_dtype
        self.lived, self.plain = self.fresh(), self.fresh()
        self.n = 2

    def fresh(self) -> cr.TrainState:
        return make(*self.made, self.hidden, self.state_dtype)

    def both(self, call: Any) -> None:
        call(self.lived)
        cr.set_num_threads(1)
        call(self.plain)
        cr.set_num_threads(self.n)

    def state(self) -> Any:
        return self.lived.state_dict()

    # Of both runs

    @rule(steps=st.integers(1, 3))
    def train(self, steps: int) -> None:
        self.both(lambda run: train(run, steps))

    @rule(state_dtype=st.sampled_from(["float32", "bfloat16"]))
    @precondition(lambda self: self.made[1] != "Adafactor")
    def convert(self, state_dtype: Any) -> None:
        self.state_dtype = state_dtype
        self.both(lambda run: run.parts["optimizer"].convert_state(state_dtype))

    @rule(seed=seeds)
    @precondition(lambda self: self.made[0] not in (*DYNAMIC, "groups") and self.hidden > 8)
    def shrink(self, seed: int) -> None:
        keep = np.random.default_rng(seed).random(self.hidden) < 0.9
        if self.made[0] == "blocks":
            keep[:] = True  # whose blocks are along the other axis
            keep[:4] = False
        keep[-1] = True
        self.both(
            lambda run: prune.shrink(
                run.parts["model"],
                {0: keep},
                run.parts["optimizer"],
                ema=run.parts["ema"],
                pruner=run.parts["pruner"],
            )
        )
        self.hidden = int(keep.sum())

    @rule()
    @precondition(lambda self: self.made[0] == "groups")
    def shrink_groups(self) -> None:
        self.both(lambda run: run.parts["pruner"].shrink(run.parts["ema"]))
        self.hidden = len(self.plain.parts["model"][0].weight)

    @rule(seed=seeds)
    @precondition(lambda self: self.made[0] not in DYNAMIC)
    def mask_a_bias(self, seed: int) -> None:
        mask = np.random.default_rng(seed).random(OUTPUTS) < 0.5

        def set_mask(run: cr.TrainState) -> None:
            old = run.parts["optimizer"].state_dict()["masks"]
            tree = copy.deepcopy(run.parts["model"].params)
            names = iter(range(100))
            for layer in tree.values():
                for name in layer:
                    layer[name] = old.get(next(names))
            tree["3"]["bias"] = mask
            run.parts["optimizer"].set_masks(tree)

        self.both(set_mask)

    @rule()
    def train_on_the_average(self) -> None:
        if "ema" in self.plain.parts:
            self.both(lambda run: run.parts["ema"].copy_to_params())

    # Of the one

    @rule(n=threads)
    def set_num_threads(self, n: int) -> None:
        self.n = n
        cr.set_num_threads(n)

    @rule(how=st.sampled_from([copy.deepcopy, pickled]))
    def copied(self, how: Any) -> None:
        self.lived = how(self.lived)

    @rule(before=st.integers(0, 4))
    def save_and_load(self, before: int) -> None:
        """Load into a new run, which may have trained already."""
        self.lived.save(self.path)
        fresh = self.fresh()
        train(fresh, before)
        fresh.load(self.path)
        self.lived = fresh

    @rule()
    def load_state_dict(self) -> None:
        fresh = self.fresh()
        fresh.load_state_dict(self.lived.state_dict())
        self.lived = fresh

    @rule(steps=st.integers(1, 6))
    def go_back(self, steps: int) -> None:
        self.lived.save(self.path)
        train(self.lived, steps)
        self.lived.load(self.path)

    @rule()
    @precondition(lambda self: hasattr(os, "fork"))
    def train_in_a_child_too(self) -> None:
        def child() -> str:
            train(self.lived, 2)
            self.lived.save(self.path)
            return digest(self.state())

        there = in_fork(child)
        self.both(lambda run: train(run, 2))
        assert there == digest(self.state())
        self.lived.load(self.path)

    @rule(where=st.integers(0, 10**9))
    def a_file_cut_short_is_refused(self, where: int) -> None:
        self.lived.save(self.path)
        data = self.path.read_bytes()
        self.path.write_bytes(data[: where % len(data)])
        refused(lambda: self.lived.load(self.path), self.state)

    @rule(part=st.integers(0, 9), seed=seeds)
    def states_that_are_refused(self, part: int, seed: int) -> None:
        """Of one part, so that those restored before it must be put back."""
        names = list(self.lived.parts)
        name = names[part % len(names)]
        other = self.fresh()
        train(other, 1 + seed % 3)
        state = copy.deepcopy(other.state_dict())
        parts = state["parts"]
        wrong = {
            "model": lambda: parts["model"].popitem(),
            "optimizer": lambda: parts["optimizer"]["state"][0].update(step=-1),
            "scheduler": lambda: parts["scheduler"].update(last_epoch="x"),
            "ema": lambda: parts["ema"].update(averages=parts["ema"]["averages"][:-1]),
            "pruner": lambda: parts["pruner"].update(step_count=-1),
            "rng": lambda: parts["rng"].update(bit_generator="MT19937"),
        }[name]
        wrong()
        refused(lambda: self.lived.load_state_dict(state), self.state)

    @rule(wrong=st.sampled_from([np.nan, np.inf]))
    def steps_that_are_refused(self, wrong: float) -> None:
        p = self.lived.parts
        model = p["model"]
        grads = {name: {k: v * 0 for k, v in layer.items()} for name, layer in model.params.items()}
        masks = p["optimizer"].state_dict()["masks"]
        if not masks or 3 not in masks:
            grads["3"]["bias"][0] = wrong
            refused(lambda: p["optimizer"].step(grads, nonfinite="raise"), self.state)
        if self.made[0] in ("movement", "taylor", "snip"):
            refused(lambda: p["pruner"].step(), self.state)
            bad = [np.full(v.shape, wrong, np.float32) for v in (model[0].weight, model[3].weight)]
            refused(lambda: p["pruner"].step(bad), self.state)

    @rule(seed=seeds)
    @precondition(lambda self: self.made[0] not in DYNAMIC)
    def shrinking_that_is_refused(self, seed: int) -> None:
        p = self.lived.parts
        model, every = p["model"], np.ones(self.hidden, bool)
        for keep in ({0: ~every}, {0: every[:-1]}, {1: every}, {3: np.ones(OUTPUTS, bool)}):
            refused(lambda keep=keep: prune.shrink(model, keep, p["optimizer"]), self.state)

    # What always holds

    @invariant()
    def bits_are_those_of_the_twin(self) -> None:
        if self.lived is not None:
            same(self.lived.state_dict(), self.plain.state_dict())

    @invariant()
    def removed_weights_are_0(self) -> None:
        """In weights, in state, and where averages are used."""
        if self.lived is None:
            return
        p = self.lived.parts
        state = p["optimizer"].state_dict()
        params = [w for layer in p["model"].params.values() for w in layer.values()]
        for i, mask in state["masks"].items():
            for array in (params[i], *state["state"][i].values()):
                assert array.shape != mask.shape or not array[~mask].any()
        if "ema" in p:
            with p["ema"].applied():
                assert not any(params[i][~mask].any() for i, mask in state["masks"].items())
        if self.made[0] == "alone":
            for w, mask in zip(
                (params[0], params[2]), p["pruner"].state_dict()["masks"], strict=True
            ):
                # The optimizer does not know of the masks, which `pruner.step` applies.
                assert not w[~mask].any()


@both_profiles
def test_runs(profile: Any) -> None:
    run_state_machine_as_test(Runs, settings=profile)  # type: ignore[no-untyped-call]
