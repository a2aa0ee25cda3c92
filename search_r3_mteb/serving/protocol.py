"""What requests may hold, and what is answered: OpenAI's embeddings, with the role of the texts, and search."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from search_r3_mteb.serving.errors import RequestError

TextRole = Literal["query", "document"]
# The words of OpenAI-compatible providers (Cohere, Voyage, NVIDIA) for the two roles.
INPUT_TYPES: dict[str, TextRole] = {
    "query": "query",
    "search_query": "query",
    "document": "document",
    "search_document": "document",
    "passage": "document",
}
_TOKENS = 1 << 31  # what is not an id in any vocabulary


def _inputs(value: Any) -> list[str] | list[list[int]]:
    """A text, several, the token ids of one, or those of several, as a list. Raises ValueError that names the place."""
    rows: Any = [value] if isinstance(value, str) else value
    if not isinstance(rows, list) or not rows:
        raise ValueError("give a text, an array of texts, an array of token ids, or an array of such arrays; not empty")
    if all(_is_id(each) for each in rows):
        rows = [rows]
    kind = list if isinstance(rows[0], list) else str
    for position, row in enumerate(rows):
        if not isinstance(row, kind) or (kind is list and not all(_is_id(each) for each in row)):
            raise ValueError(f"entry {position} is not {'an array of token ids' if kind is list else 'a text'}")
        if not row or (isinstance(row, str) and not row.strip()):
            raise ValueError(f"entry {position} is empty or blank: there is nothing to embed. Leave it out")
    return list(rows)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _TOKENS


def _questions(value: Any) -> list[str]:
    """A question, or several, as a list. Raises ValueError that names the place."""
    rows: Any = [value] if isinstance(value, str) else value
    if not isinstance(rows, list) or not rows or not all(isinstance(each, str) for each in rows):
        raise ValueError("give a question, or an array of questions, not empty; token ids are not searched for")
    return [str(each) for each in _inputs(rows)]


class EmbeddingRequest(BaseModel):
    """The body of POST /v1/embeddings: OpenAI's fields, `input_type` and `return_reasoning`."""

    model_config = ConfigDict(extra="forbid")

    model: StrictStr = Field(description="The served name; NAME:query and NAME:document say the role.")
    input: Annotated[list[str] | list[list[int]], BeforeValidator(_inputs)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = Field(None, description="The first n, normalised again.")
    user: StrictStr | None = Field(None, description="As in OpenAI's; not used.")
    input_type: StrictStr | None = Field(None, description=f"The role: {', '.join(INPUT_TYPES)}.")
    return_reasoning: StrictBool | None = None


class SearchRequest(BaseModel):
    """The body of POST /v1/search."""

    model_config = ConfigDict(extra="forbid")

    query: Annotated[list[str], BeforeValidator(_questions)]
    index: StrictStr | None = Field(None, description="Its name; may be left out where there is one.")
    mode: Literal["reason", "direct"] | None = Field(None, description="The server's own, where it is left out.")
    k: Annotated[StrictInt, Field(ge=1)] = 10
    stream: StrictBool = Field(False, description="Server-sent events: the reasoning as it is written.")


@dataclass(frozen=True)
class Asked:
    """The role of a request's texts, and who said it: "model", "input_type" or "default"."""

    role: TextRole
    said_by: str

    def headers(self) -> dict[str, str]:
        """The same as headers, for clients that drop fields which OpenAI does not have."""
        return {"x-search-r3-role": self.role, "x-search-r3-role-from": self.said_by}


def asked(request: EmbeddingRequest, served: str, *, require: bool) -> Asked:
    """The role that a request asks for. Raises RequestError for another model, and for what contradicts itself."""
    name, found = request.model, None
    for role in ("query", "document"):
        if name == f"{served}:{role}":
            found = role
    if found is None and name != served:
        raise RequestError(
            404,
            f"There is no model {name!r:.80} here. The models are {served}, {served}:query and {served}:document.",
            param="model",
            code="model_not_found",
        )
    given = request.input_type
    if given is not None and given not in INPUT_TYPES:
        raise RequestError(
            400, f"input_type={given!r:.60} does not exist; it is one of {', '.join(INPUT_TYPES)}.", param="input_type"
        )
    meant = None if given is None else INPUT_TYPES[given]
    if found is not None and meant is not None and found != meant:
        raise RequestError(
            400,
            f"model={name!r} means {found}, and input_type={given!r} means {meant}: queries reason and documents do "
            "not, so only one can be right. Leave one out.",
            param="input_type",
            code="contradicting_roles",
        )
    if found is None and meant is None and require:
        raise RequestError(
            400,
            f"Nothing says whether these texts are queries or documents. Ask the model {served}:query or "
            f"{served}:document, or give input_type.",
            param="input_type",
            code="role_required",
        )
    chosen: Any = found or meant or "document"
    return Asked(chosen, "model" if found else "input_type" if meant else "default")


def shortened(vector: Float32[np.ndarray, " dim"], dimensions: int | None) -> Float32[np.ndarray, " n"]:
    """The first `dimensions` numbers, of unit length again. Raises RequestError where they are all zero."""
    if dimensions is None or dimensions == len(vector):
        return vector
    part = vector[:dimensions].astype(np.float64)
    length = float(np.linalg.norm(part))
    if length == 0:
        raise RequestError(
            400, f"The first {dimensions} numbers of a vector are all 0: it has no direction.", param="dimensions"
        )
    shorter: Float32[np.ndarray, " n"] = (part / length).astype(np.float32)
    return shorter


def written(vector: Float32[np.ndarray, " n"], encoding: str | None) -> str | list[float]:
    """A vector as OpenAI writes it: numbers, or base64 of little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")
    return [float(each) for each in vector]


def usage(prompt_tokens: Sequence[int], generated: Sequence[int]) -> dict[str, int]:
    """Tokens that were read, prompts with their templates, and tokens that were generated, embed tokens included."""
    read, wrote = sum(prompt_tokens), sum(generated)
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


def complaint(errors: Sequence[Any], body: type[BaseModel]) -> tuple[str, str | None]:
    """One sentence and the field for pydantic's errors in a `body`; what was given is not quoted."""
    parts: list[str] = []
    fields: list[str] = []
    for each in errors[:4]:
        field = next((str(part) for part in each["loc"] if part != "body"), None)
        if each["type"] == "json_invalid":
            parts.append("the body is not JSON")
        elif each["type"] == "extra_forbidden":
            parts.append(f"{field!r:.60} is not a field of this request; they are {', '.join(body.model_fields)}")
            fields.append(str(field)[:60])
        elif field is None or field not in body.model_fields:
            parts.append("the body must be a JSON object, sent with Content-Type: application/json")
        else:
            parts.append(f"{field}: {str(each['msg']).removeprefix('Value error, ')}")
            fields.append(field)
    more = f" ({len(errors) - 4} more)" if len(errors) > 4 else ""
    return f"{'; '.join(parts)}{more}.", fields[0] if fields else None
