"""Texts, documents, instructions and MTEB's batches as callers give them, checked before any work is done."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from search_r3_mteb.encoder.documents import document_texts
from search_r3_mteb.encoder.prompts import check_text

# Keywords of MTEB's `encode` that cannot change a vector.
ENCODE_KEYWORDS = ("batch_size", "show_progress_bar")


def texts_of(texts: Any) -> list[str]:
    """The texts as a list; a single string is a list of one. Raises TypeError and ValueError that name the text."""
    if isinstance(texts, Mapping):
        raise TypeError(
            f"A text or a list of texts is needed, got a mapping with {list(texts)!r:.60}. Write [text, ...]."
        )
    return _checked([texts] if isinstance(texts, str) else list(_iterable(texts)))


def documents_of(documents: Any) -> tuple[list[str], bool]:
    """The text of each document, and whether a single one was given. Raises TypeError and ValueError that name it."""
    single = isinstance(documents, str) or (isinstance(documents, Mapping) and isinstance(documents.get("text"), str))
    return _checked(document_texts([documents] if single else _iterable(documents))), single


def _iterable(texts: Any) -> Any:
    if isinstance(texts, bytes) or not hasattr(texts, "__iter__"):
        raise TypeError(
            f"A text or a list of texts is needed, got {type(texts).__name__}: {texts!r:.60}. Write [text, ...]."
        )
    return texts


def _checked(texts: list[Any]) -> list[str]:
    for position, text in enumerate(texts):
        check_text(text, position)
    return texts


def instructions_of(instruction: str | Sequence[str | None] | None, count: int) -> list[str | None]:
    """One instruction (or None) per text, from one for all or one for each."""
    if instruction is None or isinstance(instruction, str):
        given = [instruction] * count
    else:
        given = list(instruction)
    if len(given) != count:
        raise ValueError(f"{len(given)} instructions were given for {count} texts; give one for each, or one for all.")
    for position, each in enumerate(given):
        if each is not None:
            check_text(each, position, "Instruction")
    return given


def check_batch_size(batch_size: int | None) -> None:
    """Raises ValueError unless `batch_size` is None or at least one row."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1 row.")


def refuse_keywords(method: Callable[..., Any], unknown: Mapping[str, Any]) -> None:
    """Raises TypeError for keywords that `method` does not have, and lists those that it has."""
    if unknown:
        parameters = inspect.signature(method).parameters.values()
        valid = ", ".join(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)
        raise TypeError(f"{method.__name__}() has no keyword {', '.join(sorted(unknown))}. The valid ones are {valid}.")


# ---- MTEB's batches ------------------------------------------------------------------------------------------------


def refuse_encode_kwargs(keywords: Mapping[str, Any]) -> None:
    """Raises TypeError for MTEB's encode_kwargs that could change a vector, as its result cache does not see them."""
    unknown = sorted(set(keywords) - set(ENCODE_KEYWORDS))
    if unknown:
        raise TypeError(
            f"encode() got {', '.join(unknown)}; it takes {', '.join(ENCODE_KEYWORDS)}. MTEB's result cache does not "
            "see encode_kwargs, so anything that changes a vector is set when the encoder is made: SearchR3Encoder("
            "..., max_reasoning_tokens=64)."
        )


def is_query(prompt_type: Any) -> bool:
    """Whether MTEB's PromptType (or its name) means queries. Raises ValueError for a name that MTEB does not have."""
    name = getattr(prompt_type, "value", prompt_type)
    if name not in (None, "query", "document"):
        raise ValueError(f"prompt_type must be 'query', 'document' or None, got {prompt_type!r}.")
    return bool(name == "query")


def read_queries(
    inputs: Iterable[Mapping[str, Any] | str], task_metadata: Any = None
) -> tuple[list[str], list[str | None]]:
    """Queries, and for each its own instruction, else the prompt of `task_metadata`, else None. Never both."""
    texts, instructions = read_batches(inputs, is_query=True)
    prompt = task_prompt(task_metadata)
    # An empty instruction counts as none: it must not leave an empty line in the prompt.
    return texts, [instruction or prompt for instruction in instructions]


def read_batches(inputs: Iterable[Mapping[str, Any] | str], *, is_query: bool) -> tuple[list[str], list[str | None]]:
    """Texts and instructions of all batches; a batch may be a single text.

    MTEB's `text` of a query joins query and instruction; they are read separately, so that each has its own place in
    the prompt. Its `text` of a document joins title and body.
    """
    if isinstance(inputs, str):
        raise TypeError(
            f"A list of texts or MTEB's DataLoader is needed, got one string {inputs[:40]!r}. Write [text]."
        )
    texts: list[str] = []
    instructions: list[str | None] = []
    for batch in inputs:
        if isinstance(batch, str):
            texts.append(batch)
            instructions.append(None)
            continue
        if not isinstance(batch, Mapping) or "text" not in batch:
            held = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise TypeError(f"An MTEB batch holds 'text', got {held}: this encoder reads text only.")
        part = list(batch["query"] if is_query and "query" in batch else batch["text"])
        texts.extend(part)
        instructions.extend(list(batch["instruction"]) if is_query and "instruction" in batch else [None] * len(part))
    return texts, instructions


def task_prompt(task_metadata: Any) -> str | None:
    """The prompt that a task's metadata gives for its queries, or None."""
    prompt = getattr(task_metadata, "prompt", None)
    if isinstance(prompt, Mapping):
        prompt = prompt.get("query")
    return prompt or None
