"""The methods: what the writer is asked, and how its texts and the query become one vector.

Prompts are verbatim where a paper or its code is named, else our choice. Every method here was published for larger
writers; a setting's own default that differs from the paper's says so.
"""

from dataclasses import dataclass
from typing import Literal

from search_r3_mteb.encoder.profiles import REASON_PROMPT

Rule = Literal["passages", "appended", "together", "vectors"]
QUERY, CONTEXT = "{query}", "{context}"
SYSTEM = "You are a helpful assistant."  # our choice: templates have a place for it, and some fill it themselves


@dataclass(frozen=True)
class Method:
    """One way to expand a query.

    `prompt` is the user's turn, with the slots {query} and, where the corpus is needed, {context}: one title per line.
    `examples` are two questions with the text that is wanted, for writers without a chat template. `rule` says how the
    vector is made (`rules.py`). `samples` texts are drawn at `temperature` unless the settings say otherwise.
    `weight` None: see the rule.
    """

    name: str
    rule: Rule
    source: str
    prompt: str = ""
    system: str = SYSTEM
    examples: tuple[tuple[str, str], ...] = ()
    samples: int = 1
    temperature: float = 0.0
    weight: float | None = 1
    needs_corpus: bool = False
    needs_writer: bool = True


# Questions of nobody's benchmark, in our words: a writer without a chat template continues what it sees.
_QUESTIONS = ("how do vaccines protect against disease", "why does the sea have tides")
_PASSAGES = (
    "A vaccine shows the immune system a harmless part of a germ. The body makes antibodies and memory cells, so that "
    "a later infection is stopped before it makes a person ill.",
    "Tides are caused by the gravity of the Moon and the Sun, which pull the water of the oceans. As the Earth turns, "
    "a coast passes through two bulges of water, so that the sea rises and falls twice a day.",
)
_KEYWORDS = (
    "vaccine, immune system, antibodies, memory cells, infection, immunisation",
    "tides, Moon, gravity, ocean, high water, low water",
)
_TITLES = (
    "How vaccines work. A vaccine prepares the immune system by showing it a harmless part of a germ.",
    "Causes of ocean tides. The gravity of the Moon and the Sun pulls the water of the oceans.",
)
# The last sentence of Search-R3's prompt asks for the embed token, which an ordinary writer does not have.
_ENRICH = REASON_PROMPT.rpartition("To represent the final embedding")[0].strip()


def _pairs(texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple(zip(_QUESTIONS, texts, strict=True))


METHODS = {
    method.name: method
    for method in (
        # HyDE. Prompt: that of web search in the authors' code (texttron/hyde, promptor.py), verbatim; it has others
        # for other tasks, which `prompt` can set. Vector: equation 8, the mean over N passages and the query. N = 8
        # and temperature 0.7 are those of the code; the paper lets 512 tokens be written.
        Method(
            "hyde",
            "passages",
            "arXiv 2212.10496",
            prompt="Please write a passage to answer the question.\nQuestion: {query}\nPassage:",
            examples=_pairs(_PASSAGES),
            samples=8,
            temperature=0.7,
        ),
        # query2doc. Prompt: figure 1, without its four examples from MS MARCO, which would be training data here.
        # Dense form: query [SEP] passage, section 2. At most 128 tokens, as in the paper; greedy is our choice.
        Method(
            "query2doc",
            "appended",
            "arXiv 2303.07678",
            prompt="Write a passage that answers the given query:\n\nQuery: {query}\nPassage:",
            examples=_pairs(_PASSAGES),
        ),
        # MuGI. System prompt, prompt, five passages and the repetition of the query (mugi.py, adaptive_times = 6):
        # verbatim from the authors' code (lezhang7/Retrieval_MuGI), where temperature is the service's default, 1. The
        # code repeats the query for BM25 only; its dense form is the same without repetition (`weight` 1).
        Method(
            "mugi",
            "together",
            "arXiv 2401.06311",
            system="You are PassageGenGPT, an AI capable of generating concise, informative, and clear pseudo passages "
            "on specific topics.",
            prompt="Generate one passage that is relevant to the following query: '{query}'. The passage should be "
            "concise, informative, and clear",
            examples=_pairs(_PASSAGES),
            samples=5,
            temperature=1.0,
            weight=None,
        ),
        # Keywords. Prompt: Q2E/ZS in the appendix, verbatim. The paper repeats the query five times for BM25; once is
        # our choice for vectors.
        Method(
            "keywords",
            "appended",
            "arXiv 2305.03653",
            prompt="Write a list of keywords for the following query: {query}",
            examples=_pairs(_KEYWORDS),
        ),
        # After GAR, which trains a generator for each of answer, title and sentence, and fuses three rankings. Here an
        # untrained writer gives title and sentence at once: prompt and rule are our choice.
        Method(
            "gar",
            "appended",
            "after arXiv 2009.08553",
            prompt="Write the title of a document that answers the query, and one sentence from that document.\n"
            "Query: {query}\nTitle and sentence:",
            examples=_pairs(_TITLES),
        ),
        # The prompt of the Search-R3 release, without its demand for the embed token unless the writer is a Search-R3
        # checkpoint, which then writes what it would write for itself. That the text is appended is our choice.
        Method(
            "search-r3-prompt",
            "appended",
            "arXiv 2510.07048",
            system=_ENRICH,
            prompt=QUERY,
            examples=_pairs(_PASSAGES),
        ),
        # Pseudo-relevance feedback with text. Prompt: Q2D/PRF in the appendix, verbatim; the paper puts three whole
        # documents there, titles are our choice.
        Method(
            "feedback",
            "appended",
            "arXiv 2305.03653",
            prompt="Write a passage that answers the given query based on the context:\n\nContext: {context}\n"
            "Query: {query}\nPassage:",
            examples=_pairs(_PASSAGES),
            needs_corpus=True,
        ),
        # Rocchio on vectors: normalise(query + lambda * mean of the nearest documents), without negative feedback.
        # Rocchio (1971), "Relevance feedback in information retrieval"; on dense vectors: arXiv 2108.11044. Lambda is
        # `anchor`; 0.75 is the usual value for terms (from memory: Salton and Buckley, 1990), three documents are our
        # choice.
        Method(
            "rocchio",
            "vectors",
            "Rocchio 1971, arXiv 2108.11044",
            needs_corpus=True,
            needs_writer=False,
        ),
    )
}
ROCCHIO_WEIGHT = 0.75


def method_named(name: str) -> Method:
    """The method of this name. Raises ValueError with the names that there are."""
    if name not in METHODS:
        raise ValueError(f"There is no method {name!r} of query expansion; there are {', '.join(METHODS)}.")
    return METHODS[name]
