"""From a verified adapter to its archive: card, bill of materials, manifest, signature. The worker's own steps.

adapter/            from the trainer: weights, configurations, tokenizer, base_model.json, environment.json
  verification.json   what `verify` found
  README.md           the card                 (trainer_core.adapters.card)
  bom.cdx.json        the bill of materials    (trainer_core.adapters.bill_of_materials)
  manifest.json       sha256 of all of these   (trainer_core.adapters.manifest)
  signature.sig       over all of these        (trainer_core.adapters.signature)
"""

import gzip
import json
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from jobs.models import Adapter, Dataset, Job, Metric
from jobs.settings import Settings
from jobs.signing_key import ensure_signing_key
from jobs.store import Store
from trainer_core.adapters.bill_of_materials import build_bill
from trainer_core.adapters.card import render_card
from trainer_core.adapters.facts import AdapterFacts, DatasetFacts, LossPoint, collect_facts
from trainer_core.adapters.gate import check_adapter_folder
from trainer_core.adapters.manifest import BILL_FILE, CARD_FILE, VERIFICATION_FILE, write_adapter_manifest
from trainer_core.adapters.signature import sign_folder
from trainer_core.run_dir import RunDir

NUM_LOSSES = 12
"""Points of the loss curve on the card."""
PROVENANCE = {
    *("attempt", "created_at", "base", "datasets", "derived_from", "heldout_fraction"),
    *("training", "plan", "environment", "weights_sha256"),
}
"""What the database keeps of how an adapter was made."""


def store_adapter(
    settings: Settings, store: Store, job: Job, run_dir: RunDir, datasets: Iterable[Dataset], metrics: Sequence[Metric]
) -> Adapter:
    """The adapter, documented and signed, as one archive in the store.

    Raises StoreUnavailable; VerificationError for a folder that is no adapter or lacks what its card must say;
    ConfigurationError for a signing key that cannot be used.
    """
    signing_key = ensure_signing_key(settings)
    facts = complete_adapter(run_dir, _list_dataset_facts(job, datasets), _list_losses(metrics), signing_key)
    archive = run_dir.path / "adapter.tar.gz"
    store_key = f"{_get_store_folder(job)}/attempt-{job.attempt}.tar.gz"
    try:
        _write_archive(archive, run_dir.adapter)
        written = store.put(archive, store_key)
    finally:
        archive.unlink(missing_ok=True)
    return Adapter(
        job_id=job.id,
        tenant_id=job.tenant_id,
        name=job.name,
        model=job.model,
        store_key=store_key,
        num_bytes=written.num_bytes,
        sha256=written.sha256,
        provenance=facts.model_dump(mode="json", include=PROVENANCE),
    )


def sweep_earlier(store: Store, job: Job, adapter: Adapter) -> None:
    """Delete what attempts that died while they stored an adapter left of it. Only for whoever ended the job: another
    attempt's may be the one that counts. Raises StoreUnavailable.
    """
    if job.attempt > 1:
        store.sweep(_get_store_folder(job), keep=Path(adapter.store_key).name)


def _get_store_folder(job: Job) -> str:
    return f"adapters/{job.id}"


def complete_adapter(
    run_dir: RunDir, datasets: Sequence[DatasetFacts], losses: Sequence[LossPoint], signing_key: Path
) -> AdapterFacts:
    """What is signed went through the gate here, whatever the trainer's process said of it."""
    folder, model = run_dir.adapter, run_dir.load_spec().model
    check_adapter_folder(folder, base_model=model.id)
    facts = collect_facts(run_dir, datasets, losses)
    shutil.copyfile(run_dir.verification, folder / VERIFICATION_FILE)
    (folder / CARD_FILE).write_text(render_card(facts), encoding="utf-8")
    (folder / BILL_FILE).write_text(json.dumps(build_bill(facts), indent=1), encoding="utf-8")
    write_adapter_manifest(folder, job=facts.job, attempt=facts.attempt)
    sign_folder(folder, signing_key)
    return facts


def _list_dataset_facts(job: Job, datasets: Iterable[Dataset]) -> list[DatasetFacts]:
    """By role; one that has both is listed twice."""
    by_id = {dataset.id: dataset for dataset in datasets}
    found = [_describe(by_id[job.dataset_id], "training")]
    if job.validation_dataset_id is not None:
        found.append(_describe(by_id[job.validation_dataset_id], "validation"))
    return found


def _describe(dataset: Dataset, role: Literal["training", "validation"]) -> DatasetFacts:
    assert dataset.num_rows is not None  # it was checked before any job could use it
    return DatasetFacts(
        id=dataset.id,
        role=role,
        sha256=dataset.sha256,
        rows_digest=dataset.rows_digest,
        rows=dataset.num_rows,
        bytes=dataset.num_bytes,
    )


def _list_losses(metrics: Sequence[Metric]) -> list[LossPoint]:
    points = (LossPoint(step=m.step, loss=m.values.get("loss"), eval_loss=m.values.get("eval_loss")) for m in metrics)
    return [point for point in points if point.loss is not None or point.eval_loss is not None]


def _write_archive(path: Path, adapter: Path) -> None:
    """Sorted and without times or owners: the same files give the same bytes."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for file in sorted(adapter.iterdir()):
            archive.add(file, f"adapter/{file.name}", filter=anonymise)


def anonymise(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without owners and times."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    member.mode = 0o755 if member.isdir() else 0o644
    return member
