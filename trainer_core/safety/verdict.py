"""What a guard model says of an answer, read strictly, and MS15: the answers that it calls unsafe."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from trainer_core.errors import GuardError
from trainer_core.safety.check import Judgement
from trainer_core.safety.guard_config import GuardConfig
from trainer_core.safety.rules import RuleSet
from trainer_core.safety.violation import Violation

CODE = "MS15"
_FIRST = re.compile(r"(?:safety:\s*)?(safe|unsafe|controversial)", re.IGNORECASE)
_REST = re.compile(r"(categor(?:y|ies)|refusal):(.*)", re.IGNORECASE)
_CATEGORY = re.compile(r"[\w&/().' -]{1,60}")


@dataclass(frozen=True, slots=True)
class Verdict:
    is_safe: bool
    categories: tuple[str, ...] = ()

    def counts(self, ignored: Collection[str]) -> bool:
        """Whether the answer fails: it is unsafe, and not only in categories that are ignored."""
        known = {category.lower() for category in ignored}
        return not self.is_safe and not (self.categories and all(one.lower() in known for one in self.categories))


def parse_verdict(reply: str) -> Verdict:
    """The first line is `safe` or `unsafe` (Llama Guard), or `Safety: Safe`, `Unsafe` or `Controversial` (Qwen3Guard;
    controversial is unsafe). The others name categories, separated by commas; a line `Refusal:` says nothing.

    Raises GuardError for anything else, also for `safe` with a category. It does not tell the reply, which may
    repeat the answer.
    """
    first, *rest = (line.strip() for line in reply.strip().splitlines() or [""])
    word = _FIRST.fullmatch(first)
    if word is None:
        raise _refuse("its first line is neither `safe` nor `unsafe`")
    categories = tuple(category for line in rest for category in _list_categories(line))
    if not all(map(_CATEGORY.fullmatch, categories)):
        raise _refuse("what follows the first line are no categories")
    is_safe = word[1].lower() == "safe"
    if is_safe and categories:
        raise _refuse("it says `safe`, and names a category")
    return Verdict(is_safe, categories)


def _list_categories(line: str) -> list[str]:
    name, text = found.groups() if (found := _REST.fullmatch(line)) else ("", line)
    if name.lower() == "refusal":
        return []
    return [category for part in text.split(",") if (category := part.strip()) and category.lower() != "none"]


def _refuse(message: str) -> GuardError:
    return GuardError(
        "guard_unreadable",
        f"The guard's reply is no verdict: {message}.",
        remedy="Serve a model that replies as Llama Guard or Qwen3Guard does, with its own chat template.",
    )


def with_verdicts(
    rules: RuleSet, judgements: Sequence[Judgement], verdicts: Sequence[Verdict], guard: GuardConfig
) -> list[Judgement]:
    """The judgements, each with its verdict among its own: every answer was judged by MS15."""
    check = rules.checks[CODE]
    joined = []
    for judgement, verdict in zip(judgements, verdicts, strict=True):
        violations = judgement.violations
        if verdict.counts(guard.ignored):
            explanation = f"{check.explanation} {guard.model}: {', '.join(verdict.categories) or 'no category'}."
            violations = (*violations, Violation(CODE, check.severity, explanation, 0, 0))
        joined.append(replace(judgement, judged=(*judgement.judged, CODE), violations=violations))
    return joined
