"""Documents as one text each, from every layout."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_r3_mteb.encoder.documents import document_text, document_texts, join_title
from search_r3_mteb.encoder.inputs import documents_of

plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize(
    ("title", "text", "joined"),
    [
        ("Cats", "sleep", "Cats sleep"),
        ("", " sleep ", "sleep"),
        (None, "sleep", "sleep"),
        ("Cats", "", "Cats"),
        ("", "", ""),
    ],
)
def test_title_and_text_stand_one_space_apart(title, text, joined):
    assert join_title(title, text) == joined


@given(st.lists(st.tuples(plain, plain), max_size=6))
def test_every_layout_gives_the_same_texts(rows):
    expected = [join_title(title, text) for title, text in rows]
    listed = [{"title": title, "text": text, "id": 3} for title, text in rows]
    assert document_texts(listed) == expected
    assert document_texts({"title": [t for t, _ in rows], "text": [t for _, t in rows]}) == expected
    assert document_texts({f"d{n}": document for n, document in enumerate(listed)}) == expected
    assert [document_text(document) for document in listed] == expected
    assert documents_of(listed) == (expected, False)


def test_what_is_one_document_and_what_is_a_list():
    assert documents_of("as it is ") == (["as it is "], True)
    assert documents_of({"title": "a", "text": "b"}) == (["a b"], True)
    assert documents_of({"text": ["a", "b"]}) == (["a", "b"], False)
    assert documents_of([]) == ([], False)
    assert documents_of(document for document in ["a", {"text": "b"}]) == (["a", "b"], False)


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        ("text", TypeError, r"one string 'text'\. Write \[document\]"),
        ([3], TypeError, "Document 0 is of type int: 3. Give a string, or a dict with 'text' and perhaps 'title'"),
        (["a", {"titel": "b"}], ValueError, r"Document 1 has no 'text', only \['titel'\]\. Name its body 'text'"),
        ([{"text": 3}], TypeError, "The text of document 0 is of type int, not str: 3"),
        ([{"text": "a", "title": ["b"]}], TypeError, "The title of document 0 is of type list"),
        ({"text": ["a", "b"], "title": ["c"]}, ValueError, "1 titles for 2 texts"),
        ({"text": ["a"], "title": "c"}, ValueError, "titles for 1 texts"),
    ],
)
def test_what_is_not_a_document_is_named(documents, error, message):
    with pytest.raises(error, match=message):
        document_texts(documents)
