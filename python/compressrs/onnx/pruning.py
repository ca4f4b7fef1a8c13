"""Pruning of the weights of ONNX models by name, and the sensitivity of their layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from compressrs import _core
from compressrs import prune as arrays_pruned
from compressrs._arrays import Array, compute_dtype, is_floating
from compressrs._checks import function, strings
from compressrs._state import restoring
from compressrs.onnx.model import Initializer, Model
from compressrs.onnx.running import Runner
from compressrs.prune import Granularity, Score, Sensitivity
from compressrs.prune.layer_sensitivity import SPARSITIES
from compressrs.prune.scores import as_score
from compressrs.prune.selection import Mask, Scope, Sparsity


def prune(
    model: Model,
    sparsity: Sparsity,
    names: Sequence[str] | None = None,
    *,
    score: Score | None = None,
    scope: Scope = "global",
    granularity: Granularity | None = None,
) -> dict[str, Mask]:
    """Set the weights of a model with the lowest scores to 0.

    Parameters
    ----------
    model : Model
        Its arrays are changed in place; `Model.save` writes them.
    sparsity : float, or sequence of float
        The exact fraction of the weights, or of the units of `granularity`, to remove.
    names : sequence of str, optional
        Names of arrays of floating-point numbers; by default all of the role "weight" with at
        least two axes.
    score, scope, granularity
        See `compressrs.prune.masks`; magnitudes of single weights over all arrays together
        by default. Rows and axis 0 are the outputs of a layer, however the file stores its
        weight: a weight that is `swapped` is scored transposed, and so are the statistics and
        gradients of a score, which are dicts by name.

    Returns
    -------
    dict of str to array of bool
        The masks by name, in the shapes of the arrays, True where a weight is kept.

    Raises
    ------
    TypeError
        If `model` is none, or an array is not of a floating-point dtype.
    OSError, ValueError
        If a name is unknown or given twice, data cannot be read, or as
        `compressrs.prune.masks`. Nothing is changed then.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> from onnx import parser
    >>> model = cr.onnx.load(parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {4, 1, 3, 2}>
    ...     { y = MatMul(x, w) }
    ... '''))
    >>> masks = cr.onnx.prune(model, 0.5)
    >>> model["w"]
    array([[4., 0.],
           [3., 0.]], dtype=float32)
    """
    chosen = weights_named(require_model(model), names)
    weights = {name: oriented(model[name], i) for name, i in chosen.items()}
    scores = as_score(score).scores(weights)
    kinds = {array.dtype for array in scores.values()}
    if len(kinds) > 1:
        # Scores of several dtypes are compared in one that holds them all.
        widest = np.dtype(np.result_type(*map(compute_dtype, kinds)))
        scores = {name: array.astype(widest) for name, array in scores.items()}
    found = arrays_pruned.masks(scores, sparsity, scope, granularity)
    result = {name: oriented(mask, chosen[name]) for name, mask in found.items()}
    for name, mask in result.items():
        _core.apply_mask(model[name], mask, name)
    return result


def sensitivity(
    model: Model,
    evaluate: Callable[[Runner], float],
    sparsities: Sequence[float] = SPARSITIES,
    names: Sequence[str] | None = None,
    *,
    score: Score | None = None,
    granularity: Granularity | None = None,
    progress: bool = False,
) -> Sensitivity:
    """Return a model's metric with each weight pruned to each sparsity by itself.

    The arrays are restored afterwards, also after an exception or Ctrl-C.

    Parameters
    ----------
    model : Model
    evaluate : callable
        Takes the model as a function of its inputs, see `Runner`, and returns its metric, for
        example its accuracy on validation data.
    sparsities : sequence of float
        Each in [0, 1).
    names, score, granularity
        See `prune`.
    progress : bool, default False
        Whether to show a progress bar; requires rich.

    Returns
    -------
    Sensitivity
        With a `table` and a `plot`.

    Raises
    ------
    ModuleNotFoundError
        If onnxruntime is not installed.
    TypeError, OSError, ValueError
        As `prune` and `compressrs.prune.sensitivity`.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> from onnx import parser
    >>> model = cr.onnx.load(parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {4, 1, 3, 2}>
    ...     { y = MatMul(x, w) }
    ... '''))
    >>> x = np.ones((1, 2), np.float32)
    >>> print(cr.onnx.sensitivity(model, lambda run: float(run(x).sum()), [0.5]).table())
    | Layer | 0.5 |
    | --- | ---: |
    | w | 7.0000 |
    """
    chosen = weights_named(require_model(model), names)
    function(evaluate, "evaluate")
    before = {name: model[name].copy() for name in chosen}
    weights = {name: oriented(array, chosen[name]) for name, array in before.items()}

    def measured() -> float:
        for name, array in weights.items():
            model[name][...] = oriented(array, chosen[name])
        return evaluate(Runner(model))

    with restoring() as undo:
        undo.remember(*(model[name] for name in chosen))
        found = arrays_pruned.sensitivity(
            weights, measured, sparsities, score, granularity=granularity, progress=progress
        )
    return Sensitivity([*chosen], found.sparsities, found.values, found.baseline)


def require_model(model: object, name: str = "model") -> Model:
    """Return `model`, if it is a `Model`.

    Raises
    ------
    TypeError
        If it is not.
    """
    if not isinstance(model, Model):
        got = type(model).__name__
        raise TypeError(f"{name} must be a compressrs.onnx.Model, as load returns, got {got}")
    return model


def weights_named(model: Model, names: Sequence[str] | None) -> dict[str, Initializer]:
    """Return arrays by name, by default all weights with two axes or more.

    Raises
    ------
    TypeError
        If one is not of floating-point numbers.
    ValueError
        If a name is unknown or given twice, or there are none.
    """
    known = model.initializers
    if names is None:
        found = [n for n, i in known.items() if i.role == "weight" and len(i.shape) >= 2]
        found = [name for name in found if is_floating(known[name].dtype)]
        if not found:
            raise ValueError(
                "model must have a weight of floating-point numbers with at least two axes, got "
                "none" + _quantized(model)
            )
    else:
        found = strings(names, "names")
    if not found:
        raise ValueError("names must be of at least one array, got none")
    for name in found:
        if name not in model:
            reason = f", which is {model.left[name]}" if name in model.left else ""
            raise ValueError(f"names must be among {sorted(known)}, got {name!r}{reason}")
        if not is_floating(known[name].dtype):
            raise TypeError(f"{name} must be of floating-point numbers, got {known[name].dtype}")
    if len(set(found)) < len(found):
        raise ValueError(f"names must be different, got {found}")
    return {name: known[name] for name in found}


def _quantized(model: Model) -> str:
    """Return for an error that the weights of a model are quantized, if they are."""
    kinds = {node.op_type for scope in model._index.scopes for node in scope.graph.node}
    quantized = sorted(kinds & {"DequantizeLinear", "MatMulNBits"})
    return f": its weights are quantized already, for {quantized[0]}" if quantized else ""


def oriented(array: Array, known: Initializer) -> Array:
    """Return a weight, or its mask, with outputs along the first axis; or back."""
    swapped = np.swapaxes(array, 0, 1) if known.swapped else array
    return np.ascontiguousarray(swapped)
