"""Training of compressed models on data, or on what the original model returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from compressrs._arrays import Array, as_array
from compressrs._checks import count, function, generator, positive
from compressrs.nn.layer import RandomState
from compressrs.optim import Adam

#: Rows of a batch.
BATCH = 32


def train(
    student: Any,
    teacher: Any,
    data: tuple[Array, Array | None],
    loss: Callable[[Array, Array], tuple[float, Array]],
    epochs: int,
    lr: float,
    rng: RandomState,
) -> None:
    """Train a model in place with Adam.

    Raises
    ------
    TypeError, ValueError
        If `data` is no pair of equally many rows, or another argument is wrong.
    """
    function(loss, "loss")
    epochs, lr, draw = count(epochs, "epochs"), positive(lr, "lr"), generator(rng)
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise TypeError(f"data must be a pair (inputs, targets), got {type(data).__name__}")
    x = as_array(data[0], "data")
    y = None if data[1] is None else as_array(data[1], "data")
    if x.ndim == 0 or len(x) == 0 or (y is not None and (y.ndim == 0 or len(y) != len(x))):
        raise ValueError("data must be equally many inputs and targets, and not be empty")
    optimizer = Adam(student.params, lr=lr)
    student.train()
    try:
        for _ in range(epochs):
            order = draw.permutation(len(x))
            for start in range(0, len(x), BATCH):
                rows = order[start : start + BATCH]
                batch = np.ascontiguousarray(x[rows])
                target = teacher.forward(batch) if y is None else y[rows]
                _, gradient = loss(student.forward(batch), target)
                student.backward(gradient)
                optimizer.step(student.grads)
    finally:
        student.eval()
