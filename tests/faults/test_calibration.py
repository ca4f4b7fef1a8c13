"""Calibration inputs whose squares overflow: refused, and no endless loop."""

import subprocess
import sys

import numpy as np
import pytest

from compressrs import prune, quantize


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("value", [1e200, 1.7e308, np.inf, np.nan])
def test_statistics_refuse_inputs_that_overflow(gram, value):
    statistics = prune.InputStatistics(4, gram=gram)
    statistics.update(np.eye(4))
    before = statistics._sums.copy()
    with pytest.raises(ValueError, match="x must"):
        statistics.update(np.full((3, 4), value))
    assert statistics.count == 4
    np.testing.assert_array_equal(statistics._sums, before)
    # Each batch is in range, but not their sum.
    half = np.full((1, 4), np.sqrt(0.6 * np.finfo(float).max))
    statistics = prune.InputStatistics(4, gram=gram)
    statistics.update(half)
    with pytest.raises(ValueError, match="x must"):
        statistics.update(half)
    assert statistics.count == 1


SOLVERS = {
    "sparsegpt": "prune.sparsegpt(w, statistics, 0.5)",
    "gptq": "quantize.gptq(w, statistics, scheme)",
    "prune_and_quantize": "quantize.prune_and_quantize(w, statistics, scheme, 0.5)",
    "adaround": "quantize.adaround(w, statistics, scheme, steps=2)",
    "awq": "quantize.awq(w, statistics, scheme)",
}


def test_every_function_of_statistics_has_a_solver():
    functions = {
        name
        for module in (prune, quantize)
        for name in module.__all__
        if "statistics" in getattr(getattr(module, name), "__annotations__", {})
        and not isinstance(getattr(module, name), type)
    }
    # What writes statistics solves nothing.
    assert functions - {"save_statistics"} == set(SOLVERS)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("value", ["inf", "nan", "-1.0"])
def test_broken_gram_matrices_are_refused(name, value):
    """In a process of its own, which can be ended where it loops."""
    code = f"""
import numpy as np
from compressrs import prune, quantize
scheme = quantize.Scheme(bits=4)
w = np.random.default_rng(0).standard_normal((4, 8))
before = w.copy()
statistics = prune.InputStatistics(8, gram=True)
statistics.update(np.random.default_rng(1).standard_normal((32, 8)))
statistics._sums[...] = {value.replace("inf", "np.inf").replace("nan", "np.nan")}
try:
    {SOLVERS[name]}
except ValueError as error:
    assert "statistics" in str(error), error
    assert (w == before).all()
    print("refused")
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout == "refused\n"
