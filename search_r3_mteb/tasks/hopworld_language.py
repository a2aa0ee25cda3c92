"""The wording of hopworld: one sentence per relation for the documents, two noun phrases per relation for the queries.

Every template ends where the next phrase nests ("the country of the birthplace of ..."), so a query over k hops reads
from the answer inwards to the anchor, and the trace (the documents' sentences) reads from the anchor outwards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from search_r3_mteb.tasks.hopworld_names import BOOK, CITY, COMPANY, COUNTRY, PERSON


@dataclass(frozen=True, slots=True)
class Relation:
    """A functional relation: each entity of kind `subject` has exactly one `object` under it."""

    name: str
    subject: str
    object: str
    sentence: str  # the document: "{s} was written by {o}."
    clause: str  # "the person who wrote {x}"

    @property
    def noun(self) -> str:
        """For example "the author of {x}"."""
        return f"the {self.name} of {{x}}"


RELATIONS: tuple[Relation, ...] = (
    Relation("author", BOOK, PERSON, "{s} was written by {o}.", "the person who wrote {x}"),
    Relation("publisher", BOOK, COMPANY, "{s} was published by {o}.", "the company that published {x}"),
    Relation("birthplace", PERSON, CITY, "{s} was born in {o}.", "the city that saw the birth of {x}"),
    Relation("employer", PERSON, COMPANY, "{s} works for {o}.", "the company that employs {x}"),
    Relation("teacher", PERSON, PERSON, "{s} was taught by {o}.", "the person who taught {x}"),
    Relation("founder", COMPANY, PERSON, "{s} was founded by {o}.", "the person who founded {x}"),
    Relation("headquarters", COMPANY, CITY, "{s} has its headquarters in {o}.", "the city that hosts {x}"),
    Relation("country", CITY, COUNTRY, "{s} is a city in {o}.", "the country that contains {x}"),
    Relation("mayor", CITY, PERSON, "{s} is governed by mayor {o}.", "the person who governs {x}"),
    Relation("capital", COUNTRY, CITY, "{s} has the capital {o}.", "the city that is capital of {x}"),
    Relation("leader", COUNTRY, PERSON, "{s} is ruled by {o}.", "the person who rules {x}"),
)
# (words before the phrase, noun or clause phrases, closing mark). {w} is "Who" for a person and "What" otherwise.
_PHRASINGS: tuple[tuple[str, bool, str], ...] = (
    ("{w} is ", False, "?"),
    ("Name ", False, "."),
    ("Find ", True, "."),
    ("Do you know ", True, "?"),
)
PHRASINGS = len(_PHRASINGS)


def query_text(anchor: str, relations: tuple[Relation, ...], phrasing: int) -> str:
    """The question that starts at `anchor` and follows `relations` in order, in phrasing 0 to `PHRASINGS` - 1.

    >>> query_text("Silent River", (RELATIONS[0], RELATIONS[2]), 0)
    'What is the birthplace of the author of Silent River?'
    """
    opening, clauses, mark = _PHRASINGS[phrasing]
    phrase = anchor
    for relation in relations:
        phrase = (relation.clause if clauses else relation.noun).format(x=phrase)
    who = "Who" if relations[-1].object == PERSON else "What"
    return opening.format(w=who) + phrase + mark


def template_words() -> set[str]:
    """Every word and punctuation mark of documents and queries that is not part of a name."""
    texts = [text for relation in RELATIONS for text in (relation.sentence, relation.noun, relation.clause)]
    texts += [opening.format(w=who) + mark for opening, _, mark in _PHRASINGS for who in ("Who", "What")]
    return {word for text in texts for word in re.findall(r"\w+|[^\w\s]", re.sub(r"\{\w\}", "", text))}
