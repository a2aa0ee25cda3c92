"""Peak memory of one side of the benchmark, in a process of its own.

    python -m search_r3_mteb.evaluation.bench_memory '{"work": "reason", "side": "ours", "size": "nano", "batch": 64}'

prints the bytes by which the resident memory rose above that of the warm process with the model loaded: libraries and
weights are the same on both sides and would hide the difference.
"""

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search_r3_mteb.evaluation.bench_work import MemoryWork


def peak_bytes(work: "MemoryWork") -> int:
    """Rise of the peak resident memory while `work` runs in a new process. RuntimeError with its output if it fails."""
    command = [sys.executable, "-m", __name__, json.dumps(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"Measuring the memory of {work} failed with exit status {done.returncode}:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def rise(work: Callable[[], Any]) -> int:
    """Bytes from this process's resident memory before `work` to its peak while `work` runs."""
    gc.collect()
    # Linux: 5 resets the recorded peak to the present resident memory.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return max(_status("VmHWM") - before, 0)


def available() -> bool:
    """Whether this system can measure it: only Linux can reset a peak."""
    return Path("/proc/self/clear_refs").exists()


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def main(argument: str) -> None:
    """Run the work twice, small to warm up and then whole, and print the rise of the second."""
    from search_r3_mteb.evaluation.bench_work import Subject, memory_work

    work = json.loads(argument)
    small, whole = memory_work(Subject(work["size"]), work)
    small()
    print(rise(whole))


if __name__ == "__main__":
    main(sys.argv[1])
