"""Schedules: against rates recorded from PyTorch, composition, and invalid use."""

import json
from pathlib import Path

import numpy as np
import pytest

import compressrs as cr
from compressrs.optim import lr_scheduler

CASES = json.loads((Path(__file__).parents[1] / "data" / "schedules.json").read_text())["schedules"]


def optimizer(lr=0.1, cls=cr.optim.SGD, **kwargs):
    return cls(np.zeros(1), lr=lr, **kwargs)


def rates(schedule, steps):
    got = []
    for _ in range(steps):
        got.append(schedule.get_last_lr()[0])
        schedule.step()
    return got


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["scheduler"])
def test_recorded_rates(case):
    opt = optimizer(case["base_lr"], momentum=0.9)
    schedule = getattr(lr_scheduler, case["scheduler"])(opt, **case["kwargs"])
    for t, truth in enumerate(case["lrs"]):
        assert opt.param_groups[0]["lr"] == pytest.approx(truth, rel=1e-12, abs=1e-17), t
        schedule.step(*([case["metric"][t]] if case["metric"] else []))


def test_functions_of_the_step():
    assert rates(lr_scheduler.LambdaLR(optimizer(), lambda t: 1 / (1 + t)), 4) == pytest.approx(
        [0.1, 0.05, 0.1 / 3, 0.025]
    )
    product = lr_scheduler.MultiplicativeLR(optimizer(), lambda t: 1 / t)
    assert rates(product, 4) == pytest.approx([0.1, 0.1, 0.05, 0.1 / 6])


def test_groups_have_their_own_rates():
    opt = cr.optim.SGD([{"params": np.zeros(1)}, {"params": np.zeros(1), "lr": 1.0}], lr=0.1)
    schedule = lr_scheduler.LambdaLR(opt, [lambda t: 0.5**t, lambda t: 1 + t])
    schedule.step()
    assert schedule.get_last_lr() == [0.05, 2.0]
    with pytest.raises(ValueError, match="lr_lambda must be one value or 2, one a group, got 1"):
        lr_scheduler.LambdaLR(opt, [lambda t: t])


def test_one_after_another():
    opt = optimizer()
    warmup = lr_scheduler.LinearLR(opt, 0.5, total_iters=2)
    decay = lr_scheduler.ExponentialLR(opt, 0.5)
    schedule = lr_scheduler.SequentialLR(opt, [warmup, decay], [3])
    assert rates(schedule, 6) == pytest.approx([0.05, 0.075, 0.1, 0.1, 0.05, 0.025])


def test_on_top_of_each_other():
    opt = optimizer()
    parts = [lr_scheduler.ConstantLR(opt, 0.5, 2), lr_scheduler.ExponentialLR(opt, 0.9)]
    schedule = lr_scheduler.ChainedScheduler(parts)
    assert rates(schedule, 4) == pytest.approx([0.05, 0.045, 0.081, 0.0729])


@pytest.mark.parametrize(
    ("cls", "kwargs"), [(cr.optim.SGD, {"momentum": 0.9}), (cr.optim.Adam, {})]
)
def test_momentum_cycles_the_other_way(cls, kwargs):
    def momentum():
        group = opt.param_groups[0]
        return group["betas"][0] if "betas" in group else group["momentum"]

    opt = optimizer(cls=cls, **kwargs)
    schedule = lr_scheduler.OneCycleLR(opt, 1.0, total_steps=11, pct_start=0.5)
    seen = []
    for _ in range(11):
        seen.append((opt.param_groups[0]["lr"], momentum()))
        schedule.step()
    assert seen[0] == (pytest.approx(1 / 25), pytest.approx(0.95))
    assert seen[10] == (pytest.approx(1 / 25e4), pytest.approx(0.95))
    assert min(m for _, m in seen) < 0.86
    with pytest.raises(ValueError, match="total_steps=11"):
        schedule.step()
    opt = optimizer(cls=cls, **kwargs)
    schedule = lr_scheduler.CyclicLR(opt, 0.1, 1.0, step_size_up=2)
    schedule.step()
    assert (opt.param_groups[0]["lr"], momentum()) == pytest.approx((0.55, 0.85))


def test_three_phases_and_lines():
    opt = optimizer(momentum=0.9)
    schedule = lr_scheduler.OneCycleLR(
        opt,
        1.0,
        epochs=2,
        steps_per_epoch=10,
        pct_start=0.25,
        anneal_strategy="linear",
        three_phase=True,
        div_factor=10,
        final_div_factor=10,
    )
    got = rates(schedule, 20)
    assert got[0] == pytest.approx(0.1)
    assert got[4] == pytest.approx(1.0)
    assert got[8] == pytest.approx(0.1)
    assert got[19] == pytest.approx(0.01)


def test_cycles_of_other_shapes():
    exp = lr_scheduler.CyclicLR(
        optimizer(), 0.0, 1.0, 1, mode="exp_range", gamma=0.5, cycle_momentum=False
    )
    assert rates(exp, 4) == pytest.approx([0, 0.5, 0, 0.125])
    own = lr_scheduler.CyclicLR(
        optimizer(), 0.0, 1.0, 1, scale_fn=lambda cycle: 1 / cycle, cycle_momentum=False
    )
    assert rates(own, 4) == pytest.approx([0, 1, 0, 0.5])


def test_a_state_dict_goes_on():
    def make():
        return lr_scheduler.CosineAnnealingLR(optimizer(), 10)

    first, second = make(), make()
    rates(first, 5)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.get_last_lr() == first.get_last_lr()
    assert rates(second, 5) == rates(first, 5)
    for bad in ({}, {"last_epoch": 1, "base_lrs": []}, {"last_epoch": "x", "base_lrs": [1]}):
        with pytest.raises(ValueError, match="state_dict must"):
            second.load_state_dict(bad)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer(), patience=0)
    plateau.step(1.0)
    twin = lr_scheduler.ReduceLROnPlateau(optimizer(), patience=0)
    twin.load_state_dict(plateau.state_dict())
    twin.step(1.0)
    assert twin.get_last_lr() == [pytest.approx(0.01)]


def test_plateaus_by_other_measures():
    for mode, threshold_mode, metrics in (
        ("max", "rel", (1.0, 2.0, 2.0)),
        ("min", "abs", (2, 1, 1)),
    ):
        schedule = lr_scheduler.ReduceLROnPlateau(
            optimizer(), mode, 0.5, patience=0, threshold_mode=threshold_mode, min_lr=0.04
        )
        seen = []
        for metric in (*metrics, np.nan):
            schedule.step(metric)
            seen.append(schedule.get_last_lr()[0])
        assert seen == pytest.approx([0.1, 0.1, 0.05, 0.04])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda o: lr_scheduler.StepLR(o, 0), ValueError, "step_size must be at least 1"),
        (lambda o: lr_scheduler.StepLR(o, 2.5), TypeError, "step_size must be an integer"),
        (lambda o: lr_scheduler.StepLR(np.ones(2), 1), TypeError, "must be an Optimizer"),
        (lambda o: lr_scheduler.LinearLR(o, 0), ValueError, r"start_factor must be in \(0, 1\]"),
        (lambda o: lr_scheduler.LinearLR(o, 2), ValueError, "start_factor must be"),
        (lambda o: lr_scheduler.ExponentialLR(o, "x"), TypeError, "gamma must be a number"),
        (lambda o: lr_scheduler.OneCycleLR(o, 1.0), ValueError, "give total_steps"),
        (lambda o: lr_scheduler.CyclicLR(o, 0, 1, mode="x"), ValueError, "mode must be one of"),
        (lambda o: lr_scheduler.SequentialLR(o, [], []), ValueError, "at least one"),
        (lambda o: lr_scheduler.ChainedScheduler([]), ValueError, "at least one"),
        (
            lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.ReduceLROnPlateau(o)], []),
            TypeError,
            "must be an LRScheduler",
        ),
        (
            lambda o: lr_scheduler.ChainedScheduler(
                [lr_scheduler.StepLR(o, 1), lr_scheduler.StepLR(optimizer(), 1)]
            ),
            ValueError,
            "same optimizer",
        ),
        (
            lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.StepLR(o, 1)], [3]),
            ValueError,
            "milestones must be one less",
        ),
        (
            lambda o: lr_scheduler.OneCycleLR(optimizer(cls=cr.optim.Adagrad), 1.0, 10),
            ValueError,
            "no momentum to cycle",
        ),
    ],
)
def test_misuse(make, error, message):
    with pytest.raises(error, match=message):
        make(optimizer(momentum=0.9))
