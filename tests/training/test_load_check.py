"""`medtune models check --load`: what transformers says of a model, before any job is sent."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


def check(folder: Path, home: Path) -> dict[str, Any]:
    environment = os.environ | {"MEDTUNE_HOME": str(home)}
    command = [sys.executable, "-m", "cli.main", "models", "check", str(folder), "--load", "--json"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)
    report: dict[str, Any] = json.loads(result.stdout)
    assert result.returncode == (0 if report["trainable"] else 1)
    return report


def test_what_transformers_cannot_build_without_foreign_code_is_found(demo_model: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(demo_model, tmp_path / "own"))
    config = json.loads((own / "config.json").read_text()) | {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own_code.Config", "AutoModelForCausalLM": "own_code.Model"},
    }
    (own / "config.json").write_text(json.dumps(config))
    (own / "own_code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")

    good, bad = check(demo_model, tmp_path), check(own, tmp_path)

    assert (good["trainable"], good["problems"]) == (True, [])
    assert bad["trainable"] is False
    assert [problem["code"] for problem in bad["problems"]] in (["model_not_loadable"], ["tokenizer_not_loadable"])
    assert not (tmp_path / "ran").exists()
