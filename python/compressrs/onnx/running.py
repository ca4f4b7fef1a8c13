"""ONNX models as functions, run by onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressrs._arrays import Array, as_array
from compressrs._checks import flag, strings
from compressrs._threads import get_num_threads
from compressrs.onnx._graph import STANDARD
from compressrs.onnx.model import LARGEST, Model
from compressrs.prune import InputStatistics


class Runner:
    """A model as a function of its inputs, which onnxruntime runs with the arrays of now.

    Arrays that change later have no effect on it.

    Parameters
    ----------
    model : Model
    options : onnxruntime.SessionOptions, optional
        By default with as many threads as `compressrs.get_num_threads`. Libraries of custom
        operators are registered in them.
    providers : sequence of str, default ("CPUExecutionProvider",)

    Attributes
    ----------
    session : onnxruntime.InferenceSession
    inputs, outputs : tuple of str
        The names of what the model takes and returns.

    Raises
    ------
    ModuleNotFoundError
        If onnxruntime is not installed.
    TypeError
        If `model` is none.
    ValueError
        If onnxruntime cannot run the model, for example for operators that it does not know.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> from onnx import parser
    >>> model = cr.onnx.load(parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     g (float[n, 2] x) => (float[n, 1] y) <float[2, 1] w = {4, 1}>
    ...     { y = MatMul(x, w) }
    ... '''))
    >>> run = cr.onnx.Runner(model)
    >>> run(np.ones((1, 2), np.float32))
    array([[5.]], dtype=float32)
    """

    def __init__(
        self,
        model: Model,
        *,
        options: Any = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        if not isinstance(model, Model):
            raise TypeError(f"model must be a compressrs.onnx.Model, got {type(model).__name__}")
        self._start(model, options, providers, ())

    def _start(
        self, model: Model, options: Any, providers: Sequence[str], more: Iterable[str]
    ) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            if error.name != "onnxruntime":
                raise
            raise ModuleNotFoundError(
                "models are run by onnxruntime: pip install 'compressrs[onnx]'",
                name="onnxruntime",
            ) from None
        if options is None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = get_num_threads()
            options.log_severity_level = 3
        elif not isinstance(options, onnxruntime.SessionOptions):
            got = type(options).__name__
            raise TypeError(f"options must be onnxruntime.SessionOptions, got {got}")
        strings(providers, "providers")

        def session(source: Any) -> Any:
            try:
                return onnxruntime.InferenceSession(source, options, providers=[*providers])
            except Exception as error:
                # Of classes of its own.
                raise ValueError(f"onnxruntime cannot run the model: {error}") from error

        if model.nbytes <= LARGEST:
            proto = model.proto()
            # Without a type: onnxruntime infers it.
            for name in more:
                proto.graph.output.add().name = name
            self.session = session(proto.SerializeToString())
        else:
            if more:
                raise ValueError("a model of more than 2 GB cannot return its inner values")
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                model._write_external(path)
                self.session = session(str(path))
        self.inputs = tuple(value.name for value in self.session.get_inputs())
        self.outputs = tuple(value.name for value in self.session.get_outputs())

    def __call__(self, /, *inputs: Any, **named: Any) -> Any:
        """Return the output of the model, or a tuple if it has several.

        Parameters
        ----------
        *inputs : array
            In the order of `inputs`.
        **named : array
            Inputs by name.

        Raises
        ------
        TypeError
            If an input is not an array, or too many or unknown ones are given.
        ValueError
            If onnxruntime refuses them: dtypes or shapes do not fit, or one is missing.
        """
        arrays = self._feed(inputs, named)
        try:
            results = self.session.run(None, arrays)
        except Exception as error:
            raise ValueError(f"onnxruntime cannot run the model: {error}") from error
        return results[0] if len(results) == 1 else tuple(results)

    def _feed(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Array]:
        """Return arrays by the name of the input."""
        if len(inputs) > len(self.inputs):
            raise TypeError(f"the model takes {len(self.inputs)} inputs, got {len(inputs)}")
        feed = dict(zip(self.inputs, inputs, strict=False))
        defaults = {value.name for value in self.session.get_overridable_initializers()}
        for name, value in named.items():
            if name in feed or not (name in self.inputs or name in defaults):
                raise TypeError(f"inputs must be among {list(self.inputs)}, each once, got {name}")
            feed[name] = value
        return {name: _fed(value, name) for name, value in feed.items()}

    def __repr__(self) -> str:
        return f"<Runner of {', '.join(self.inputs)} -> {', '.join(self.outputs)}>"


def _fed(value: Any, name: str) -> Array:
    """Return an input as an array; strings and numbers are taken as well."""
    return np.asarray(value) if np.isscalar(value) else as_array(value, name)


def input_statistics(
    model: Model, batches: Any, names: Sequence[str] | None = None, *, gram: bool = False
) -> dict[str, InputStatistics]:
    """Return the statistics of the inputs of ``MatMul`` and ``Gemm``, for calibration inputs.

    Parameters
    ----------
    model : Model
    batches : array, or iterable of array, tuple or dict of arrays
        Inputs of the model, in one array or batch by batch; a tuple holds several inputs in
        order, a dict by name.
    names : sequence of str, optional
        Names of weights; by default all with two axes that ``MatMul`` or ``Gemm`` takes as its
        second input.
    gram : bool, default False
        See `compressrs.prune.InputStatistics`.

    Returns
    -------
    dict of str to InputStatistics
        By the name of the weight. One that is used several times has the statistics of all its
        inputs.

    Raises
    ------
    ModuleNotFoundError
        If onnxruntime is not installed.
    TypeError, ValueError
        If the batches do not match the model, a name is of no such weight, or an activation is
        not finite.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> from onnx import parser
    >>> model = cr.onnx.load(parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     g (float[n, 2] x) => (float[n, 1] y) <float[2, 1] w = {4, 1}>
    ...     { y = MatMul(x, w) }
    ... '''))
    >>> statistics = cr.onnx.input_statistics(model, np.ones((5, 2), np.float32))
    >>> statistics
    {'w': <InputStatistics(2) of 5 rows>}
    >>> score = cr.prune.Wanda([*statistics.values()])
    >>> masks = cr.onnx.prune(model, 0.5, [*statistics], score=score)
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be a compressrs.onnx.Model, got {type(model).__name__}")
    gram = flag(gram, "gram")
    inputs = _inputs_of_weights(model)
    if names is not None:
        for name in strings(names, "names"):
            if name not in inputs:
                raise ValueError(
                    f"names must be of weights of MatMul and Gemm, {sorted(inputs)}, got {name!r}"
                )
        inputs = {name: inputs[name] for name in names}
    known = model.initializers
    found = {
        name: InputStatistics(known[name].shape[0 if known[name].swapped else 1], gram=gram)
        for name in inputs
    }
    whole = hasattr(batches, "shape")
    if not whole and (not isinstance(batches, Iterable) or isinstance(batches, (str, Mapping))):
        got = type(batches).__name__
        raise TypeError(f"batches must be an array or an iterable of batches, got {got}")
    values = list(dict.fromkeys(value for of in inputs.values() for value in of))
    given = {value.name for value in model._proto.graph.input}
    made = {value.name for value in model._proto.graph.output}
    run = Runner.__new__(Runner)
    more = [value for value in values if value not in given | made]
    run._start(model, None, ("CPUExecutionProvider",), more)
    for k, batch in enumerate([batches] if whole else batches):
        try:
            seen = _values(run, batch)
            for name, of in inputs.items():
                for value in of:
                    found[name].update(seen[value])
        except (TypeError, ValueError) as error:
            where = "batches" if whole else f"batches[{k}]"
            raise type(error)(f"{where} must be inputs of the model: {error}") from error
    return found


def _values(run: Runner, batch: Any) -> dict[str, Array]:
    """Return the inputs of a batch, and what the model makes of them, by name."""
    if isinstance(batch, Mapping):
        feed = run._feed((), batch)
    else:
        feed = run._feed(batch if isinstance(batch, (tuple, list)) else (batch,), {})
    results = run(**feed)
    results = results if isinstance(results, tuple) else (results,)
    return {**feed, **dict(zip(run.outputs, results, strict=True))}


def _inputs_of_weights(model: Model) -> dict[str, list[str]]:
    """Return what is multiplied by each weight of the graph, in the graph itself."""
    initializers = model.initializers
    found: dict[str, list[str]] = {}
    for node in model._proto.graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.domain in STANDARD:
            x, name = node.input[:2]
            known = initializers.get(name)
            flat = known is not None and len(known.shape) == 2 and known.role == "weight"
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            if flat and not transposed:
                found.setdefault(name, []).append(x)
    return found
