"""Interoperability: state for PyTorch, and optimizers for scikit-learn's MLP."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from compressrs.optim._moments import OF_WEIGHTS, widened

#: Scalar state per tensor, which PyTorch stores in single precision.
_NUMBERS = ("step", "mu_product", "eta", "mu")


def to_torch(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict that the PyTorch optimizer of the same name loads.

    Arrays are copied into tensors; low-precision state is converted to float32. The
    opposite direction needs no function: ``opt.load_state_dict(torch_opt.state_dict())``.

    Parameters
    ----------
    state_dict : dict
        What `Optimizer.state_dict` returned.

    Raises
    ------
    ModuleNotFoundError
        If PyTorch is not installed.
    """
    import torch

    of_pairs = frozenset(state_dict.get("complex", ()))
    state: dict[int, dict[str, Any]] = {}
    for i, buffers in state_dict["state"].items():
        if int(buffers["step"]) == 0:
            continue  # PyTorch creates state at the first step.
        state[i] = {
            name: torch.tensor(float(array) if name in _NUMBERS else array)
            for name, array in widened(buffers).items()
            if name not in OF_WEIGHTS
        }
        if i in of_pairs:
            state[i] = {
                name: value if name in _NUMBERS else torch.view_as_complex(value)
                for name, value in state[i].items()
            }
    groups = [
        {**group, "betas": tuple(group["betas"])} if "betas" in group else dict(group)
        for group in state_dict["param_groups"]
    ]
    for group in groups:
        group.pop("param_names", None)
    return {"state": state, "param_groups": groups}


#: scikit-learn's own classes, once for each context that is active.
_contexts: list[tuple[Any, Any]] = []
_contexts_lock = threading.Lock()


@contextmanager
def sklearn_mlp() -> Iterator[None]:
    """Return a context in which scikit-learn's MLP models train with compressrs' optimizers.

    Inside it, ``fit`` and ``partial_fit`` of `MLPClassifier` and `MLPRegressor` with
    ``solver="adam"`` or ``solver="sgd"`` update weights with `Adam` and `Momentum`.
    Predictions are the same up to rounding. A model that was partially fitted with one
    kind of optimizer keeps it.

    Raises
    ------
    ModuleNotFoundError
        If scikit-learn is not installed.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> from sklearn.neural_network import MLPClassifier
    >>> x = np.repeat(np.eye(2), 20, axis=0)
    >>> y = np.repeat([0, 1], 20)
    >>> with cr.optim.sklearn_mlp():
    ...     model = MLPClassifier((8,), random_state=0, learning_rate_init=0.1).fit(x, y)
    >>> model.predict(np.eye(2))
    array([0, 1])
    """
    from sklearn.neural_network import _multilayer_perceptron as mlp

    from compressrs.optim import _sklearn as ours

    # Contexts may overlap, as those of several threads do: the last one restores.
    with _contexts_lock:
        if not _contexts:
            _contexts.append((mlp.AdamOptimizer, mlp.SGDOptimizer))
            mlp.AdamOptimizer, mlp.SGDOptimizer = ours.MLPAdam, ours.MLPMomentum
        else:
            _contexts.append(_contexts[0])
    try:
        yield
    finally:
        with _contexts_lock:
            before = _contexts.pop()
            if not _contexts:
                mlp.AdamOptimizer, mlp.SGDOptimizer = before
