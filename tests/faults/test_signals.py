"""Signal handlers that save or change an object that the main thread is using."""

import copy
import inspect
import os
import signal
import threading
import time

import numpy as np
import pytest

import compressrs as cr
from compressrs.optim._guard import Guarded

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="timers of POSIX")

PUBLIC = {
    name: value
    for package in (cr.optim, cr.prune, cr.distill, cr.nn, cr.sparse)
    for name in package.__all__
    if inspect.isclass(value := getattr(package, name))
}
#: Classes with a lock.
GUARDED = sorted(
    name for name, value in PUBLIC.items() if issubclass(value, Guarded) and name != "Optimizer"
)


def make(name, w):
    if name == "Lookahead":
        return cr.optim.Lookahead(cr.optim.SGD(w, lr=1.0), k=2)
    if name == "ScheduleFree":
        return cr.optim.ScheduleFree(w, lambda z: cr.optim.SGD(z, lr=1.0))
    if name == "SAM":
        return cr.optim.SAM(cr.optim.SGD(w, lr=1.0))
    return PUBLIC[name](w)


def step(opt, grad):
    """Take a step, with a closure where one is wanted."""
    if isinstance(opt, (cr.optim.SAM, cr.optim.LBFGS)):
        return opt.step(lambda: (1.0, grad))
    return opt.step(grad)


def test_no_other_class_has_a_lock():
    for name, value in PUBLIC.items():
        if issubclass(value, Exception):
            continue  # the core's has no source
        if "Lock(" in inspect.getsource(value):
            assert name in GUARDED, name
    assert len(GUARDED) > 15


@pytest.mark.parametrize("name", GUARDED)
def test_a_handler_in_the_middle_of_a_step(name):
    """A handler that saves never deadlocks, at whatever moment of a step it runs."""
    w = np.zeros((64, 8))
    opt = make(name, w)
    grad = np.ones_like(w)
    saved, refused = [], []

    def handler(*_):
        for use, seen in ((opt.state_dict, saved), (lambda: step(opt, grad), [])):
            try:
                seen.append(copy.deepcopy(use()))
            except RuntimeError as error:
                refused.append(str(error))

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)
    try:
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            try:
                step(opt, grad)
            except RuntimeError as error:
                refused.append(str(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert all("cannot be called during" in message for message in refused)
    assert saved or refused
    step(opt, grad)
    # From another thread the lock is free.
    thread = threading.Thread(target=opt.state_dict, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("name", [n for n in GUARDED if issubclass(PUBLIC[n], cr.optim.Optimizer)])
def test_a_call_from_within_a_step(name, tmp_path):
    """A gradient that runs code when its view is taken simulates a handler."""
    pytest.importorskip("safetensors")
    w = np.zeros((4, 2))
    opt = make(name, w)
    outcomes = {}

    class Gradient:
        dtype = "float64"

        def detach(self):
            for key, use in {
                "state_dict": opt.state_dict,
                "save": lambda: opt.save(tmp_path / "a"),
                "load": lambda: opt.load(tmp_path / "a"),
                "step": lambda: opt.step(np.ones((4, 2))),
                "set_masks": lambda: opt.set_masks(None),
                "add_param_group": lambda: opt.add_param_group({"params": np.zeros(2)}),
                "convert_state": lambda: opt.convert_state("bfloat16"),
                "load_state_dict": lambda: opt.load_state_dict(opt.state_dict()),
            }.items():
                try:
                    use()
                    outcomes[key] = "done"
                except RuntimeError as error:
                    outcomes[key] = str(error)
            return np.ones((4, 2))

    opt.step(Gradient())
    assert {key for key, value in outcomes.items() if value == "done"} == {"state_dict", "save"}
    assert len(outcomes) == 8
    opt.load(tmp_path / "a")
    assert int(opt.state[0]["step"]) == 0
    assert os.listdir(tmp_path) == ["a"]


def test_a_long_loss_is_interrupted_and_leaves_its_output():
    """Cubic in the samples: without a check it would run for many minutes."""
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, 2500, 16))
    out = np.full(student.shape, 7.0)

    def handler(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        # Large ones are brought into range first, and the gradient back.
        with pytest.raises(KeyboardInterrupt):
            cr.distill.rkd_angle_loss(student * 1e200, teacher, out=out)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (out == 7).all()
