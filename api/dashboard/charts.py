"""Plotly's JavaScript, from the installed Python package. The package itself, slow to import, is not imported."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

PLOTLY_URL = f"/dashboard/plotly-{version('plotly')}.min.js"


def find_plotly() -> Path:
    spec = find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"
