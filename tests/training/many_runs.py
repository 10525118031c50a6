"""Several runs one after another in the same processes: the libraries' seconds of import are paid once.

Arguments: folders of runs whose rows are prepared and whose plans are written. Run alone for runs of one process, by
torchrun for runs of several; those without DeepSpeed must come first, since accelerate cannot leave it again. The first
that fails ends all, with its traceback.
"""

import gc
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

from trainer_core.run_dir import RunDir
from trainer_core.stopping import StopRequest
from trainer_core.train import train


def main() -> None:
    stop = StopRequest()
    for folder in sys.argv[1:]:
        train(RunDir(Path(folder)), stop)
        # What accelerate keeps about a run for the process's life.
        AcceleratorState._reset_state()
        GradientState._reset_state()
        gc.collect()


if __name__ == "__main__":
    main()
