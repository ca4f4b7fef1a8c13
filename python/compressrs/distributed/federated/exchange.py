"""What server and clients send each other in a round, whichever library carries it."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compressrs._arrays import Array, is_floating, is_number
from compressrs._checks import converted, sequence
from compressrs._state import Stateful
from compressrs.distributed.communicator import checksum


class Reply(NamedTuple):
    """What a client replies with."""

    #: Number of the client: its place in a simulation, or Flower's id of its node.
    client: int
    arrays: dict[str, Array]
    #: Number of the client's own rows.
    rows: int
    #: `fingerprint` of the public rows that the client has, or "".
    public: str = ""


class Strategy(Stateful):
    """Base class of what a server does in a round: `FedMD`, `FedDF` and `FedAvg`.

    Attributes
    ----------
    round : int
        Number of rounds that are complete.
    """

    #: What clients are asked for: "logits" or "weights".
    action: str

    def __init__(self) -> None:
        self.round = 0

    @abc.abstractmethod
    def request(self) -> dict[str, Array]:
        """Return the arrays that are sent to all clients."""

    @abc.abstractmethod
    def check(self, reply: Reply) -> None:
        """Raise an error, which names the client, if a reply cannot be used.

        Raises
        ------
        ValueError
            If arrays are missing, or have other shapes or values that are not finite.
        """

    @abc.abstractmethod
    def receive(self, replies: Sequence[Reply]) -> None:
        """Finish a round with the replies of clients, each of which was checked."""


def checked_replies(replies: Any) -> list[Reply]:
    """Return replies after checking their types; there is at least one."""
    found = sequence(replies, "replies")
    if not found:
        raise ValueError("replies must hold at least one reply, got none")
    return [checked_reply(reply, f"replies[{i}]") for i, reply in enumerate(found)]


def checked_reply(reply: Any, name: str) -> Reply:
    """Return a reply after checking its type."""
    if not isinstance(reply, Reply):
        raise TypeError(f"{name} must be a Reply, got {type(reply).__name__}")
    if not isinstance(reply.arrays, Mapping):
        raise TypeError(f"{name} must have a dict of arrays, got {type(reply.arrays).__name__}")
    return reply


def is_finite(array: Array) -> bool:
    """Whether no value of an array is NaN or infinite."""
    return not is_floating(array.dtype) or bool(np.isfinite(array).all())


def checked_public(public: Any) -> Array:
    """Return the public rows as an array after checking them."""
    array = converted(public, "public")
    if array.dtype.kind != "b" and not is_number(array.dtype):
        raise TypeError(f"public must be an array of numbers, got {array.dtype}")
    if array.ndim == 0 or len(array) == 0:
        raise ValueError(f"public must have at least one row, got the shape {array.shape}")
    return array


def fingerprint(rows: Array) -> str:
    """Return a description of rows: dtype, shape, and a checksum of the values."""
    return f"{rows.dtype.name} {rows.shape} {checksum(np.ascontiguousarray(rows))}"
