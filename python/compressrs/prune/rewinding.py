"""Lottery tickets: pruned networks that are retrained from their initial weights."""

from __future__ import annotations

import copy

import numpy as np

from compressrs import _core
from compressrs._arrays import ArrayTree, flatten, require_in_place
from compressrs._state import Described, all_or_nothing
from compressrs.optim import Optimizer
from compressrs.optim._weights import Weights
from compressrs.prune._weights import named_weights
from compressrs.prune.optimizers import require_index
from compressrs.prune.selection import Mask


class LotteryTicket(Described):
    """Stores weights, and an optimizer's state, to rewind a pruned network to them.

    Create it before training, or after the first steps (late resetting, or rewinding).

    Parameters
    ----------
    params : array, or list or nested dict of arrays
        All trained arrays, including biases; C-contiguous and writable.
    optimizer : Optimizer, optional
        An optimizer whose state is rewound as well.

    Raises
    ------
    TypeError
        If a parameter is not an array, or `optimizer` is not an `Optimizer`.
    ValueError
        If an array cannot be updated in place, shares memory with another, or is not one of
        the optimizer's parameters.

    References
    ----------
    Frankle & Carbin, "The Lottery Ticket Hypothesis", arXiv 1803.03635; Frankle et al.,
    "Stabilizing the Lottery Ticket Hypothesis", arXiv 1903.01611, on rewinding.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([1.0, -2.0, 4.0])
    >>> opt = cr.optim.SGD(w, lr=0.5)
    >>> ticket = cr.prune.LotteryTicket(w, opt)
    >>> opt.step(np.array([1.0, -4.0, 6.0]))
    >>> w
    array([0.5, 0. , 1. ])
    >>> ticket.rewind(cr.prune.magnitude_mask(w, sparsity=1 / 3))
    >>> w
    array([1., 0., 4.])
    """

    def __init__(self, params: ArrayTree, optimizer: Optimizer | None = None) -> None:
        self._names, self._params = named_weights(params, "params")
        require_in_place(self._params, self._names)
        self._shared = Weights("LotteryTicket", self._names, self._params)
        self._optimizer = optimizer
        self._indices: list[int] = []
        if optimizer is not None:
            for w, name in zip(self._params, self._names, strict=True):
                self._indices.append(require_index(optimizer, w, name))
        self._values = [w.copy() for w in self._params]
        self._state = None if optimizer is None else copy.deepcopy(optimizer.state_dict())

    def rewind(self, masks: ArrayTree | None = None) -> None:
        """Restore all weights, and set those that masks remove to 0.

        Parameters
        ----------
        masks : array of bool, or list or nested dict of them, optional
            One per array, in the same order, True where a weight is kept; None for an
            unmasked array. The optimizer, if given, keeps removed weights at 0 from then on.

        Raises
        ------
        TypeError
            If a mask is not boolean.
        ValueError
            If the number of masks or a shape differs; nothing is changed in that case.
        """
        self._shared.require_unchanged()
        chosen = self._masks(masks)
        with all_or_nothing() as undo:
            if self._optimizer is not None and self._state is not None:
                # Weights that were removed since stay so, unless there are new masks.
                state = {key: value for key, value in self._state.items() if key != "masks"}
                self._optimizer._checked(state)(undo)
            for w, value, mask, name in zip(
                self._params, self._values, chosen, self._names, strict=True
            ):
                undo.write(w, value)
                if mask is not None:
                    _core.apply_mask(w, mask, name)
            self._shared.apply_masks(self._params)
            if self._optimizer is not None and masks is not None:
                self._optimizer._set_masks(dict(zip(self._indices, chosen, strict=True)), undo)

    def _masks(self, masks: ArrayTree | None) -> list[Mask | None]:
        """Return a mask, or None, for each array."""
        given = [None] * len(self._params)
        if masks is not None:
            given = [leaf for _, leaf in flatten(masks, "masks")]
        if len(given) != len(self._params):
            raise ValueError(
                f"masks must be {len(self._params)}, one for each array of params, got {len(given)}"
            )
        chosen: list[Mask | None] = []
        for mask, w, name in zip(given, self._params, self._names, strict=True):
            if mask is None:
                chosen.append(None)
                continue
            array = np.asarray(mask)
            if array.dtype != np.bool_:
                raise TypeError(f"masks must hold a boolean array for {name}, got {array.dtype}")
            if array.shape != w.shape:
                raise ValueError(
                    f"masks must hold an array of shape {w.shape} for {name}, got {array.shape}"
                )
            chosen.append(np.ascontiguousarray(array))
        return chosen
