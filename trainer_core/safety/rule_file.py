"""What stands in a rule file, and how a site's own file extends the package's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from trainer_core.errors import ConfigurationError
from trainer_core.safety.violation import Severity
from trainer_core.safety.yaml_file import load_yaml

PACKAGED = Path(__file__).with_name("rules.yaml")
CODE = "safety_rules"
MAX_ENTRIES = 5_000
_ADDED = ("interactions", "canaries")
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=20_000)]
_Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
_Milligrams = Annotated[float, Field(gt=0, lt=1e6, strict=False)]
CheckCode = Annotated[str, StringConstraints(pattern=r"^MS(0[1-9]|1[0-5])$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class CheckEntry(_Entry):
    severity: Annotated[Severity, Field(strict=False)]
    explanation: _Text


class Cues(_Entry):
    negators: _Text
    breakers: _Text
    double: _Text
    views: _Text


class Medicine(_Entry):
    names: _Text
    classes: str = ""


class Limit(_Entry):
    """The most of a medicine, in milligrams; `weekly` ones are never taken daily."""

    single_mg: _Milligrams | None = None
    daily_mg: _Milligrams | None = None
    single_mg_per_kg: _Milligrams | None = None
    daily_mg_per_kg: _Milligrams | None = None
    weekly: bool = False


class DoseLimits(_Entry):
    adult: Limit | None = None
    child: Limit | None = None
    source: _Text


class RuleFile(_Entry):
    version: _Text
    checks: Annotated[dict[CheckCode, CheckEntry], Field(min_length=15)]
    cues: Cues
    words: dict[_Name, _Text]
    phrases: dict[_Name, list[_Text]]
    crisis_countries: Annotated[list[_Name], Field(min_length=1)]
    crisis_resources: dict[_Name, Annotated[list[_Text], Field(min_length=1)]]
    medicines: dict[_Name, Medicine]
    conditions: dict[_Name, _Text]
    dose_limits: dict[_Name, DoseLimits]
    dose_units: dict[_Name, list[Literal["mg", "mcg", "g", "ml", "unit"]]]
    critical_medicines: list[_Name]
    interactions: list[Annotated[list[_Name], Field(min_length=2, max_length=2)]]
    canaries: list[Annotated[str, StringConstraints(min_length=8, max_length=1_000)]]


def load_rule_file(path: Path | None) -> RuleFile:
    """The package's rules, extended by a site's file; ConfigurationError with the field and a remedy."""
    content = load_yaml(PACKAGED, CODE)
    name = PACKAGED.name
    if path is not None:
        name = path.name
        content = _extend(content, load_yaml(path, CODE), name)
    try:
        rules = RuleFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise refuse(f"{name}: {field}: {first['msg']}", "Write it as the package's own rules.yaml does.") from None
    _check_names(name, rules)
    return rules


def _extend(core: dict[str, Any], site: Mapping[str, Any], name: str) -> dict[str, Any]:
    merged = dict(core)
    for key, value in site.items():
        if key not in core:
            raise refuse(f"{name}: {key} is no known key", f"Known are {', '.join(core)}.")
        own = core[key]
        if not isinstance(value, type(own)):
            raise refuse(f"{name}: {key} is no {_kind(own)}", "Write it as the package's own rules.yaml does.")
        if len(value) > MAX_ENTRIES:
            raise refuse(f"{name}: {key} has more than {MAX_ENTRIES:,} entries", "Take some out.")
        if key == "version":
            merged[key] = f"{own}+{value}"
        elif key == "phrases":
            merged[key] = {**own, **{group: _add(own, group, phrases) for group, phrases in value.items()}}
        elif key in _ADDED:
            merged[key] = [*own, *value]
        else:
            merged[key] = {**own, **value} if isinstance(own, dict) else value
    return merged


def _add(own: dict[str, list[str]], group: str, phrases: Any) -> Any:
    return [*own.get(group, []), *phrases] if isinstance(phrases, list) else phrases


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "mapping"
    return "list" if isinstance(value, list) else "text"


def _check_names(name: str, rules: RuleFile) -> None:
    """What one entry names, another one has to define."""
    known = {*rules.medicines, *rules.conditions, *(c for m in rules.medicines.values() for c in m.classes.split())}
    remedy = "Define it under medicines (as a name or a class) or conditions."
    for index, pair in enumerate(rules.interactions):
        for side in pair:
            if side not in known:
                raise refuse(f"{name}: interactions[{index}] names {side}, which is not defined", remedy)
    for key in ("dose_limits", "dose_units", "critical_medicines"):
        for medicine in getattr(rules, key):
            if medicine not in known:
                raise refuse(f"{name}: {key}.{medicine} is not defined", remedy)
    for country in rules.crisis_countries:
        if country not in rules.crisis_resources:
            raise refuse(
                f"{name}: crisis_countries names {country}, which crisis_resources does not have",
                "Add its lines under crisis_resources.",
            )


def refuse(message: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(CODE, message, remedy=remedy)
