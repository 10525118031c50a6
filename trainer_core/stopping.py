"""A request to stop: SIGTERM from a worker that shuts down, a scheduler near its limit, or a person. Torch-free."""

import signal
from types import FrameType
from typing import TYPE_CHECKING

from trainer_core.errors import TrainingStopped

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


class StopRequest:
    """Before training begins the signal ends the process; from then on it is looked at once a step.

    All ranks must stop after the same step. So each tells the others with the loss, which they exchange anyway.
    """

    def __init__(self) -> None:
        self.is_wanted = False
        self._is_training = False
        self.is_agreed = False
        """Some rank was asked to stop, and all know it."""
        signal.signal(signal.SIGTERM, self._handle)

    def agree(self, accelerator: "Accelerator", value: "torch.Tensor") -> float:
        """The sum of a float32 scalar over all ranks, with each rank's wish beside it."""
        self._is_training = True
        message = value.new_zeros(2)
        message[0], message[1] = value, float(self.is_wanted)
        total, num_wishes = accelerator.reduce(message).tolist()
        self.is_agreed = num_wishes > 0
        return float(total)

    def leave_to_ranks(self) -> None:
        """From now on the signal is only noted: this process waits for others that train."""
        self._is_training = True

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        is_first, self.is_wanted = not self.is_wanted, True
        if is_first and not self._is_training:
            raise TrainingStopped("stopped before the first step")
