"""What a server does with the replies of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, is_floating
from compressrs._checks import converted, count, positive, whole
from compressrs._state import Take, Undo, all_or_nothing, checked_state, require_keys
from compressrs.distributed.federated.client import (
    averaged,
    checked_training,
    distil,
    load_weights,
    logits_of,
    require_attributes,
    require_model,
)
from compressrs.distributed.federated.exchange import (
    Reply,
    Strategy,
    checked_public,
    checked_replies,
    checked_reply,
    fingerprint,
    is_finite,
)
from compressrs.optim import Optimizer


def weighted_mean(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    r"""Return :math:`\sum_i w_i a_i / \sum_i w_i`, summed in float64, in the arrays' dtype."""
    total = np.zeros(arrays[0].shape)
    for array, weight in zip(arrays, weights, strict=True):
        _core.accumulate([total], ["the mean"], [np.asarray(array, order="C")], ["x"], weight)
    return np.asarray(total / sum(weights), dtype=arrays[0].dtype)


class FedMD(Strategy):
    r"""Averages the clients' logits on public rows; there is no model on the server.

    .. math:: \bar z = \frac{1}{n} \sum_{i=1}^n z_i

    which is sent back in the next round.

    Parameters
    ----------
    public : array, shape (m, ...)
        The rows that all clients have, in the same order.
    classes : int
        Columns of the logits.

    Attributes
    ----------
    logits : array, shape (m, classes), or None
        The mean of the last round, float32.
    round : int
        Number of rounds that are complete.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    References
    ----------
    Li & Wang, "FedMD: heterogenous federated learning via model distillation", arXiv 1910.03581.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> federated = cr.distributed.federated
    >>> x, y = np.eye(4, dtype=np.float32), np.arange(4) % 2
    >>> def client(hidden):
    ...     layers = cr.nn.Linear(4, hidden, rng=0), cr.nn.ReLU(), cr.nn.Linear(hidden, 2, rng=1)
    ...     model = cr.nn.Sequential(*layers)
    ...     return federated.Client(model, cr.optim.Adam(model.params), x, y, public=x)
    >>> server = federated.FedMD(x, classes=2)
    >>> federated.simulate(server, [client(3), client(5)], rounds=2)
    >>> server.logits.shape
    (4, 2)
    """

    action = "logits"

    def __init__(self, public: Array, classes: int) -> None:
        super().__init__()
        self.public, self.classes = checked_public(public), whole(classes, "classes", 1)
        self._public = fingerprint(self.public)
        self.logits: Array | None = None

    def request(self) -> dict[str, Array]:
        """Return the mean logits of the last round, if there was one."""
        return {} if self.logits is None else {"logits": self.logits}

    def check(self, reply: Reply) -> None:
        """Raise an error if a client's logits cannot be used.

        Raises
        ------
        ValueError
            If they are missing, not finite in float32 or of another shape, or of other public
            rows.
        """
        reply = checked_reply(reply, "reply")
        shape = (len(self.public), self.classes)
        if "logits" not in reply.arrays:
            raise ValueError(f"client {reply.client} must reply with logits, got {_named(reply)}")
        logits = converted(reply.arrays["logits"], f"logits of client {reply.client}")
        if logits.shape != shape:
            raise ValueError(
                f"client {reply.client} must reply with logits of the shape {shape}, rows and "
                f"classes, got {logits.shape}"
            )
        if logits.dtype.kind != "f" or not is_finite(_as_float32(logits)):
            raise ValueError(
                f"client {reply.client} must reply with logits that are finite in float32"
            )
        if reply.public != self._public:
            raise ValueError(
                f"client {reply.client} must have the public rows of the server, "
                f"{self._public}, got {reply.public or 'none'}"
            )

    def receive(self, replies: Sequence[Reply]) -> None:
        """Average the logits of checked replies.

        Raises
        ------
        ValueError
            If the server's public rows have been written to since it was made.
        """
        self.logits = self._mean(replies)
        self.round += 1

    def _mean(self, replies: Sequence[Reply]) -> Array:
        replies = checked_replies(replies)
        if (public := fingerprint(self.public)) != self._public:
            raise ValueError(
                f"public must be the rows that the server was made with, {self._public}, got "
                f"{public}"
            )
        logits = [_as_float32(reply.arrays["logits"]) for reply in replies]
        return weighted_mean(logits, [1.0] * len(logits))

    def state_dict(self) -> dict[str, Any]:
        """Return the round and the logits."""
        return {"round": self.round, "logits": self.logits}

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        state = require_keys(state_dict, ("round", "logits"))
        number, logits = count(state["round"], "round"), self._checked_logits(state["logits"])

        def take(undo: Undo) -> None:
            undo.remember_attributes(self)
            self.round, self.logits = number, logits

        return take

    def _checked_logits(self, logits: Any) -> Array | None:
        shape = (len(self.public), self.classes)
        if logits is None:
            return None
        array = converted(logits, "logits")
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(
                f"logits must be float32 of the shape {shape}, got {array.dtype} of {array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError("logits must be finite, got NaN or infinity")
        checked: Array = array.copy()
        return checked


class FedDF(FedMD):
    r"""Trains a student on the mean of the clients' logits on public rows.

    After each round of `FedMD` the student's parameters are trained on
    :math:`T^2 \mathrm{KL}(\mathrm{softmax}(\bar z / T) \,\|\, \mathrm{softmax}(s / T))`. The
    clients and the student may have different architectures.

    Parameters
    ----------
    model : layer
        The student; see `distill.Distiller`. Its output has one column for each class.
    optimizer : Optimizer
        Of its parameters.
    public : array, shape (m, ...)
        The rows that all clients have, in the same order.
    epochs : int, default 1
        Epochs on the public rows in a round.
    temperature : float, default 1.0
        :math:`T`.
    batch_size : int, default 32
    rng : int, default 0
        Seed of the order of the rows.

    Attributes
    ----------
    logits : array, shape (m, classes), or None
        The mean of the last round, float32.
    round : int
        Number of rounds that are complete.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    Notes
    -----
    Lin et al. send the clients' weights, and evaluate them on the server; here the clients
    evaluate themselves, so that the server needs none of their models.

    References
    ----------
    Lin et al., "Ensemble distillation for robust model fusion in federated learning",
    arXiv 2006.07242.

    Examples
    --------
    See `simulate`.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Optimizer,
        public: Array,
        *,
        epochs: int = 1,
        temperature: float = 1.0,
        batch_size: int = 32,
        rng: int = 0,
    ) -> None:
        require_model(model, optimizer)
        rows = checked_public(public)
        try:
            classes = logits_of(model, rows[:1]).shape[1]
        except (TypeError, ValueError) as error:
            raise ValueError(f"public must hold rows that the model takes: {error}") from error
        super().__init__(rows, classes)
        self.model, self.optimizer = model, optimizer
        self.epochs = whole(epochs, "epochs", 0)
        self.temperature = positive(temperature, "temperature")
        self.batch_size = whole(batch_size, "batch_size", 1)
        self.seed = whole(rng, "rng", 0)

    def receive(self, replies: Sequence[Reply]) -> None:
        """Average the logits of checked replies, and train the student on them.

        Raises
        ------
        FloatingPointError
            If the loss is NaN; everything is unchanged then.
        ValueError
            If the server's public rows have been written to since it was made.
        """
        mean = self._mean(replies)
        with all_or_nothing() as undo:
            undo.remember_state(self)
            distil(self, mean, self.epochs)
        self.logits = mean
        self.round += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the round, the logits, and the states of student and optimizer."""
        states = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**super().state_dict(), **states}

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        training = checked_training(self, self.model, self.optimizer, state_dict, "logits")
        logits = self._checked_logits(state_dict["logits"])

        def take(undo: Undo) -> None:
            training(undo)
            self.logits = logits

        return take


class FedAvg(Strategy):
    r"""Averages the clients' weights, each as often as the client has rows.

    .. math:: w \leftarrow \sum_i \frac{n_i}{\sum_j n_j} w_i

    Counts and seeds, single integers such as those of `BatchNorm` and `Dropout`, are not averaged:
    the server and each client keep their own.

    Parameters
    ----------
    model : layer
        As those of `compressrs.nn`: of the same architecture as the clients' models. Its weights
        are sent, and replaced by the means.

    Attributes
    ----------
    round : int
        Number of rounds that are complete.

    Raises
    ------
    TypeError
        If `model` has no `state_dict`, or holds an array that is not of a floating-point dtype
        other than a single integer.

    References
    ----------
    McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
    arXiv 1602.05629.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> federated = cr.distributed.federated
    >>> x, y = np.eye(4, dtype=np.float32), np.arange(4) % 2
    >>> def client(rows):
    ...     model = cr.nn.Linear(4, 2, rng=0)
    ...     return federated.Client(model, cr.optim.SGD(model.params, lr=0.1), x[rows], y[rows])
    >>> model = cr.nn.Linear(4, 2, rng=0)
    >>> clients = [client(slice(1)), client(slice(1, 4))]
    >>> federated.simulate(federated.FedAvg(model), clients, rounds=2)
    """

    action = "weights"

    def __init__(self, model: Any) -> None:
        super().__init__()
        require_attributes(model, "state_dict", "load_state_dict")
        for name, array in model.state_dict().items():
            if not is_floating(array.dtype) and not (array.dtype.kind in "iu" and array.ndim == 0):
                raise TypeError(
                    f"model must hold arrays of floating-point dtypes to be averaged, got "
                    f"{array.dtype} for {name!r}"
                )
        self.model = model

    def request(self) -> dict[str, Array]:
        """Return copies of the weights."""
        return averaged(self.model)

    def check(self, reply: Reply) -> None:
        """Raise an error if a client's weights cannot be used.

        Raises
        ------
        TypeError
            If what it replied with are no arrays.
        ValueError
            If names, dtypes or shapes are others, a value is not finite, or there are no rows.
        """
        reply = checked_reply(reply, "reply")
        own = {name: x for name, x in self.model.state_dict().items() if is_floating(x.dtype)}
        if reply.arrays.keys() != own.keys():
            raise ValueError(
                f"client {reply.client} must reply with {', '.join(own)}, got {_named(reply)}"
            )
        for name, array in own.items():
            got = converted(reply.arrays[name], f"{name} of client {reply.client}")
            if got.shape != array.shape or got.dtype != array.dtype:
                raise ValueError(
                    f"client {reply.client} must reply with {name} of {array.dtype} and shape "
                    f"{array.shape}, got {got.dtype} and {got.shape}"
                )
            if not is_finite(got):
                raise ValueError(f"client {reply.client} must reply with {name} that is finite")
        if whole(reply.rows, f"rows of client {reply.client}", 0) < 1:
            raise ValueError(f"client {reply.client} must have at least one row, got {reply.rows}")

    def receive(self, replies: Sequence[Reply]) -> None:
        """Average the weights of checked replies.

        Raises
        ------
        FloatingPointError
            If a weighted sum is beyond the range of float64; the model is unchanged then.
        """
        replies = checked_replies(replies)
        rows = [float(reply.rows) for reply in replies]
        means = {
            name: weighted_mean([np.asarray(reply.arrays[name]) for reply in replies], rows)
            for name, array in self.model.state_dict().items()
            if is_floating(array.dtype)
        }
        for name, mean in means.items():
            if not is_finite(mean):
                raise FloatingPointError(
                    f"the mean of {name} must be finite, but the weighted sum of the clients' "
                    "values is beyond the range of float64"
                )
        load_weights(self.model, means)
        self.round += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the round and the model's state; arrays are not copied."""
        return {"round": self.round, "model": self.model.state_dict()}

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        state = require_keys(state_dict, ("round", "model"))
        number = count(state["round"], "round")
        model = checked_state(self.model, state["model"])

        def take(undo: Undo) -> None:
            undo.remember_attributes(self)
            model(undo)
            self.round = number

        return take


def _as_float32(array: Any) -> Array:
    """Return an array in float32, with infinity for what is beyond its range."""
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float32)


def _named(reply: Reply) -> str:
    return ", ".join(reply.arrays) or "nothing"
