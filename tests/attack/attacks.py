"""The list of attacks, with the number of trials of each in a tiny, quick and full run."""

from collections.abc import Callable
from pathlib import Path

from tests.attack.browser import HostilePage
from tests.attack.damages import Damages
from tests.attack.full_disk import FullDisk
from tests.attack.fuzzed_commands import FuzzedCommands
from tests.attack.fuzzed_files import FuzzedBeir, FuzzedConfigs, FuzzedModels
from tests.attack.fuzzed_texts import FuzzedTexts
from tests.attack.fuzzed_types import FuzzedSettings, FuzzedTypes
from tests.attack.kills import Kills
from tests.attack.subjects import WRITERS, Subject, subject
from tests.attack.trials import Attack
from tests.attack.writers import SharedOutput, SharedStore

Counts = dict[str, int]


def sizes(tiny: int, quick: int, full: int) -> Counts:
    return {"tiny": tiny, "quick": quick, "full": full}


_KILLS = {
    "evaluation": sizes(1, 8, 200),
    "stage 1": sizes(1, 6, 150),
    "stage 2": sizes(1, 6, 150),
    "cache": sizes(2, 12, 200),
    "store": sizes(2, 12, 150),
    "export": sizes(1, 8, 100),
    "embed": sizes(1, 8, 80),
}
_DAMAGES = {
    "evaluation": sizes(2, 25, 900),
    "stage 1": sizes(2, 15, 500),
    "stage 2": sizes(2, 15, 500),
    "cache": sizes(4, 60, 1300),
    "store": sizes(4, 60, 1300),
    "export": sizes(2, 25, 700),
    "model": sizes(2, 25, 600),
}
_FULL = {name: sizes(8 if name in ("store", "cache") else 3, 8, 30) for name in WRITERS}


def every(folder: Path, chosen: Callable[[str], bool] = lambda name: True) -> list[Attack]:
    """The attacks whose names are chosen; what their subjects share is made in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rest: list[Attack] = [
        SharedOutput(sizes(1, 1, 10)),
        SharedStore(sizes(1, 5, 50)),
        FuzzedTexts("tiny", sizes(30, 600, 7000)),
        FuzzedTexts("nano", sizes(10, 200, 2000)),
        FuzzedTypes(sizes(40, 600, 5000)),
        FuzzedSettings(sizes(40, 500, 2000)),
        FuzzedConfigs(sizes(20, 300, 3000)),
        FuzzedBeir(sizes(40, 500, 2500)),
        FuzzedModels(sizes(4, 60, 800)),
        FuzzedCommands(sizes(20, 200, 2200)),
        HostilePage(sizes(1, 10, 150)),
    ]
    found: list[Attack] = []
    for kind, table in (("kills", _KILLS), ("flips", _DAMAGES), ("full disk", _FULL)):
        for name, counts in table.items():
            if chosen(f"{kind}/{name}"):
                found.append(_on_disk(kind, subject(name, folder), counts))
    return found + [attack for attack in rest if chosen(attack.name)]


def every_name(folder: Path) -> list[str]:
    """The names of all attacks; none of them is made ready."""
    names: list[str] = []
    every(folder, lambda name: bool(names.append(name)))
    return names


def _on_disk(kind: str, attacked: Subject, counts: Counts) -> Attack:
    if kind == "flips":
        return Damages(attacked, counts, needed="verify" if attacked.name == "export" else "")
    return Kills(attacked, counts) if kind == "kills" else FullDisk(attacked, counts)
