"""Swagger UI's files, from the installed package that carries them. The package itself is not imported."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

SWAGGER_URL = f"/dashboard/swagger-ui-{version('fastapi-offline')}"


def find_swagger(name: str) -> Path:
    spec = find_spec("fastapi_offline")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "static" / name
