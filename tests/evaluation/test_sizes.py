"""`evaluate --dim`: the same vectors in several sizes, each a system of its own, computed once."""

import json

import numpy as np
import pytest

from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.evaluation.systems import open_systems
from search_r3_mteb.tasks.mteb_tasks import BeirFolder
from tests.evaluation.conftest import write_little


@pytest.fixture
def little(tmp_path):
    return write_little(tmp_path / "little", ["river", "stone", "bird"], 9)


def test_each_size_is_a_row_with_the_score_of_its_own_vectors(checkpoint, little, tmp_path, monkeypatch):
    task = BeirFolder(little)
    settings = {"max_reasoning_tokens": 4}
    rows = evaluate([checkpoint], [task], "direct", tmp_path / "out", settings=settings, dims=[3, 8])
    assert [(row["model"], row.get("dim")) for row in rows] == [
        ("tests/short", None),
        ("tests/short-3d", 3),
        ("tests/short-8d", 8),
    ]
    assert len({row["fingerprint"] for row in rows}) == 3
    for row in rows[1:]:
        alone = SearchR3Encoder(checkpoint, mode="direct", truncate_dim=row["dim"], **settings)
        [expected] = evaluate([alone], [BeirFolder(little)], "direct", tmp_path / f"alone-{row['dim']}")
        assert row["ndcg_at_10"] == pytest.approx(expected["ndcg_at_10"], abs=1e-9)
    # The control: a size has another ranking than the whole.
    whole = SearchR3Encoder(checkpoint, mode="direct", **settings)
    texts = [f"text {number}" for number in range(9)]
    order = [
        np.argsort(each.encode_document(texts) @ each.encode_query("text"))
        for each in (whole, SearchR3Encoder(checkpoint, mode="direct", truncate_dim=3, **settings))
    ]
    assert (order[0] != order[1]).any()


def test_sizes_share_weights_and_store(checkpoint, little, tmp_path, monkeypatch):
    systems = open_systems(checkpoint, "reason", {"max_reasoning_tokens": 4}, tmp_path / "store", dims=[3])
    whole, small = (system.model.encoder for system in systems)
    assert small.checkpoint is whole.checkpoint
    whole.encode_document(["a text"])
    monkeypatch.setattr(small.engine, "embed", None)  # nothing is computed
    assert small.encode_document(["a text"]).shape == (1, 3)


def test_sizes_that_would_change_nothing_are_refused(checkpoint, little, tmp_path):
    def run(models, **given):
        return evaluate(models, [f"beir:{little}"], "direct", tmp_path / "out", **given)

    with pytest.raises(ValueError, match="The sizes 3 would change nothing: none of the models is a Search-R3"):
        run(["bm25"], dims=[3])
    with pytest.raises(ValueError, match="truncate_dim=4 and the sizes 3 say the same thing twice"):
        run(["nano"], dims=[3], settings={"truncate_dim": 4})
    with pytest.raises(ValueError, match="truncate_dim=999 must be from 1"):
        run([checkpoint], dims=[999])
    encoder = SearchR3Encoder(checkpoint, mode="direct", max_reasoning_tokens=4)
    with pytest.raises(ValueError, match="no place beside an encoder in memory"):
        list(open_systems(encoder, "direct", {}, tmp_path / "store", dims=[3]))


def test_a_size_that_one_model_does_not_have_is_refused_before_any_is_scored(checkpoint, tiny_folder, little, tmp_path):
    """Regression: 33 was found too large only behind the scores of 3, and of the models before."""
    for models in ([checkpoint], ["nano", str(tiny_folder)]):
        with pytest.raises(ValueError, match="truncate_dim=33 must be from 1 to 32"):
            evaluate(models, [f"beir:{little}"], "direct", tmp_path / "out", dims=[3, 33])
        assert not list((tmp_path / "out").glob("summary.json"))


@pytest.mark.parametrize("text", ["", "64,", "0", "64,64", "half", "-3"])
def test_the_option_is_numbers(call, little, tmp_path, text):
    code, _, said = call("evaluate", "--model", "nano", "--task", little, "--output", tmp_path / "out", f"--dim={text}")
    assert code == 2
    assert "write numbers of dimensions such as 64,128, each once" in said.replace("\n", " ")


def test_the_option_reaches_the_evaluation(call, tiny_folder, little, tmp_path):
    code, out, said = call(
        *("evaluate", "--model", tiny_folder, "--task", little, "--mode", "direct", "--output", tmp_path / "out"),
        *("--dim", "4, 8"),
    )
    assert code == 0, said
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row.get("dim") for row in rows] == [None, 4, 8]
    assert "-8d" in out
