"""Every function of ``compressrs._core`` that takes arrays, with arguments to call it with.

`check_complete` compares the table with the module, so that a function or an argument that
is added to it must be added here, and goes through all tests of this folder.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressrs import _core

#: Take no arrays, or look at none of their elements.
WITHOUT_ARRAYS = {
    "address",
    "conv2d_shape",
    "get_num_threads",
    "peak_dot_products",
    "peak_multiply_adds",
    "pool_shape",
    "rule_is_elementwise",
    "rule_scalars",
    "rule_types",
    "rules",
    "set_num_threads",
    "shutdown",
    "simd_level",
    "simd_levels",
}

#: Methods by their class; what is not listed takes no arrays and looks at none.
METHODS = {
    "Sparse": {"check", "locate", "matmul", "sddmm", "share", "to_dense", "transpose"},
    "Factor": {"of", "inverse", "pivots"},
    "Stepper": {"step"},
    "Checksum": {"digest", "update"},
    "PackedWeights": {"codes", "linear", "scale", "zero_point"},
}

Path = tuple[str | int, ...]


@dataclass
class Case:
    """A call: `run` takes the arguments by name."""

    name: str
    run: Callable[..., Any]
    arguments: dict[str, Any]
    #: Names of the arguments that are written to.
    written: tuple[str, ...] = ()
    #: Names of parameters of the function that `run` fills in itself.
    fixed: tuple[str, ...] = ()

    @property
    def function(self) -> str:
        return self.name.partition("[")[0]

    def leaves(self) -> Iterator[tuple[Path, np.ndarray]]:
        """Yield where each array is among the arguments, and the array."""
        yield from _leaves(self.arguments, ())

    def outputs(self) -> list[tuple[Path, np.ndarray]]:
        return [(path, array) for path, array in self.leaves() if path[0] in self.written]

    def replaced(self, arrays: dict[Path, np.ndarray]) -> Case:
        """Return the case with copies of all arrays, but those that are given."""
        arguments = _replaced(self.arguments, (), arrays)
        return Case(self.name, self.run, arguments, self.written, self.fixed)

    def __call__(self) -> Any:
        return self.run(**self.arguments)


def _leaves(tree: Any, path: Path) -> Iterator[tuple[Path, np.ndarray]]:
    if isinstance(tree, np.ndarray):
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield from _leaves(value, (*path, i))


def _replaced(tree: Any, path: Path, arrays: dict[Path, np.ndarray]) -> Any:
    if isinstance(tree, np.ndarray):
        return arrays[path] if path in arrays else tree.copy()
    if isinstance(tree, dict):
        return {key: _replaced(value, (*path, key), arrays) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_replaced(value, (*path, i), arrays) for i, value in enumerate(tree))
    return tree


def cases(size: int) -> list[Case]:
    """Return the table, for matrices of 8 times `size` rows and columns."""
    from tests.faults import nn_kernels

    families = (
        _distill,
        _around_the_step,
        _steps,
        _prune,
        _sparse,
        _sparse_codes,
        _codec,
        _quantized,
        _codes,
        nn_kernels.cases,
    )
    return [case for family in families for case in family(size)]


def _numbers(*shape: int, dtype: Any = np.float64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def _distill(size: int) -> Iterator[Case]:
    n = 8 * size
    z, t = _numbers(n, n), _numbers(n, n, seed=1)
    each = np.linspace(1.0, 2.0, n)
    out = {"out": np.empty((n, n))}
    for dtype in (np.float64, np.float16):
        named = f"[{np.dtype(dtype)}]"
        half = {"z": z.astype(dtype), "temperature": each, "axis": 1}
        yield Case(
            f"softmax{named}",
            _core.softmax,
            {**half, "log": False, "out": np.empty((n, n), dtype)},
            ("out",),
        )
        yield Case(
            f"logsumexp{named}", _core.logsumexp, {**half, "out": np.empty(n, dtype)}, ("out",)
        )
        yield Case(
            f"top_k{named}",
            _core.top_k,
            {
                "z": z.astype(dtype),
                "temperature": 2.0,
                "chosen": np.empty((n, 3), np.int32),
                "rest": np.empty(n),
            },
            ("chosen", "rest"),
        )
    p = np.full((n, n), 1 / n)
    top = (
        _numbers(2 * n),
        np.tile(np.array([1, 3], np.int32), n),
        np.arange(0, 2 * n + 1, 2),
        np.zeros(n),
    )
    teachers = {"logits": t, "probabilities": p, "ensemble": [t, _numbers(n, n)], "top_k": top}
    for kind, teacher in teachers.items():
        yield Case(
            f"kd_loss[{kind}]",
            _core.kd_loss,
            {
                "student": z,
                "kind": kind,
                "teacher": teacher,
                "temperature": each,
                "divergence": "forward_kl",
                "decoupled": (1.0, 1.0),
                "standardize": False,
                "alpha": 0.5,
                "labels": np.arange(n),
                "ignore_index": -1,
                "label_smoothing": 0.1,
                "class_weight": np.ones(n),
                "sample_weight": np.ones(n),
                "mean": True,
                "losses": np.empty(n),
                "grad": np.empty((n, n)),
            },
            ("losses", "grad"),
        )
    pair = {"student": z, "teacher": t, "grad": out["out"]}
    dist = {"temperature": 2.0, "beta": 1.0, "gamma": 1.0}
    yield Case("dist_loss", _core.dist_loss, {**pair, **dist}, ("grad",))
    yield Case("hint_loss", _core.hint_loss, pair, ("grad",))
    for angles in (False, True):
        few = {name: x[: 16 if angles else 192] for name, x in pair.items()}
        yield Case(f"rkd_loss[{angles}]", _core.rkd_loss, {**few, "angles": angles}, ("grad",))
    maps = {name: x.reshape(2, n // 2, n) for name, x in pair.items()}
    yield Case("attention_loss", _core.attention_loss, maps, ("grad",))


def _around_the_step(size: int) -> Iterator[Case]:
    n = 64 * size * size
    two = [_numbers(n, dtype=np.float32), _numbers(3)]
    other = [_numbers(n, dtype=np.float16, seed=1), _numbers(3, seed=1)]
    names, others = ["a", "b"], ["c", "d"]
    yield Case(
        "lerp",
        _core.lerp,
        {"targets": two, "names": names, "ends": other, "end_names": others, "weight": 0.1},
        ("targets",),
    )
    yield Case(
        "accumulate",
        _core.accumulate,
        {"sums": two, "names": names, "x": other, "x_names": others, "weight": 0.1},
        ("sums",),
    )
    each = {"arrays": two, "names": names}
    yield Case("norm", _core.norm, {**each, "order": 2.0, "max_norm": 1.0})
    yield Case("scale", _core.scale, {**each, "factor": 0.5}, ("arrays",))
    yield Case("clamp", _core.clamp, {**each, "limit": 0.5}, ("arrays",))
    codes = {
        "codes": np.zeros(n, np.int8),
        "scales": np.zeros(-(-n // _core.CODE_BLOCK), np.float32),
    }
    x = {"x": _numbers(n, dtype=np.float32), "name": "state"}
    written = ("x", "codes", "scales")
    yield Case("encode_state", _core.encode_state, {**codes, **x}, written)
    yield Case("decode_state", _core.decode_state, {**codes, **x}, written)


#: Hyperparameters of the rules that a step is tried with.
_RULES: dict[str, dict[str, Any]] = {
    "adam": {
        "lr": 0.1,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "amsgrad": False,
        "decoupled_weight_decay": False,
        "cautious": False,
        "maximize": False,
    },
    "adafactor": {
        "lr": 0.1,
        "beta2_decay": -0.8,
        "eps": (None, 1e-3),
        "d": 1.0,
        "weight_decay": 0.0,
        "beta1": 0.9,
        "maximize": False,
    },
    "muon": {
        "lr": 0.1,
        "weight_decay": 0.0,
        "momentum": 0.9,
        "nesterov": True,
        "ns_coefficients": (3.4445, -4.775, 2.0315),
        "eps": 1e-7,
        "ns_steps": 2,
        "adjust_lr_fn": None,
        "maximize": False,
    },
    "shampoo": {
        "lr": 0.1,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "matrix_eps": 1e-12,
        "precondition_frequency": 1,
        "block_size": 5,
        "grafting": None,
        "maximize": False,
    },
    "soap": {
        "lr": 0.1,
        "betas": (0.9, 0.99),
        "shampoo_beta": None,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "precondition_frequency": 1,
        "block_size": 5,
        "maximize": False,
    },
}


def _steps(size: int) -> Iterator[Case]:
    n = 8 * size
    for kind, rule in _RULES.items():
        for dtype, precision in (("float64", "nearest"), ("float16", "master")):
            group = {
                **rule,
                "state_dtype": "float32",
                "precision": precision,
                "seed": 0,
                "frozen": False,
            }
            first = _numbers(n, n, dtype=dtype)
            arrays = [first, _numbers(4, 4, dtype="float32")]
            params = [
                {
                    "param": param,
                    "state": [
                        np.full(shape, initial, dtype)
                        for _, shape, dtype, initial in _core.rule_buffers(kind, group, param, "p")
                    ],
                    "mask": np.full(-(-param.size // 8), 255, np.uint8),
                }
                for param in arrays
            ]
            yield Case(
                f"Stepper.step[{kind},{dtype}]",
                _step(kind, group),
                {
                    "params": params,
                    "steps": np.zeros(2, np.int64),
                    "scalars": np.zeros((2, _core.MAX_SCALARS)),
                    "grads": [_numbers(n, n, dtype=np.float16), _numbers(4, 4, dtype="float32")],
                },
                ("params", "steps", "scalars"),
                ("groups", "max_grad_norm", "grad_scale", "nonfinite", "dry"),
            )
    yield Case(
        "rule_buffers",
        _core.rule_buffers,
        {"kind": kind, "group": group, "param": np.zeros((3, 3)), "name": "p", "elements": 9},
    )
    x = _numbers(n, n)
    bits = np.full(-(-x.size // 8), 85, np.uint8)
    yield Case(
        "partial_norms", _core.partial_norms, {"x": x, "name": "x", "mask": bits, "unit": 1.0}
    )
    yield Case(
        "gradient_scale",
        _core.gradient_scale,
        {
            "partials": lambda unit: [[1.0, 2.0]],
            "paths": ["x"],
            "params": [x],
            "max_grad_norm": 1.0,
            "grad_scale": 1.0,
            "nonfinite": "raise",
        },
    )


def _step(kind: str, group: dict[str, Any]) -> Callable[..., Any]:
    def run(params: list[Any], steps: np.ndarray, scalars: np.ndarray, grads: list[Any]) -> Any:
        slots = [(f"[{i}]", p["param"], p["state"], p["mask"], 0) for i, p in enumerate(params)]
        stepper = _core.Stepper(kind, slots, [group], steps, scalars)
        return stepper.step(grads, [group], 1.0, 1.0, "raise")

    return run


def _prune(size: int) -> Iterator[Case]:
    n = 8 * size
    w, other = _numbers(n, n), _numbers(n, n, seed=1)
    mask = {"mask": np.empty((n, n), np.bool_)}
    one = {"w": w, "name": "w"}
    yield Case(
        "magnitude_threshold",
        _core.magnitude_threshold,
        {"arrays": [w, other], "names": ["a", "b"], "k": n},
    )
    yield Case(
        "mask_smallest",
        _core.mask_smallest,
        {
            "arrays": [w, other],
            "names": ["a", "b"],
            "k": n,
            "by_value": False,
            "masks": [mask["mask"], mask["mask"].copy()],
        },
        ("masks",),
    )
    written = ("mask",)
    yield Case("mask_below", _core.mask_below, {"w": w, "threshold": 0.5, **mask}, written)
    yield Case("mask_rows", _core.mask_rows, {**one, "k": 3, "by_value": True, **mask}, written)
    n_of_m = {"n": 2, "m": 4, "by_value": False}
    yield Case("mask_n_of_m", _core.mask_n_of_m, {**one, **n_of_m, **mask}, written)
    blocks = np.ones((n // 4, n // 4), np.bool_)
    yield Case(
        "block_norms",
        _core.block_norms,
        {**one, "block": (4, 4), "norm": "2", "out": np.empty(blocks.shape)},
        ("out",),
    )
    yield Case(
        "expand_blocks", _core.expand_blocks, {"blocks": blocks, "block": (4, 4), **mask}, written
    )
    yield Case(
        "accumulate_products",
        _core.accumulate_products,
        {"scores": np.zeros((n, n)), **one, "g": other, "term": "product"},
        ("scores",),
    )
    for name, sums in (("squares", np.zeros(n)), ("gram", np.zeros((n, n)))):
        x = {"x": w.astype(np.float32), "sums": sums}
        yield Case(f"accumulate_inputs[{name}]", _core.accumulate_inputs, x, ("sums",))
    yield Case(
        "reconstruct",
        _core.reconstruct,
        {"w": w, "u": np.eye(n).reshape(-1), "target": (n, None), "block": 8, **mask},
        ("w", "mask"),
    )
    yield Case("refuse_nan", _core.refuse_nan, one)
    keep = {"mask": np.ones((n, n), np.bool_)}
    yield Case("apply_mask", _core.apply_mask, {**one, **keep}, ("w",))
    a = {"a": w @ w.T + n * np.eye(n)}
    yield Case("Factor.of", _core.Factor.of, a)
    yield Case("Factor.inverse", lambda a: _core.Factor.of(a).inverse(), a)
    yield Case("Factor.pivots", lambda a: _core.Factor.of(a).pivots(), a)


def _sparse(size: int) -> Iterator[Case]:
    n = 16 * size
    dense = {"w": _numbers(n, n), "threshold": 0.0, "short": False}
    yield Case("csr_from_dense[threshold]", _core.csr_from_dense, {**dense, "mask": None})
    mask = np.arange(n * n).reshape(n, n) % 3 == 0
    yield Case("csr_from_dense[mask]", _core.csr_from_dense, {**dense, "mask": mask})
    for block in ((1, 1), (4, 4), (1, 16), (16, 1)):
        rows, columns = n // block[0], n // block[1]
        indptr = np.arange(rows + 1, dtype=np.int32) * min(2, columns)
        indices = np.tile(np.arange(min(2, columns), dtype=np.int32), rows)
        data = _numbers(*(indices.shape if block == (1, 1) else (len(indices), *block)))
        parts = {"data": data, "indices": indices, "indptr": indptr}
        where = "x".join(map(str, block))

        def make(data: Any, indices: Any, indptr: Any, block: Any = block) -> _core.Sparse:
            return _core.Sparse((data, indices, indptr), (n, n), block)

        def multiply(x: Any, out: Any, bias: Any, make: Any = make, **parts: Any) -> None:
            for transposed in (False, True):
                make(**parts).matmul(transposed, x, out, (False, bias, False))

        def sample(u: Any, v: Any, out: Any, make: Any = make, **parts: Any) -> None:
            make(**parts).sddmm(u, v, out, False)

        x = {"x": _numbers(n, 9), "out": np.empty((n, 9)), "bias": np.ones(n)}
        fixed = ("transposed", "epilogue", "accumulate")
        yield Case(f"Sparse[{where}]", make, parts, (), ("parts", "shape", "block"))
        yield Case(f"Sparse.matmul[{where}]", multiply, {**parts, **x}, ("out",), fixed)
        dense = {"u": _numbers(n, 9), "v": _numbers(9, n), "out": np.empty_like(data)}
        yield Case(f"Sparse.sddmm[{where}]", sample, {**parts, **dense}, ("out",), fixed)
        for method in ("check", "to_dense", "transpose"):
            yield Case(
                f"Sparse.{method}[{where}]",
                lambda make=make, method=method, **parts: getattr(make(**parts), method)(),
                parts,
            )
        yield Case(
            f"Sparse.locate[{where}]",
            lambda make=make, **parts: make(**parts).locate(make(**parts)),
            parts,
            (),
            ("other",),
        )
        yield Case(
            f"Sparse.share[{where}]",
            lambda make=make, **parts: make(**parts).share(make(**parts)),
            parts,
            (),
            ("other",),
        )


def _sparse_codes(size: int) -> Iterator[Case]:
    n = 16 * size
    # Of bytes, which nobody can write to.
    indptr = np.frombuffer((np.arange(n + 1, dtype=np.int32) * 2).tobytes(), np.int32)
    indices = np.frombuffer(np.tile(np.array([1, 5], np.int32), n).tobytes(), np.int32)
    data = np.arange(2 * n, dtype=np.int8) % 50
    for group, groups in ((0, n), (7, -(-2 * n // 7))):

        def make(data: Any, scale: Any, group: int = group) -> _core.Sparse:
            return _core.Sparse((data, indices, indptr), (n, n), (1, 1), (scale, group))

        def multiply(x: Any, out: Any, bias: Any, make: Any = make, **parts: Any) -> None:
            for transposed in (False, True):
                make(**parts).matmul(transposed, x, out, (False, bias, False))

        scaled = {"data": data, "scale": np.ones(groups, np.float32)}
        x = {"x": _numbers(n, 9), "out": np.empty((n, 9)), "bias": np.ones(n)}
        x = {name: array.astype(np.float32) for name, array in x.items()}
        yield Case(f"Sparse[codes {group}]", make, scaled, (), ("parts", "shape", "block"))
        fixed = ("transposed", "epilogue")
        yield Case(f"Sparse.matmul[codes {group}]", multiply, {**scaled, **x}, ("out",), fixed)


def _codec(size: int) -> Iterator[Case]:
    data = np.arange(1024 * size, dtype=np.uint8) % 7
    planes = {"width": 4, "rotate": True}
    yield Case("encode_planes", _core.encode_planes, {"data": data, **planes})
    stream = np.frombuffer(_core.encode_planes(data, **planes), np.uint8).copy()
    out = {"out": np.empty_like(data)}
    yield Case("decode_planes", _core.decode_planes, {"stream": stream, **planes, **out}, ("out",))
    for gaps in (False, True):
        yield Case(f"split_positions[{gaps}]", _core.split_positions, {"x": data, "gaps": gaps})
        parts = zip(("places", "values"), _core.split_positions(data, gaps), strict=True)
        arrays = {name: np.frombuffer(part, np.uint8).copy() for name, part in parts}
        yield Case(
            f"merge_positions[{gaps}]",
            _core.merge_positions,
            {**arrays, "gaps": gaps, **out},
            ("out",),
        )

    def checksum(data: np.ndarray) -> int:
        state = _core.Checksum()
        state.update(data)
        return state.digest()

    for method in ("update", "digest"):
        yield Case(f"Checksum.{method}", checksum, {"data": data})


def _quantized(size: int) -> Iterator[Case]:
    n = 8 * size
    codes = (np.arange(n * n).reshape(n, n) % 15 - 7).astype(np.int8)
    weights = {
        "codes": codes,
        "zero_point": np.zeros((n, n // 8), np.int8),
        "scale": np.full((n, n // 8), 0.1, np.float32),
    }

    def pack(codes: Any, zero_point: Any, scale: Any) -> _core.PackedWeights:
        return _core.PackedWeights((codes, zero_point, None), scale, 4, 8)

    yield Case("PackedWeights", pack, weights)
    for method in ("codes", "scale", "zero_point"):
        yield Case(
            f"PackedWeights.{method}",
            lambda method=method, **weights: getattr(pack(**weights), method)(),
            weights,
        )
    bias = {"bias": np.ones(n, np.float32)}
    x, out = _numbers(n, n, dtype=np.float32), np.empty((n, n), np.float32)
    inputs: dict[str, dict[str, Any]] = {
        "numbers": {"x": x, "input_scale": None, "out": out, "requantize": None},
        "codes": {
            "x": codes.copy(),
            "input_scale": np.ones(n, np.float32),
            "out": np.empty((n, n), np.int8),
            "requantize": (1.0, 0),
        },
    }
    for name, given in inputs.items():

        def linear(
            x: Any, input_scale: Any, bias: Any, out: Any, requantize: Any, **weights: Any
        ) -> None:
            pack(**weights).linear(x, True, input_scale, bias, "relu", out, requantize)

        fixed = ("codes", "activation")
        yield Case(
            f"PackedWeights.linear[{name}]", linear, {**weights, **given, **bias}, ("out",), fixed
        )
    yield Case(
        "matmul_integer",
        _core.matmul_integer,
        {"a": codes, "b": codes.copy(), "out": np.empty((n, n), np.int32)},
        ("out",),
    )


def _codes(size: int) -> Iterator[Case]:
    n, across = 16 * size, 2 * size
    x = _numbers(n, n, dtype=np.float32)
    block, kind = (1, 8), ("int", 4, False, None)
    scale, zero = np.full((n, across), 0.2, np.float32), np.zeros((n, across), np.uint8)
    codes = (np.arange(n * n).reshape(n, n) % 8).astype(np.uint8)
    levels = np.sort(_numbers(n * across, 4, dtype=np.float32), axis=1)
    of_blocks = {"scale": scale, "zero": zero}
    one = {"x": x, "name": "w", "block": block}
    ranges = {"low": scale.copy(), "high": scale.copy()}
    yield Case("block_ranges", _core.block_ranges, {**one, **ranges}, ("low", "high"))
    fixed = ("name", "block", "kind", "own_range")
    yield Case(
        "scales",
        _core.scales,
        {"low": -scale, "high": scale.copy(), "kind": kind, **of_blocks},
        ("scale", "zero"),
        fixed,
    )
    for own_range in (True, False):
        yield Case(
            f"quantize[{own_range}]",
            _core.quantize,
            {**one, "kind": kind, "own_range": own_range, **of_blocks, "codes": codes.copy()},
            ("scale", "zero", "codes") if own_range else ("codes",),
            fixed,
        )
    for name, of in (("int", kind), ("codebook", ("codebook", 2, True, levels))):
        given = {"codes": codes % 4, "block": block, "kind": of, **of_blocks}
        yield Case(
            f"dequantize[{name}]", _core.dequantize, {**given, "out": x.copy()}, ("out",), fixed
        )
    rounded = {"x": x, "block": block, "kind": kind, **of_blocks}
    yield Case("fake_quantize", _core.fake_quantize, {**rounded, "y": x.copy()}, ("y",), fixed)
    yield Case(
        "fake_quantize_backward",
        _core.fake_quantize_backward,
        {**rounded, "dy": x[::-1].copy(), "dx": x.copy(), "dscale": scale.copy()},
        ("dx", "dscale"),
        fixed,
    )
    yield Case(
        "kmeans",
        _core.kmeans,
        {"x": x, "block": block, "keep_zero": False, "rounds": 9, "levels": levels.copy()},
        ("levels",),
        ("block", "keep_zero", "rounds"),
    )
    wide = x.astype(np.float64)
    swept = {"w": wide, "u": np.eye(n).reshape(-1), "step": 8, "block": block, "kind": kind}
    out = {**of_blocks, "codes": codes.copy()}
    yield Case(
        "gptq",
        lambda mask, **given: _core.gptq(**given, removal=((n, None), mask)),
        {**swept, "find": True, **out, "mask": np.empty((n, n), np.bool_)},
        ("w", "scale", "zero", "codes", "mask"),
        ("step", "block", "kind", "find", "removal"),
    )


def check_complete(table: list[Case]) -> None:
    """Raise AssertionError if a function, a method or an argument of one is missing."""
    found: dict[str, set[str]] = {}
    for case in table:
        found.setdefault(case.function, set()).update(case.arguments, case.fixed)
    for name, member in vars(_core).items():
        if name.startswith("_") or not callable(member) or name in WITHOUT_ARRAYS:
            continue
        if isinstance(member, type) and issubclass(member, Exception):
            continue
        functions = {name: member}
        if isinstance(member, type):
            methods = {m for m in vars(member) if not m.startswith("_")}
            methods = {m for m in methods if callable(getattr(member, m))}
            assert methods == METHODS[name], f"{name} has other methods than are listed"
            functions = {f"{name}.{m}": getattr(member, m) for m in methods}
        for path, function in functions.items():
            assert path in found, f"{path} is not in the table"
            parameters = set(inspect.signature(function).parameters) - {"self"}
            assert parameters <= found[path], f"{path}: {parameters - found[path]} not in the table"
