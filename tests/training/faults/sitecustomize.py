"""Makes the trainer's loss misbehave, in whatever process has this folder in its PYTHONPATH.

MEDTUNE_TEST_FAULT is JSON with the fields of `Fault`. The real loss is computed, or the real error of torch raised, at
the place where a full card or a diverging run would do it.
"""

import dataclasses
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_MODULE = "trainer_core.loss"


@dataclasses.dataclass
class Fault:
    max_tokens: int | None = None
    """A training pass over more tokens than this runs out of memory."""
    rank: int | None = None
    """Only this rank does."""
    nan_at_call: int | None = None
    """The loss of this training pass (counted from 1, in each process) is not a number."""
    marker: str | None = None
    """A file that is made when a loss is spoiled; while it exists none is."""


class _LossFinder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_spoil(module: ModuleType) -> None:
            execute(module)
            module.compute_sequence_nll = _spoil(module.compute_sequence_nll)  # type: ignore[attr-defined]

        spec.loader.exec_module = execute_and_spoil  # type: ignore[method-assign]
        return spec


def _spoil(compute: Any) -> Any:
    import torch

    fault = Fault(**json.loads(os.environ["MEDTUNE_TEST_FAULT"]))
    num_calls = 0

    def compute_or_fail(model: Any, batch: Any) -> Any:
        nonlocal num_calls
        if not torch.is_grad_enabled():
            return compute(model, batch)
        num_calls += 1
        is_hit = fault.rank is None or os.environ.get("RANK") == str(fault.rank)
        if fault.max_tokens is not None and is_hit and batch.input_ids.numel() > fault.max_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        nll = compute(model, batch)
        if num_calls != fault.nan_at_call or (fault.marker and Path(fault.marker).exists()):
            return nll
        if fault.marker:
            Path(fault.marker).touch()
        return nll * float("nan")

    return compute_or_fail


if "MEDTUNE_TEST_FAULT" in os.environ:
    sys.meta_path.insert(0, _LossFinder())
