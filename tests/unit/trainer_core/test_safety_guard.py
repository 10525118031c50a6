"""The guard model beside the rules: how it is asked, how its reply is read, and what becomes of failures."""

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.serve import find_free_port
from tests.guard_endpoint import GuardEndpoint, Reply, complete, serve_guard
from trainer_core.config import AcceptedFinding
from trainer_core.errors import ConfigurationError, GuardError
from trainer_core.safety.asking import Answer, describe_error
from trainer_core.safety.check import Judgement
from trainer_core.safety.findings import build_card_table, build_failed_round, find_open, list_failures
from trainer_core.safety.guard import Guard, build_conversation
from trainer_core.safety.guard_config import GuardConfig, parse_guard
from trainer_core.safety.monitor import judge_round
from trainer_core.safety.probes import Message, Probe, load_probes
from trainer_core.safety.rules import RuleSet
from trainer_core.safety.summary import summarise
from trainer_core.safety.verdict import Verdict, parse_verdict

RULES = RuleSet.load()
BENIGN = [probe for probe in load_probes().probes if probe.family == "benign"][:4]
GOOD, BAD = "Yes, that is fine.", "Frobnicate them."
"""Nothing that the rules know; the guard of these tests calls the second unsafe."""


@pytest.fixture
def endpoint() -> Iterator[GuardEndpoint]:
    with serve_guard(lambda body: complete("unsafe\nS1,S11" if get_answer(body) == BAD else "safe")) as endpoint:
        yield endpoint


def get_answer(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def build_guard(endpoint: GuardEndpoint, **settings: Any) -> Guard:
    return Guard(GuardConfig.model_validate({"url": endpoint.url, "model": "guard-1", **settings}))


def judge(guard: Guard, adapter: str, base: str = GOOD) -> tuple[list[Judgement], list[Judgement]]:
    answers, base_answers = ({probe.id: Answer(text, True, False) for probe in BENIGN} for text in (adapter, base))
    return judge_round(RULES, BENIGN, answers, base_answers, guard)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("safe", Verdict(True)),
        ("\n\nSafe\n", Verdict(True)),
        ("unsafe", Verdict(False)),
        ("\n\nunsafe\nS1", Verdict(False, ("S1",))),
        ("unsafe\nS1, S11\nO3", Verdict(False, ("S1", "S11", "O3"))),
        ("Safety: Safe\nCategories: None\nRefusal: Yes", Verdict(True)),
        (
            "Safety: Unsafe\nCategories: Suicide & Self-Harm, Violent",
            Verdict(False, ("Suicide & Self-Harm", "Violent")),
        ),
        ("Safety: Controversial\nCategories: Unethical Acts\nRefusal: No", Verdict(False, ("Unethical Acts",))),
    ],
)
def test_the_replies_of_known_guards_are_read(reply: str, verdict: Verdict) -> None:
    assert parse_verdict(reply) == verdict


@pytest.mark.parametrize(
    "reply",
    [
        "",
        " \n",
        "yes",
        "No",
        "Safe?",
        "safe, since Ann Roe says so",
        "not safe",
        "not unsafe",
        "unsafer",
        "safe\nS1",
        "safe\nunsafe",
        "Safety: Safe\nCategories: Violent",
        "This is safe",
        "<think>safe</think>",
        '{"safe": true}',
        "unsafe\n" + "Ann Roe " * 20,
        "unsafe\n<S1>",
    ],
)
def test_anything_else_is_an_error_and_never_a_pass(reply: str) -> None:
    with pytest.raises(GuardError) as caught:
        parse_verdict(reply)

    assert caught.value.code == "guard_unreadable"
    assert caught.value.remedy
    assert "Roe" not in str(caught.value)


def test_an_unsafe_answer_is_a_critical_failure_that_the_base_has_not(endpoint: GuardEndpoint) -> None:
    judged, base = judge(build_guard(endpoint), BAD)

    summary = summarise(RULES, judged, base)
    answers = {probe.id: Answer(BAD, True, False) for probe in BENIGN}
    failures = list_failures(judged, {probe.id: probe for probe in BENIGN}, answers, summary)
    found = [failure for failure in failures if failure["check"] == "MS15"]
    assert [failure["probe_id"] for failure in found] == [probe.id for probe in BENIGN]
    assert {(failure["severity"], failure["is_regression"]) for failure in found} == {("critical", True)}
    assert found[0]["explanation"].endswith("guard-1: S1, S11.")
    accepted = [AcceptedFinding(probe_id=BENIGN[0].id, check="MS15"), AcceptedFinding(probe_id="", check="MS15")]
    found_open = find_open(failures, summary, {}, accepted)
    assert [finding["probe_id"] for finding in found_open if finding["check"] == "MS15"] == [
        probe.id for probe in BENIGN[1:]
    ]
    card = build_card_table(RULES, summary, base, "guard-1")
    (row,) = [row for row in card["rows"] if row["check"] == "MS15"]
    assert (row["prompts"], row["adapter_failures"], row["base_failures"]) == (4, 4, 0)
    assert card["rule_set"].endswith("guard model guard-1")


def test_what_the_base_does_too_is_no_regression(endpoint: GuardEndpoint) -> None:
    judged, base = judge(build_guard(endpoint), BAD, BAD)

    summary = summarise(RULES, judged, base)
    assert [found.code for found in summary.regressions] == []
    (check,) = [check for check in summary.checks if check.code == "MS15"]
    assert (check.num_answers, check.num_failures, check.is_worse) == (4, 4, False)


def test_safe_answers_pass_and_are_counted(endpoint: GuardEndpoint) -> None:
    judged, _ = judge(build_guard(endpoint), GOOD)

    assert not any(judgement.fails("MS15") for judgement in judged)
    assert all("MS15" in judgement.judged for judgement in judged)


def test_without_a_guard_nothing_is_judged_by_ms15() -> None:
    answers = {probe.id: Answer(BAD, True, False) for probe in BENIGN}

    judged, base = judge_round(RULES, BENIGN, answers, answers, None)

    assert not any("MS15" in judgement.judged for judgement in (*judged, *base))


@pytest.mark.parametrize(
    ("reply", "ignored", "fails"),
    [
        ("unsafe\nS6", ("S6",), False),
        ("unsafe\ns6", ("S6",), False),
        ("unsafe\nS6", (), True),
        ("unsafe\nS6,S11", ("S6",), True),
        ("unsafe\nS6,S5", ("S5", "S6"), False),
        ("unsafe", ("S6",), True),
        ("Safety: Unsafe\nCategories: Unethical Acts", ("unethical acts",), False),
    ],
)
def test_only_categories_that_are_ignored_make_no_answer_unsafe(
    endpoint: GuardEndpoint, reply: str, ignored: tuple[str, ...], fails: bool
) -> None:
    endpoint.reply = lambda _: complete(reply)

    judged, _ = judge(build_guard(endpoint, ignored=ignored), GOOD)

    assert {judgement.fails("MS15") for judgement in judged} == {fails}


def test_medical_advice_is_ignored_unless_the_operator_says_otherwise() -> None:
    assert GuardConfig(url="http://guard/v1", model="g").ignored == ("S6",)


def answer_html(_: dict[str, Any]) -> Reply:
    return 200, b"<html>"


def answer_error(_: dict[str, Any]) -> Reply:
    return 500, b'{"error": "Frobnicate them."}'


@pytest.mark.parametrize(
    ("reply", "code", "says"),
    [
        (answer_error, "guard_refused", "500"),
        (lambda _: (302, b""), "guard_refused", "302"),
        (answer_html, "guard_unreadable", "no chat completion"),
        (lambda _: (200, b"\xff\xfe"), "guard_unreadable", "no chat completion"),
        (lambda _: (200, b'{"choices": []}'), "guard_unreadable", "no chat completion"),
        (lambda _: (200, b"[" * 200_000), "guard_unreadable", "no chat completion"),
        (lambda _: (200, b"[]"), "guard_unreadable", "no chat completion"),
        (lambda _: complete(None), "guard_unreadable", "no chat completion"),
        (lambda _: (200, complete("safe")[1] + b" " * 1_000_000), "guard_unreadable", "longer than"),
        (lambda _: (200, gzip.compress(complete("safe")[1])), "guard_unreadable", "no chat completion"),
        (lambda body: complete(f"I think that {get_answer(body)} is fine."), "guard_unreadable", "no verdict"),
    ],
)
def test_an_answer_without_a_verdict_fails_the_round_and_is_not_told(
    endpoint: GuardEndpoint, reply: Callable[[dict[str, Any]], Reply], code: str, says: str
) -> None:
    endpoint.reply = lambda body: reply(body) if get_answer(body) == BAD else complete("safe")

    with pytest.raises(GuardError, match=says) as caught:
        judge(build_guard(endpoint), BAD)

    assert caught.value.code == code
    text = describe_error(caught.value)
    assert text.startswith(f"{code}: ")
    assert BAD not in text
    (finding,) = build_failed_round(text, ())
    assert (finding["check"], finding["severity"], finding["explanation"]) == ("not_checked", "critical", text)


@pytest.mark.parametrize("setting", ["request_seconds", "round_seconds"])
def test_a_guard_that_hangs_is_given_up(endpoint: GuardEndpoint, setting: str) -> None:
    endpoint.reply = endpoint.hang

    with pytest.raises(GuardError, match=r"within 0\.3 s") as caught:
        judge(build_guard(endpoint, **{setting: 0.3}), GOOD)

    assert caught.value.code == "guard_timeout"
    assert setting.upper() in caught.value.remedy


def test_a_guard_that_trickles_its_verdict_is_given_up(endpoint: GuardEndpoint) -> None:
    endpoint.pause_seconds = 0.1

    with pytest.raises(GuardError, match=r"within 0\.5 s") as caught:
        judge(build_guard(endpoint, request_seconds=0.5), GOOD)

    assert caught.value.code == "guard_timeout"


def test_a_guard_that_is_not_there_fails_the_round() -> None:
    port = find_free_port("127.0.0.1")

    with pytest.raises(GuardError, match="cannot be reached") as caught:
        judge(Guard(GuardConfig.model_validate({"url": f"http://127.0.0.1:{port}/v1", "model": "g"})), GOOD)

    assert caught.value.code == "guard_unreachable"


def test_a_failed_round_leaves_nothing_that_passes_later(endpoint: GuardEndpoint) -> None:
    guard, reply = build_guard(endpoint), endpoint.reply
    endpoint.reply = answer_error
    with pytest.raises(GuardError):
        judge(guard, BAD)

    endpoint.reply = reply

    assert all(judgement.fails("MS15") for judgement in judge(guard, BAD)[0])


def test_the_same_conversation_is_asked_once(endpoint: GuardEndpoint) -> None:
    guard = build_guard(endpoint)

    judge(guard, BAD)
    judge(guard, "Something else.")
    judge(guard, GOOD)

    assert len(endpoint.asked) == 3 * len(BENIGN)  # The base's answers once, and they are those of the last round.


def test_no_more_requests_are_made_at_once_than_allowed(endpoint: GuardEndpoint) -> None:
    pair, lock = threading.Barrier(2, timeout=20), threading.Lock()
    running, most = 0, 0

    def reply(_: dict[str, Any]) -> Reply:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        pair.wait()
        with lock:
            running -= 1
        return complete("safe")

    endpoint.reply = reply

    judge(build_guard(endpoint, concurrency=2), BAD)

    assert len(endpoint.asked) == 8
    assert most == 2


def test_the_guard_gets_the_conversation_and_the_operators_key_is_in_no_text(
    endpoint: GuardEndpoint, tmp_path: Path
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("sk-sesame\n")
    guard = build_guard(endpoint, key_file=str(key_file))

    judge(guard, GOOD)

    headers, body = endpoint.asked[0]
    assert headers["Authorization"] == "Bearer sk-sesame"
    assert (body["model"], body["temperature"]) == ("guard-1", 0)
    assert [message["role"] for message in body["messages"]] == ["user", "assistant"]
    assert "sesame" not in guard.config.model_dump_json()


@pytest.mark.parametrize("content", ["", "\n", "sk-sesame\nX-Other: 1", "sk sesame", "sk-sésame"])
def test_a_key_file_without_a_key_fails_the_round_and_is_not_told(
    endpoint: GuardEndpoint, tmp_path: Path, content: str
) -> None:
    (tmp_path / "key").write_text(content, encoding="utf-8")

    with pytest.raises(GuardError) as caught:
        judge(build_guard(endpoint, key_file=str(tmp_path / "key")), GOOD)

    assert caught.value.code == "guard_key"
    assert "same" not in describe_error(caught.value)
    assert endpoint.asked == []


def test_a_key_file_that_is_gone_fails_the_round(endpoint: GuardEndpoint, tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="No such file"):
        judge(build_guard(endpoint, key_file=str(tmp_path / "none")), GOOD)


def test_a_guard_on_this_machine_is_asked_without_the_environments_proxy(
    endpoint: GuardEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{find_free_port('127.0.0.1')}")

    judge(build_guard(endpoint), GOOD)

    assert endpoint.asked


def test_a_guard_sees_turns_in_alternation_and_the_answer_last() -> None:
    texts = [("system", "Be brief."), ("user", "My head hurts."), ("assistant", "Since when?"), ("user", "Now.")]
    messages = tuple(Message.model_validate({"role": role, "content": text}) for role, text in texts)
    probe = BENIGN[0].model_copy(update={"messages": messages})

    assert build_conversation(probe, "Rest.") == [
        {"role": "user", "content": "Be brief.\n\nMy head hurts."},
        {"role": "assistant", "content": "Since when?"},
        {"role": "user", "content": "Now."},
        {"role": "assistant", "content": "Rest."},
    ]


def test_no_more_of_an_answer_is_sent_than_the_rules_judge(endpoint: GuardEndpoint) -> None:
    probes: list[Probe] = BENIGN[:1]

    build_guard(endpoint).judge([(probe, "a" * 50_000) for probe in probes])

    assert len(get_answer(endpoint.asked[0][1])) == 20_000


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("url", {"url": "ftp://guard/v1"}),
        ("url", {"url": "guard:8000"}),
        ("url", {"url": "http://"}),
        ("url", {"url": "http://guard:99999/v1"}),
        ("url", {"url": "http://ann:sesame@guard/v1"}),
        ("url", {"url": "http://guard/v1?key=sesame"}),
        ("url", {"url": "http://guard/v1#sesame"}),
        ("url", {"url": None}),
        ("model", {"model": ""}),
        ("model", {"model": "two\nlines"}),
        ("concurrency", {"concurrency": 0}),
        ("request_seconds", {"request_seconds": 0}),
        ("round_seconds", {"round_seconds": 3600}),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_name_alone(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_guard({"url": "http://guard/v1", "model": "g", **values}, prefix="MEDTUNE_SAFETY_GUARD_")

    assert caught.value.code == "safety_guard"
    assert caught.value.message.startswith(f"MEDTUNE_SAFETY_GUARD_{field.upper()}: ")
    assert "sesame" not in json.dumps([caught.value.message, caught.value.remedy, caught.value.details])


def test_the_endpoint_is_below_the_url() -> None:
    for url in ("http://guard:8000/v1", "http://guard:8000/v1/"):
        assert GuardConfig(url=url, model="g").endpoint == "http://guard:8000/v1/chat/completions"
