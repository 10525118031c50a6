"""The benchmark for GPUs runs where there is none, so that it does not break unseen."""

from pathlib import Path

import pytest

from bench import gpu
from bench.report import describe_machine

RESULTS = Path(gpu.__file__).parent / "results"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_the_gpu_benchmark_runs_in_small_and_writes_no_result() -> None:
    before = {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()}
    figures = gpu.main(["--tiny"])
    assert {"tiny_bf16_tokens_per_second", "tiny_nf4_tokens_per_second"} <= figures.keys()
    assert {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()} == before


def test_a_result_names_no_gpu_that_was_not_used() -> None:
    assert describe_machine().endswith("GiB")
