"""Schedules in unusual situations, compared with PyTorch 2.15."""

import copy
import json

import numpy as np
import pytest

import compressrs as cr
from compressrs.optim import lr_scheduler as S

#: Creates each schedule for an optimizer.
MAKERS = {
    "StepLR": lambda o: S.StepLR(o, 2, 0.5),
    "ExponentialLR": lambda o: S.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: S.LambdaLR(o, lambda t: 0.9**t),
    "LinearLR": lambda o: S.LinearLR(o, 0.5, 1.0, 6),
    "CosineAnnealingLR": lambda o: S.CosineAnnealingLR(o, 10, 0.0001),
    "CosineAnnealingWarmRestarts": lambda o: S.CosineAnnealingWarmRestarts(o, 10),
    "PolynomialLR": lambda o: S.PolynomialLR(o, 10),
    "ConstantLR": lambda o: S.ConstantLR(o, 0.5, 5),
    "MultiplicativeLR": lambda o: S.MultiplicativeLR(o, lambda t: 0.9),
    "OneCycleLR": lambda o: S.OneCycleLR(o, 0.1, 20),
    "CyclicLR": lambda o: S.CyclicLR(o, 0.1, 0.2, 4),
    "MultiStepLR": lambda o: S.MultiStepLR(o, [4, 6]),
    "SequentialLR": lambda o: S.SequentialLR(
        o, [S.LinearLR(o, 0.5, 1.0, 2), S.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: S.ChainedScheduler(
        [S.LinearLR(o, 0.5, 1.0, 4), S.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: S.ReduceLROnPlateau(o, factor=0.5, patience=1),
}


def optimizer(lr=0.1):
    return cr.optim.SGD(np.zeros(2), lr=lr, momentum=0.9)


def step(schedule):
    schedule.step(*([1.0] if isinstance(schedule, S.ReduceLROnPlateau) else []))


def test_every_schedule_has_a_maker():
    assert set(MAKERS) == set(S.__all__) - {"LRScheduler"}


#: Rates when a schedule is created after the rate was set manually from 0.1 to 1e-3.
KEPT = {
    "StepLR": [0.001, 0.001, 0.0005, 0.0005, 0.00025, 0.00025],
    "ExponentialLR": [0.001, 0.0009, 0.00081, 0.000729, 0.0006561, 0.0005905],
    "LambdaLR": [0.1, 0.09, 0.081, 0.0729, 0.06561, 0.059049],
    "LinearLR": [0.0005, 0.0005833, 0.0006667, 0.00075, 0.0008333, 0.0009167],
    "CosineAnnealingLR": [0.001, 0.000978, 0.0009141, 0.0008145, 0.0006891, 0.00055],
    "CosineAnnealingWarmRestarts": [0.1, 0.0975528, 0.0904508, 0.0793893, 0.0654508, 0.05],
    "PolynomialLR": [0.001, 0.0009, 0.0008, 0.0007, 0.0006, 0.0005],
    "ConstantLR": [0.0005, 0.0005, 0.0005, 0.0005, 0.0005, 0.001],
    "MultiplicativeLR": [0.001, 0.0009, 0.00081, 0.000729, 0.0006561, 0.0005905],
    "OneCycleLR": [0.004, 0.0131672, 0.0371672, 0.0668328, 0.0908328, 0.1],
    "CyclicLR": [0.1, 0.125, 0.15, 0.175, 0.2, 0.175],
    "MultiStepLR": [0.001, 0.001, 0.001, 0.001, 0.0001, 0.0001],
    "SequentialLR": [0.05, 0.075, 0.1, 0.09, 0.081, 0.0729],
    "ChainedScheduler": [0.0005, 0.0005625, 0.0006075, 0.0006379, 0.0006561, 0.0005905],
}


@pytest.mark.parametrize("name", KEPT)
def test_a_rate_set_by_hand_before(name):
    opt = optimizer()
    S.StepLR(opt, 100)
    opt.param_groups[0]["lr"] = 1e-3
    schedule = MAKERS[name](opt)
    for t, truth in enumerate(KEPT[name]):
        assert opt.param_groups[0]["lr"] == pytest.approx(truth, abs=1e-7), t
        step(schedule)


@pytest.mark.parametrize("name", ["StepLR", "ExponentialLR", "PolynomialLR", "MultiplicativeLR"])
def test_a_rate_set_by_hand_meanwhile(name):
    opts = optimizer(), optimizer()
    schedules = [MAKERS[name](opt) for opt in opts]
    for _ in range(2):
        for schedule in schedules:
            step(schedule)
    opts[1].param_groups[0]["lr"] /= 8
    for _ in range(2):
        for schedule in schedules:
            step(schedule)
        first, second = (opt.param_groups[0]["lr"] for opt in opts)
        assert second == pytest.approx(first / 8)


#: Rates of a group added after three steps with a rate of 0.5.
ADDED = {
    "StepLR": [0.25, 0.25, 0.125, 0.125],
    "ExponentialLR": [0.45, 0.405, 0.3645, 0.32805],
    "LinearLR": [0.555556, 0.611111, 0.666667, 0.666667],
    "PolynomialLR": [0.428571, 0.357143, 0.285714, 0.214286],
    "ConstantLR": [0.5, 1.0, 1.0, 1.0],
    "MultiStepLR": [0.05, 0.05, 0.005, 0.005],
    "ChainedScheduler": [0.514286, 0.462857, 0.416571, 0.374914],
    "CosineAnnealingLR": [0.412237, 0.314946, 0.217652, 0.129877],
    "ReduceLROnPlateau": [0.5, 0.25, 0.25, 0.125],
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_group_added_later(name):
    opt = optimizer()
    schedule = MAKERS[name](opt)
    for _ in range(3):
        step(schedule)
    opt.add_param_group({"params": np.zeros(2), "lr": 0.5})
    before = copy.deepcopy((schedule.state_dict(), opt.state_dict()["param_groups"]))
    if name not in ADDED:
        with pytest.raises(ValueError, match="group 1 was added after"):
            step(schedule)
        assert (schedule.state_dict(), opt.state_dict()["param_groups"]) == before
        return
    for truth in ADDED[name]:
        step(schedule)
        if name != "ReduceLROnPlateau":
            assert opt.param_groups[1]["lr"] == pytest.approx(truth, abs=2e-4)
    assert opt.param_groups[1]["lr"] <= 1
    json.dumps(schedule.state_dict())


@pytest.mark.parametrize("strategy", ["linear", "cos"])
@pytest.mark.parametrize("three_phase", [False, True])
def test_past_the_end_of_one_cycle(strategy, three_phase):
    opt = optimizer()
    schedule = S.OneCycleLR(opt, 1.0, 10, anneal_strategy=strategy, three_phase=three_phase)
    for _ in range(9):
        schedule.step()
    last = opt.param_groups[0]["lr"]
    schedule.step()
    assert opt.param_groups[0]["lr"] == last == pytest.approx(1 / 25 / 1e4)
    twin = S.OneCycleLR(optimizer(), 1.0, 10, anneal_strategy=strategy, three_phase=three_phase)
    twin.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    assert twin.get_last_lr() == [last]


def test_many_halvings():
    opt = optimizer()
    schedule = S.CyclicLR(opt, 5e-5, 1.0, 5, mode="triangular2", last_epoch=10238)
    for _ in range(10):
        schedule.step()
        assert opt.param_groups[0]["lr"] == pytest.approx(5e-5)


def test_a_rate_that_overflows_changes_nothing():
    opt = optimizer()
    schedule = S.ExponentialLR(opt, 1e200)
    schedule.step()
    with pytest.raises(ValueError, match="finite rates >= 0, got inf for group 0 at step 2"):
        schedule.step()
    assert (schedule.last_epoch, opt.param_groups[0]["lr"]) == (1, pytest.approx(1e199))


@pytest.mark.parametrize("name", MAKERS)
def test_resumed_with_another_rate(name):
    """The optimizer of the resumed run was created with another rate."""
    first = MAKERS[name](optimizer())
    for _ in range(3):
        step(first)
    other = optimizer(lr=7.0)
    second = MAKERS[name](other)
    if name == "ReduceLROnPlateau":
        other.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(5):
        assert second.get_last_lr() == first.get_last_lr()
        step(first)
        step(second)


@pytest.mark.parametrize("name", MAKERS)
def test_every_entry_of_a_state_is_checked(name):
    opt = optimizer()
    schedule = MAKERS[name](opt)
    for _ in range(3):
        step(schedule)
    good = schedule.state_dict()

    def now():
        return copy.deepcopy((schedule.state_dict(), opt.state_dict()["param_groups"]))

    before = now()
    hostile = (None, float("nan"), -5, 1.5, 10**400, "x", [], [None], [float("nan")], [-1.0], {})
    for key in good:
        for value in hostile:
            if (
                key in ("best", "last_epoch")
                and value == 1.5
                and name.endswith(("Plateau", "Restarts"))
            ):
                continue
            if key == "best" and value == -5:
                continue
            with pytest.raises(ValueError, match="state_dict"):
                schedule.load_state_dict({**good, key: value})
            assert now() == before
    for other, make in MAKERS.items():
        if other != name:
            with pytest.raises(ValueError, match="state_dict must be of a"):
                schedule.load_state_dict(make(optimizer()).state_dict())
    for value in (None, [], {}, 3):
        with pytest.raises(ValueError, match="state_dict"):
            schedule.load_state_dict(value)
    assert now() == before
    schedule.load_state_dict(good)
    assert now() == before


@pytest.mark.parametrize("cls", [cr.optim.SGD, cr.optim.RMSprop])
@pytest.mark.parametrize("name", ["CyclicLR", "OneCycleLR"])
def test_momentum_that_was_off_is_switched_on(cls, name):
    opt = cls(np.ones(2), lr=0.1)
    opt.step(np.ones(2))
    schedule = MAKERS[name](opt)
    assert opt.param_groups[0]["momentum"] == {"CyclicLR": 0.9, "OneCycleLR": 0.95}[name]
    for _ in range(6):
        opt.step(np.ones(2))
        schedule.step()
    assert opt.state[0]["momentum_buffer"].all()
    assert int(opt.state[0]["step"]) == 7
    with pytest.raises(ValueError, match="no momentum to cycle"):
        MAKERS[name](cr.optim.Adagrad(np.ones(2)))


@pytest.mark.parametrize("three_phase", [False, True])
def test_one_cycle_follows_a_new_number_of_steps(three_phase):
    opt, other = optimizer(), optimizer()
    schedule = S.OneCycleLR(opt, 1.0, 10, three_phase=three_phase)
    longer = S.OneCycleLR(other, 1.0, 20, three_phase=three_phase)
    for _ in range(5):
        schedule.step()
        longer.step()
    schedule.total_steps = 20
    for _ in range(15):
        schedule.step()
        longer.step()
        assert opt.param_groups[0]["lr"] == other.param_groups[0]["lr"]
    with pytest.raises(ValueError, match="total_steps=20 steps, all taken"):
        schedule.step()
    for wrong, error in ((0, ValueError), ("x", TypeError)):
        with pytest.raises(error, match="total_steps must be"):
            schedule.total_steps = wrong
    assert schedule.total_steps == 20
