"""The README's walk-through, run as it stands."""

import os
import re
import subprocess
from pathlib import Path

from cli.serve import Service

ROOT = Path(__file__).parent.parent.parent


def test_the_walk_through_works(service: Service, tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    [script] = [block for block in blocks if "export URL" in block]
    export, rest = script.split("\n", 1)
    assert export.startswith("export URL=http://127.0.0.1:8000 MEDTUNE_API_KEY=")
    rest = rest.replace("-o adapter.tar.gz", f"-o {tmp_path}/adapter.tar.gz").replace(
        "tar tzf ", f"tar tzf {tmp_path}/"
    )
    environment = {"URL": service.url, "MEDTUNE_PUBLIC_URL": service.url, "MEDTUNE_API_KEY": service.key}

    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", rest],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert result.returncode == 0, result.stderr + result.stdout
    assert "succeeded" in result.stdout
    assert "adapter/adapter_model.safetensors" in result.stdout


def test_every_make_target_that_the_readme_names_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake (\w+)", readme)) - {"and"}

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), targets
