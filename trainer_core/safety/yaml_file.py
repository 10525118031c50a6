"""YAML as data: no tags, no anchors, no doubled keys, nothing huge; and the digest of what was read."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from trainer_core.errors import ConfigurationError

MAX_FILE_BYTES = 2_000_000
_MAX_DEPTH = 20


_Parser = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where PyYAML was built with it: ten times as fast."""


class _StrictLoader(_Parser):  # type: ignore[misc, valid-type]
    """Refuses keys that come twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key that comes twice", node.start_mark)
        return mapping


def _parse(text: str) -> Any:
    """Aliases, which let a small file grow without end, and deep nesting are refused before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=_Parser):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _MAX_DEPTH:
            what = "an alias" if isinstance(event, yaml.AliasEvent) else "deep nesting"
            raise yaml.constructor.ConstructorError(None, None, what, event.start_mark)  # type: ignore[arg-type]
    return yaml.load(text, Loader=_StrictLoader)


def load_yaml(path: Path, code: str) -> dict[str, Any]:
    """The mapping in a file; ConfigurationError with that code, the place and a remedy, OSError if unreadable."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigurationError(code, f"{path.name} is larger than {MAX_FILE_BYTES:,} bytes", remedy="Split it.")
    try:
        content = _parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigurationError(code, f"{path.name} is not UTF-8 text", remedy="Save it as UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        message = f"{path.name}{place}: {error.problem}"
        raise ConfigurationError(code, message, remedy="Write plain YAML.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        message = f"{path.name}: {str(error).splitlines()[0]}"
        raise ConfigurationError(code, message, remedy="Write plain YAML.") from None
    if not isinstance(content, dict):
        raise ConfigurationError(code, f"{path.name} is not a mapping", remedy="Begin it with `version:`.")
    return content


def compute_digest(content: Any) -> str:
    """SHA-256 of the content in canonical JSON: comments, order of keys and line breaks do not count."""
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()
