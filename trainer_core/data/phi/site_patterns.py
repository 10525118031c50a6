"""A site's own patterns, as a JSON file: numbers of its wards, its record numbers, names of its houses.

{"patterns": [{"name": "ward_number", "class": "mrn", "regex": "W\\d{6}", "ignore_case": false}]}
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import regex as timed_re

from trainer_core.data.formats import RowError
from trainer_core.data.phi.finding import LABELLED, Finding
from trainer_core.errors import ConfigurationError

MAX_FILE_BYTES = 1_000_000
MAX_PATTERNS = 500
MAX_REGEX_CHARACTERS = 1_000
MAX_PROBE_SECONDS = 0.25
MAX_SECONDS = 20.0
"""Of all patterns together for all texts of one row, however often it is looked at to replace it: what takes longer is
polynomial in a length that no limit holds. A check renews its lease between rows, so a row has to end long before it.
"""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SYNTAX = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\((?:\?(?:P<\w+>|<?[:=!]))?|[)|+*}?]", re.DOTALL)
"""What tells where a regular expression branches and repeats; first what does not, escapes and sets."""
_REPEAT = re.compile(r"[+*]|\{\d*,\d*\}")
_PROBES = ("a" * 28 + "!", "1" * 28 + "!", "A1" * 14 + "!", " " * 28 + "!", "a " * 14 + "!")
_KEYS = {"name", "class", "regex", "ignore_case"}
_REMEDY = 'Write {"patterns": [{"name": ..., "class": ..., "regex": ...}]}; names and classes are lower-case words.'


class Budget:
    """What is left to a row of its seconds."""

    def __init__(self) -> None:
        self._left = MAX_SECONDS

    @contextmanager
    def spend(self) -> Iterator[float]:
        """The seconds that there are. Raises TimeoutError where there are none."""
        if self._left <= 0:
            raise TimeoutError
        started = time.monotonic()
        try:
            yield self._left
        finally:
            self._left -= time.monotonic() - started


@dataclass(frozen=True, slots=True)
class SitePattern:
    name: str
    phi_class: str
    regex: timed_re.Pattern[str]
    """Not the standard library's, which cannot be stopped."""

    def find(self, text: str, budget: Budget) -> list[Finding]:
        """Raises RowError: a text that was not searched to its end must not pass for one without findings."""
        try:
            with budget.spend() as seconds:
                spans = [match.span() for match in self.regex.finditer(text, timeout=seconds)]
        except TimeoutError:
            raise RowError(
                "site_pattern_too_slow",
                f"The site's patterns take longer than {MAX_SECONDS:g} s for the row, which ended in `{self.name}`, in"
                f" a text of {len(text):,} characters: give repetitions limits, such as {{1,20}}.",
            ) from None
        rule = f"site.{self.name}"
        return [Finding(start, end, self.phi_class, rule, LABELLED) for start, end in spans if end > start]


def load_site_patterns(path: Path) -> list[SitePattern]:
    """Raises ConfigurationError with the field at fault, OSError where the file cannot be read."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise _refuse(f"{path.name} is larger than {MAX_FILE_BYTES:,} bytes", "Split it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise _refuse(f"{path.name} is not UTF-8 text", "Save it as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise _refuse(f"{path.name}, line {error.lineno}, column {error.colno}: {error.msg}", "Write JSON.") from None
    except (ValueError, RecursionError):
        raise _refuse(f"{path.name} is nested too deep, or has a number that is too long", "Write JSON.") from None
    entries = content.get("patterns") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise _refuse(f"{path.name}: `patterns` is not a list with entries", _REMEDY)
    if len(entries) > MAX_PATTERNS:
        raise _refuse(f"{path.name}: `patterns` has more than {MAX_PATTERNS} entries", "Join some with `|`.")
    return [_build(f"{path.name}: patterns[{index}]", entry) for index, entry in enumerate(entries)]


def _build(place: str, entry: object) -> SitePattern:
    if not isinstance(entry, dict):
        raise _refuse(f"{place} is not an object", _REMEDY)
    if unknown := set(entry) - _KEYS:
        raise _refuse(f"{place}.{min(map(str, unknown))} is no known key", f"Known are {', '.join(sorted(_KEYS))}.")
    for key in ("name", "class"):
        if not isinstance(entry.get(key), str) or not _NAME.fullmatch(entry[key]):
            raise _refuse(f"{place}.{key} is not a lower-case word of at most 40 characters", _REMEDY)
    if not isinstance(entry.get("ignore_case", False), bool):
        raise _refuse(f"{place}.ignore_case is neither true nor false", _REMEDY)
    flags = re.IGNORECASE if entry.get("ignore_case") else re.NOFLAG
    pattern = _compile(f"{place}.regex", entry.get("regex"), flags)
    return SitePattern(entry["name"], entry["class"], _make_timed(f"{place}.regex", pattern))


def _compile(place: str, regex: object, flags: re.RegexFlag) -> re.Pattern[str]:
    if not isinstance(regex, str) or not regex:
        raise _refuse(f"{place} is not a text", _REMEDY)
    if len(regex) > MAX_REGEX_CHARACTERS:
        raise _refuse(f"{place} is longer than {MAX_REGEX_CHARACTERS} characters", "Split it into several patterns.")
    try:
        pattern = re.compile(regex, flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise _refuse(
            f"{place} is no regular expression: {error}", "Correct it; backslashes are doubled in JSON."
        ) from None
    if pattern.match(""):
        raise _refuse(f"{place} matches the empty text", "Make it want at least one character.")
    if _repeats_choices(regex) or _is_slow(pattern):
        raise _refuse(
            f"{place} may take for ever: a repetition or alternatives inside a repetition",
            "Repeat single characters or sets, with limits, such as [A-Z0-9]{1,20}.",
        )
    return pattern


def _make_timed(place: str, pattern: re.Pattern[str]) -> timed_re.Pattern[str]:
    try:
        return timed_re.compile(pattern.pattern, pattern.flags & re.IGNORECASE)
    except timed_re.error as error:
        raise _refuse(f"{place} cannot be used: {error}", "Write it in a simpler way.") from None


def _repeats_choices(regex: str) -> bool:
    """Whether a group that can match one text in several ways is itself repeated: the ways multiply."""
    groups = [False]
    for match in _SYNTAX.finditer(regex):
        if match[0].startswith("("):
            groups.append(False)
        elif match[0] == ")" and len(groups) > 1:
            has_choices = groups.pop()
            if has_choices and _REPEAT.match(regex, match.end()):
                return True
            groups[-1] |= has_choices
        elif match[0] in "|+*}?":
            groups[-1] = True
    return False


def _is_slow(pattern: re.Pattern[str]) -> bool:
    """Growing texts, so that a bad pattern shows itself before it takes long."""
    for probe in _PROBES:
        for length in range(8, len(probe), 2):
            started = time.process_time()
            pattern.search(probe[:length] + "!")
            if time.process_time() - started > MAX_PROBE_SECONDS / 10:
                return True
    return False


def _refuse(message: str, remedy: str) -> ConfigurationError:
    return ConfigurationError("site_patterns", message, remedy=remedy)
