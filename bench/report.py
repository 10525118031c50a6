"""What every benchmark prints and writes."""

import datetime
import json
import os
import platform
import sys
from pathlib import Path

_RESULTS = Path(__file__).parent / "results"


def write_result(name: str, figures: dict[str, float]) -> None:
    """A table on standard output, and `bench/results/NAME.json`."""
    width = max(map(len, figures))
    for figure, value in figures.items():
        print(f"{figure:{width}}  {value:,.4g}")
    result = {"machine": describe_machine(), "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"}
    _RESULTS.mkdir(exist_ok=True)
    (_RESULTS / f"{name}.json").write_text(
        json.dumps({**result, "figures": figures}, indent=2) + "\n", encoding="utf-8"
    )


def read_figures(name: str) -> dict[str, float]:
    """Of the last result; none where there is none."""
    path = _RESULTS / f"{name}.json"
    figures: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.is_file() else {}
    return figures


def describe_machine() -> str:
    """Processor, cores and memory; and the GPU, where a benchmark used one."""
    lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = ""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        gpu = f", {sys.modules['torch'].cuda.get_device_name()}"
    return f"{model}, {os.cpu_count()} cores, {gib:.0f} GiB{gpu}"
