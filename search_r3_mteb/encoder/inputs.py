"""Texts, documents, instructions and MTEB's batches as callers give them, checked before any work is done."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from search_r3_mteb.encoder.documents import document_texts
from search_r3_mteb.encoder.setting_types import check_whole_number
from search_r3_mteb.encoder.tables import check_list, column_names, type_name
from search_r3_mteb.encoder.text_checks import check_text

# Keywords of MTEB's `encode` that cannot change a vector.
ENCODE_KEYWORDS = ("batch_size", "show_progress_bar")


def texts_of(texts: Any, *, several: bool = False) -> list[str]:
    """The texts as a list; a single string is a list of one, or refused where `several` are meant.

    Raises TypeError and ValueError that name the text.
    """
    if several and isinstance(texts, str):
        raise TypeError(f"A list of texts is needed, got one string {texts[:40]!r}. Write [text].")
    return _checked([texts] if isinstance(texts, str) else listed(texts, "text"))


def documents_of(documents: Any) -> tuple[list[str], bool]:
    """The text of each document, and whether a single one was given. Raises TypeError and ValueError that name it."""
    single = isinstance(documents, str) or (isinstance(documents, Mapping) and isinstance(documents.get("text"), str))
    return _checked(document_texts([documents] if single else documents)), single


def holds_rows(inputs: Any) -> bool:
    """Whether `inputs` are texts or documents themselves, and not MTEB's iterable of batches."""
    if isinstance(inputs, str | list | tuple | Mapping) or hasattr(inputs, "tolist"):  # the last: arrays and series
        return True
    return column_names(inputs) is not None


def listed(texts: Any, what: str) -> list[Any]:
    """A list of texts. Raises TypeError for what would be iterated as something else: a mapping's keys, for example."""
    check_list(texts, what)
    names = column_names(texts)
    if names is not None:
        raise TypeError(
            f"A {what} or a list of {what}s is needed, got {type_name(texts)} with the columns {', '.join(names):.60}. "
            f"Name the column: list(table[{'text' if 'text' in names else names[0]!r}])."
        )
    if isinstance(texts, Mapping):
        raise TypeError(
            f"A {what} or a list of {what}s is needed, got a mapping with {list(texts)!r:.60}. Write [{what}, ...], or "
            f"list(mapping.values()) where it holds {what}s by id."
        )
    return list(texts)


def _checked(texts: list[Any]) -> list[str]:
    for position, text in enumerate(texts):
        check_text(text, position)
    return texts


def instructions_of(instruction: str | Sequence[str | None] | None, count: int) -> list[str | None]:
    """One instruction (or None) per text, from one for all or one for each."""
    if instruction is None or isinstance(instruction, str):
        given = [instruction] * count
    else:
        given = listed(instruction, "instruction")
    if len(given) != count:
        raise ValueError(f"{len(given)} instructions were given for {count} texts; give one for each, or one for all.")
    for position, each in enumerate(given):
        if each is not None:
            check_text(each, position, "Instruction")
    return given


def check_batch_size(batch_size: int | None) -> None:
    """Raises TypeError or ValueError unless `batch_size` is None or at least one row."""
    check_whole_number("batch_size", batch_size, optional=True)
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
    check_list(inputs, "text")
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
        if not is_query and "title" in batch and "body" not in batch:
            part = document_texts(batch)  # not MTEB's own, which has the title in the text
        else:
            part = _column(batch, "query" if is_query and "query" in batch else "text")
        given = _column(batch, "instruction") if is_query and "instruction" in batch else [None] * len(part)
        if len(given) != len(part):
            raise ValueError(f"A batch holds {len(given)} instructions for {len(part)} texts; give one for each.")
        texts.extend(part)
        instructions.extend(given)
    return texts, instructions


def _column(batch: Mapping[str, Any], name: str) -> list[Any]:
    if isinstance(batch[name], str):
        raise TypeError(
            f"An MTEB batch holds a list under {name!r}, got one string {batch[name][:40]!r}: these are rows. Write "
            f"[row[{name!r}] for row in rows]."
        )
    return list(batch[name])


def task_prompt(task_metadata: Any) -> str | None:
    """The prompt that a task's metadata gives for its queries, or None."""
    prompt = getattr(task_metadata, "prompt", None)
    if isinstance(prompt, Mapping):
        prompt = prompt.get("query")
    return prompt or None
