"""Multi-layer perceptrons of scikit-learn as models, and models as perceptrons."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from compressrs._arrays import Array
from compressrs.nn.activations import ReLU
from compressrs.nn.container import Sequential
from compressrs.nn.layer import Layer
from compressrs.nn.linear import Linear, SparseLinear


def from_mlp(estimator: Any) -> Sequential:
    r"""Return the model of a fitted `MLPClassifier` or `MLPRegressor` of scikit-learn.

    Of a classifier the outputs are logits, one for each of ``classes_``: their softmax is
    `predict_proba`, also with two classes, where scikit-learn has one logit :math:`z` and the
    model has 0 and :math:`z`. Of a regressor they are the predictions, one column an output.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        Fitted, with ``activation`` "relu" or "identity". Its weights are copied.

    Returns
    -------
    Sequential
        Of `Linear` and `ReLU`, in the dtype of the weights.

    Raises
    ------
    TypeError
        If `estimator` is none of these.
    ValueError
        If it is not fitted, has another activation, several labels for one row, or predicts
        exponentials, as with ``loss="poisson"``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> from sklearn.neural_network import MLPClassifier
    >>> x, y = np.repeat(np.eye(3), 20, axis=0), np.repeat(["a", "b", "c"], 20)
    >>> mlp = MLPClassifier((8,), random_state=0, learning_rate_init=0.1).fit(x, y)
    >>> model = cr.nn.from_mlp(mlp)
    >>> bool(np.allclose(cr.distill.softmax(model(x)), mlp.predict_proba(x)))
    True
    """
    _require_mlp(estimator)
    weights = [np.array(w.T, order="C") for w in estimator.coefs_]
    biases = [np.array(b) for b in estimator.intercepts_]
    if estimator.out_activation_ == "logistic":
        weights[-1] = np.concatenate([np.zeros_like(weights[-1]), weights[-1]])
        biases[-1] = np.concatenate([np.zeros_like(biases[-1]), biases[-1]])
    layers: list[Layer] = []
    for weight, bias in zip(weights, biases, strict=True):
        if layers and estimator.activation == "relu":
            layers.append(ReLU())
        layers.append(Linear.from_arrays(weight, bias))
    return Sequential(*layers)


def to_mlp(model: Sequential, estimator: Any) -> Any:
    """Return a copy of a fitted perceptron of scikit-learn with the weights of a model.

    Parameters
    ----------
    model : Sequential
        What `from_mlp` returned, trained, pruned or shrunk since: hidden layers may have other
        widths. Weights of `SparseLinear` are made dense.
    estimator : MLPClassifier or MLPRegressor
        The one that `model` was made of, for its classes and settings. It is unchanged.

    Returns
    -------
    MLPClassifier or MLPRegressor
        Predictions are those of the model. ``partial_fit`` goes on from there with a new
        optimizer.

    Raises
    ------
    TypeError
        If `model` is not a `Sequential`, `estimator` not a perceptron, or a layer neither
        `Linear`, `SparseLinear` nor `ReLU`.
    ValueError
        As `from_mlp`, or if layers, inputs or outputs are not those of `estimator`.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> from sklearn.neural_network import MLPRegressor
    >>> x = np.linspace(-1, 1, 40).reshape(20, 2)
    >>> mlp = MLPRegressor(hidden_layer_sizes=(8,), random_state=0, solver="lbfgs").fit(x, x[:, 0])
    >>> model = cr.nn.from_mlp(mlp)
    >>> keep = np.abs(model[0].weight).sum(axis=1) > 0.5
    >>> cr.prune.shrink(model, {0: keep})
    >>> smaller = cr.nn.to_mlp(model, mlp)
    >>> smaller.hidden_layer_sizes == (int(keep.sum()),)
    True
    >>> bool(np.allclose(smaller.predict(x), model(x)[:, 0]))
    True
    """
    if not isinstance(model, Sequential):
        raise TypeError(f"model must be a Sequential, got {type(model).__name__}")
    _require_mlp(estimator)
    hidden = ["Linear", "ReLU"] if estimator.activation == "relu" else ["Linear"]
    need = hidden * (len(estimator.coefs_) - 1) + ["Linear"]
    affine = [layer for layer in model if isinstance(layer, (Linear, SparseLinear))]
    got = ["Linear" if layer in affine else type(layer).__name__ for layer in model]
    for i, kind in enumerate(got):
        if kind not in ("Linear", "ReLU"):
            raise TypeError(f"model must be of Linear, SparseLinear and ReLU, got {kind} at {i}")
    if got != need:
        raise ValueError(f"model must have the layers {need} of estimator, got {got}")
    weights = [_dense(layer) for layer in affine]
    biases = [
        np.zeros(len(w), w.dtype) if layer.bias is None else layer.bias.copy()
        for layer, w in zip(affine, weights, strict=True)
    ]
    outputs = 2 if estimator.out_activation_ == "logistic" else estimator.n_outputs_
    inputs = len(estimator.coefs_[0])
    if weights[0].shape[1] != inputs or len(weights[-1]) != outputs:
        raise ValueError(
            f"model must have {inputs} inputs and {outputs} outputs as estimator has, got "
            f"{weights[0].shape[1]} and {len(weights[-1])}"
        )
    if estimator.out_activation_ == "logistic":
        weights[-1] = weights[-1][1:] - weights[-1][:1]
        biases[-1] = biases[-1][1:] - biases[-1][:1]
    new = copy.deepcopy(estimator)
    # Its moments are of the former weights.
    new.__dict__.pop("_optimizer", None)
    new.coefs_ = [np.array(w.T, order="C") for w in weights]
    new.intercepts_ = biases
    new.hidden_layer_sizes = tuple(len(w) for w in weights[:-1])
    return new


def _dense(layer: Any) -> Array:
    weight: Array = layer.weight.to_dense() if isinstance(layer, SparseLinear) else layer.weight
    return weight


def _require_mlp(estimator: Any) -> None:
    """Raise an error unless the perceptron can be a model.

    Raises
    ------
    TypeError, ValueError
    """
    # Told by its attributes, so that scikit-learn is not needed to read a perceptron.
    if isinstance(estimator, type) or not hasattr(estimator, "hidden_layer_sizes"):
        got = type(estimator).__name__
        raise TypeError(f"estimator must be an MLPClassifier or an MLPRegressor, got {got}")
    if not hasattr(estimator, "coefs_"):
        raise ValueError("estimator must be fitted")
    if estimator.activation not in ("relu", "identity"):
        raise ValueError(
            f"estimator must have the activation 'relu' or 'identity', got {estimator.activation!r}"
        )
    activation = estimator.out_activation_
    if activation not in ("softmax", "logistic", "identity"):
        raise ValueError(f"estimator must predict classes or numbers, got {activation!r} outputs")
    if activation == "logistic" and estimator.n_outputs_ > 1:
        raise ValueError("estimator must have one label for each row, got several")
