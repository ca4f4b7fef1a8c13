"""Stochastic weight averaging."""

from __future__ import annotations

from compressrs._arrays import ArrayTree
from compressrs.optim.ema import EMA


class SWA(EMA):
    r"""The mean of the weights at the calls of `update`: stochastic weight averaging.

    .. math:: a \leftarrow a + \frac{1}{n + 1} (\theta - a), \quad n = 0, 1, \dots

    Call `update` once an epoch during the last quarter of the training, with a constant or
    cyclic learning rate that is larger than the one a schedule would end with. The mean lies in
    a flatter part of the loss than any of the weights, and usually generalizes better. Before
    the averages are used, compute the statistics of `nn.BatchNorm` layers anew with
    `nn.update_batch_norm`: they belong to the weights of training.

    Parameters
    ----------
    params : array, or list or nested dict of arrays
        float32, float64, float16, bfloat16, complex64 or complex128, C-contiguous and writable.

    Attributes
    ----------
    average : array, list or dict
        The averages, in the structure of `params`; the first update sets them to the weights.

    Raises
    ------
    TypeError
        If a parameter is not such an array.
    ValueError
        If an array cannot be changed in place.

    References
    ----------
    Izmailov et al., "Averaging weights leads to wider optima and better generalization",
    arXiv 1803.05407; ``torch.optim.swa_utils.AveragedModel``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.zeros(2)
    >>> swa = cr.optim.SWA(w)
    >>> for value in (1.0, 2.0, 6.0):
    ...     w[:] = value
    ...     swa.update()
    >>> swa.average
    array([3., 3.])
    """

    def __init__(self, params: ArrayTree) -> None:
        super().__init__(params, decay=0.0)

    def _decay(self) -> float:
        return self.step_count / (self.step_count + 1)
