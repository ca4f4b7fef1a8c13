"""Modules that `import compressrs` loads, and those that are imported on first use."""

import subprocess
import sys

import pytest

import compressrs as cr


def loaded(code):
    program = (
        f"import numpy, sys; before = set(sys.modules); {code}; print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_import_loads_no_subpackage_and_no_other_package():
    new = loaded("import compressrs")
    assert {m for m in new if m.startswith("compressrs")} == {
        "compressrs",
        "compressrs._core",
        "compressrs._startup",
        "compressrs._threads",
    }
    # threadpoolctl, if installed, is imported to register the thread pool.
    others = {m.partition(".")[0] for m in new} - {"compressrs", "threadpoolctl"}
    assert not others - sys.stdlib_module_names


@pytest.mark.parametrize("name", cr.__all__)
def test_every_public_name_is_there_after_the_import(name):
    loaded(f"import compressrs; compressrs.{name}")
    assert name in dir(cr)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = cr.no_such_name
