"""Rows planned by one process or several, in the order in which they came."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context

from trainer_core.data.formats import RowError
from trainer_core.data.phi.row_plan import Planner, RowPlan
from trainer_core.errors import DataError, TrainerError

NumberedLine = tuple[int, str]
NumberedPlan = tuple[int, RowPlan]
PlanRows = Callable[[Iterable[NumberedLine]], Iterator[NumberedPlan]]
_BATCH_ROWS = 32
_BATCHES_AHEAD = 3


@contextmanager
def open_planners(planner: Planner, num_workers: int) -> Iterator[PlanRows]:
    """Raises DataError with the row that cannot be planned, ConfigurationError where a model beside the rules fails.

    With several processes each has that model for itself.
    """
    if num_workers == 1:
        yield lambda lines: (_take(place, _plan(planner, line)) for place, line in lines)
        return
    executor = ProcessPoolExecutor(num_workers, get_context("spawn"), _start_worker, (planner,))
    try:
        yield lambda lines: _plan_ahead(executor, num_workers, iter(lines))
    except BrokenProcessPool:
        raise TrainerError(
            "worker_lost", "A worker process was ended from outside", remedy="Take fewer workers: memory may be short."
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _plan_ahead(
    executor: ProcessPoolExecutor, num_workers: int, lines: Iterator[NumberedLine]
) -> Iterator[NumberedPlan]:
    """So many batches are under way that no worker waits, and no more: memory stays flat."""
    waiting: deque[tuple[list[NumberedLine], Future[list[RowPlan | tuple[str, str]]]]] = deque()
    while True:
        while len(waiting) < num_workers * _BATCHES_AHEAD and (batch := list(islice(lines, _BATCH_ROWS))):
            waiting.append((batch, executor.submit(_plan_batch, [line for _, line in batch])))
        if not waiting:
            return
        batch, future = waiting.popleft()
        for (place, _), plan in zip(batch, future.result(), strict=True):
            yield _take(place, plan)


def refuse_row(place: int, code: str, message: str) -> DataError:
    return DataError(
        "unreadable_row",
        f"row {place}: {message} ({code})",
        remedy="Mend the row or take it out: what cannot be read cannot be replaced.",
        row=place,
    )


def _take(place: int, plan: RowPlan | tuple[str, str]) -> NumberedPlan:
    if isinstance(plan, RowPlan):
        return place, plan
    raise refuse_row(place, *plan)


def _plan(planner: Planner, line: str) -> RowPlan | tuple[str, str]:
    try:
        return planner.plan(line)
    except RowError as error:
        return error.code, error.message


_planner: Planner | None = None


def _start_worker(planner: Planner) -> None:
    global _planner
    _planner = planner
    if planner.ner is not None:
        planner.ner.__enter__()  # For as long as this process lives: the model's ends with its input.


def _plan_batch(lines: list[str]) -> list[RowPlan | tuple[str, str]]:
    assert _planner is not None
    return [_plan(_planner, line) for line in lines]
