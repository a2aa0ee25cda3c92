"""The benchmark's peer vLLM: a process of its own, in an environment of its own, that stands still unless it is asked.

(v)  one vLLM generates, a second one with the pooling runner reads prompt, reply and embed token again;
(vi) the second one alone reads documents.

    PYTHON -m search_r3_mteb.evaluation.bench_vllm '{"model": FOLDER, "dtype": ..., "batch": ..., "positions": ...,
    "writes": true}'

answers each line of standard input, {"prompts": [...], "lengths": [...] or null, "embed": id, "answer": FILE}, with a
line "done": the vectors are in FILE, as `numpy.savez` writes them, with the ids that were generated, one row after the
other.
"""

import contextlib
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

_READY, _DONE = "vllm-ready", "vllm-done"
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_GIBIBYTES = 2  # of keys and values for each of the two


class VllmPeer:
    """vLLM in another environment, for `batch` rows at once; it runs only while it is asked, and ends with the block.

    `positions`: the longest row in tokens, with what is generated. `writes` False: it only reads. Raises
    FileNotFoundError for a Python that is not there, ValueError for one without vLLM or whose vLLM does not start.
    """

    def __init__(self, python: Path, model: str, dtype: str, batch: int, positions: int, writes: bool) -> None:
        check_python(python)
        spec = {"model": model, "dtype": dtype, "batch": batch, "positions": positions, "writes": writes}
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [str(python), "-m", __name__, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | _environment(),
            start_new_session=True,
        )
        self._wait(_READY)

    def __enter__(self) -> "VllmPeer":
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process and those that it has started."""
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def ask(
        self, prompts: Sequence[Sequence[int]], embed: int, lengths: Sequence[int] | None = None
    ) -> tuple[np.ndarray, list[list[int]]]:
        """Vectors (rows, dim), and the ids that were generated, the embed token last; without `lengths`, none."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "answer.npz")
            question = {"prompts": list(map(list, prompts)), "lengths": lengths, "embed": embed, "answer": file}
            with contextlib.suppress(BrokenPipeError):  # it has ended, which the next line reports
                self._process.stdin.write(json.dumps(question) + "\n")
                self._process.stdin.flush()
            self._wait(_DONE)
            with np.load(file) as found:
                vectors, ids = found["vectors"], found["ids"].tolist()
        if lengths is None:
            return vectors, []
        ends = np.cumsum([0, *(n + 1 for n in lengths)])
        return vectors, [ids[first:last] for first, last in itertools.pairwise(ends)]

    def _wait(self, word: str) -> None:
        """Read lines up to this word, and let the process stand still. Libraries print lines of their own."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == word:
                self._signal(signal.SIGSTOP)
                return
        code = self._process.wait()
        self._log.seek(0)
        last = "".join(self._log.readlines()[-15:])
        raise ValueError(f"vLLM's process ended with exit status {code} before it answered. Its last lines:\n{last}")

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def check_python(python: Path) -> None:
    """FileNotFoundError for a Python that is not there, ValueError for one that has no vLLM."""
    if not python.is_file():
        raise FileNotFoundError(f"--vllm {python}: there is no such file. Name the Python of an environment with vLLM.")
    program = "import importlib.util as u; raise SystemExit(0 if u.find_spec('vllm') else 7)"
    if subprocess.run([str(python), "-c", program], capture_output=True, check=False).returncode:
        raise ValueError(
            f"--vllm {python}: this Python has no vLLM. `make test-vllm` makes an environment that has it, "
            ".venv-vllm (docs/vllm.md); name its Python."
        )


def _environment() -> dict[str, str]:
    """As many cores as this process computes with, our package, and no output among ours."""
    import torch

    cores = sorted(os.sched_getaffinity(0))[: torch.get_num_threads()]
    return {
        "OMP_NUM_THREADS": str(len(cores)),
        "VLLM_CPU_KVCACHE_SPACE": str(_GIBIBYTES),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


class _Server:
    """The two engines in vLLM's environment."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from vllm import LLM
        from vllm.config import PoolerConfig

        common = {"model": spec["model"], "dtype": spec["dtype"], "max_num_seqs": spec["batch"], "block_size": 32}
        common |= {"max_model_len": spec["positions"], "enforce_eager": True}
        self.writer = LLM(**common, skip_tokenizer_init=True) if spec["writes"] else None
        self.reader = LLM(
            **common,
            runner="pooling",
            convert="embed",
            pooler_config=PoolerConfig(pooling_type="LAST", use_activation=False),
            enable_prefix_caching=True,
        )

    def answer(self, question: dict[str, Any]) -> None:
        """Generate where lengths are given, read, and write the file. What earlier rounds have cached is forgotten."""
        for engine in (self.writer, self.reader):
            if engine is not None:
                engine.llm_engine.reset_prefix_cache()
        prompts, lengths, said = question["prompts"], question["lengths"], []
        if lengths is not None:
            said = self._write(prompts, lengths, question["embed"])
            prompts = [[*prompt, *ids] for prompt, ids in zip(prompts, said, strict=True)]
        found = self.reader.embed([{"prompt_token_ids": row} for row in prompts], use_tqdm=False)
        vectors = np.array([each.outputs.embedding for each in found], dtype=np.float32)
        np.savez(question["answer"], vectors=vectors, ids=np.array([i for ids in said for i in ids], dtype=np.int64))

    def _write(self, prompts: list[list[int]], lengths: list[int], embed: int) -> list[list[int]]:
        from vllm import SamplingParams

        if self.writer is None:
            raise ValueError("This process was started to read only; ask it without lengths.")
        each = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True, detokenize=False) for n in lengths]
        outputs = self.writer.generate([{"prompt_token_ids": row} for row in prompts], each, use_tqdm=False)
        return [[*output.outputs[0].token_ids, embed] for output in outputs]


def end_with_parent() -> None:
    """Let this process be killed when its parent is gone, on Linux: one that stands still would stay for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def main(spec: str) -> None:
    """Start the engines, and answer until the input ends."""
    end_with_parent()
    server = _Server(json.loads(spec))
    print(_READY, flush=True)
    for line in sys.stdin:
        server.answer(json.loads(line))
        print(_DONE, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
