"""The command line that both stages share."""

import argparse
import sys
import threading
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from search_r3_mteb.disk import explained
from search_r3_mteb.extensions import PROFILES, REFRESH_POLICIES, REWARDS
from search_r3_mteb.stopping import advise, command_line
from search_r3_mteb.terminal import visible
from train.checkpoint.folders import checkpoints
from train.config.loading import ConfigError, load_config
from train.config.stages import RlConfig, SftConfig
from train.plan.base import written_by
from train.plan.dry_run import DryRun, OpenCorpus, describe
from train.plan.work import DECODE_UTILISATION, PEAK_TFLOPS, UTILISATION, Machine
from train.processes.errors import OtherProcessError
from train.run.trackers import check_trackers

_STAGES: tuple[tuple[str, type[Any], str], ...] = (("sft.py", SftConfig, "stage 1"), ("rl.py", RlConfig, "stage 2"))


@dataclass(frozen=True)
class Command:
    """A checked configuration, whether only to describe it, and whether an error shows its traceback."""

    config: Any
    dry_run: bool
    plan: DryRun = field(default_factory=DryRun)
    debug: bool = False


def start(
    program: str,
    cls: type[Any],
    train: Callable[[Any], object],
    arguments: Sequence[str] | None,
    corpus: OpenCorpus | None = None,
) -> None:
    """Run the command line. A mistake of the caller gives one message and exit code 2; `--debug` gives a traceback."""
    command = parse(program, cls, arguments)
    advise(partial(_kept, program, command))
    threading.excepthook = _known_to_all(threading.excepthook)
    try:
        if command.dry_run:
            check_trackers(command.config.output.trackers)
            describe(command.config, command.plan, corpus)
        else:
            train(command.config)
    except OtherProcessError as error:  # the other one has said why
        if command.debug:
            raise
        print(visible(f"{program}: {' '.join(str(error).split())}"), file=sys.stderr)
        raise SystemExit(1) from None
    except Exception as error:
        # ImportError: an optional library is missing. Others are explained where they are of the disk, whoever wrote.
        if command.debug or not (explained(error) or isinstance(error, ValueError | TypeError | OSError | ImportError)):
            raise
        _end(program, error, hint=_first_stage(program, command, error))


def _first_stage(program: str, command: Command, error: Exception) -> str:
    """A hint where stage 2 begins with what no stage 1 has written."""
    path = str(command.config.model.path)
    missing = isinstance(error, FileNotFoundError) and path in str(error) and not Path(path).exists()
    if program != "rl.py" or not missing or Path(path).name not in ("best", "last"):
        return ""
    found = written_by(path, command.plan.config_file)
    file = "CONFIG.toml" if found is None else found[0]
    return f"\n{path} is what stage 1 writes. Run that first: python train/sft.py --config {file}"


def _known_to_all(before: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Errors of threads are shown, but for the disk's in TensorBoard's writer, which hands them to its next caller."""

    def hook(error: Any) -> None:
        handed_on = type(error.thread).__module__.startswith("tensorboard.")
        if not handed_on or error.exc_value is None or explained(error.exc_value) is None:
            before(error)

    return hook


def _kept(program: str, command: Command) -> str:
    """What a run that is stopped has kept, and how to go on."""
    again = command_line(f"python train/{program}")
    if command.dry_run:
        return f"A dry run writes nothing. Start it again: {again}"
    folder = Path(command.config.output.folder)
    found = checkpoints(folder / "checkpoints")
    if not found:
        return f"{folder} holds no checkpoint yet, so the same command begins again: {again}"
    if command.config.checkpoint.resume == "never":
        again += " --set checkpoint.resume=auto"
    return f"The checkpoint {found[-1]} is kept. Go on from it with: {again}"


def parse(program: str, cls: type[Any], arguments: Sequence[str] | None) -> Command:
    """Read `--config FILE [--set key=value ...] [--dry-run ...] [--debug]`, from sys.argv without `arguments`.

    A wrong setting ends the program with its message and code 2.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=f"Settings: {cls.__name__} in train/config/stages.py.",
        epilog=f"Rewards: {REWARDS.said()}. Refresh policies: {REFRESH_POLICIES.said()}. Profiles: {PROFILES.said()}. "
        "How to bring one: docs/extend.md.",
    )
    shipped = "rl_nano" if program == "rl.py" else "nano"
    example = f"a TOML file, for example train/configs/{shipped}.toml"
    parser.add_argument("--config", required=True, metavar="FILE", help=example)
    example = "override a setting, for example optimization.steps=100"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=example)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    plan = parser.add_argument_group(
        "before a machine is rented", "--dry-run trains nothing; the other options belong to it"
    )
    plan.add_argument(
        "--dry-run",
        action="store_true",
        help="print settings, sizes, memory, work and hours, read the first rows; needs only the base's config.json",
    )
    plan.add_argument(
        "--base", metavar="PATH", help="folder or hub id of that config.json, where model.path is not here"
    )
    plan.add_argument("--gpus", type=int, default=1, metavar="N", help="devices that share a step (default: 1)")
    plan.add_argument(
        "--peak-tflops",
        type=float,
        metavar="X",
        help=f"peak of one device (default: an H100's, {PEAK_TFLOPS['bf16']:g} in bfloat16, {PEAK_TFLOPS['float32']:g} "
        "in float32)",
    )
    plan.add_argument(
        "--utilisation",
        type=float,
        default=UTILISATION,
        metavar="SHARE",
        help=f"share of the peak that passes reach (default: {UTILISATION:g}; why: train/plan/work.py)",
    )
    plan.add_argument(
        "--decode-utilisation",
        type=float,
        default=DECODE_UTILISATION,
        metavar="SHARE",
        help=f"the same for sampling (default: {DECODE_UTILISATION:g})",
    )
    given = parser.parse_args(arguments)
    try:
        machine = Machine(given.gpus, given.peak_tflops, given.utilisation, given.decode_utilisation)
        config = load_config(given.config, given.set, cls)
    except (ValueError, OSError) as error:
        _end(program, error, hint=_other_stage(given.config, cls) if isinstance(error, ConfigError) else "")
    return Command(config, given.dry_run, DryRun(Path(given.config), given.base, machine), given.debug)


def _end(program: str, error: Exception, hint: str = "") -> Any:
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))  # where a failed step's batch lies
    print(visible(f"{program}: {explained(error) or error}{hint}{notes}"), file=sys.stderr)
    raise SystemExit(2) from error


def _other_stage(file: str, cls: type[Any]) -> str:
    """A hint where the file is one of the other stage, or has sections that only that one knows."""
    try:
        sections = tomllib.loads(Path(file).read_text(encoding="utf-8-sig")).keys()
    except (OSError, ValueError):
        return ""
    for script, other, stage in _STAGES:
        if other is not cls and _loads(file, other) and not _loads(file, cls):
            return f"\n{file} is a configuration of {stage}: start it with python train/{script} --config {file}"
        foreign = sorted(sections & (other.model_fields.keys() - cls.model_fields.keys()))
        if other is not cls and foreign:
            named = ", ".join(f"[{name}]" for name in foreign)
            return f"\n{named} belongs to {stage}: if this is a file of {stage}, start it with python train/{script}."
    return ""


def _loads(file: str, cls: type[Any]) -> bool:
    try:
        load_config(file, (), cls)
    except ConfigError:
        return False
    return True
