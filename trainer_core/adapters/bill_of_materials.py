"""`bom.cdx.json`: what an adapter is made of, as CycloneDX 1.6. Torch-free.

The adapter is a machine-learning model with a model card; the base is its ancestor, the datasets and packages are its
components. Plain JSON, because the Python library of CycloneDX has no model cards (docs/decisions/0013).
"""

import json
import uuid
from pathlib import Path
from typing import Any

from trainer_core.adapters.facts import AdapterFacts, DatasetFacts
from trainer_core.adapters.manifest import BILL_FILE
from trainer_core.errors import VerificationError

FINGERPRINT = "medtune:base-fingerprint"

_ADAPTER = "adapter"


def build_bill(facts: AdapterFacts) -> dict[str, Any]:
    """The document, of which the tests check that CycloneDX's schema accepts it."""
    packages = [_build_package(name, version) for name, version in facts.environment.packages.items()]
    components = [*map(_build_dataset, facts.datasets), *packages]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, f'{facts.job}/{facts.weights_sha256}')}",
        "version": 1,
        "metadata": {
            "timestamp": facts.created_at.isoformat(),
            "tools": {"components": [{"type": "application", **_name_trainer(facts)}]},
            "component": _build_adapter(facts),
        },
        "components": components,
        "dependencies": [{"ref": _ADAPTER, "dependsOn": [component["bom-ref"] for component in components]}],
    }


def read_claims(path: Path) -> dict[str, Any]:
    """What the bill says of job, weights, base and datasets. Raises OSError, VerificationError."""
    try:
        bill = json.loads(path.read_bytes())
        adapter = bill["metadata"]["component"]
        [base] = adapter["pedigree"]["ancestors"]
        [fingerprint] = [p["value"] for p in base["properties"] if p["name"] == FINGERPRINT]
        return {
            "job": adapter["name"],
            "base_model": base["name"],
            "base_fingerprint": fingerprint,
            "weights_sha256": _read_hash(adapter),
            "datasets": [_read_hash(part) for part in bill["components"] if part["type"] == "data"],
        }
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError("bill_invalid", f"{BILL_FILE} cannot be read: {type(error).__name__}.") from None


def _build_adapter(facts: AdapterFacts) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "bom-ref": _ADAPTER,
        "name": facts.job,
        "version": str(facts.attempt),
        "description": f"LoRA adapter of {facts.base.id}",
        "hashes": [_hash(facts.weights_sha256)],
        "pedigree": {"ancestors": [_build_base(facts)]},
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "text-generation",
                "datasets": [{"ref": _ref(dataset)} for dataset in facts.datasets],
                "inputs": [{"format": "text"}],
                "outputs": [{"format": "text"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": _list_metrics(facts)},
            "considerations": {
                "users": ["Researchers and engineers who evaluate it for their own purpose"],
                "useCases": ["Research; no use on patients"],
                "technicalLimitations": ["It invents facts", "It may repeat what stands in its training rows"],
            },
        },
        "properties": [
            *_build_properties("medtune:training", facts.training),
            *_build_properties("medtune:plan", facts.plan.model_dump()),
            *_build_properties("medtune:environment", facts.environment.model_dump(exclude={"packages"})),
        ],
    }


def _build_base(facts: AdapterFacts) -> dict[str, Any]:
    version = {"version": facts.base.revision} if facts.base.revision else {}
    return {
        "type": "machine-learning-model",
        "bom-ref": "base",
        "name": facts.base.id,
        **version,
        "properties": [{"name": FINGERPRINT, "value": facts.base.fingerprint}],
    }


def _build_dataset(dataset: DatasetFacts) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": _ref(dataset),
        "name": dataset.id,
        "hashes": [_hash(dataset.sha256)],
        "data": [{"type": "dataset", "name": dataset.role}],
        "properties": [{"name": "medtune:rows", "value": str(dataset.rows)}],
    }


def _build_package(name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _list_metrics(facts: AdapterFacts) -> list[dict[str, Any]]:
    """The loss on held-out rows; of the last step where there are none."""
    heldout = facts.verification.heldout
    if heldout is None:
        losses = [point.loss for point in facts.losses if point.loss is not None]
        return [{"type": "loss", "value": str(loss), "slice": "last step"} for loss in losses[-1:]]
    difference: dict[str, Any] = {
        "type": "mean difference of held-out loss to the base's",
        "value": str(heldout.mean_row_difference),
        "slice": f"{heldout.rows} held-out rows",
    }
    if heldout.ci95 is not None:
        low, high = heldout.ci95
        difference["confidenceInterval"] = {"lowerBound": str(low), "upperBound": str(high)}
    loss = {"type": "held-out loss", "value": str(heldout.adapter_loss), "slice": difference["slice"]}
    return [loss, difference]


def _name_trainer(facts: AdapterFacts) -> dict[str, Any]:
    version = facts.environment.packages.get("medtune")
    return {
        "name": "medtune",
        **({"version": version} if version else {}),
        "properties": [{"name": "medtune:code-sha256", "value": facts.environment.code_sha256}],
    }


def _build_properties(prefix: str, values: dict[str, Any]) -> list[dict[str, str]]:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return [{"name": f"{prefix}:{name}", "value": text} for name, text in texts.items()]


def _ref(dataset: DatasetFacts) -> str:
    return f"{dataset.role}:{dataset.id}"


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}


def _read_hash(component: dict[str, Any]) -> str:
    [content] = [entry["content"] for entry in component["hashes"] if entry["alg"] == "SHA-256"]
    return str(content)
