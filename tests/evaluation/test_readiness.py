"""What is looked at before a run: models that are whole and in their places, and data that can be had."""

import socket
import time

import pytest

from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.model_names import resolve
from search_r3_mteb.evaluation import readiness
from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.evaluation.given_file import read_given
from search_r3_mteb.evaluation.readiness import check_data, check_models
from search_r3_mteb.evaluation.system_checks import check_settings
from search_r3_mteb.expansion.names import parse_name
from search_r3_mteb.expansion.writer_encoder import WriterEncoder
from tests.mteb_running import made_task


@pytest.fixture
def no_network(monkeypatch):
    """A hub at an address where nothing answers, and how often it was asked."""
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield constants  # bound, so that nobody else gets it, and never listening


def hub_task():
    import mteb

    task = mteb.get_task("SciFact")
    task.data_loaded = False
    return task


def test_data_that_cannot_be_had_are_told_before_a_model_is_loaded(no_network, tmp_path, monkeypatch):
    loaded, waited = [], []
    monkeypatch.setattr("search_r3_mteb.encoder.encoder.load", lambda *a, **k: loaded.append(a))
    monkeypatch.setattr(time, "sleep", waited.append)  # between attempts
    with pytest.raises(FileNotFoundError, match=r"(?s)SciFact \(mteb/scifact.*Run this once where there is a network"):
        evaluate(["nano"], [hub_task()], "direct", tmp_path)
    assert loaded == []
    assert waited == []
    assert no_network.HF_HUB_OFFLINE is False  # as it was before


def test_a_task_that_is_in_the_output_already_needs_no_data_to_be_looked_at(no_network, tmp_path):
    (tmp_path / "summary.json").write_text('[{"task": "SciFact", "split": "test", "model": "m", "mode": "direct"}]')
    check_data([hub_task()], tmp_path)
    with pytest.raises(FileNotFoundError):
        check_data([hub_task()], tmp_path / "other")


def test_a_task_made_here_is_loaded_once(tmp_path, monkeypatch):
    documents, queries = [{"id": "d", "title": "", "text": "one"}], [{"id": "q", "text": "one"}]
    task = made_task("Made", {"default": (documents, queries, {"q": {"d": 1}})})
    check_data([task], tmp_path)
    assert task.data_loaded
    monkeypatch.setattr(readiness, "_hub_or_cache", None)  # would fail if it was loaded again
    check_data([task], tmp_path)


def test_models_in_each_others_place(models):
    writer, encoder = models / "smol", models / "minis"
    turned = f"hyde:{encoder}+{writer}"
    with pytest.raises(ValueError, match=r"is in the writer's place.*Perhaps hyde:.*smol\+.*minis is meant"):
        check_models([turned])
    with pytest.raises(ValueError, match="is in the writer's place"):
        WriterEncoder(encoder, writer, method="hyde")
    check_models([f"hyde:{writer}+{encoder}", "hyde:mini+mini", "bm25", f"rocchio:{encoder}"])
    with pytest.raises(ValueError, match="names no encoder after"):
        parse_name(f"hyde:{writer}+")
    with pytest.raises(ValueError, match="names no writer before"):
        parse_name(f"hyde:+{encoder}")


@pytest.mark.parametrize("name", ["a" * 300, "org/" + "a" * 300, "hyde:" + "a" * 300 + "+mini", "a\0b", "x/" * 2100])
def test_a_text_that_no_model_can_have_as_its_name(name):
    with pytest.raises(FileNotFoundError, match=r"no model .*: that is a name of \d+ characters") as raised:
        check_models([name])
    assert len(str(raised.value)) < 400


def test_a_method_is_named_where_an_encoder_is_meant():
    with pytest.raises(FileNotFoundError, match=r"search_r3_mteb\.WriterEncoder\(WRITER, ENCODER"):
        SearchR3Encoder("hyde:LLM+ENCODER")
    with pytest.raises(FileNotFoundError) as raised:
        resolve("nanno")
    assert "WriterEncoder" not in str(raised.value)


def test_settings_that_change_nothing(models, tmp_path):
    encoder = models / "minis"
    hyde, rocchio = f"hyde:{models / 'smol'}+{encoder}", f"rocchio:{encoder}"
    for name, value in (("max_length", 16), ("task_prompts", False)):
        with pytest.raises(ValueError, match=f"{name} would change nothing"):
            check_settings([hyde, str(encoder)], {name: value})
        with pytest.raises(ValueError, match=f"{name} would change nothing: an encoder of sentence-transformers"):
            WriterEncoder(models / "smol", encoder, **{name: value})
        check_settings([hyde, "nano"], {name: value})
        check_settings([f"hyde:{models / 'smol'}+mini"], {name: value})
    with pytest.raises(ValueError, match="dtype would change nothing"):
        check_settings([rocchio], {"dtype": "float32"})
    check_settings([hyde], {"dtype": "float32"})
    for name, value in (("temperature", 0.5), ("anchor", 1.0)):
        with pytest.raises(ValueError, match=f"{name} would change nothing.*in another mode than direct"):
            check_settings(["nano"], {name: value}, "direct")
        check_settings(["nano"], {name: value}, "both")
    for name, value in (("mode", "direct"), ("cache_folder", "x")):
        with pytest.raises(ValueError, match=f"{name}='{value}' is not a setting of a model but an option"):
            evaluate(["nano"], ["hopworld"], "both", tmp_path, settings={name: value})
    with pytest.raises(ValueError, match=r"mode='direct': hyde:.* always writes about a query. Name its encoder alone"):
        evaluate(["nano", hyde], ["hopworld"], "direct", tmp_path)


def test_who_reads_reasonings_is_said(models, tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text('{"query_id": "q", "reasoning": "x"}\n')
    given = read_given(file)
    for name in (f"rocchio:{models / 'minis'}", str(models / "minis"), f"feedback:{models / 'smol'}+mini"):
        with pytest.raises(
            ValueError, match=r"a Search-R3 checkpoint or a writer\..*rocchio and feedback have no place"
        ):
            check_settings([name], {}, "both", given)
    check_settings([f"hyde:{models / 'smol'}+mini"], {}, "both", given)
