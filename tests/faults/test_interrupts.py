"""Ctrl-C at any place of what changes weights for a while and puts them back."""

import contextlib
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import compressrs as cr
from compressrs._state import restoring, uninterrupted

WHERE = (str(Path(cr.__file__).parent), contextlib.__file__)


@pytest.fixture(autouse=True)
def handled():
    """Jobs that a shell starts in the background ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupter:
    """Sends the process SIGINT at the `at`-th place where Python calls signal handlers.

    These are the beginnings of functions and the ends of calls, which a profiler is told of.
    """

    def __init__(self, at):
        self.at, self.passed = at, 0

    def __call__(self, frame, event, arg):
        if event == "c_call" or not frame.f_code.co_filename.startswith(WHERE):
            return
        self.passed += 1
        if self.passed == self.at:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)


def interrupted(call, at):
    """Whether `call` was interrupted at its `at`-th place; None if it has fewer."""
    profile = Interrupter(at)
    before = sys.getprofile()
    try:
        sys.setprofile(profile)
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(before)
    return False if profile.passed >= at else None


def parameters():
    return [np.ones(3), np.full((2, 2), 2.0), np.full(1, 3.0)]


def of_sam():
    params = parameters()
    optimizer = cr.optim.SGD(params, lr=0.5)
    sam = cr.optim.SAM(optimizer, rho=0.1)
    stepped = [w - 0.5 for w in parameters()]
    return (
        lambda: sam.step(lambda: (1.0, [np.ones_like(w) for w in params])),
        lambda: params,
        [parameters(), stepped],
    )


def of_ema():
    params = parameters()
    ema = cr.optim.SWA(params)
    for w in params:
        w += 4

    def call():
        with ema.applied():
            assert params[0][0] == 1

    return call, lambda: params, [[w + 4 for w in parameters()]]


def of_range_test():
    params = parameters()
    optimizer = cr.optim.Momentum(params, lr=0.25)

    def train():
        optimizer.step([w * 2 for w in params])
        return float(sum((w * w).sum() for w in params))

    state = lambda: [*params, optimizer.param_groups[0]["lr"]]  # noqa: E731
    return (
        lambda: cr.optim.lr_range_test(optimizer, train, 0.01, 0.02, steps=2),
        state,
        [[*parameters(), 0.25]],
    )


def of_sensitivity():
    params = {"a": np.ones(4), "b": np.arange(4.0)}
    before = [w.copy() for w in params.values()]
    return (
        lambda: cr.prune.sensitivity(params, lambda: 1.0, [0.5]),
        lambda: [*params.values()],
        [before],
    )


def of_batch_norm():
    model = cr.nn.Sequential(cr.nn.BatchNorm(2), cr.nn.Dropout(0.5, rng=0))
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    model.eval()
    model(x)

    def state():
        return [model[0].training, model[1].training, model[0].momentum, model[1].buffers["calls"]]

    return lambda: cr.nn.update_batch_norm(model, [x]), state, [[False, False, 0.1, 0]]


def same(found, expected):
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "make", [of_sam, of_ema, of_range_test, of_sensitivity, of_batch_norm], ids=lambda f: f.__name__
)
@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(),
    reason="signals reach the main thread",
)
def test_an_interrupt_leaves_nothing_half_changed(make):
    make()[0]()  # what is imported at the first call
    at, hits = 1, 0
    while True:
        call, state, allowed = make()
        outcome = interrupted(call, at)
        if outcome is None:
            break
        hits += outcome
        assert any(same(state(), one) for one in allowed), f"at place {at}"
        at += 1
    assert hits > 20


def test_uninterrupted_blocks_raise_afterwards():
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_handlers_are_called_afterwards_or_left_alone():
    calls = []
    before = signal.signal(signal.SIGINT, lambda *args: calls.append(args[0]))
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert calls == []
        assert calls == [signal.SIGINT]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_restore_without_touching_signals():
    x = np.zeros(3)

    def run():
        with restoring() as undo:
            undo.write(x, np.ones(3))
            seen.append(x.copy())

    seen = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen[0].tolist() == [1, 1, 1]
    assert x.tolist() == [0, 0, 0]
