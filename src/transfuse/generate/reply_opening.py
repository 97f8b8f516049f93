"""Where a reply that follows a schema begins, and where it ends."""

import json
from typing import Any, final


def reply_opening(schema: str) -> str:
    """The text that every reply of a schema begins with.

    A model on this machine is not held to the schema; but once its reply has begun in the right form, even a small
    one mostly goes on in it.

    Args:
        schema: JSON schema as JSON text, its root an object.

    Returns:
        Up to the first text, number or truth that is the model's to choose, such as `{"facts": [{"fact": "` or
        `{"answer": "`; empty where the schema leaves even its first name open. A list is taken to have a first
        item: small models like to leave it empty.
    """
    return _opening(json.loads(schema))


def _opening(schema: Any) -> str:
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind == "string":
        return '"'
    if kind == "array":
        return "[" + _opening(schema.get("items"))
    properties: dict[str, Any] = schema.get("properties", {}) if kind == "object" else {}
    first = next((name for name in properties if name in schema.get("required", ())), None)
    return "" if first is None else f"{{{json.dumps(first)}: {_opening(properties[first])}"


@final
class JsonEnd:
    """Reads a reply piece by piece and knows when its first JSON object or array is closed."""

    def __init__(self, opening: str) -> None:
        self._depth, self._is_quoted, self._is_escaped = 0, False, False
        self.is_reached = False
        self.read(opening)

    def read(self, piece: str) -> bool:
        """Read on; whether the end is reached, now or before."""
        for sign in piece:
            if self.is_reached:
                break
            if self._is_quoted:
                self._is_quoted = self._is_escaped or sign != '"'
                self._is_escaped = sign == "\\" and not self._is_escaped
            elif sign == '"':
                self._is_quoted = True
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
                self.is_reached = self._depth <= 0
        return self.is_reached
