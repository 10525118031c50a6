"""Builds the scan's lists of given names and surnames anew. Run: pip install faker==40.54.0; python -m bench.phi_lists.

They are the words of the Latin alphabet, of three letters or more, of every locale's names of people in Faker (MIT; its
licence is beside the lists). `ordinary_words.txt`, names that are words too, and `restricted_zip3.txt` are kept by
hand. Another version of Faker makes other lists: then the rule set's version changes with them.
"""

import importlib
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

LISTS = Path(__file__).parent.parent / "trainer_core" / "data" / "phi" / "lists"
_WIDTH = 118
_KINDS = {"given_names": ("first", "given"), "surnames": ("last", "sur")}
_FATHERS = "last_names_without_suffix"
"""Iceland's: given names in the genitive, to which -son and -dóttir are added."""
_WORD = re.compile(r"[a-z\u00df-\u024f\u1e00-\u1eff]+(?:['-][a-z\u00df-\u024f\u1e00-\u1eff]+)*")
_APOSTROPHES = str.maketrans("’ʻ", "''")
_MIN_LETTERS = 3


def main() -> None:
    for name, words in build_lists().items():
        (LISTS / f"{name}.txt").write_text(format_list(words), encoding="utf-8")
        print(f"{name}: {len(words):,} words, from Faker {version('faker')}")


def build_lists() -> dict[str, set[str]]:
    lists: dict[str, set[str]] = {name: set() for name in _KINDS}
    for attribute, value in _iter_attributes():
        for name, hints in _KINDS.items():
            if any(hint in attribute for hint in hints):
                lists[name].update(word for text in _iter_texts(value) for word in _iter_words(text))
                break
    return lists


def format_list(words: set[str]) -> str:
    return textwrap.fill(" ".join(sorted(words)), _WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


def _iter_attributes() -> Iterator[tuple[str, object]]:
    """Of the classes that have the names, one for each locale."""
    persons = importlib.import_module("faker.providers.person")
    for module in pkgutil.iter_modules(persons.__path__):
        provider = importlib.import_module(f"{persons.__name__}.{module.name}").Provider
        for attribute in dir(provider):
            if not attribute.startswith("_") and attribute != _FATHERS:
                yield attribute, getattr(provider, attribute)


def _iter_texts(value: object) -> Iterator[str]:
    """A name, or a collection of names, of (name, weight) or of {name: weight}."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple | set | frozenset):
        for item in value:
            yield from _iter_texts(item)


def _iter_words(text: str) -> Iterator[str]:
    for word in text.lower().translate(_APOSTROPHES).split():
        stripped = word.strip(".,()")
        if len(stripped) >= _MIN_LETTERS and _WORD.fullmatch(stripped):
            yield stripped


if __name__ == "__main__":
    main()
