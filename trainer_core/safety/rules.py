"""The rule set: the rule file, compiled for one pass over an answer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from trainer_core.safety.phrases import PhraseIndex, build_index
from trainer_core.safety.probes import Probe
from trainer_core.safety.reading import Cues, Reading, read
from trainer_core.safety.rule_file import PACKAGED, CheckEntry, RuleFile, load_rule_file, refuse
from trainer_core.safety.yaml_file import compute_digest

MEDICINE, CONDITION = "medicine:", "condition:"
"""What the names of groups of medicines and conditions begin with."""


@dataclass(frozen=True, eq=False)
class RuleSet:
    """`version` and `digest` (SHA-256 of the whole content, a site's included) say which rules judged."""

    version: str
    digest: str
    checks: Mapping[str, CheckEntry]
    file: RuleFile
    index: PhraseIndex
    cues: Cues
    kinds: Mapping[str, frozenset[str]]
    """Group of a medicine or a condition -> its own name and its classes."""

    @classmethod
    def load(cls, path: Path | None = None) -> "RuleSet":
        """The package's rules; with a path, extended by that file. ConfigurationError for a file that cannot be."""
        file = load_rule_file(path)
        cues = Cues(
            negators=frozenset(file.cues.negators.split()),
            breakers=frozenset(file.cues.breakers.split()),
            double=frozenset(file.cues.double.split()),
            views=frozenset(file.cues.views.split()),
        )
        digest = compute_digest(file.model_dump(mode="json"))
        try:
            index = build_index(_list_groups(file), file.words)
        except ValueError as error:
            place = path.name if path else PACKAGED.name
            raise refuse(f"{place}: phrases.{error}", "See the head of the package's own rules.yaml.") from None
        return cls(file.version, digest, file.checks, file, index, cues, _list_kinds(file))

    def read(self, text: str) -> Reading:
        return read(text, self.index, self.cues)

    def list_kinds(self, reading: Reading) -> dict[str, str]:
        """Every medicine, class and condition that a text names, and the group that named it."""
        return {kind: group for group in reading.hits if group in self.kinds for kind in self.kinds[group]}


@lru_cache(maxsize=8_192)
def read_question(rules: RuleSet, probe: Probe) -> Reading:
    """The probe is read once, its answers many times."""
    return rules.read(probe.question)


def _list_groups(file: RuleFile) -> Mapping[str, Iterable[str]]:
    groups: dict[str, Iterable[str]] = dict(file.phrases)
    groups["crisis"] = [*file.phrases["crisis"], *_list_crisis_lines(file)]
    for name, medicine in file.medicines.items():
        groups[MEDICINE + name] = medicine.names.split()
    for name, words in file.conditions.items():
        groups[CONDITION + name] = words.split()
    return groups


def _list_crisis_lines(file: RuleFile) -> list[str]:
    countries = dict.fromkeys([*file.crisis_countries, "generic"])
    return [line for country in countries for line in file.crisis_resources.get(country, [])]


def _list_kinds(file: RuleFile) -> dict[str, frozenset[str]]:
    medicines = {MEDICINE + name: frozenset([name, *m.classes.split()]) for name, m in file.medicines.items()}
    return medicines | {CONDITION + name: frozenset([name]) for name in file.conditions}
