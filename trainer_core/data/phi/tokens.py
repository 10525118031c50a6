"""Tokens: which placeholder a value gets. A number by its order within a scope, or a keyed hash, the same anywhere."""

from collections.abc import Collection, Iterable

from trainer_core.data.phi.persons import link_names
from trainer_core.data.phi.placeholders import AGE, DIGEST_LENGTH, OVER_89, PERSON
from trainer_core.data.phi.vault import Keyring

Value = tuple[str, str]
"""A type of token and a value in the form of `values.get_value`."""


def assign_tokens(
    values: Iterable[Value], taken: Collection[tuple[str, int]], keyring: Keyring | None
) -> dict[Value, str]:
    """A token for each value of a scope, in order; names of one person share theirs. Numbers that are taken stay free.

    With a keyring tokens are keyed hashes.
    """
    values = list(dict.fromkeys(values))
    persons = link_names(value for label, value in values if label == PERSON)
    tokens: dict[Value, str] = {}
    used = dict.fromkeys((label for label, _ in values), 0)
    for label, value in values:
        whole = (label, persons[value] if label == PERSON else value)
        if whole not in tokens:
            used[label] = _find_free(label, used[label], taken) if keyring is None else 0
            tokens[whole] = _build_token(whole, used[label], keyring)
        tokens[label, value] = tokens[whole]
    return tokens


def _find_free(label: str, last: int, taken: Collection[tuple[str, int]]) -> int:
    number = last + 1
    while (label, number) in taken:
        number += 1
    return number


def _build_token(value: Value, number: int, keyring: Keyring | None) -> str:
    label, text = value
    if label == AGE:
        return OVER_89
    index = str(number) if keyring is None else keyring.digest_token(label, text)[:DIGEST_LENGTH]
    return f"[{label}_{index}]"
