"""The command line that both stages share."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from train.config.loading import ConfigError, load_config


@dataclass(frozen=True)
class Command:
    """A checked configuration, and whether only to describe it."""

    config: Any
    dry_run: bool


def parse(program: str, cls: type[Any], arguments: Sequence[str] | None) -> Command:
    """Read `--config FILE [--set key=value ...] [--dry-run]`, from sys.argv without `arguments`.

    A wrong setting ends the program with its message and code 2.
    """
    parser = argparse.ArgumentParser(prog=program, description=f"Settings: {cls.__name__} in train/config/stages.py.")
    shipped = "rl_nano" if program == "rl.py" else "nano"
    example = f"a TOML file, for example train/configs/{shipped}.toml"
    parser.add_argument("--config", required=True, metavar="FILE", help=example)
    example = "override a setting, for example optimization.steps=100"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=example)
    dry_run = "print the settings, the sizes and a memory estimate; train nothing"
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    given = parser.parse_args(arguments)
    try:
        config = load_config(given.config, given.set, cls)
    except (ConfigError, FileNotFoundError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    return Command(config, given.dry_run)
