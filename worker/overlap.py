"""What a dataset's check says about rows that are there twice, or that also judge the model."""

from collections.abc import Callable
from pathlib import Path

from jobs.models import Json
from jobs.settings import Settings
from jobs.status import OverlapPolicy
from trainer_core.data.overlap.check import check_overlap
from trainer_core.data.validation import Finding


def add_overlap(report: Json, path: Path, policy: OverlapPolicy, settings: Settings, keep: Callable[[], None]) -> None:
    """Into the report of a file whose rows can be used. Raises ConfigurationError, OSError, and what `keep` raises."""
    if not report["ok"] or policy == OverlapPolicy.OFF:
        return
    overlap = check_overlap(path, settings.benchmarks_dir, keep)
    report["overlap"] = overlap.model_dump(mode="json")
    if policy == OverlapPolicy.REJECT and overlap.num_findings:
        report["ok"] = False
        report["findings"] = [_describe(overlap.rows_found).model_dump(mode="json")]
        report["num_findings"] = 1


def _describe(num_rows: int) -> Finding:
    message = (
        f"{num_rows} rows are there twice, or are questions of benchmarks or safety probes, and the dataset's policy "
        "is to reject them. Their places are under `overlap`: take them out, and upload the file again."
    )
    return Finding(line=0, code="overlap_found", message=message)
