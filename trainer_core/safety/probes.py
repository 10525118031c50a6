"""Probes: what a model is asked, and what a safe answer to it has."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from trainer_core.data.phi.normal_form import normalise
from trainer_core.errors import ConfigurationError
from trainer_core.safety.yaml_file import compute_digest, load_yaml

PACKAGED = Path(__file__).with_name("probes.yaml")
MAX_PROBES = 5_000
_CODE = "safety_probes"


class Family(StrEnum):
    EMERGENCY = "emergency"
    SELF_HARM = "self_harm"
    DOSING = "dosing"
    PAEDIATRIC_DOSING = "paediatric_dosing"
    INTERACTION = "interaction"
    PREGNANCY = "pregnancy"
    CONTRAINDICATION = "contraindication"
    CITATION = "citation"
    PRESCRIBING = "prescribing"
    HARM = "harm"
    PRIVACY = "privacy"
    BENIGN = "benign"


class Expected(StrEnum):
    """What a safe answer has."""

    URGENT_CARE = "urgent_care"
    CRISIS_RESOURCE = "crisis_resource"
    REFUSAL = "refusal"
    REFERRAL = "referral"
    PLAIN_ANSWER = "plain_answer"
    NO_INVENTION = "no_invention"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _check_seen(text: str) -> str:
    if not normalise(text).text.strip():
        raise ValueError("nothing of it can be seen")
    return text


_Text = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=20_000), AfterValidator(_check_seen)
]


class Message(_Entry):
    role: Literal["system", "user", "assistant"]
    content: _Text


class Probe(_Entry):
    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$")]
    family: Annotated[Family, Field(strict=False)]
    expected: Annotated[Expected, Field(strict=False)]
    messages: Annotated[tuple[Message, ...], Field(strict=False, min_length=1, max_length=50)]
    pair: str | None = None
    """The id of the same case without the pressure: a relative who makes light of it, or a plan."""

    @property
    def question(self) -> str:
        """All that the model reads."""
        return "\n".join(message.content for message in self.messages)


@dataclass(frozen=True, slots=True)
class ProbeSet:
    version: str
    digest: str
    probes: tuple[Probe, ...]


def load_probes(path: Path | None = None) -> ProbeSet:
    """The package's own probes, or those of a file; ConfigurationError with the entry, the field and a remedy."""
    path = path or PACKAGED
    content = load_yaml(path, _CODE)
    if unknown := set(content) - {"version", "probes"}:
        raise _refuse(f"{path.name}: {min(map(str, unknown))} is no known key", "Known are version and probes.")
    version, entries = content.get("version"), content.get("probes")
    if not isinstance(version, str) or not version.strip():
        raise _refuse(f"{path.name}: `version` is not a text", 'Write version: "1.0.0", in quotes.')
    if not isinstance(entries, list) or not entries:
        raise _refuse(f"{path.name}: `probes` is not a list with entries", "Write at least one probe.")
    if len(entries) > MAX_PROBES:
        raise _refuse(f"{path.name}: `probes` has more than {MAX_PROBES:,} entries", "Split the file.")
    probes = tuple(_build(f"{path.name}: probes[{index}]", entry) for index, entry in enumerate(entries))
    _check_together(path.name, probes)
    return ProbeSet(version, compute_digest(content), probes)


def load_all_probes(own: Path | None) -> ProbeSet:
    """The package's probes, and behind them a site's own. Raises what `load_probes` raises."""
    ours = load_probes()
    if own is None:
        return ours
    theirs = load_probes(own)
    _check_apart(own.name, ours.probes, theirs.probes)
    version, digest = f"{ours.version}+{theirs.version}", compute_digest([ours.digest, theirs.digest])
    return ProbeSet(version, digest, (*ours.probes, *theirs.probes))


def _check_apart(name: str, ours: tuple[Probe, ...], theirs: tuple[Probe, ...]) -> None:
    ids, texts = {probe.id for probe in ours}, {probe.messages: probe.id for probe in ours}
    for index, probe in enumerate(theirs):
        if probe.id in ids:
            raise _refuse(f"{name}: probes[{index}].id is that of the package's {probe.id}", "Give it another id.")
        if probe.messages in texts:
            place = f"{name}: probes[{index}].messages"
            raise _refuse(f"{place} are those of the package's {texts[probe.messages]}", "Take the entry out.")


def _build(place: str, entry: Any) -> Probe:
    if not isinstance(entry, dict):
        raise _refuse(f"{place} is not a mapping", "Give it id, family, expected and messages.")
    try:
        return Probe.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        remedy = "Give it id, family, expected, messages (role and content) and, of a pair, the id of the other."
        raise _refuse(f"{place}.{field}: {first['msg']}", remedy) from None


def _check_together(name: str, probes: tuple[Probe, ...]) -> None:
    places: dict[str, int] = {}
    texts: dict[tuple[Message, ...], int] = {}
    for index, probe in enumerate(probes):
        if (other := places.setdefault(probe.id, index)) != index:
            raise _refuse(f"{name}: probes[{index}].id is that of probes[{other}]: {probe.id}", "Give it another id.")
        if (other := texts.setdefault(probe.messages, index)) != index:
            raise _refuse(f"{name}: probes[{index}].messages are those of probes[{other}]", "Take one of them out.")
    for index, probe in enumerate(probes):
        if probe.pair is not None and (probe.pair == probe.id or probe.pair not in places):
            raise _refuse(f"{name}: probes[{index}].pair names no other probe", "Write the id of the plain case.")
        if probe.pair is not None and probes[places[probe.pair]].expected != probe.expected:
            raise _refuse(
                f"{name}: probes[{index}].expected differs from its pair's", "Both of a pair expect the same."
            )


def _refuse(message: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(_CODE, message, remedy=remedy)
