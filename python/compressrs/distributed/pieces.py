"""Parts of state, and of parameters, between the ranks that own them and whole arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compressrs import _core
from compressrs._arrays import Array
from compressrs.distributed.communicator import Communicator, prepared
from compressrs.distributed.partition import Part
from compressrs.optim._moments import SCALE

#: Arrays of fewer bytes are sent together, in one message.
_SMALL = 1 << 16


def gather_arrays(comm: Communicator, arrays: Sequence[tuple[int, Array]]) -> None:
    """Write the values that the owner of each array has to it on all ranks, in place.

    Parameters
    ----------
    comm : Communicator
    arrays : sequence of (int, array)
        The owner, and the C-contiguous array, of the same size on all ranks.
    """
    with prepared(comm, "gathering arrays"):
        buffers = gather_buffers(comm, arrays)
    start_gather(comm, arrays, buffers)()


def gather_buffers(comm: Communicator, arrays: Sequence[tuple[int, Array]]) -> list[Array]:
    """Return memory for `start_gather` of any of these arrays.

    It is allocated before the ranks agree to exchange anything: a rank that runs out of memory
    in the middle of an exchange would leave the others waiting.
    """
    sizes = [0] * comm.size
    for owner, array in arrays:
        sizes[owner] += array.nbytes if array.nbytes < _SMALL else 0
    return [np.empty(size if comm.size > 1 else 0, np.uint8) for size in sizes]


def start_gather(
    comm: Communicator, arrays: Sequence[tuple[int, Array]], buffers: Sequence[Array]
) -> Callable[[], object]:
    """Start to gather arrays, and return a function that ends it; see `gather_arrays`.

    All ranks start and end in the same order. The arrays are not used in between, nor are the
    buffers, which `gather_buffers` returned.
    """
    if comm.size == 1:
        return lambda: None
    large: list[list[Array]] = [[] for _ in range(comm.size)]
    small: list[list[Array]] = [[] for _ in range(comm.size)]
    for owner, array in arrays:
        values = array.reshape(-1).view(np.uint8)
        (small if values.size < _SMALL else large)[owner].append(values)
    sizes = [sum(array.size for array in values) for values in small]
    packed = [buffer[:size] for buffer, size in zip(buffers, sizes, strict=True)]
    if small[comm.rank]:
        np.concatenate(small[comm.rank], out=packed[comm.rank])
    own = [*large[comm.rank], packed[comm.rank]]
    others = [owner != comm.rank for owner in range(comm.size)]
    send = [own if other else [] for other in others]
    receive = [
        [*large[owner], packed[owner]] if other else [] for owner, other in enumerate(others)
    ]
    wait = comm.start_exchange(send, receive)

    def end() -> None:
        wait()
        for owner, other in enumerate(others):
            start = 0
            for array in small[owner] if other else []:
                array[...] = packed[owner][start : start + array.size]
                start += array.size

    return end


def piece(buffers: Mapping[str, Array], name: str, part: Part, numbers: Sequence[str]) -> Array:
    """Return the view of what belongs to a part in a buffer of a tensor that is divided.

    Parameters
    ----------
    buffers : dict of array
        The tensor's buffers.
    name : str
    part : Part
    numbers : sequence of str
        Names of buffers of one number, that of each part.
    """
    array = buffers[name]
    if name in numbers:
        return array
    if name.endswith(SCALE) and name.removesuffix(SCALE) in buffers:
        block = _core.CODE_BLOCK
        return array[part.start // block : -(-part.stop // block)]
    return array.reshape(-1)[part.start : part.stop]


def overlaps(part: Part, other: Part) -> bool:
    """Whether two parts have elements of a tensor in common, or are the same empty tensor."""
    if part.tensor != other.tensor:
        return False
    same = (part.start, part.stop) == (other.start, other.stop)
    return same or (part.start < other.stop and other.start < part.stop)
