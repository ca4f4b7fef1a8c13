"""What a client does: trains on its own rows, and on what it is sent."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from compressrs._arrays import Array, is_floating
from compressrs._checks import (
    choice,
    converted,
    count,
    positive,
    whole,
    with_length,
)
from compressrs._state import (
    Stateful,
    Take,
    Undo,
    all_or_nothing,
    checked_state,
    require_keys,
    restoring,
)
from compressrs.distill import Distiller
from compressrs.distributed.federated.exchange import (
    Reply,
    checked_public,
    fingerprint,
    is_finite,
)
from compressrs.optim import Optimizer
from compressrs.optim._trained import require_trained
from compressrs.optim._weights import Weights

#: Rows that a model is given at once for logits.
_ROWS = 256

ACTIONS = ("logits", "weights")


class Client(Stateful):
    r"""A model with rows of its own, which are never sent.

    In each round of `FedMD` or `FedDF` it approaches the mean logits of all clients on the public
    rows (digest), trains on its own rows (revisit), and replies with its logits on the public
    rows. In one of `FedAvg` it takes over the server's weights, trains, and replies with weights;
    it keeps its own counts and seeds, such as those of `BatchNorm` and `Dropout`.

    Parameters
    ----------
    model : layer
        As those of `compressrs.nn`, with `state_dict` and `load_state_dict`. Models of clients
        may differ in anything but the number of classes; for `FedAvg` they may not.
    optimizer : Optimizer
        Of the model's parameters. Its state stays with the client.
    x : array, shape (n, ...)
        The client's own rows, at least one.
    y : array of int, shape (n,)
        Their labels.
    public : array, shape (m, ...), optional
        The rows that all clients and the server have, in the same order. Needed for logits.
    epochs : int, default 1
        Epochs on the client's own rows in a round.
    digest_epochs : int, default 1
        Epochs on the public rows.
    temperature : float, default 1.0
        That of `distill.kd_loss` on the public rows.
    batch_size : int, default 32
    rng : int, default 0
        Seed of the order of the rows, which depends on it and the round.

    Attributes
    ----------
    round : int
        Number of requests that were answered.

    Raises
    ------
    TypeError
        If an argument is of another type.
    ValueError
        If there are no rows, lengths disagree, a number is out of its range, or `optimizer` has
        none of the model's parameters.

    References
    ----------
    Li & Wang, "FedMD: heterogenous federated learning via model distillation", arXiv 1910.03581;
    McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
    arXiv 1602.05629.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> x = np.eye(4, dtype=np.float32)
    >>> model = cr.nn.Linear(4, 2, rng=0)
    >>> client = cr.distributed.federated.Client(
    ...     model, cr.optim.Adam(model.params), x, np.array([0, 1, 0, 1]), public=x[:3]
    ... )
    >>> client.answer("logits", {}).arrays["logits"].shape
    (3, 2)
    """

    def __init__(
        self,
        model: Any,
        optimizer: Optimizer,
        x: Array,
        y: Array,
        public: Array | None = None,
        *,
        epochs: int = 1,
        digest_epochs: int = 1,
        temperature: float = 1.0,
        batch_size: int = 32,
        rng: int = 0,
    ) -> None:
        require_model(model, optimizer)
        x, rows = with_length(x, "x")
        if rows == 0:
            raise ValueError("x must have at least one row, got none")
        y = converted(y, "y")
        if y.dtype.kind not in "iu":
            raise TypeError(f"y must hold integers, got {y.dtype}")
        if y.shape != (rows,):
            raise ValueError(f"y must have the shape {(rows,)} of the rows of x, got {y.shape}")
        self.model, self.optimizer = model, optimizer
        self.x, self.y = x, y
        self.public = None if public is None else checked_public(public)
        self.epochs = whole(epochs, "epochs", 0)
        self.digest_epochs = whole(digest_epochs, "digest_epochs", 0)
        self.temperature = positive(temperature, "temperature")
        self.batch_size = whole(batch_size, "batch_size", 1)
        self.seed = whole(rng, "rng", 0)
        self.round = 0

    def answer(self, action: str, arrays: Mapping[str, Array]) -> Reply:
        """Take part in a round.

        Parameters
        ----------
        action : {"logits", "weights"}
            What to reply with.
        arrays : dict of array
            For "logits", ``{"logits": array}``, the mean of the clients', shape (m, classes), or
            nothing in the first round; for "weights", the server's by their names.

        Returns
        -------
        Reply

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid, or there are no public rows for logits.
        FloatingPointError
            If the loss is NaN, or what the client would reply is not finite. After any exception
            model and optimizer are unchanged.
        """
        action = choice(action, "action", ACTIONS)
        if not isinstance(arrays, Mapping):
            raise TypeError(f"arrays must be a dict, got {type(arrays).__name__}")
        with all_or_nothing() as undo:
            undo.remember_state(self)
            if action == "logits":
                result = self._distilled(arrays)
            else:
                load_weights(self.model, arrays)
                self._train()
                result = averaged(self.model)
            for name, array in result.items():
                if not is_finite(array):
                    raise FloatingPointError(
                        f"{name} must be finite after training, got NaN or infinity"
                    )
            # Now, not when the client was made: the rows may have been written to.
            public = "" if self.public is None else fingerprint(self.public)
            self.round += 1
        return Reply(0, result, len(self.y), public)

    def _distilled(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Learn from the mean logits and from the client's own rows; return its logits."""
        if self.public is None:
            raise ValueError("public must be given to the client to reply with logits, got None")
        if "logits" in arrays:
            consensus = converted(arrays["logits"], "logits")
            if consensus.ndim != 2 or len(consensus) != len(self.public):
                raise ValueError(
                    f"logits must have the {len(self.public)} rows of public, got the shape "
                    f"{consensus.shape}"
                )
            if not is_floating(consensus.dtype):
                raise TypeError(f"logits must be of a floating-point dtype, got {consensus.dtype}")
            if not is_finite(consensus):
                raise ValueError("logits must be finite, got NaN or infinity")
            distil(self, consensus, self.digest_epochs)
        self._train()
        return {"logits": logits_of(self.model, self.public)}

    def _train(self) -> None:
        if self.epochs:
            distiller = Distiller(
                self.model,
                np.empty((len(self.y), 0)),  # there are no soft epochs
                self.optimizer,
                batch_size=self.batch_size,
                rng=seed_of(self, 1),
            )
            distiller.fit(self.x, self.y, epochs=0, hard_epochs=self.epochs)

    def state_dict(self) -> dict[str, Any]:
        """Return the round, and the states of model and optimizer; arrays are not copied."""
        return {
            "round": self.round,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        return checked_training(self, self.model, self.optimizer, state_dict)


def require_attributes(model: Any, *names: str) -> None:
    """Raise a TypeError if a model lacks one of these."""
    for name in names:
        if not hasattr(model, name):
            raise TypeError(
                f"model must have {name}, as the layers of compressrs.nn, got "
                f"{type(model).__name__}"
            )


def require_model(model: Any, optimizer: Any) -> None:
    """Raise an error unless these are a model that can be trained, and its optimizer."""
    require_attributes(model, "forward", "backward", "grads", "state_dict", "load_state_dict")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
    require_trained(model, optimizer, "model")


def checked_training(
    owner: Any, model: Any, optimizer: Any, state_dict: Mapping[str, Any], *more: str
) -> Take:
    """Check the state of a model, its optimizer and a count of rounds."""
    state = require_keys(state_dict, ("round", "model", "optimizer", *more))
    number = count(state["round"], "round")
    takes = [checked_state(model, state["model"]), checked_state(optimizer, state["optimizer"])]

    def take(undo: Undo) -> None:
        undo.remember_attributes(owner)
        for one in takes:
            one(undo)
        owner.round = number

    return take


def averaged(model: Any) -> dict[str, Array]:
    """Return copies of the arrays that `FedAvg` averages: all but counts and seeds."""
    return {name: x.copy() for name, x in model.state_dict().items() if is_floating(x.dtype)}


def load_weights(model: Any, arrays: Mapping[str, Array]) -> None:
    """Load what `averaged` returned into a model; what an optimizer or a pruner masks is 0."""
    kept = {name: x for name, x in model.state_dict().items() if not is_floating(x.dtype)}
    model.load_state_dict({**arrays, **kept})
    own = model.state_dict()
    Weights("model", list(own), list(own.values())).apply_masks(list(own.values()))


def distil(owner: Any, consensus: Array, epochs: int) -> None:
    """Train a model on the public rows with the mean logits as the teacher."""
    if epochs:
        distiller = Distiller(
            owner.model,
            consensus,
            owner.optimizer,
            temperature=owner.temperature,
            alpha=1.0,
            batch_size=owner.batch_size,
            rng=seed_of(owner, 0),
        )
        distiller.fit(owner.public, epochs=epochs)


def seed_of(owner: Any, phase: int) -> int:
    """Return the seed of a phase of a round."""
    return int(np.random.default_rng([owner.seed, owner.round, phase]).integers(2**63))


def logits_of(model: Any, rows: Array) -> Array:
    """Return a model's logits in evaluation mode, as float32."""
    layers = [model, *(layer for _, layer in getattr(model, "named_layers", list)())]
    with restoring() as undo:
        for layer in layers:
            if hasattr(layer, "training"):
                undo.on_failure(functools.partial(setattr, layer, "training", layer.training))
        if hasattr(model, "eval"):
            model.eval()
        parts = [model.forward(rows[i : i + _ROWS]) for i in range(0, len(rows), _ROWS)]
    with np.errstate(over="ignore"):  # infinite then, which the caller refuses
        return np.concatenate(parts).astype(np.float32, copy=False)
