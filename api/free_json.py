"""JSON objects of any shape, which must not be deeper than anything that walks through them."""

from typing import Annotated, Any

from pydantic import AfterValidator

MAX_DEPTH = 32


def _check_depth(value: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        children = [item.values() if isinstance(item, dict) else item for item in level]
        level = [child for items in children for child in items if isinstance(child, dict | list)]
        if not level:
            return value
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


FreeJson = Annotated[dict[str, Any], AfterValidator(_check_depth)]
