"""Public training sets from the hub, as the files that the shipped configurations name.

    python -m train.prepare --list                                     # names, repositories, revisions
    python -m train.prepare msmarco hotpotqa fiqa scifact              # stage 2: BEIR folders data/NAME
    python -m train.prepare triviaqa msmarco-triplets codesearchnet miracl s2orc --rows 2000000    # stage 1
    python -m train.prepare scifact --from FOLDER                      # a copy of the repository, without a network
    python -m train.prepare scifact --check                            # against the checksums of its manifest

A killed command goes on where it was when it is given again, and ends with the same bytes. Beside the data lies
manifest.json: repository, commit, licence as the card states it, and SHA-256 and counts of each file.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from search_r3_mteb.disk import explained
from search_r3_mteb.stopping import command_line, end_on_signals
from search_r3_mteb.terminal import visible

if __name__ == "__main__":  # before datasets is imported, which takes seconds
    end_on_signals(
        "train.prepare",
        lambda: "What was read is kept. Go on with: " + command_line("python -m train.prepare"),
    )

from train.public_sets.manifest import faults, read_manifest
from train.public_sets.prepare import Wish, prepare
from train.public_sets.table import PUBLIC_SETS, JudgedLayout, PublicSet


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. What cannot be done ends it with one message and code 2."""
    given = parse(arguments)
    if given.list:
        print("\n".join(_described(one) for one in PUBLIC_SETS.values()))
        return
    wish = Wish(given.output, given.copy, given.revision, given.rows)
    for name in given.names:
        try:
            if given.check:
                _check(given.output / name)
            else:
                _report(prepare(PUBLIC_SETS[name], wish, tell=_tell))
        except Exception as error:
            message = explained(error)
            if message is None and not isinstance(error, ValueError | OSError):
                raise
            _tell(f"train.prepare {name}: {message or error}")
            raise SystemExit(2) from error


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for. A mistake in it ends the program with its message and code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m train.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PUBLIC_SETS))
    parser.add_argument("--list", action="store_true", help="the sets, and what is made of them")
    parser.add_argument("--check", action="store_true", help="compare the folders with their manifests; fetch nothing")
    parser.add_argument("--output", type=Path, default=Path("data"), help="the sets' folders are made here [data]")
    parser.add_argument("--from", dest="copy", type=Path, metavar="FOLDER", help="a local copy of the repository")
    parser.add_argument("--revision", metavar="COMMIT", help="another commit than the table's, or than the newest")
    parser.add_argument("--rows", type=_positive, help="of pairs and triplets: the number of records that are taken")
    given = parser.parse_args(arguments)
    if given.list:
        return given
    if not given.names:
        parser.error(f"give a NAME: {', '.join(PUBLIC_SETS)}")
    if unknown := [name for name in given.names if name not in PUBLIC_SETS]:
        parser.error(f"there is no set {unknown[0]!r}; there are {', '.join(PUBLIC_SETS)}")
    if len(given.names) > 1 and (given.copy or given.revision):
        parser.error("--from and --revision belong to one repository: give one NAME")
    return given


def _tell(said: str) -> None:
    print(visible(said), file=sys.stderr, flush=True)


def _check(folder: Path) -> None:
    """Raise ValueError where the files are not those of the manifest."""
    if wrong := faults(folder):
        raise ValueError(f"{folder}: {'; '.join(wrong)}. Remove the folder and prepare the set again.")
    print(f"{folder}: as its manifest says")


def _report(folder: Path) -> None:
    """Print where the set lies, its licence and its counts."""
    manifest = read_manifest(folder)
    origin = f"{manifest['repository']} at {manifest['revision']}; licence: {manifest['licence']}"
    print(visible(f"{folder}: {origin}"))
    for name, file in manifest["files"].items():
        counts = ", ".join(f"{what} {count:,}" for what, count in file["counts"].items())
        print(f"  {name}: {file['bytes']:,} bytes{'; ' if counts else ''}{counts}")


def _described(one: PublicSet) -> str:
    layout = one.layout
    what = (
        f"BEIR folder, judgements: {', '.join(layout.splits)}"
        if isinstance(layout, JudgedLayout)
        else f"rows.jsonl from {layout.configuration!r} ({', '.join(layout.columns)})"
    )
    sure = "as MTEB reads it" if one.certainty == "mteb" else "columns as the card says"
    return f"{one.name}: {one.repository} at {one.revision or 'its newest commit'}; {what}; {sure}"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of records above 0, got {text}")
    return value


if __name__ == "__main__":
    main()
