"""What only converts to a number is refused as a hyperparameter, by every rule."""

import inspect

import numpy as np
import pytest

import compressrs as cr
from compressrs import _core

RULES = {
    name: rule
    for name, rule in vars(cr.optim).items()
    if isinstance(rule, type) and issubclass(rule, cr.optim.Optimizer) and hasattr(rule, "_rule")
}


def wrong(default):
    """Values of the right length that are not numbers."""
    if not isinstance(default, tuple):
        return [True, np.True_, np.array(True), {0.5: 1}, {0.5}, iter([0.5])]
    pairs = dict.fromkeys(np.linspace(0.5, 0.9, len(default)), 1)
    return [pairs, set(pairs), iter(pairs), (x for x in pairs), (True, *default[1:]),
            [*default[:-1], np.True_]]  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_what_is_no_number_is_refused(name):
    rule = RULES[name]
    w = np.ones((4, 4), np.float32)
    defaults = _core.rules()[rule._rule]
    names = inspect.signature(rule).parameters.keys() & defaults.keys()
    numeric = {n for n in names if not isinstance(defaults[n], (bool, str))}
    assert "lr" in numeric
    opt = rule(w)
    before = dict(opt.param_groups[0])
    for key in numeric:
        for value in wrong(defaults[key]):
            with pytest.raises(TypeError, match=key):
                rule(w, **{key: value})
            with pytest.raises(TypeError, match=key):
                rule([{"params": w, key: value}])
            with pytest.raises(TypeError, match=key):
                opt.param_groups[0][key] = value
    state = opt.state_dict()
    state["param_groups"][0]["lr"] = True
    with pytest.raises(ValueError, match="lr must be a number, got bool"):
        opt.load_state_dict(state)
    assert opt.param_groups[0] == before
    # Numbers of NumPy, and lists of them, are taken.
    for key in numeric - {"eps"}:
        if isinstance(defaults[key], tuple):
            rule(w, **{key: list(map(np.float64, defaults[key]))})
    rule(w, lr=np.float32(0.01))
