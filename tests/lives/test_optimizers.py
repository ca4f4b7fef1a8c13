"""Lives of optimizers: every operation in any order, against the formulas and against a twin."""

from __future__ import annotations

import copy
import functools
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ml_dtypes import bfloat16

import compressrs as cr
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
from tests.optim.test_optim import RULES

VARIANTS = [(cls, kwargs) for cls, (_, variants) in RULES.items() for kwargs in variants]
SHAPES = [(1, 1), (3, 5), (7, 2), (2, 9)]
can_fork = precondition(lambda self: hasattr(os, "fork"))


class Weight:
    """A parameter of the reference in float64: its value, state, steps and mask."""

    def __init__(self, values: Any, hyperparameters: dict[str, Any]) -> None:
        self.values = values.copy()
        self.state: dict[str, Any] = {}
        self.steps = 0
        self.mask: Any = None
        self.hyperparameters = hyperparameters
        self.frozen = False

    def masked(self, values: Any) -> Any:
        if self.mask is None or np.shape(values) != self.values.shape:
            return values
        return np.where(self.mask, values, 0.0)

    def apply_mask(self) -> None:
        self.values = self.masked(self.values)
        self.state = {name: self.masked(value) for name, value in self.state.items()}

    def step(self, formula: Any, gradient: Any) -> None:
        self.steps += 1
        self.values = formula(
            self.values, self.masked(gradient), self.state, self.steps, **self.hyperparameters
        )
        self.apply_mask()

    def cut(self, keep: Any, axis: int) -> None:
        def cut(values: Any) -> Any:
            if np.ndim(values) > axis and np.shape(values)[axis] == keep.size:
                return np.compress(keep, values, axis=axis)
            return values

        self.values = cut(self.values)
        self.mask = None if self.mask is None else cut(self.mask)
        self.state = {name: cut(value) for name, value in self.state.items()}


class AgainstTheFormula(Life):
    """An optimizer in float64, whose weights are always those of the formula in NumPy."""

    @initialize(variant=st.sampled_from(VARIANTS), seed=seeds, n=st.integers(1, 3))
    def start(self, variant: Any, seed: int, n: int) -> None:
        self.kind, given = variant
        self.formula = RULES[self.kind][0]
        self.given = {"lr": 0.05, **given}
        self.params: list[Any] = []
        self.reference: list[Weight] = []
        self.taken = 0
        groups = [self.group(seed + i) for i in range(n)]
        self.optimizer = self.kind(groups, **self.given)

    def group(self, seed: int) -> dict[str, Any]:
        """Return a group of one new parameter, with its reference."""
        rng = np.random.default_rng(seed)
        w = rng.standard_normal(SHAPES[seed % len(SHAPES)])
        self.params.append(w)
        self.reference.append(Weight(w, dict(self.given)))
        return {"params": [w]}

    def gradients(self, seed: int) -> list[Any]:
        """Return gradients of very different sizes, of which one may be missing or 0."""
        rng = np.random.default_rng(seed)
        grads = [rng.standard_normal(w.shape) * 10.0 ** rng.integers(-2, 3) for w in self.params]
        if seed % 3 == 0:
            grads[seed % len(grads)] *= 0
        return [
            [None if seed % 5 == 0 and i == seed % len(grads) else g] for i, g in enumerate(grads)
        ]

    @rule(
        seed=seeds,
        norm=st.sampled_from([None, None, 0.5, 1e6]),
        scale=st.sampled_from([1.0, 1.0, 0.25]),
    )
    def step(self, seed: int, norm: float | None, scale: float) -> None:
        grads = self.gradients(seed)
        said = self.optimizer.step(grads, max_grad_norm=norm, grad_scale=scale)
        pairs = [
            (w, w.masked(g * scale))
            for w, (g,) in zip(self.reference, grads, strict=True)
            if g is not None and not w.frozen
        ]
        total = np.sqrt(sum((g**2).sum() for _, g in pairs))
        if norm is not None:
            assert said == pytest.approx(total, rel=1e-12)
        for w, g in pairs:
            w.step(self.formula, g if norm is None else g * min(1, norm / (total + 1e-6)))
        self.taken += 1

    @rule(seed=seeds)
    @precondition(lambda self: len(self.params) < 5)
    def add_group(self, seed: int) -> None:
        self.optimizer.add_param_group(self.group(seed))

    @rule(seed=seeds, density=st.sampled_from([0.0, 0.3, 0.9, None]))
    def mask(self, seed: int, density: float | None) -> None:
        rng = np.random.default_rng(seed)
        masks = [
            [None if density is None or rng.random() < 0.3 else rng.random(w.shape) < density]
            for w in self.params
        ]
        self.optimizer.set_masks(masks)
        for i, (w, (mask,)) in enumerate(zip(self.reference, masks, strict=True)):
            if not w.steps:
                # What the formula starts from, which a mask sets to 0 as well.
                w.state = self.initial_state(i)
            w.mask = mask
            w.apply_mask()

    def initial_state(self, i: int) -> dict[str, Any]:
        names = {
            "adagrad": {"sum": "sum"},
        }.get(self.formula.__name__, {})
        state = self.optimizer.state[i]
        return {ours: state[theirs].copy() for ours, theirs in names.items()}

    @rule(i=st.integers(0, 9), lr=st.sampled_from([0.01, 0.05, 0.2]))
    def change_lr(self, i: int, lr: float) -> None:
        i %= len(self.params)
        if self.reference[i].steps:  # the initial lr is part of the state of Rprop and ASGD
            self.optimizer.param_groups[i]["lr"] = lr
            self.reference[i].hyperparameters["lr"] = lr

    @rule(i=st.integers(0, 9), frozen=st.booleans())
    def freeze(self, i: int, frozen: bool) -> None:
        i %= len(self.params)
        self.optimizer.param_groups[i]["frozen"] = frozen
        self.reference[i].frozen = frozen

    @rule(i=st.integers(0, 9), axis=st.integers(0, 1), seed=seeds)
    def remove_neurons(self, i: int, axis: int, seed: int) -> None:
        i %= len(self.params)
        w = self.params[i]
        keep = np.random.default_rng(seed).random(w.shape[axis]) < 0.7
        if not keep.any():
            keep[0] = True
        arrays: Any = ([w], []) if axis == 0 else ([], [w])
        outputs, inputs = cr.prune.neurons(keep, *arrays, optimizer=self.optimizer)
        (self.params[i],) = outputs + inputs
        self.reference[i].cut(keep, axis)

    @rule(seed=seeds)
    def save_and_load(self, seed: int) -> None:
        self.optimizer.save(self.path)
        self.replace_by_a_fresh_one()
        self.optimizer.load(self.path)

    @rule()
    def load_state_dict(self) -> None:
        state = self.optimizer.state_dict()
        self.replace_by_a_fresh_one()
        self.optimizer.load_state_dict(state)

    def replace_by_a_fresh_one(self) -> None:
        self.params = [w.copy() for w in self.params]
        self.optimizer = self.kind([{"params": [w]} for w in self.params], **self.given)

    @rule(how=st.sampled_from([copy.deepcopy, pickled]))
    def copied(self, how: Any) -> None:
        self.optimizer = how(self.optimizer)
        self.params = [group["params"][0] for group in self.optimizer.param_groups]

    @rule(n=threads)
    def set_num_threads(self, n: int) -> None:
        cr.set_num_threads(n)

    @invariant()
    def weights_are_those_of_the_formula(self) -> None:
        if not hasattr(self, "optimizer"):
            return
        tolerance = 1e-6 if self.kind is cr.optim.Muon else 1e-9
        for i, (w, expected) in enumerate(zip(self.params, self.reference, strict=True)):
            largest = max(1.0, np.abs(expected.values).max(initial=0))
            np.testing.assert_allclose(w, expected.values, rtol=0, atol=tolerance * largest)
            assert int(self.optimizer.state[i]["step"]) == expected.steps
            if expected.mask is not None:
                assert not w[~expected.mask].any()


@both_profiles
def test_against_the_formula(profile: Any) -> None:
    run_state_machine_as_test(AgainstTheFormula, settings=profile)  # type: ignore[no-untyped-call]


DTYPES = [np.float32, np.float64, np.float16, bfloat16]
STATES = st.sampled_from(["float32", "bfloat16", "int8"])
PRECISIONS = st.sampled_from(["nearest", "stochastic", "kahan", "master"])


def is_exact(kind: Any, given: Any) -> bool:
    """Whether the state of a rule must not be rounded."""
    return kind in (cr.optim.ASGD, cr.optim.Rprop, cr.optim.Adafactor) or given.get(
        "centered", False
    )


class WithATwin(Life):
    """Two optimizers take the same steps; one of them is also saved, copied, forked, refused.

    The other takes its steps in one thread, and all bits remain equal.
    """

    @initialize(
        variant=st.sampled_from(VARIANTS),
        dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3),
        state_dtype=STATES,
        precision=PRECISIONS,
        seed=seeds,
    )
    def start(
        self, variant: Any, dtypes: list[Any], state_dtype: str, precision: str, seed: int
    ) -> None:
        self.kind, given = variant
        self.rounds = not is_exact(self.kind, given)
        if not self.rounds:
            state_dtype = "float32"
        self.given = {**given, "lr": 0.01, "state_dtype": state_dtype, "precision": precision}
        rng = np.random.default_rng(seed)
        # Above and below the 4,096 elements from which state is coded in 8 bits.
        shapes = [(50, 100), (3, 7), (1, 4097)]
        arrays = [
            rng.standard_normal(shapes[(seed + i) % 3]).astype(dtype)
            for i, dtype in enumerate(dtypes)
        ]
        self.lived = self.kind([{"params": [w.copy()]} for w in arrays], **self.given)
        self.plain = self.kind([{"params": [w.copy()]} for w in arrays], **self.given)
        self.n = 2

    def params(self, optimizer: Any) -> list[Any]:
        return [w for group in optimizer.param_groups for w in group["params"]]

    def everything(self, optimizer: Any) -> Any:
        return self.params(optimizer), optimizer.state_dict()

    def gradients(self, seed: int) -> list[Any]:
        rng = np.random.default_rng(seed)
        return [
            [rng.standard_normal(w.shape).astype(np.float32) * 10.0 ** rng.integers(-3, 2)]
            for w in self.params(self.plain)
        ]

    def in_one_thread(self, call: Any) -> Any:
        cr.set_num_threads(1)
        try:
            return call()
        finally:
            cr.set_num_threads(self.n)

    @rule(
        seed=seeds,
        norm=st.sampled_from([None, 1.0]),
        nonfinite=st.sampled_from(["ignore", "skip"]),
    )
    def step(self, seed: int, norm: float | None, nonfinite: Any) -> None:
        grads = self.gradients(seed)
        said = self.lived.step(grads, max_grad_norm=norm, nonfinite=nonfinite)
        assert said == self.in_one_thread(
            lambda: self.plain.step(grads, max_grad_norm=norm, nonfinite=nonfinite)
        )

    @can_fork
    @rule(seed=seeds)
    def step_in_a_child_too(self, seed: int) -> None:
        grads = self.gradients(seed)

        def child() -> str:
            self.lived.step(grads)
            return digest(self.everything(self.lived))

        there = in_fork(child)
        self.lived.step(grads)
        assert there == digest(self.everything(self.lived))
        self.in_one_thread(lambda: self.plain.step(grads))

    @rule(seed=seeds, dtype=st.sampled_from(DTYPES))
    @precondition(lambda self: len(self.params(self.plain)) < 4)
    def add_group(self, seed: int, dtype: Any) -> None:
        w = np.random.default_rng(seed).standard_normal((5, 900)).astype(dtype)
        for optimizer in (self.lived, self.plain):
            optimizer.add_param_group({"params": [w.copy()], "lr": 0.02})

    @rule(seed=seeds, density=st.sampled_from([0.1, 0.9, None]))
    def mask(self, seed: int, density: float | None) -> None:
        rng = np.random.default_rng(seed)
        masks = [
            [None if density is None else rng.random(w.shape) < density]
            for w in self.params(self.plain)
        ]
        self.lived.set_masks(masks)
        self.in_one_thread(lambda: self.plain.set_masks(masks))

    @rule(state_dtype=STATES, precision=PRECISIONS)
    def convert(self, state_dtype: Any, precision: Any) -> None:
        if not self.rounds and state_dtype != "float32":
            convert = functools.partial(self.lived.convert_state, state_dtype, precision)
            refused(convert, functools.partial(self.everything, self.lived))
            return
        self.lived.convert_state(state_dtype, precision)
        self.in_one_thread(lambda: self.plain.convert_state(state_dtype, precision))

    @rule(i=st.integers(0, 9), axis=st.integers(0, 1), seed=seeds)
    def remove_neurons(self, i: int, axis: int, seed: int) -> None:
        for optimizer in (self.lived, self.plain):
            w = self.params(optimizer)[i % len(self.params(optimizer))]
            keep = np.random.default_rng(seed).random(w.shape[axis]) < 0.95
            keep[0] = True
            arrays: Any = ([w], []) if axis == 0 else ([], [w])
            cr.prune.neurons(keep, *arrays, optimizer=optimizer)

    @rule(lr=st.sampled_from([0.001, 0.01]), frozen=st.booleans())
    def change_group(self, lr: float, frozen: bool) -> None:
        for optimizer in (self.lived, self.plain):
            optimizer.param_groups[-1].update({"lr": lr, "frozen": frozen})

    @rule(n=threads)
    def set_num_threads(self, n: int) -> None:
        self.n = n
        cr.set_num_threads(n)

    @rule(how=st.sampled_from([copy.deepcopy, pickled]))
    def copied(self, how: Any) -> None:
        self.lived = how(self.lived)

    def fresh(self) -> Any:
        """Return an optimizer of copies of the weights, which stores state in the same way."""
        groups = [
            {
                "params": [w.copy() for w in group["params"]],
                "state_dtype": group["state_dtype"],
                "precision": group["precision"],
            }
            for group in self.lived.param_groups
        ]
        return self.kind(groups, **self.given)

    @rule()
    def save_and_load(self) -> None:
        self.lived.save(self.path)
        fresh = self.fresh()
        fresh.load(self.path)
        self.lived = fresh

    @rule()
    def load_state_dict(self) -> None:
        state = self.lived.state_dict()
        fresh = self.fresh()
        fresh.load_state_dict(state)
        self.lived = fresh

    @rule(seed=seeds)
    def go_back(self, seed: int) -> None:
        """Take steps, then restore what was before."""
        state = copy.deepcopy(self.lived.state_dict())
        before = [w.copy() for w in self.params(self.lived)]
        for i in range(3):
            self.lived.step(self.gradients(seed + i))
        for w, old in zip(self.params(self.lived), before, strict=True):
            w[...] = old
        self.lived.load_state_dict(state)

    @rule(seed=seeds)
    def calls_that_are_refused(self, seed: int) -> None:
        lived = self.lived
        state = functools.partial(self.everything, lived)
        grads, last = self.gradients(seed), self.params(lived)[-1]
        bad = [*grads[:-1], [np.full(last.shape, np.nan)]]
        mask = np.ones(last.shape, bool)
        others = [[None]] * (len(grads) - 1)
        wrong = lived.state_dict()
        wrong["state"] = {**wrong["state"], 0: {**wrong["state"][0], "step": -1}}
        if not lived.param_groups[-1].get("frozen"):
            # Gradients of frozen groups are not looked at, and those of masked weights neither.
            refused(lambda: lived.step([*grads[:-1], [np.ones((2, 2, 2))]]), state)
            if not lived.state_dict()["masks"]:
                refused(lambda: lived.step(bad, nonfinite="raise"), state)
        for call in (
            lambda: lived.step(grads[:-1]),
            lambda: lived.step(grads, grad_scale=np.nan),
            lambda: lived.set_masks([*others, [mask[:-1]]]),
            lambda: lived.set_masks([*others, [mask.astype(np.float32)]]),
            lambda: lived.add_param_group({"params": [last]}),
            lambda: lived.add_param_group({"params": [np.ones(3)], "lr": -1}),
            lambda: lived.convert_state("float8"),
            lambda: lived.load_state_dict(wrong),
            lambda: cr.prune.neurons(mask[0], [last[:1]], [last], optimizer=lived),
        ):
            refused(call, state)

    @rule(seed=seeds, where=st.integers(0, 10**9))
    def a_file_cut_short_is_refused(self, seed: int, where: int) -> None:
        self.lived.save(self.path)
        data = self.path.read_bytes()
        self.path.write_bytes(data[: where % len(data)])
        refused(lambda: self.lived.load(self.path), functools.partial(self.everything, self.lived))

    @invariant()
    def bits_are_those_of_the_twin(self) -> None:
        if hasattr(self, "lived"):
            same(self.everything(self.lived), self.everything(self.plain))


@both_profiles
def test_with_a_twin(profile: Any) -> None:
    run_state_machine_as_test(WithATwin, settings=profile)  # type: ignore[no-untyped-call]
