"""What a call writes to: not what it reads, and nothing that is read-only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import compressrs as cr
from tests.faults import kernels, public
from tests.faults.kernels import Case, Path

CASES = {case.name: case for case in kernels.cases(1)}


def test_every_kernel_is_in_the_table() -> None:
    kernels.check_complete(list(CASES.values()))


def _bytes(array: np.ndarray) -> bytes:
    return np.array(array).tobytes()


def _overlaid(
    case: Case, first: tuple[Path, np.ndarray], second: tuple[Path, np.ndarray], shift: int
) -> Case:
    """Return a case in which two arrays share memory, the second beginning `shift` later."""
    memory = np.zeros(first[1].nbytes + second[1].nbytes + 64, np.uint8)
    views = {}
    for (path, array), start in ((second, shift), (first, 0)):
        view = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        view[...] = array
        views[path] = view
    return case.replaced(views)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.written])
def test_arrays_that_share_memory_are_refused_or_do_no_harm(name: str) -> None:
    case = CASES[name]
    refused = 0
    for written in case.outputs():
        for other in case.leaves():
            if other[0] == written[0] or not other[1].size:
                continue
            last = written[1].nbytes - written[1].itemsize
            for shift in {0, last // 8 * 8}:
                overlaid = _overlaid(case, written, other, shift)
                apart = overlaid.replaced({})
                before = [_bytes(array) for _, array in overlaid.leaves()]
                try:
                    result = overlaid()
                except (ValueError, TypeError):
                    refused += 1
                    after = [_bytes(array) for _, array in overlaid.leaves()]
                    assert after == before, (written[0], other[0])
                    continue
                # Then it must be as if they did not share it.
                truth = apart()
                if not type(truth).__module__.startswith("compressrs"):
                    np.testing.assert_array_equal(result, truth)
                for (path, found), (_, truth) in zip(
                    overlaid.outputs(), apart.outputs(), strict=True
                ):
                    assert _bytes(found) == _bytes(truth), (path, written[0], other[0])
    # Where nothing else is given to the function, there is nothing to share.
    assert refused or len(list(case.leaves())) == 1


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.written])
def test_what_is_read_only_is_never_written(name: str) -> None:
    case = CASES[name]
    for path, array in case.outputs():
        if path[0] == "params" and "mask" in path:
            # The optimizer's mask is read.
            continue
        locked = array.copy()
        locked.setflags(write=False)
        of_bytes = np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
        for given in (locked, of_bytes):
            attempt = case.replaced({path: given})
            before = [_bytes(other) for _, other in attempt.leaves()]
            with pytest.raises(ValueError, match="writable"):
                attempt()
            assert [_bytes(other) for _, other in attempt.leaves()] == before, path


# The same once more from outside: each public function with an `out`.

N = 16


def _public_calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Return, for each public function with an `out`, how to call it, and its arrays."""
    rng = np.random.default_rng(0)
    z, t = rng.standard_normal((2, N, N))
    labels, each = np.arange(N), np.linspace(1.0, 2.0, N)
    weights = {"class_weight": np.ones(N), "sample_weight": np.linspace(1.0, 2.0, N)}
    D, S = cr.distill, cr.sparse
    pair = {"student": z, "teacher": t}
    maps = {"student": z.reshape(2, 8, N), "teacher": t.reshape(2, 8, N)}
    dense = z * (np.abs(z) > 0.5)
    matrices = {
        "CSRMatrix": S.CSRMatrix.from_dense(dense),
        "BSRMatrix": S.BSRMatrix.from_dense(dense, (4, 4)),
        "NMMatrix": S.NMMatrix.from_dense(z),
    }
    calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "softmax": (D.softmax, {"z": z, "temperature": each}),
        "log_softmax": (D.log_softmax, {"z": z, "temperature": each}),
        "logsumexp": (D.logsumexp, {"z": z, "temperature": each}),
        "kd_loss": (
            lambda **kw: D.kd_loss(alpha=0.5, label_smoothing=0.1, **kw),
            {**pair, "temperature": each, "labels": labels, **weights},
        ),
        "cross_entropy": (cr.nn.cross_entropy, {"logits": z, "labels": labels, **weights}),
        "dkd_loss": (
            D.dkd_loss,
            {
                **pair,
                "temperature": each,
                "labels": labels,
                "sample_weight": weights["sample_weight"],
            },
        ),
        "dist_loss": (D.dist_loss, pair),
        "hint_loss": (D.hint_loss, pair),
        "attention_loss": (D.attention_loss, maps),
        "rkd_distance_loss": (D.rkd_distance_loss, pair),
        "rkd_angle_loss": (D.rkd_angle_loss, pair),
        "sddmm": (
            lambda data, **kw: S.sddmm(matrices["CSRMatrix"].with_data(data), **kw),
            {"data": matrices["CSRMatrix"].data, "u": z[:, :3].copy(), "v": t[:3].copy()},
        ),
    }
    q = cr.quantize
    codes = (np.arange(N * N).reshape(N, N) % 15 - 7).astype(np.int8)
    packed = q.QuantizedMatrix.from_codes(codes, np.full((N, 1), 0.1, np.float32))
    single = t.astype(np.float32)
    calls["QuantizedMatrix.linear"] = (packed.linear, {"x": single, "bias": single[0].copy()})
    calls["matmul_integer"] = (q.matmul_integer, {"a": codes, "b": codes.T.copy()})
    tensor = q.quantize(z, q.Scheme(bits=4, granularity="group", group_size=4))
    parts = {"codes": tensor.codes, "scale": tensor.scale}

    def of(codes: Any, scale: Any) -> Any:
        return q.QuantizedTensor(codes, scale, scheme=tensor.scheme, dtype=np.float64)

    calls["QuantizedTensor.dequantize"] = (
        lambda codes, scale, **kw: of(codes, scale).dequantize(**kw),
        parts,
    )
    calls["QuantizedTensor.rows"] = (
        lambda codes, scale, **kw: of(codes, scale).rows(np.arange(N), **kw),
        parts,
    )
    rounded = {"x": z, "scale": tensor.scale}
    calls["fake_quantize"] = (lambda **kw: q.fake_quantize(scheme=tensor.scheme, **kw), rounded)
    calls["fake_quantize_backward"] = (
        lambda **kw: q.fake_quantize_backward(scheme=tensor.scheme, **kw)[0],
        {**rounded, "dy": t},
    )
    coded = q.QuantizedCSRMatrix.from_csr(matrices["CSRMatrix"])

    def product(method: str, turn: bool) -> Callable[..., Any]:
        def call(scale: Any, **kw: Any) -> Any:
            arrays = coded.codes, scale, coded.indices, coded.indptr
            matrix = q.QuantizedCSRMatrix(arrays, coded.shape, coded.scheme)
            return getattr(matrix.T if turn else matrix, method)(**kw)

        return call

    for method, key in (("matmul", "x"), ("rmatmul", "y")):
        for turn in (False, True):
            calls[f"QuantizedCSRMatrix.{method}" + ".T" * turn] = (
                product(method, turn),
                {"scale": coded.scale, key: single, "bias": single[0].copy()},
            )
    for name, matrix in matrices.items():
        for method, key in (("matmul", "x"), ("rmatmul", "y")):
            for suffix, turn in (("", lambda a: a), (".T", lambda a: a.T)):
                calls[f"{name}.{method}{suffix}"] = (
                    lambda data, matrix=matrix, method=method, turn=turn, **kw: getattr(
                        turn(matrix.with_data(data)), method
                    )(**kw),
                    {"data": matrix.data, key: t, "bias": np.linspace(1.0, 2.0, N)},
                )
    return calls


def _public_functions() -> Iterator[str]:
    """Yield all public functions and methods with a parameter `out`."""
    for name, member in public.names().items():
        name = name.rpartition(".")[2]
        functions = {name: member}
        if isinstance(member, type):
            methods = inspect.getmembers(member, inspect.isroutine)
            functions = {f"{name}.{m}": f for m, f in methods if not m.startswith("_")}
        for path, function in functions.items():
            try:
                parameters = inspect.signature(function).parameters
            except (TypeError, ValueError):
                continue
            if "out" in parameters:
                yield path


def test_every_public_function_with_an_output_is_tried() -> None:
    tried = {name.removesuffix(".T") for name in _public_calls()}
    tried |= {f"TransposedMatrix.{m}" for m in ("matmul", "rmatmul")}
    tried |= {f"SparseMatrix.{m}" for m in ("matmul", "rmatmul")}
    assert set(_public_functions()) <= tried


def _result(value: Any) -> tuple[float, np.ndarray]:
    return value if isinstance(value, tuple) else (0.0, value)


@pytest.mark.parametrize("name", list(_public_calls()))
def test_an_output_that_is_an_input_is_refused_or_right(name: str) -> None:
    function, arrays = _public_calls()[name]
    plain = _result(function(**arrays))[1]
    for path, array in kernels._leaves(arrays, ()):
        for at_the_end in (False, True):
            memory = np.zeros(plain.nbytes + array.nbytes, np.uint8)
            shift = (plain.nbytes - 8) if at_the_end else 0
            view = memory[shift : shift + array.nbytes].view(array.dtype).reshape(array.shape)
            view[...] = array
            out = memory[: plain.nbytes].view(plain.dtype).reshape(plain.shape)
            given = kernels._replaced(arrays, (), {path: view})
            truth = function(**kernels._replaced(arrays, (), {}))
            before = memory.tobytes()
            try:
                found = function(**given, out=out)
            except ValueError:
                assert memory.tobytes() == before, path
                continue
            assert _result(found)[0] == _result(truth)[0], path
            np.testing.assert_array_equal(_result(found)[1], _result(truth)[1], str(path))
