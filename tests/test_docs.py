"""Every example in a docstring runs, and every public name has a docstring."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

import compressrs

MODULES = [compressrs.__name__] + [
    m.name
    for m in pkgutil.walk_packages(compressrs.__path__, "compressrs.")
    if "_core" not in m.name
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    with np.printoptions(legacy=False):
        results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_public_names_are_documented():
    undocumented = [
        f"{module}.{name}"
        for module in MODULES
        for name, value in vars(importlib.import_module(module)).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module
        and not (value.__doc__ or "").strip()
    ]
    assert undocumented == []
