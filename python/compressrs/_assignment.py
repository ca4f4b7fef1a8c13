"""Dicts in which every assignment takes effect or raises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressrs._arrays import ArrayList, ArrayTree, children, write_tree


class CheckedDict(dict[Any, Any]):
    """A dict with fixed keys whose every change goes through `__setitem__`."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Any) -> Any:  # type: ignore[misc]
        self.update(other)
        return self

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def __delitem__(self, key: Any) -> None:
        raise TypeError(f"{key!r} cannot be removed from a {type(self).__name__}")

    def pop(self, key: Any, *default: Any) -> Any:
        raise TypeError(f"{key!r} cannot be removed from a {type(self).__name__}")

    def popitem(self) -> Any:
        raise TypeError(f"nothing can be removed from a {type(self).__name__}")

    def clear(self) -> None:
        raise TypeError(f"nothing can be removed from a {type(self).__name__}")

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class ArrayDict(CheckedDict):
    """Arrays, or trees of them, by name; assigning to a name copies into its arrays.

    Parameters
    ----------
    values : dict
    name : str
        Its name, for messages.
    fixed : bool, default True
        Whether no names can be added.
    """

    def __init__(self, values: Mapping[str, Any], name: str, *, fixed: bool = True) -> None:
        super().__init__(values)
        self._name, self._fixed = name, fixed

    def __setitem__(self, key: Any, value: Any) -> None:
        if key in self:
            write_tree(self[key], value, f"{self._name}[{key!r}]")
        elif self._fixed:
            raise ValueError(f"{self._name} must have keys among {list(self)}, got {key!r}")
        else:
            super().__setitem__(key, value)

    def assign(self, given: Mapping[str, Any]) -> None:
        """Copy into all arrays, or none; without any, take those given."""
        if given is self:
            return
        if not isinstance(given, dict):
            raise TypeError(f"{self._name} must be a dict, got {type(given).__name__}")
        added = {} if self and self._fixed else {k: given[k] for k in given if k not in self}
        write_tree(dict(self), {k: v for k, v in given.items() if k not in added}, self._name)
        self.replace(added)

    def replace(self, values: Mapping[str, Any]) -> None:
        """Replace the arrays themselves; what trains them must be notified separately."""
        dict.update(self, values)


def assignable(tree: ArrayTree, name: str) -> ArrayTree:
    """Return a tree with the same arrays, whose branches copy what is assigned to them."""
    if isinstance(tree, dict):
        return ArrayDict({k: assignable(v, f"{name}[{k!r}]") for k, v in tree.items()}, name)
    if isinstance(tree, list):
        paths = [name + step for step, _ in children(tree)]
        return ArrayList(map(assignable, tree, paths), paths)
    return tree
