"""What a corpus costs on a processor without a GPU: a run that would spend its time on it is refused."""

from train.config.corpus_cache import CorpusCacheSettings

WARNED_SECONDS, REFUSED_SECONDS = 10.0, 120.0
WARNED_HOURS, REFUSED_HOURS = 1.0, 72.0
_FLOATS_PER_SECOND = 7.5e10


def processor_seconds(documents: int, dim: int, queries: int, settings: CorpusCacheSettings, threads: int) -> float:
    """Seconds per step that two searches and the drift map take on a processor, estimated from their multiply-adds.

    7.5e10 operations per second and thread in float32, 2e11 in bfloat16: our choice, a typical server's.
    """
    rate = (2e11 if settings.storage == "bfloat16" else _FLOATS_PER_SECOND) * max(1, threads)
    searches = 2.0 * 2 * documents * dim * queries if settings.index == "exact" else 0.0
    mapped = 2.0 * documents * dim * dim if settings.uses_map else 0.0
    return (searches + mapped) / rate


def check_processor(
    documents: int, dim: int, queries: int, settings: CorpusCacheSettings, threads: int, encoding_flops: float = 0.0
) -> str | None:
    """The warning for a corpus that a processor searches, maps or encodes slowly; None below 10 seconds per step.

    `encoding_flops` are those of encoding all documents once. Raises ValueError above 120 seconds per step, and above
    three days of encoding: such a run would spend its time on the corpus.
    """
    seconds = processor_seconds(documents, dim, queries, settings, threads)
    hours = encoding_flops / (_FLOATS_PER_SECOND * max(1, threads)) / 3600
    said = (
        f"{documents:,} documents of {dim:,} dimensions on a CPU with {threads} threads: about {hours:,.1f} hours to "
        f"encode them once, and {seconds:,.0f} seconds per step to search and map them for {queries:,} rollouts."
    )
    if seconds > REFUSED_SECONDS or hours > REFUSED_HOURS:
        raise ValueError(
            f"{said} That is too much to train with. Train on a GPU, search a smaller [data.corpus], or sample fewer "
            'rollouts; corpus_cache.storage = "bfloat16" and policy = "local" cost less.'
        )
    slow = seconds > WARNED_SECONDS or hours > WARNED_HOURS
    return f"{said} A GPU, or a smaller [data.corpus], reduces that." if slow else None
