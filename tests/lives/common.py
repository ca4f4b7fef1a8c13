"""What the state machines share: profiles, digests, and calls in a forked child."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine

import compressrs as cr

_ALL = dict(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
#: The same examples in every run.
QUICK = settings(
    **_ALL,  # type: ignore[arg-type]
    derandomize=True,
    database=None,
    max_examples=25,
    stateful_step_count=16,
    phases=(Phase.explicit, Phase.generate),
)
#: Others in every run; ``COMPRESSRS_LIVES`` is how many.
LONG = settings(
    **_ALL,  # type: ignore[arg-type]
    derandomize=False,
    max_examples=int(os.environ.get("COMPRESSRS_LIVES", "300")),
    stateful_step_count=50,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
both_profiles = pytest.mark.parametrize(
    "profile",
    [pytest.param(QUICK, id="quick"), pytest.param(LONG, id="long", marks=pytest.mark.slow)],
)

seeds = st.integers(0, 2**32 - 1)
threads = st.integers(1, 4)


class Life(RuleBasedStateMachine):
    """A state machine with a folder, which leaves the number of threads as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.threads = cr.get_num_threads()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "life.safetensors"

    def teardown(self) -> None:
        cr.set_num_threads(self.threads)
        self.folder.cleanup()


def bits(value: Any) -> Any:
    """Return a value with its arrays replaced by dtype, shape and bytes, to be compared by ==."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return repr(value)


def same(a: Any, b: Any, where: str = "") -> None:
    """Require that two values have the same bits, and say where they differ."""
    if bits(a) == bits(b):
        return
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        for key in a:
            same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            same(one, other, f"{where}[{i}]")
    else:
        raise AssertionError(f"{where} differs: {a!r} and {b!r}")


def digest(value: Any) -> str:
    """Return a digest of a value of arrays, dicts, lists and numbers."""
    return hashlib.sha256(repr(bits(value)).encode()).hexdigest()


def in_fork(call: Callable[[], str]) -> str:
    """Return what a call returns in a forked child; an exception there is one here."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            try:
                said = call()
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writing, said.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    return said


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def refused(call: Callable[[], Any], state: Callable[[], Any]) -> None:
    """Require that a call raises an error for the user, and that it changes nothing."""
    before = copy.deepcopy(state())
    with pytest.raises((TypeError, ValueError)):
        call()
    same(state(), before)
