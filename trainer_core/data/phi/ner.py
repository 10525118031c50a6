"""Identifiers by a model of the site's own, beside the rules: a token classifier in a folder, in its own process.

The model is read by `ner_process`, which imports torch; who scans does not, and lends it neither keys nor addresses.
"""

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainer_core.data.phi.finding import GUESSED, Finding, resolve, subtract
from trainer_core.data.phi.placeholders import find_placeholders, has_marks
from trainer_core.errors import ConfigurationError, ModelError
from trainer_core.model_files import check_model_folder, load_json_object

LABELS_FILE = "phi_labels.json"
"""May stand in the folder: {"a label of the model": "a class" or null}, before what is known of labels here."""
RULE = "NER"
_REMEDY = (
    "Name the folder of a token classifier as transformers saves it: config.json, *.safetensors and tokenizer.json."
)
_LABELS = {
    "name": "per person patient name doctor physician staff hcw firstname lastname middlename givenname surname"
    " first_name last_name patient_name doctor_name",
    "date": "date dob date_time date_of_birth dateofbirth",
    "age": "age",
    "phone": "phone telephone phonenumber phone_number telephonenum telephone_number",
    "fax": "fax fax_number",
    "email": "email email_address",
    "url": "url",
    "ip": "ip ip_address ipaddress",
    "ssn": "ssn us_ssn socialnum social_security_number",
    "mrn": "mrn medicalrecord medical_record medical_record_number id idnum",
    "account": "account account_number accountnum",
    "health_plan": "healthplan health_plan",
    "licence": "license licence driverlicensenum license_number",
    "device": "device device_id",
    "street": "street street_address address streetaddress",
    "city": "city loc location gpe county",
    "zip": "zip zipcode zip_code postcode postal_code",
}
_MAY_TELL_AN_AGE = re.compile(r"(?i)(?<!\d)(?:9\d|1\d\d|\d{4})(?!\d)|ninet|nonagen|centen|hundred")
"""Over 89, or by a year. Models call every age one; the others are no identifiers, and `[AGE_OVER_89]` none of them."""
_CLASS_OF_LABEL = {label: phi_class for phi_class, labels in _LABELS.items() for label in labels.split()}
_PASSED_ON = frozenset(
    "PATH HOME LANG LC_ALL TMPDIR LD_LIBRARY_PATH VIRTUAL_ENV PYTHONPATH OMP_NUM_THREADS SYSTEMROOT".split()
)


class NerModel:
    """A process with the model, for as long as the `with` lasts. Raises ConfigurationError, also while it reads.

    Sent to another process, it is one that is to be entered there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._classes = load_classes(folder)

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self._folder,)

    def __enter__(self) -> Self:
        if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
            raise refuse(self._folder, "needs torch and transformers", "Install medtune with the extra `train`.")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trainer_core.data.phi.ner_process", str(self._folder.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_build_environment(),
            encoding="utf-8",
        )
        try:
            answer = self._receive()
            if "error" in answer:
                raise refuse(self._folder, f"cannot be loaded: {answer['error']}", answer.get("remedy", _REMEDY))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def find(self, texts: Sequence[str]) -> list[list[Finding]]:
        """Of each text."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(texts) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._describe_end() from None
        return [list(self._build(*found)) for found in zip(texts, self._receive()["spans"], strict=True)]

    def _build(self, text: str, spans: list[tuple[int, int, str]]) -> Iterator[Finding]:
        for start, end, label in spans:
            phi_class = self._classes.get(label)
            if phi_class and (phi_class != "age" or _MAY_TELL_AN_AGE.search(text, start, end)):
                yield Finding(start, end, phi_class, RULE, GUESSED)

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._describe_end()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _describe_end(self) -> ConfigurationError:
        code = self._process.wait()
        return refuse(
            self._folder, f"its process ended with {code}", "Look whether the machine's memory holds the model."
        )

    def _end(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was not written yet has no reader any more
                pipe.close()
        self._process.wait()


def add_findings(
    ner: NerModel | None, fields: Mapping[str, str], found: dict[str, list[Finding]], site_labels: Collection[str] = ()
) -> dict[str, list[Finding]]:
    """What the rules found and, where they found nothing, what the model does; placeholders are nobody's names.

    Whoever scans and whoever replaces ask here, so that both find the same.
    """
    if ner is None or not fields:
        return found
    merged: dict[str, list[Finding]] = {}
    for (field, text), extra in zip(fields.items(), ner.find(list(fields.values())), strict=True):
        taken = [(start, end) for start, end, _ in find_placeholders(text, site_labels)] if has_marks(text) else []
        parts = [part for finding in extra for part in subtract(finding, taken)]
        merged[field] = resolve([*found[field], *parts], text) if parts else found[field]
    return merged


def load_classes(folder: Path) -> dict[str, str]:
    """The class of each label of the model that has one. Raises ConfigurationError where the folder cannot be used."""
    if not folder.is_dir():
        raise refuse(folder, "is no folder")
    for problem in check_model_folder(folder):
        raise refuse(folder, problem.message.rstrip("."), problem.remedy)
    if not (folder / "tokenizer.json").is_file():
        raise refuse(folder, "has no tokenizer.json, which tells where each token stands")
    try:
        config = load_json_object(folder / "config.json")
        own = load_json_object(folder / LABELS_FILE) if (folder / LABELS_FILE).exists() else {}
    except ModelError as error:
        raise refuse(folder, error.message) from None
    if not str(next(iter(config.get("architectures") or ()), "")).endswith("ForTokenClassification"):
        raise refuse(folder, "config.json: `architectures` names no model ForTokenClassification")
    labels = config.get("id2label")
    if not isinstance(labels, dict):
        raise refuse(folder, "config.json: `id2label` is missing")
    return _map_labels(folder, {strip_prefix(str(label)) for label in labels.values()}, own)


def _map_labels(folder: Path, labels: Set[str], own: Mapping[str, Any]) -> dict[str, str]:
    for label, phi_class in own.items():
        if phi_class is not None and phi_class not in _LABELS:
            remedy = f"Classes are {', '.join(_LABELS)}, or null."
            raise refuse(folder, f"{LABELS_FILE}: {label}: no such class", remedy)
    classes = {label: own[label] if label in own else _CLASS_OF_LABEL.get(label.lower()) for label in labels}
    known = {label: phi_class for label, phi_class in classes.items() if phi_class}
    if not known:
        message = f"config.json: none of its labels is known ({', '.join(sorted(labels)[:8])})"
        raise refuse(folder, message, f"Say in {LABELS_FILE}, in the same folder, which class each one is.")
    return known


def strip_prefix(label: str) -> str:
    """Without the place in an entity: `B-PATIENT` is `PATIENT`."""
    return label[2:] if label[1:2] in ("-", "_") and label[0] in "BIESLU" else label


def refuse(folder: Path, message: str, remedy: str = _REMEDY) -> ConfigurationError:
    return ConfigurationError("ner_model", f"{folder}: {message}", remedy=remedy)


def _build_environment() -> dict[str, str]:
    allowed = {name: value for name, value in os.environ.items() if name in _PASSED_ON}
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, (root, allowed.get("PYTHONPATH"))))
    return {
        **allowed,
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
