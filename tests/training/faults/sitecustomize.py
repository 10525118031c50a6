"""Makes the trainer misbehave, in whatever process has this folder in its PYTHONPATH.

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
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


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
    asking: bool = False
    """Memory runs out while safety probes are answered."""
    judging: bool = False
    """A safety rule fails on every answer."""

    @property
    def is_here(self) -> bool:
        return self.rank is None or os.environ.get("RANK") == str(self.rank)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spoil = _SPOILERS.get(fullname)
        if spoil is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_spoil(module: ModuleType) -> None:
            execute(module)
            spoil(module, Fault(**json.loads(os.environ["MEDTUNE_TEST_FAULT"])))

        spec.loader.exec_module = execute_and_spoil  # type: ignore[method-assign]
        return spec


def _spoil_loss(module: Any, fault: Fault) -> None:
    import torch

    compute = module.compute_sequence_nll
    num_calls = 0

    def compute_or_fail(model: Any, batch: Any) -> Any:
        nonlocal num_calls
        if not torch.is_grad_enabled():
            return compute(model, batch)
        num_calls += 1
        if fault.max_tokens is not None and fault.is_here and batch.input_ids.numel() > fault.max_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        nll = compute(model, batch)
        if num_calls != fault.nan_at_call or (fault.marker and Path(fault.marker).exists()):
            return nll
        if fault.marker:
            Path(fault.marker).touch()
        return nll * float("nan")

    module.compute_sequence_nll = compute_or_fail


def _spoil_asking(module: Any, fault: Fault) -> None:
    import torch

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    if fault.asking and fault.is_here:
        module.Asker._generate = fail


def _spoil_judging(module: Any, fault: Fault) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("ibuprofen")

    if fault.judging:
        module.judge_answer = fail


_SPOILERS: dict[str, Callable[[Any, Fault], None]] = {
    "trainer_core.loss": _spoil_loss,
    "trainer_core.safety.asking": _spoil_asking,
    "trainer_core.safety.check": _spoil_judging,
}

if "MEDTUNE_TEST_FAULT" in os.environ:
    sys.meta_path.insert(0, _Finder())
