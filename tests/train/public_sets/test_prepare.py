"""Public sets from small local copies of their repositories, through the code that reads the hub."""

import json
import os
import shutil
import signal
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from search_r3_mteb.tasks.beir_folder import read_corpus, read_qrels, read_queries
from tests.dying import Killed, killed_before
from tests.programs import ROOT, python, started
from tests.train.public_sets.hub_server import hub as served
from train.config.data import SourceSettings
from train.config.loading import load_config
from train.config.stages import RlConfig, SftConfig
from train.data.sources import all_rows, open_source
from train.prepare import main
from train.public_sets.manifest import faults, read_manifest
from train.public_sets.prepare import Wish, prepare
from train.public_sets.source import RepositoryError
from train.public_sets.table import PUBLIC_SETS, JudgedLayout

CONFIGS = ROOT / "train" / "configs"


def card(folder, licence, **configurations):
    """README.md as the hub has it: licence, and the files of every split of every configuration."""
    lines = ["---", *([f"license: {licence}"] if licence else []), "configs:"]
    for name, splits in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", "# A set", ""]), encoding="utf-8")


def jsonl(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def judged(folder, splits=("train", "dev", "test"), documents=40, prefix="", id_column="_id"):
    """A repository of MTEB's layout; every query has two relevant documents and one that is judged irrelevant."""
    jsonl(
        folder / "corpus.jsonl",
        [{id_column: str(n), "title": f"Title {n}", "text": f"Document {n}, \u00fcber \u2028 lines."}
         for n in range(documents)],
    )  # fmt: skip
    queries = [(f"{split}-{n}", f"question {n} of {split}?") for split in splits for n in range(6)]
    jsonl(folder / "queries.jsonl", [{id_column: id_, "text": text} for id_, text in queries])
    for split in splits:
        rows = [
            {"query-id": f"{split}-{n}", "corpus-id": str(5 * n + place), "score": grade}
            for n in range(6) for place, grade in enumerate((1, 2, 0))
        ]  # fmt: skip
        jsonl(folder / "qrels" / f"{split}.jsonl", rows)
    card(
        folder, "cc-by-sa-4.0",
        **{
            f"{prefix}qrels" if prefix else "default": {split: f"qrels/{split}.jsonl" for split in splits},
            f"{prefix}corpus": {"dev" if prefix else "corpus": "corpus.jsonl"},
            f"{prefix}queries": {"dev" if prefix else "queries": "queries.jsonl"},
        },
    )  # fmt: skip
    return folder


def pairs(folder, configuration, columns, shards):
    """A repository of sentence-transformers' layout: parquet shards of one configuration."""
    (folder / configuration).mkdir(parents=True)
    for number, rows in enumerate(shards):
        table = pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(columns)})
        path = folder / configuration / f"train-{number:05}-of-{len(shards):05}.parquet"
        pq.write_table(table, path, row_group_size=4)
    card(folder, None, **{configuration: {"train": f"{configuration}/train-*"}})
    return folder


def triplets(folder, configuration="triplet", columns=("anchor", "positive", "negative")):
    """30 records in three shards; queries of one to four records, one of them across two shards."""
    records = [(f"q{n // 4}", f"p{n // 2}", f"n{n}") for n in range(30)]
    return pairs(folder, configuration, columns, [records[:7], records[7:18], records[18:]])


def made(name, copy, output, **wish):
    return prepare(PUBLIC_SETS[name], Wish(output, copy, **wish))


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


# --- what is made -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id_column", ["_id", "id"])
def test_a_judged_set_becomes_a_beir_folder_with_every_split(tmp_path, id_column):
    folder = made("fiqa", judged(tmp_path / "hub", id_column=id_column), tmp_path / "data")
    assert folder == tmp_path / "data" / "fiqa"
    assert len(list(read_corpus(folder))) == 40
    assert next(iter(read_corpus(folder))) == ("0", "Title 0", "Document 0, \u00fcber \u2028 lines.")
    assert list(read_queries(folder))[6] == ("dev-0", "question 0 of dev?")
    for split in ("train", "dev", "test"):
        assert list(read_qrels(folder, split))[:3] == [
            (f"{split}-0", "0", 1), (f"{split}-0", "1", 2), (f"{split}-0", "2", 0),
        ]  # fmt: skip
    rows = list(all_rows(open_source(SourceSettings(kind="beir", path=str(folder)), unit="query")))
    assert [dict(row.relevant) for row in rows[:2]] == [{"0": 1, "1": 2}, {"5": 1, "6": 2}]


def test_a_repository_of_several_languages(tmp_path):
    folder = made("miracl-dev", judged(tmp_path / "hub", splits=("dev",), prefix="en-"), tmp_path / "data")
    assert len(list(read_qrels(folder, "dev"))) == 18


def test_triplets_become_rows_with_all_positives_and_negatives_of_a_query(tmp_path):
    folder = made("triviaqa", triplets(tmp_path / "hub"), tmp_path / "data")
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert lines[0] == {"query": "q0", "positive": ["p0", "p1"], "negatives": ["n0", "n1", "n2", "n3"]}
    assert lines[1] == {"query": "q1", "positive": ["p2", "p3"], "negatives": ["n4", "n5", "n6", "n7"]}  # two shards
    assert lines[7] == {"query": "q7", "positive": "p14", "negatives": ["n28", "n29"]}
    assert len(lines) == 8
    counts = read_manifest(folder)["files"]["rows.jsonl"]["counts"]
    assert counts == {"records": 30, "rows": 8, "rows with several positives": 7, "negatives": 30}
    row = next(all_rows(open_source(SourceSettings(kind="jsonl", path=str(folder / "rows.jsonl")))))
    assert (row.query, row.positive, row.negatives) == ("q0", "p0", ("n0", "n1", "n2", "n3"))


def test_what_cannot_be_a_row_is_left_out_and_counted(tmp_path):
    records = [
        ("q", "p", "n"), ("q", "n", "m"), ("q", "p", None), (" ", "p", "n"), ("r", None, "n"), ("r", "p", "p"),
        ("r", "s", " "),
    ]  # fmt: skip
    folder = made("miracl", pairs(tmp_path / "hub", "en-triplet", ("anchor", "positive", "negative"), [records]),
                  tmp_path / "data")  # fmt: skip
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert lines == [
        {"query": "q", "positive": ["p", "n"], "negatives": ["m"]},  # n is a positive of q
        {"query": "r", "positive": ["p", "s"]},
    ]
    assert read_manifest(folder)["files"]["rows.jsonl"]["counts"] == {
        "records": 7,
        "rows": 2,
        "rows with several positives": 2,
        "negatives": 1,
        "negatives without text, left out": 2,
        "negatives that are positives of the same query, left out": 2,
        "records without a query or a positive, left out": 2,
    }


def test_pairs_are_not_grouped_and_rows_limits_the_records(tmp_path):
    shards = [[("same", f"code {n}") for n in range(5)], [("other", f"code {n}") for n in range(5, 9)]]
    hub = pairs(tmp_path / "hub", "pair", ("comment", "code"), shards)
    whole = made("codesearchnet", hub, tmp_path / "data")
    assert json.loads((whole / "rows.jsonl").read_text().splitlines()[1]) == {"query": "same", "positive": "code 1"}
    part = made("codesearchnet", hub, tmp_path / "part", rows=6)
    assert content(whole)["rows.jsonl"].splitlines()[:6] == content(part)["rows.jsonl"].splitlines()
    assert read_manifest(part)["records_at_most"] == 6
    with pytest.raises(ValueError, match="a part of it would judge documents that are not there"):
        made("scifact", hub, tmp_path / "data", rows=6)


# --- the manifest -----------------------------------------------------------------------------------------------------


def test_the_manifest_names_repository_revision_licence_and_checksums(tmp_path):
    hub = judged(tmp_path / "hub", splits=("train", "test"))
    (hub / ".cache").mkdir()
    (hub / ".cache" / "lock").write_text("of the hub's command line")
    manifest = read_manifest(made("scifact", hub, tmp_path / "data"))
    assert (manifest["set"], manifest["repository"], manifest["licence"]) == ("scifact", "mteb/scifact", "cc-by-sa-4.0")
    assert manifest["revision"].startswith("files:")
    assert set(manifest["files"]) == {"corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/test.tsv"}
    assert manifest["files"]["qrels/train.tsv"]["counts"] == {
        "judgements": 18, "queries": 6, "queries with several relevant documents": 6,
    }  # fmt: skip
    assert str(tmp_path) not in json.dumps(manifest)
    (hub / ".cache" / "lock").write_text("changed")
    assert made("scifact", hub, tmp_path / "again") != hub
    assert content(tmp_path / "again" / "scifact") == content(tmp_path / "data" / "scifact")


@pytest.mark.parametrize(("words", "said"), [
    ("license:\n- mit\n- cc0-1.0\n", "mit, cc0-1.0"),
    ("license: other\nlicense_name: own\nlicense_link: https://x\n", "other, own, https://x"),
    ("", "not stated: the card names no licence"),
])  # fmt: skip
def test_the_licence_is_the_cards(tmp_path, words, said):
    hub = judged(tmp_path / "hub", splits=("train", "test"))
    text = (hub / "README.md").read_text().replace("license: cc-by-sa-4.0\n", words)
    (hub / "README.md").write_text(text)
    assert read_manifest(made("scifact", hub, tmp_path / "data"))["licence"] == said


def test_check_finds_every_change(tmp_path, capsys):
    folder = made("fiqa", judged(tmp_path / "hub"), tmp_path / "data")
    arguments = ["fiqa", "--check", "--output", str(tmp_path / "data")]
    main(arguments)
    assert "as its manifest says" in capsys.readouterr().out
    corpus, whole = folder / "corpus.jsonl", content(folder)["corpus.jsonl"]
    for change, words in [
        (lambda: corpus.write_bytes(whole.replace(b"Title 3", b"Title 4")), "corpus.jsonl has the SHA-256"),
        (lambda: corpus.write_bytes(whole[:-1]), "corpus.jsonl has"),
        (lambda: corpus.unlink(), "corpus.jsonl is missing"),
        (lambda: (folder / "qrels" / "own.tsv").write_text("x"), "qrels/own.tsv is not in the manifest"),
        (lambda: (folder / "manifest.json").write_text("{"), "damaged"),
        (lambda: (folder / "manifest.json").write_text("{}"), "is not a manifest"),
    ]:
        change()
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        assert words in capsys.readouterr().err


# --- killed and continued ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "repository", "every"),
    [("triviaqa", triplets, 18), pytest.param("fiqa", judged, 15, marks=pytest.mark.slow)],
)
def test_killed_before_any_file_operation_it_ends_with_the_same_bytes(tmp_path, name, repository, every):
    hub = repository(tmp_path / "hub")
    whole = content(made(name, hub, tmp_path / "whole", every=every))
    moment = 0
    while True:
        output = tmp_path / f"killed-{moment}"
        with killed_before(moment) as died:
            made(name, hub, output, every=every)
        if not died:
            break
        if (output / name).exists():
            assert faults(output / name) == []  # what has the set's name is complete
        assert content(made(name, hub, output, every=every)) == whole
        assert [path.name for path in output.iterdir()] == [name]
        shutil.rmtree(output)
        moment += 1
    assert moment > 10


def killed_with_progress(hub, output):
    """What the progress file says after a kill at the state of 6 records."""

    def tell(said):
        raise Killed

    with pytest.raises(Killed):
        prepare(PUBLIC_SETS["triviaqa"], Wish(output, hub, every=6), tell)
    return json.loads((output / ".triviaqa.progress.json").read_text())


def test_a_continued_command_reads_on_instead_of_beginning_again(tmp_path):
    hub, said = triplets(tmp_path / "hub"), []
    progress = killed_with_progress(hub, tmp_path / "data")
    assert progress["rows.jsonl"]["open"] is not None  # a query whose records were not all read
    prepare(PUBLIC_SETS["triviaqa"], Wish(tmp_path / "data", hub, every=6), tell=said.append)
    assert said[0] == f"rows.jsonl: goes on after {progress['rows.jsonl']['read']} records"


def test_it_begins_again_where_the_repository_or_the_wish_has_changed(tmp_path):
    hub = triplets(tmp_path / "hub")
    killed_with_progress(hub, tmp_path / "data")
    table = pa.table({name: [f"new {name} {n}" for n in range(9)] for name in ("anchor", "positive", "negative")})
    pq.write_table(table, hub / "triplet" / "train-00000-of-00003.parquet")
    assert content(made("triviaqa", hub, tmp_path / "data", every=4)) == content(
        made("triviaqa", hub, tmp_path / "whole")
    )
    killed_with_progress(hub, tmp_path / "part")
    assert content(made("triviaqa", hub, tmp_path / "part", every=4, rows=10)) == content(
        made("triviaqa", hub, tmp_path / "fewer", rows=10)
    )


@pytest.mark.slow
def test_a_real_kill(tmp_path):
    """SIGKILL of the command, twice, at whatever it does."""
    records = [(f"q{n // 3}", f"p{n}", f"n{n}" * 20) for n in range(30_000)]
    hub = pairs(tmp_path / "hub", "triplet", ("anchor", "positive", "negative"), [records[:9_000], records[9_000:]])
    whole = content(made("triviaqa", hub, tmp_path / "whole"))
    code = (
        "import sys; from pathlib import Path; from train.public_sets.prepare import Wish, prepare; "
        "from train.public_sets.table import PUBLIC_SETS; "
        "prepare(PUBLIC_SETS['triviaqa'], Wish(Path(sys.argv[1]), Path(sys.argv[2]), every=500), tell=print)"
    )
    progress, seen = tmp_path / "data" / ".triviaqa.progress.json", 0
    for _ in range(2):
        process = started("-c", code, tmp_path / "data", hub)
        while process.poll() is None and (not progress.exists() or progress.stat().st_mtime_ns <= seen):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "data" / "triviaqa").exists()
        seen = progress.stat().st_mtime_ns
    assert content(made("triviaqa", hub, tmp_path / "data", every=500)) == whole


FIRST, SECOND = "a" * 40, "b" * 40


@pytest.mark.slow
def test_from_the_hub_at_one_commit_that_a_continued_command_keeps(tmp_path):
    """The libraries' own requests to a hub on this machine: killed at the first state, then a newer commit appears."""
    old = triplets(tmp_path / "old")
    new = pairs(tmp_path / "new", "triplet", ("anchor", "positive", "negative"), [[("new", "p", "n")] * 40])
    name, commits = PUBLIC_SETS["triviaqa"].repository, {FIRST: old}
    code = (
        "import os, sys; from pathlib import Path; from train.public_sets.prepare import Wish, prepare; "
        "from train.public_sets.table import PUBLIC_SETS; "
        "tell = lambda _: sys.argv[1] == 'die' and os.kill(os.getpid(), 9); "
        "[prepare(PUBLIC_SETS['triviaqa'], Wish(Path(folder), every=12), tell) for folder in sys.argv[2:]]"
    )
    with served({name: commits}) as endpoint:
        network = {"HF_ENDPOINT": endpoint, "HF_HOME": tmp_path / "home", "HF_HUB_OFFLINE": 0, "HF_DATASETS_OFFLINE": 0}
        process = started("-c", code, "die", tmp_path / "data", **network)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        commits[SECOND] = new
        python("-c", code, "live", tmp_path / "data", tmp_path / "newest", **network)
    folder = tmp_path / "data" / "triviaqa"
    assert content(folder)["rows.jsonl"] == content(made("triviaqa", old, tmp_path / "copy"))["rows.jsonl"]
    manifest = read_manifest(folder)
    assert (manifest["revision"], manifest["licence"]) == (FIRST, "not stated: the card names no licence")
    assert read_manifest(tmp_path / "newest" / "triviaqa")["revision"] == SECOND


def test_two_commands_do_not_write_one_folder(tmp_path):
    hub, busy = triplets(tmp_path / "hub"), []

    def second(said):
        with pytest.raises(BlockingIOError, match="Another process prepares"):
            made("triviaqa", hub, tmp_path / "data", every=9)
        busy.append(said)

    prepare(PUBLIC_SETS["triviaqa"], Wish(tmp_path / "data", hub, every=9), tell=second)
    assert busy


# --- what is refused --------------------------------------------------------------------------------------------------


def test_other_columns_are_named(tmp_path):
    hub = triplets(tmp_path / "hub", columns=("query", "positive", "negative"))
    with pytest.raises(RepositoryError, match=r"expected the columns 'anchor', 'positive', 'negative', found 'query'"):
        made("triviaqa", hub, tmp_path / "data")
    records = [(f"q{n}", "p", "n", "m") for n in range(3)]
    hub = pairs(tmp_path / "four", "triplet", ("anchor", "positive", "negative", "negative_2"), [records])
    with pytest.raises(RepositoryError, match="found 'anchor', 'positive', 'negative', 'negative_2'"):
        made("triviaqa", hub, tmp_path / "data")
    hub = judged(tmp_path / "judged")
    jsonl(hub / "qrels" / "train.jsonl", [{"query": "dev-0", "doc": "0", "score": 1}])
    with pytest.raises(RepositoryError, match=r"'train': expected the columns 'query-id', 'corpus-id', 'score', found"):
        made("fiqa", hub, tmp_path / "data")
    hub = judged(tmp_path / "later")  # one split of several
    jsonl(hub / "qrels" / "dev.jsonl", [{"query": "dev-0", "doc": "0", "score": 1}])
    with pytest.raises(
        RepositoryError, match=r"Couldn't cast.*query: string.*'query-id'.*The repository's layout differs"
    ):
        made("fiqa", hub, tmp_path / "data")
    hub = judged(tmp_path / "texts")
    jsonl(hub / "corpus.jsonl", [{"_id": "0", "contents": "x"}])
    with pytest.raises(RepositoryError, match=r"\(and perhaps 'title', 'metadata'\), found '_id', 'contents'"):
        made("fiqa", hub, tmp_path / "data")


def test_other_configurations_and_splits_are_named(tmp_path):
    hub = triplets(tmp_path / "hub", configuration="triplet-all")
    with pytest.raises(RepositoryError, match="expected a configuration 'triplet', found 'triplet-all'"):
        made("triviaqa", hub, tmp_path / "data")
    with pytest.raises(
        RepositoryError, match=r"expected the splits train, dev, test, found train, test; dev is missing"
    ):
        made("fiqa", judged(tmp_path / "judged", splits=("train", "test")), tmp_path / "data")


def test_values_of_other_types_are_named(tmp_path):
    (tmp_path / "hub" / "pair").mkdir(parents=True)
    table = pa.table({"comment": ["c", "d"], "code": [1, 2]})
    pq.write_table(table, tmp_path / "hub" / "pair" / "train-0.parquet")
    card(tmp_path / "hub", "mit", pair={"train": "pair/train-*"})
    with pytest.raises(RepositoryError, match="record 1: 'code' must be text, got int"):
        made("codesearchnet", tmp_path / "hub", tmp_path / "data")
    hub = judged(tmp_path / "judged")
    jsonl(hub / "qrels" / "train.jsonl", [{"query-id": "test-0", "corpus-id": "0", "score": 0.5}])
    with pytest.raises(RepositoryError, match=r"'train', record 1: 'score' must be a whole number, got 0\.5"):
        made("fiqa", hub, tmp_path / "data")


def test_judgements_of_other_texts(tmp_path):
    hub = judged(tmp_path / "hub", documents=20)  # documents 20 to 27 are judged
    with pytest.raises(
        RepositoryError, match=r"6 of 18 judgements name texts that are not there, the first one document '20'"
    ):
        made("fiqa", hub, tmp_path / "data")
    hub = judged(tmp_path / "one", documents=400)
    rows = [{"query-id": "train-0", "corpus-id": str(n), "score": 1.0} for n in (*range(199), 500)]
    jsonl(hub / "qrels" / "train.jsonl", rows)
    folder = made("fiqa", hub, tmp_path / "data")
    assert len(list(read_qrels(folder, "train"))) == 199
    counts = read_manifest(folder)["files"]["qrels/train.tsv"]["counts"]
    assert counts["judgements of absent texts, left out"] == 1
    assert len(list(all_rows(open_source(SourceSettings(kind="beir", path=str(folder)))))) == 199


def test_repeated_ids_and_two_grades(tmp_path):
    hub = judged(tmp_path / "ids")
    jsonl(hub / "corpus.jsonl", [{"_id": str(n % 39), "text": "x"} for n in range(40)])
    with pytest.raises(RepositoryError, match="line 40: id '0' was already used"):
        made("fiqa", hub, tmp_path / "data")
    hub = judged(tmp_path / "grades")
    jsonl(hub / "qrels" / "dev.jsonl", [{"query-id": "dev-0", "corpus-id": "0", "score": n} for n in (1, 1, 2)])
    with pytest.raises(RepositoryError, match="record 3: 'dev-0', '0' is 2, an earlier record says otherwise"):
        made("fiqa", hub, tmp_path / "data")


def test_a_folder_that_is_in_the_way(tmp_path):
    (tmp_path / "data" / "fiqa").mkdir(parents=True)
    (tmp_path / "data" / "fiqa" / "corpus.jsonl").write_text("mine")
    hub = judged(tmp_path / "hub")
    with pytest.raises(FileNotFoundError, match=r"was not made by `python -m train.prepare`"):
        made("fiqa", hub, tmp_path / "data")
    assert (tmp_path / "data" / "fiqa" / "corpus.jsonl").read_text() == "mine"
    made("fiqa", hub, tmp_path / "other")
    with pytest.raises(
        FileExistsError, match=r"was made with revision = 'files:.*'27a168819829fe9bcd655c2df245fb19452e8"
    ):
        made("fiqa", None, tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"--from .* does not exist"):
        made("scifact", tmp_path / "nowhere", tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "environment"), [("scifact", {"HF_HUB_OFFLINE": 1}), ("s2orc", {"HF_ENDPOINT": "http://127.0.0.1:9"})]
)
def test_without_a_network_it_says_what_to_do(tmp_path, name, environment):
    """Offline by choice, and nobody at the other end."""
    process = started("-m", "train.prepare", name, "--output", tmp_path, HF_HOME=tmp_path / "home", **environment)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert said.startswith(f"train.prepare {name}: {PUBLIC_SETS[name].repository}: ")
    assert "--from FOLDER" in said
    assert "Traceback" not in said
    assert not (tmp_path / name).exists()


def test_the_command_line(tmp_path, capsys):
    hub = judged(tmp_path / "hub", splits=("train", "test"))
    main(["scifact", "--from", str(hub), "--output", str(tmp_path / "data")])
    said = capsys.readouterr().out
    assert "licence: cc-by-sa-4.0" in said
    assert "qrels/train.tsv: 253 bytes; judgements 18" in said
    main(["--list"])
    listed = capsys.readouterr().out
    assert all(f"{one.name}: {one.repository} at " in listed for one in PUBLIC_SETS.values())
    for arguments in ([], ["scifcat"], ["scifact", "fiqa", "--from", str(hub)], ["s2orc", "--rows", "0"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2


# --- the table and the configurations ---------------------------------------------------------------------------------


def named_in_configs():
    """(config, kind, path) of everything that the configs of the paper's models read from data/."""
    found = []
    for path in sorted(CONFIGS.glob("*qwen*.toml")):
        config = load_config(path, (), RlConfig if path.stem.startswith("rl_") else SftConfig)
        for place in (*config.data.sources, *config.data.evaluation, *config.data.decontamination.against):
            found.append((path.stem, place.kind, place.path, place.split))
    return found


def test_every_path_that_the_configurations_name_is_made_by_a_set():
    made_here = {f"data/{one.name}" if isinstance(one.layout, JudgedLayout) else f"data/{one.name}/rows.jsonl": one
                 for one in PUBLIC_SETS.values()}  # fmt: skip
    named = named_in_configs()
    assert {kind for _, kind, _, _ in named} == {"jsonl", "beir"}
    for config, kind, path, split in named:
        if path == "data/synthetic_triples.jsonl.gz":  # the user's own
            continue
        assert path in made_here, (config, path)
        layout = made_here[path].layout
        assert (kind == "beir") == isinstance(layout, JudgedLayout)
        assert kind == "jsonl" or split in layout.splits
    assert {one.name for path, one in made_here.items() if path not in {path for _, _, path, _ in named}} == {
        "miracl-dev"
    }


def test_pinned_revisions_are_those_that_mteb_reads():
    import mteb

    tasks = {"msmarco": "MSMARCO", "hotpotqa": "HotpotQA", "fiqa": "FiQA2018", "scifact": "SciFact",
             "miracl-dev": "MIRACLRetrievalHardNegatives"}  # fmt: skip
    assert set(tasks) == {name for name, one in PUBLIC_SETS.items() if one.certainty == "mteb"}
    for name, task in tasks.items():
        dataset = mteb.get_task(task).metadata.dataset
        assert (dataset["path"], dataset["revision"]) == (PUBLIC_SETS[name].repository, PUBLIC_SETS[name].revision)
    assert all(one.revision is None for one in PUBLIC_SETS.values() if one.certainty == "card")
