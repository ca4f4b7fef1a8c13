"""The scripts in examples/ run as they are, and what they claim holds."""

import importlib
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"

#: What each needs besides the tests' own packages.
NEEDED = {
    "basin_hopping": ("scipy",),
    "cma_es": ("cmaes",),
    "jax_loop": ("jax",),
    "onnx_file": ("onnx", "onnxruntime"),
    "sklearn_mlp": (),
    "torch_cnn": ("torch",),
}


def test_every_script_is_known_and_listed():
    scripts = {path.stem for path in FOLDER.glob("*.py")}
    assert scripts == set(NEEDED)
    overview = (FOLDER / "README.md").read_text()
    assert all(f"[{name}.py]({name}.py)" in overview for name in scripts)


@pytest.mark.parametrize("name", NEEDED)
def test_scripts(name):
    for package in NEEDED[name]:
        pytest.importorskip(package, reason=f"examples/{name}.py needs {package}")
    if "torch" in NEEDED[name]:
        # Its threads would wait for each other where other tests run.
        importlib.import_module("torch").set_num_threads(1)
    runpy.run_path(str(FOLDER / f"{name}.py"))["main"]()
