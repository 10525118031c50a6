"""What it takes to check an adapter, by its size. Run: python -m bench.adapters.

- `gate_ms_*`: the gate, which reads names, sizes and one header, in milliseconds of the processor: what else the
  machine does is not counted. Files are as large as real ones, and sparse.
- `sign_ms`, `verify_ms`: signing an adapter of `signed_mb` megabytes, and every check of `medtune verify`; both read
  each byte, so that their time grows with the size.
- `import_ms`: loading the library that signs, which only a worker's last step and `medtune verify` do.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.report import write_result
from tests.adapters import create_adapter, create_keys
from trainer_core.adapters.gate import MAX_HEADER_BYTES, check_adapter_folder
from trainer_core.adapters.proof import Result, prove_adapter
from trainer_core.adapters.signature import sign_folder

ROUNDS = 15
MIB = 1 << 20

LAYERS_70B = {
    "self_attn.q_proj": (8192, 8192),
    "self_attn.k_proj": (8192, 1024),
    "self_attn.v_proj": (8192, 1024),
    "self_attn.o_proj": (8192, 8192),
    "mlp.gate_proj": (8192, 28672),
    "mlp.up_proj": (8192, 28672),
    "mlp.down_proj": (28672, 8192),
}
"""Inputs and outputs in each of the 80 layers of a Llama of 70B."""
LAYERS_8B = {
    name: (min(i, 4096) if i < 28672 else 14336, min(o, 4096) if o < 28672 else 14336)
    for name, (i, o) in LAYERS_70B.items()
}
SIZES = {
    "8b_r16": (LAYERS_8B, 32, 16),
    "70b_r512": (LAYERS_70B, 80, 512),
    "largest_header": (LAYERS_70B, 270, 1),
}
"""Layers, how many of them, and the rank. The last has as many tensors as the gate lets through."""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-adapters-") as folder:
        root = Path(folder)
        private, public = create_keys(root)
        adapter = create_adapter(root / "adapter", private)
        figures = {f"gate_ms_{name}": measure_gate(adapter, *size) for name, size in SIZES.items()}
        num_bytes = write_weights(adapter, LAYERS_8B, 32, 16)
        figures["signed_mb"] = num_bytes / MIB
        figures["sign_ms"] = measure(lambda: sign_folder(adapter, private), rounds=5)
        figures["verify_ms"] = measure(lambda: check_signed(adapter, public), rounds=5)
    figures["import_ms"] = measure_import()
    write_result("adapters", figures)


def measure_gate(adapter: Path, layers: dict[str, tuple[int, int]], num_layers: int, rank: int) -> float:
    write_weights(adapter, layers, num_layers, rank)
    return 1000 * statistics.median(time_gate(adapter) for _ in range(ROUNDS))


def time_gate(adapter: Path) -> float:
    started = time.process_time()
    check_adapter_folder(adapter, base_model="tiny")
    return time.process_time() - started


def write_weights(adapter: Path, layers: dict[str, tuple[int, int]], num_layers: int, rank: int) -> int:
    """Float32 zeros, which take no room on the disk. Returns the file's size."""
    header, end = {}, 0
    for number in range(num_layers):
        for name, (num_inputs, num_outputs) in layers.items():
            for kind, shape in (("A", [rank, num_inputs]), ("B", [num_outputs, rank])):
                begin, end = end, end + 4 * shape[0] * shape[1]
                tensor = f"base_model.model.model.layers.{number}.{name}.lora_{kind}.weight"
                header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= MAX_HEADER_BYTES
    with (adapter / "adapter_model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)
    config = json.loads((adapter / "adapter_config.json").read_text())
    targets = sorted({name.rpartition(".")[2] for name in layers})
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": rank, "target_modules": targets}))
    return 8 + len(text) + end


def check_signed(adapter: Path, public: Path) -> None:
    """The documents are of other weights: the signature holds, and each byte was read."""
    results = {check.name: check.result for check in prove_adapter(adapter, public_key=public, base=None)}
    assert (results["signature"], results["gate"]) == (Result.PASSED, Result.PASSED)


def measure(run: Callable[[], object], *, rounds: int) -> float:
    """The median, in milliseconds."""
    return 1000 * statistics.median(time_once(run) for _ in range(rounds))


def time_once(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure_import() -> float:
    code = "import time; t = time.perf_counter(); from model_signing import signing; print(time.perf_counter() - t)"
    times = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)]
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    main()
