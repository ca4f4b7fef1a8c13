"""Faults of known kinds in `compressrs.torch` and `compressrs.onnx`, where these are installed.

Public names are found by introspection, and fail here until they have valid arguments, with which
each argument in turn is replaced by wrong ones.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compressrs as cr
from compressrs import nn, prune, quantize, sparse
from tests.faults.public import extras, names
from tests.faults.test_raw_errors import CALLS, PATHS, WRONG, mentioned, method_of, methods_of

PUBLIC = names(extras)
Arguments = Callable[[], dict[str, Any]]

#: Bases of the optimizers, which are made by their subclasses.
ABSTRACT = {"torch.optim.Optimizer"}

#: Results of functions, which are not made by callers.
RESULTS = {"onnx.Group", "onnx.Initializer", "onnx.Model"}


def tensors(tree: Any) -> Any:
    """Return a tree with tensors in place of its arrays."""
    import torch

    if isinstance(tree, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(tree).copy())
    if isinstance(tree, dict):
        return {key: tensors(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [tensors(value) for value in tree]
    return tree


def module() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


def parameters() -> Any:
    return [*module().parameters()]


def matrices() -> Any:
    """Return parameters that Muon takes as well."""
    return [p for p in parameters() if p.ndim == 2]


def rows() -> Any:
    import torch

    return torch.linspace(-1, 1, 32).reshape(8, 4)


def trained(kind: Any) -> Any:
    model = module()
    opt = kind([p for p in model.parameters() if p.ndim == 2])
    model(rows()).square().mean().backward()
    opt.step()
    return opt


def adam() -> Any:
    return trained(cr.torch.optim.Adam)


def csr() -> Any:
    return sparse.CSRMatrix.from_dense(np.eye(8, 4, dtype=np.float32))


def scheme() -> Any:
    return quantize.Scheme(bits=8)


def quantized() -> Any:
    return nn.QuantizedLinear.from_linear(nn.Linear(4, 8, rng=0), scheme())


def distilling() -> dict[str, Any]:
    import torch

    student = module()
    given = dict(student=student, teacher=torch.zeros(8, 3), optimizer=None)
    given["optimizer"] = cr.torch.optim.Adam(student.parameters())
    signature = inspect.signature(cr.torch.Distiller)
    rest = {n: p.default for n, p in signature.parameters.items() if n not in given}
    return {**given, **{n: v for n, v in rest.items() if v is not inspect.Parameter.empty}}


def distiller() -> Any:
    given = distilling()
    return cr.torch.Distiller(given["student"], given["teacher"], given["optimizer"])


def onnx_model() -> Any:
    from onnx import parser

    model = cr.onnx.load(
        parser.parse_model(
            """
            <ir_version: 10, opset_import: ["": 21]>
            g (float[n, 4] x) => (float[n, 3] y)
            <float[4, 8] a, float[8] b, float[8, 3] c>
            { h = MatMul(x, a)  s = Add(h, b)  r = Relu(s)  y = MatMul(r, c) }
            """.replace("float[4, 8] a", f"float[4, 8] a = {numbers(32)}")
            .replace("float[8] b", f"float[8] b = {numbers(8)}")
            .replace("float[8, 3] c", f"float[8, 3] c = {numbers(24)}")
        )
    )
    return model


def numbers(count: int) -> str:
    return "{" + ", ".join(f"{x:.3f}" for x in np.linspace(-1, 1, count)) + "}"


def x() -> Any:
    return np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)


def torch_calls() -> dict[str, Arguments]:
    def converted(name: str) -> dict[str, Any]:
        given = CALLS[name]()
        return tensors({key: value for key, value in given.items() if key != "out"})

    def rule(name: str) -> dict[str, Any]:
        return {**CALLS[f"optim.{name}"](), "params": matrices()}

    found: dict[str, Arguments] = {
        f"torch.{name}": functools.partial(converted, full)
        for full in CALLS
        for name in [full.rpartition(".")[2]]
        if full.startswith(("distill.", "nn.")) and f"torch.{name}" in PUBLIC
        if inspect.isfunction(PUBLIC[f"torch.{name}"]) and name != "to_nn"
    }
    found |= {
        name: functools.partial(rule, name.rpartition(".")[2])
        for name in PUBLIC
        if name.startswith("torch.optim.") and name not in ABSTRACT
    }
    keep = np.arange(8) > 3
    return found | {
        "torch.Distiller": distilling,
        "torch.QuantizedLinear": lambda: dict(layer=quantized()),
        "torch.SparseLinear": lambda: dict(weight=csr(), bias=tensors(np.ones(8, np.float32))),
        "torch.input_statistics": lambda: dict(module=module(), batches=rows(), gram=False),
        "torch.prune": lambda: dict(
            module=module(), sparsity=0.5, names=["0.weight"], score=None, scope="global",
            granularity=None, optimizer=None,
        ),
        "torch.shrink": lambda: dict(
            module=module(), keep={0: keep}, optimizer=None, outputs=False
        ),
        "torch.to_nn": lambda: dict(module=module()),
    }  # fmt: skip


def onnx_calls() -> dict[str, Arguments]:
    return {
        "onnx.Runner": lambda: dict(
            model=onnx_model(), options=None, providers=["CPUExecutionProvider"]
        ),
        "onnx.groups": lambda: dict(model=onnx_model(), outputs=False),
        "onnx.input_statistics": lambda: dict(
            model=onnx_model(), batches=x(), names=None, gram=False
        ),
        "onnx.load": lambda: dict(source=onnx_model().proto()),
        "onnx.prune": lambda: dict(
            model=onnx_model(), sparsity=0.5, names=["a"], score=prune.Magnitude(),
            scope="global", granularity=prune.Neurons(0),
        ),
        "onnx.quantize": lambda: dict(
            model=onnx_model(), scheme=scheme(), names=["a"], format="qdq", statistics=None,
            accuracy_level=0,
        ),
        "onnx.sensitivity": lambda: dict(
            model=onnx_model(), evaluate=lambda run: 0.0, sparsities=[0.5], names=["a"],
            score=None, granularity=None, progress=False,
        ),
        "onnx.shrink": lambda: dict(
            model=onnx_model(), keep={"a": np.arange(8) > 3}, outputs=False
        ),
    }  # fmt: skip


#: By a name of their own: what the method is of, its name, and its arguments.
Methods = dict[str, tuple[Callable[[], Any], str, Arguments]]


def torch_methods() -> Methods:
    import torch

    def opt_step() -> dict[str, Any]:
        return dict(closure=None, max_grad_norm=1.0, grad_scale=1.0, nonfinite="ignore")

    def sparse_layer() -> Any:
        return cr.torch.SparseLinear(csr())

    def small_layer() -> Any:
        return cr.torch.QuantizedLinear(quantized())

    def linear() -> Any:
        return torch.nn.Linear(4, 8)

    return {
        "Optimizer.step": (adam, "step", opt_step),
        "Optimizer.add_param_group": (
            adam, "add_param_group", lambda: dict(param_group={"params": parameters()}),
        ),
        "Optimizer.set_masks": (adam, "set_masks", lambda: dict(masks={})),
        "Optimizer.convert_state": (
            adam, "convert_state", lambda: dict(state_dtype="int8", precision=None),
        ),
        "Optimizer.load_state_dict": (
            adam, "load_state_dict", lambda: dict(state_dict=adam().state_dict()),
        ),
        "Optimizer.zero_grad": (adam, "zero_grad", lambda: dict(set_to_none=True)),
        "SparseLinear.forward": (sparse_layer, "forward", lambda: dict(x=rows())),
        "SparseLinear.from_linear": (
            sparse_layer, "from_linear", lambda: dict(module=linear(), threshold=0.0, mask=None),
        ),
        "QuantizedLinear.forward": (small_layer, "forward", lambda: dict(x=rows())),
        "QuantizedLinear.from_linear": (
            small_layer, "from_linear",
            lambda: dict(module=linear(), scheme=scheme(), input="float32"),
        ),
        "QuantizedLinear.set_extra_state": (
            small_layer, "set_extra_state", lambda: dict(state=small_layer().get_extra_state()),
        ),
    }  # fmt: skip


def onnx_methods() -> Methods:
    return {
        "Model.__getitem__": (onnx_model, "__getitem__", lambda: dict(name="a")),
        "Model.__setitem__": (
            onnx_model, "__setitem__", lambda: dict(name="b", value=np.ones(8, np.float32)),
        ),
        "Model.save": (onnx_model, "save", lambda: dict(path="a.onnx", external_data=None)),
        "Group.scores": (
            lambda: cr.onnx.groups(onnx_model())[0], "scores",
            lambda: dict(model=onnx_model(), norm=2),
        ),
    }  # fmt: skip


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


OURS: dict[str, Arguments] = {}
METHODS: Methods = {}
if installed("torch"):
    OURS |= torch_calls()
    METHODS |= torch_methods()
if installed("onnx") and installed("onnxruntime"):
    OURS |= onnx_calls()
    METHODS |= onnx_methods()

#: Methods whose arguments are not for callers to check, with the reason.
EXEMPT = {
    "Runner.__call__": "takes any names; tests/onnx/test_pruning.py tries them",
    "Model.__contains__": "takes anything, as all mappings do",
    "Distiller.fit": "passes on to distill.Distiller.fit, which is tried for arrays",
    "Distiller.state_dict": "as above",
    "Distiller.load_state_dict": "as above",
    "Distiller.save": "as above",
    "Distiller.load": "as above",
}


def test_every_public_name_is_tried() -> None:
    public = {name for name, value in PUBLIC.items() if callable(value)}
    assert public - set(OURS) == (RESULTS | ABSTRACT) & public


def test_every_public_method_is_tried() -> None:
    tried = {method_of(make(), name) for make, name, _ in METHODS.values()}
    missing = {
        function.__qualname__
        for name, kind in PUBLIC.items()
        if inspect.isclass(kind)
        for _, function in methods_of(kind)
        if function not in tried
    }
    assert missing <= set(EXEMPT)


@pytest.mark.parametrize("name", OURS)
def test_every_argument_is_tried(name: str) -> None:
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    own = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    assert own <= set(OURS[name]())


def tries() -> list[tuple[str, Callable[[], Any], Arguments]]:
    found = [(name, lambda name=name: PUBLIC[name], given) for name, given in OURS.items()]
    for name, (make, method, given) in METHODS.items():
        found.append((name, lambda make=make, method=method: getattr(make(), method), given))
    return found


TRIES = tries()


@pytest.mark.parametrize("attempt", TRIES, ids=[name for name, *_ in TRIES])
def test_wrong_arguments_are_refused_by_name(
    attempt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, function, arguments = attempt
    function()(**arguments())
    faults = []
    for argument in arguments():
        for wrong in WRONG:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    function()(**{**arguments(), argument: wrong})
            except MemoryError:
                assert wrong in (10**30, 10**400)
            except OSError:
                assert argument in (*PATHS, "source")
            except (TypeError, ValueError, KeyError) as error:
                said = str(error)
                if not mentioned(argument, said) and not isinstance(error, KeyError):
                    faults.append(f"{argument}={wrong!r}: {error!r}")
            except Exception as error:
                faults.append(f"{argument}={wrong!r}: {error!r}")
    assert not faults, f"{name}\n" + "\n".join(faults)


def made(name: str) -> Any:
    if name.startswith("torch.optim."):
        return trained(PUBLIC[name])
    if name in RESULTS:
        model = onnx_model()
        return {
            "onnx.Group": lambda: cr.onnx.groups(model)[0],
            "onnx.Initializer": lambda: model.initializers["a"],
            "onnx.Model": lambda: model,
        }[name]()
    return PUBLIC[name](**OURS[name]())


def content(value: Any) -> Any:
    """Return what an object holds, in a form that can be compared."""
    if hasattr(value, "state_dict"):
        return flat(value.state_dict())
    if isinstance(value, cr.onnx.Model if installed("onnx") else ()):
        return {name: array.tolist() for name, array in value.items()}
    return repr(value)


def flat(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(key): flat(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [flat(value) for value in tree]
    return tree.tolist() if hasattr(tree, "tolist") else repr(tree)


CLASSES = [n for n, v in PUBLIC.items() if inspect.isclass(v) and n not in ABSTRACT]


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "onnx.Runner"])
@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["copy", "pickle"]
)
def test_copies_hold_the_same(name: str, way: Callable[[Any], Any]) -> None:
    value = made(name)
    assert content(way(value)) == content(value)
