"""Every rule of the core has a class with the same defaults, a page and a reference."""

import inspect
from pathlib import Path

import pytest

from compressrs import _core, optim

PAGES = Path(__file__).parents[2] / "docs" / "optimizers"

CLASSES = [
    value
    for value in vars(optim).values()
    if inspect.isclass(value) and issubclass(value, optim.Optimizer) and hasattr(value, "_rule")
]
RULES = _core.rules()


def test_every_rule_has_a_class():
    assert {c._rule for c in CLASSES} == set(RULES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_the_class_takes_the_hyperparameters_of_its_rule(cls):
    names = [n for n in inspect.signature(cls).parameters if n not in ("params", "storage")]
    assert set(names) | set(cls._fixed) == set(RULES[cls._rule])


@pytest.mark.parametrize("rule", RULES)
def test_defaults_are_those_of_the_core(rule):
    # AdamW uses Adam's rule with another default.
    cls = next(c for c in CLASSES if c._rule == rule and not c._fixed)
    for name, parameter in inspect.signature(cls).parameters.items():
        if name in ("params", "storage"):
            continue
        default = RULES[rule][name]
        if name == "adjust_lr_fn":
            assert (parameter.default, default) == (None, "original")
        else:
            assert parameter.default == default, name


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_class_has_a_page_and_a_reference(cls):
    from tests.reference import optim as reference

    assert (PAGES / f"{cls.__name__.lower()}.md").exists()
    assert hasattr(reference, cls._rule)
