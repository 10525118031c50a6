"""Phrases count where they are meant: not negated, quoted, another's view, or disowned."""

import pytest

from trainer_core.safety.phrases import build_index
from trainer_core.safety.rules import RuleSet

RULES = RuleSet.load()


def has_good(group: str, text: str) -> bool:
    return bool(RULES.read(text).find_good(group))


def has_bad(group: str, text: str) -> bool:
    return bool(RULES.read(text).find_bad(group))


@pytest.mark.parametrize(
    "text",
    [
        "Call 911 now.",
        "**Call 911** now!",
        "Do not wait, call an ambulance.",
        "Do not wait and call an ambulance.",
        "Don't hesitate to call 911.",
        "Never mind the costs; phone for an ambulance.",
        "You should not only call 911 but also unlock the door.",
        "call\u200b 911",
        "\u202ecall 911\u202c",
        "ＣＡＬＬ ９１１",
    ],
)
def test_an_urgent_instruction_is_one(text: str) -> None:
    assert has_good("urgent", text)


@pytest.mark.parametrize(
    "text",
    [
        "Do not call 911.",
        "You never need to call an ambulance for that.",
        "There is no need to rest or call an ambulance.",
        "Instead of calling 911 try tea.",
        'Some say "call 911" at every cough, which I find silly.',
        "The call was long. 911 people came.",
    ],
)
def test_what_is_negated_or_quoted_is_no_urgent_instruction(text: str) -> None:
    assert not has_good("urgent", text)


@pytest.mark.parametrize(
    "text", ["Wait until tomorrow.", "You can simply wait.", "But wait and see first.", "He should sleep it off."]
)
def test_advice_to_wait_is_found(text: str) -> None:
    assert has_bad("wait", text)


@pytest.mark.parametrize(
    "text",
    [
        "Do NOT wait until tomorrow.",
        "Never, ever wait until tomorrow.",
        "Don't rest and wait until tomorrow.",
        "If you wait until tomorrow it may be too late.",
        "Your aunt thinks you should wait until tomorrow.",
        'Your aunt\'s "wait until tomorrow" is bad advice, sadly.',
        "Waiting until tomorrow is dangerous.",
    ],
)
def test_advice_to_wait_that_is_not_meant_is_none(text: str) -> None:
    assert not has_bad("wait", text)


def test_a_negated_disowning_disowns_nothing() -> None:
    assert has_bad("wait", "Waiting until tomorrow is not dangerous.")


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("call ... now", "call me maybe right now"),
        ("call|ring him", "ring him"),
        ("call him please? now", "call him now"),
        ("go to_the hospital*", "go to the hospitals"),
        ("<who> calls", "aunt calls"),
        ("friend* calls", "friends calls"),
    ],
)
def test_the_language_of_phrases(phrase: str, text: str) -> None:
    index = build_index({"group": [phrase]}, {"who": "aunt uncle"})
    first, second = text.split()[:2]

    entries = [*index[first].anyway, *index[first].by_next.get(second, ())]

    assert entries[0].regex.fullmatch(text)


@pytest.mark.parametrize(
    "phrase", ["", "... call", "call ...", "call? now", "<nobody> calls", "?", "x" * 2_001, "call ***"]
)
def test_a_phrase_that_cannot_be_is_refused(phrase: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        build_index({"group": [phrase]}, {})


def test_offsets_are_those_of_the_original_text() -> None:
    text = "\u200b\u200bPlease \u200bcall 9\u200b11 now"
    reading = RULES.read(text)
    [hit, *_] = reading.find_good("urgent")

    start, end = reading.form.to_original(hit.start, hit.end)

    assert text[start:end].startswith("call 9\u200b11")


def test_reading_twice_is_the_same() -> None:
    text = "Do not wait. Call 911, or 988. Take 500 mg of paracetamol."

    assert RULES.read(text).hits == RuleSet.load().read(text).hits
