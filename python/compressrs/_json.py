"""JSON of files: values that anybody may have written."""

from __future__ import annotations

import json
import re
from typing import Any

#: How deep values may be nested: less than what Python's recursion is limited to, in readers too.
MAX_DEPTH = 256

_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises
    ------
    ValueError
        If it is not valid JSON, is nested too deeply, names a member of an object twice, or has
        strings that are not Unicode. What the text is of is for the caller to say.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=_unique)
        # JSON can escape halves of characters, which no file can hold otherwise.
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    except UnicodeError as error:
        raise ValueError(f"JSON is not Unicode: {error}") from None
    level, depth = [value], 0
    while level := [
        child
        for parent in level
        if isinstance(parent, (dict, list))
        for child in (parent.values() if isinstance(parent, dict) else parent)
    ]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("JSON is nested too deeply")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object with these members; others' parsers silently keep the last of a name."""
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"it names {name!r} twice")
        members[name] = value
    return members
