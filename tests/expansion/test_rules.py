"""How texts and vectors are combined, with values computed by hand."""

import numpy as np
import pytest

from search_r3_mteb.expansion.rules import combined, embedded_texts, keywords_of, rocchio

X, Y = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
BOTH = np.stack([X, Y])


def test_passages_are_embedded_alone():
    assert embedded_texts("passages", "q", [" one ", "", "two"], 1, " ") == ["one", "two"]


def test_a_text_is_appended_to_the_query_as_often_as_its_weight_says():
    assert embedded_texts("appended", "q", ["one", "two"], 1, " [SEP] ") == ["q [SEP] one", "q [SEP] two"]
    assert embedded_texts("appended", "q", ["one"], 3, " ") == ["q q q one"]
    assert embedded_texts("appended", "q", ["one"], 0, " [SEP] ") == ["one"]
    assert embedded_texts("appended", "q", ["  "], 1, " ") == []  # nothing was written


def test_mugi_repeats_the_query_by_the_length_of_the_texts():
    # 40 + 1 + 40 characters, 81 // 4 = 20, 20 // 6 = 3 times a query of four characters.
    assert embedded_texts("together", "abcd", ["x" * 40, "y" * 40], None, " ") == [
        f"abcd abcd abcd {'x' * 40} {'y' * 40}"
    ]
    assert embedded_texts("together", "abcd", ["x"], None, " ") == ["abcd x"]  # short texts: once
    assert embedded_texts("together", "abcd", ["x" * 99], 2, " ") == [f"abcd abcd {'x' * 99}"]


@pytest.mark.parametrize(
    ("weight", "wanted"),
    [(1, [1, 2]), (None, [1, 2]), (2, [2, 2]), (0, [0, 2])],
)
def test_hyde_adds_the_query_and_each_passage(weight, wanted):
    found = combined("passages", X, np.stack([Y, Y]), weight, None)
    np.testing.assert_allclose(found, np.array(wanted) / np.linalg.norm(wanted), atol=1e-6)


def test_appended_texts_are_averaged_and_the_query_counts_only_when_anchored():
    np.testing.assert_allclose(combined("appended", X, BOTH, 1, None), [0.5**0.5] * 2, atol=1e-6)
    np.testing.assert_allclose(combined("appended", X, Y[None], 1, None), Y, atol=1e-6)
    np.testing.assert_allclose(combined("appended", X, Y[None], 1, 0.75), [0.8, 0.6], atol=1e-6)
    np.testing.assert_allclose(combined("passages", X, Y[None], 1, 0.75), [0.8, 0.6], atol=1e-6)
    np.testing.assert_allclose(combined("appended", X, Y[None], 1, 0.0), X, atol=1e-6)
    # The mean of several counts as one direction: its length, which disagreement shortens, does not.
    half = np.array([0.5**0.5] * 2)
    want = X + half
    np.testing.assert_allclose(combined("appended", X, BOTH, 1, 1.0), want / np.linalg.norm(want), atol=1e-6)


def test_without_texts_the_vector_is_the_querys_own():
    nothing = np.empty((0, 2), np.float32)
    for rule in ("passages", "appended", "together"):
        np.testing.assert_array_equal(combined(rule, X, nothing, 1, 2.0), X)
    np.testing.assert_array_equal(rocchio(X, nothing, 1.0), X)


def test_rocchio_adds_the_mean_of_the_documents_as_it_is():
    want = np.array([1 + 0.5 * 0.5, 0.5 * 0.5])
    np.testing.assert_allclose(rocchio(X, BOTH, 0.5), want / np.linalg.norm(want), atol=1e-6)


def test_vectors_that_cancel_each_other_out_have_no_direction():
    with pytest.raises(ValueError, match="cancel each other out"):
        combined("appended", X, -X[None], 1, 1.0)


def test_keywords_lose_bullets_and_numbers():
    assert keywords_of("1. salt, sugar\n2) fat\n- fibre;\n\n* 3 meals") == "salt, sugar, fat, fibre, 3 meals"
    assert keywords_of("vitamin b12, 5-HTP") == "vitamin b12, 5-HTP"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2.5 mg dose\n1.25-dihydroxyvitamin D", "2.5 mg dose, 1.25-dihydroxyvitamin D"),
        ("3.5 billion", "3.5 billion"),
        ("1. 2.5 mg\n2) -5 degrees\n-273 degrees", "2.5 mg, -5 degrees, -273 degrees"),
        ("*args\n1999. A year\n1,25-D\n2.4-D\n3)x", "*args, 1999. A year, 1,25-D, 2.4-D, 3)x"),
        ("  10. ten\r\n\t\u2022fat\n-\n3.", "ten, fat"),  # the last ones were cut before their words
    ],
)
def test_keywords_keep_signs_that_belong_to_them(text, wanted):
    assert keywords_of(text) == wanted
