"""Any exception ends as an error with a stable code."""

import pickle

import pytest

from trainer_core.errors import ModelError, TrainingHeld, describe


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_has_one_code_whatever_it_is_called(error: Exception) -> None:
    described = describe(error)
    assert described.code == "out_of_memory"
    assert described.remedy


@pytest.mark.parametrize(
    "text",
    ["CUDA error: uncorrectable ECC error encountered", "NCCL error in: ProcessGroupNCCL.cpp:2", "[Gloo] peer is gone"],
)
def test_what_a_device_or_the_network_did_is_told_apart(text: str) -> None:
    described = describe(RuntimeError(text))
    assert described.code == "device_failed"
    assert described.remedy


def test_a_trainer_error_stays_what_it_is() -> None:
    error = ModelError("model_not_loadable", "No.")
    assert describe(error) is error


def test_anything_else_is_an_internal_error_by_its_type() -> None:
    described = describe(KeyError("x"))
    assert (described.code, described.message) == ("internal_error", "KeyError: 'x'")


def test_an_error_comes_whole_from_another_process() -> None:
    for error in (ModelError("broken", "It is broken.", remedy="Mend it.", layer=3), TrainingHeld("held", step=2)):
        same = pickle.loads(pickle.dumps(error))

        assert type(same) is type(error)
        assert (str(same), same.code, same.remedy, same.details) == (
            str(error),
            error.code,
            error.remedy,
            error.details,
        )
