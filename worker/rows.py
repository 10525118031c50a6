"""What a run tells of its rows, once it has prepared them."""

from trainer_core.data.row_report import MAX_REPORT_BYTES, REPORT_FILE, RowReport
from trainer_core.run_dir import RunDir


def find_row_report(run_dir: RunDir) -> RowReport | None:
    """None: there is none yet. Raises ValueError for what is none, which never becomes one."""
    path = run_dir.prepared / REPORT_FILE
    try:
        if path.is_symlink() or path.stat().st_size > MAX_REPORT_BYTES:
            raise ValueError(f"{path} is no file of at most {MAX_REPORT_BYTES} bytes")
        return RowReport.model_validate_json(path.read_bytes())
    except OSError:
        return None
