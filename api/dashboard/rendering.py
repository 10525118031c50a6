"""Jinja, and how values look. `static/format.js` says the same for what changes live."""

import datetime
import json
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from api.dashboard.charts import PLOTLY_URL
from api.dashboard.swagger import SWAGGER_URL

HERE = Path(__file__).parent


def render(template: str, *, status_code: int = 200, **context: Any) -> HTMLResponse:
    """A page of private data: nobody keeps a copy."""
    html = _ENVIRONMENT.get_template(template).render(**context)
    return HTMLResponse(html, status_code=status_code, headers={"Cache-Control": "no-store"})


def format_number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def format_bytes(value: float) -> str:
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def format_duration(seconds: float) -> str:
    """The two largest units, such as `3 min 05 s`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def format_age(time: datetime.datetime) -> str:
    """In the largest unit, such as `3 min ago`."""
    seconds = max(0, (_now() - time).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def format_span(start: datetime.datetime | None, end: datetime.datetime | None) -> str:
    return "–" if start is None else format_duration(((end or _now()) - start).total_seconds())


def format_words(code: str) -> str:
    """`only_lora_tensors` is `Only LoRA tensors`."""
    return (code[:1].upper() + code[1:]).replace("_", " ").replace("lora", "LoRA")


def format_json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "number": format_number,
    "bytes": format_bytes,
    "duration": format_duration,
    "age": format_age,
    "words": format_words,
    "pretty": format_json,
}
_ENVIRONMENT.globals |= {"span": format_span, "plotly_url": PLOTLY_URL, "swagger_url": SWAGGER_URL}
