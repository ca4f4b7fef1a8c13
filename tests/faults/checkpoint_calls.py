"""Valid arguments of the public callables of `checkpoint`."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from compressrs import checkpoint
from tests.faults.calls import st
from tests.faults.optim_calls import Arguments, Method, w


@functools.cache
def plain() -> Path:
    path = Path(tempfile.mkdtemp()) / "plain.safetensors"
    save_file({"a.weight": np.tile(w(), (20, 1)).astype(np.float32)}, path)
    return path


@functools.cache
def small() -> Path:
    path = plain().parent / "small.safetensors"
    recipe = checkpoint.Recipe(checkpoint.Rule("int8"))
    checkpoint.compress(plain(), path, recipe)
    return path


def new(name: str = "out.safetensors") -> Path:
    return Path(tempfile.mkdtemp()) / name


def opened() -> Any:
    return checkpoint.open(small())


CALLS: dict[str, Arguments] = {
    "checkpoint.Rule": lambda: dict(
        quantize="int4",
        group_size=8,
        method="rtn",
        entries=16,
        prune=0.5,
        pattern=None,
        dtype="float16",
    ),
    "checkpoint.Recipe": lambda: dict(
        default=checkpoint.Rule(), rules=[("a", checkpoint.Rule())], ignore=["b"], calibration=None
    ),
    "checkpoint.compress": lambda: dict(
        src=plain(),
        dst=new("folder"),
        recipe=checkpoint.Recipe(checkpoint.Rule("int8", method="awq")),
        calibration={"a": st()},
        memory_limit=10**9,
        max_shard_size=10**9,
        dry_run=False,
        resume=False,
        progress=None,
        executor=None,
    ),
    "checkpoint.decompress": lambda: dict(src=small(), dst=new(), progress=None),
    "checkpoint.export": lambda: dict(src=small(), dst=new(), to="npz", progress=None),
    "checkpoint.verify": lambda: dict(path=small(), progress=None),
    "checkpoint.info": lambda: dict(path=small()),
    "checkpoint.diff": lambda: dict(a=small(), b=plain()),
    "checkpoint.open": lambda: dict(path=small(), mapped=False, verify=True),
    "checkpoint.Checkpoint": lambda: dict(path=small(), mapped=False, verify=True),
}

METHODS: dict[str, Method] = {
    "Recipe.rule": (checkpoint.Recipe, "rule", lambda: dict(name="a", ndim=2)),
    "Recipe.from_toml": (checkpoint.Recipe, "from_toml", lambda: dict(text="ignore = []")),
    "Recipe.with_rule": (checkpoint.Recipe, "with_rule", lambda: dict(assignment="a=int8")),
    "Rule.from_text": (checkpoint.Rule, "from_text", lambda: dict(text="int8")),
    "Checkpoint.rows": (opened, "rows", lambda: dict(name="a.weight", start=0, stop=3)),
    "Checkpoint.linear": (opened, "linear", lambda: dict(name="a")),
    "Checkpoint.quantized": (opened, "quantized", lambda: dict(name="a.weight")),
    "Checkpoint.input_scale": (opened, "input_scale", lambda: dict(name="a.weight")),
    "Checkpoint.csr": (opened, "csr", lambda: dict(name="a.weight")),
}

#: What functions return.
LEFT_OUT = {"checkpoint.Report", "checkpoint.ExportReport"}
