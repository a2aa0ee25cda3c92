"""The list of attacks, with the number of trials of each in a tiny, quick and full run."""

from pathlib import Path

from tests.attack.browser import HostilePage
from tests.attack.damages import Damages
from tests.attack.full_disk import FullDisk
from tests.attack.fuzzed_commands import FuzzedCommands
from tests.attack.fuzzed_files import FuzzedBeir, FuzzedConfigs, FuzzedModels
from tests.attack.fuzzed_texts import FuzzedTexts
from tests.attack.fuzzed_types import FuzzedSettings, FuzzedTypes
from tests.attack.kills import Kills
from tests.attack.subjects import subjects
from tests.attack.trials import Attack
from tests.attack.writers import SharedOutput, SharedStore

Counts = dict[str, int]


def sizes(tiny: int, quick: int, full: int) -> Counts:
    return {"tiny": tiny, "quick": quick, "full": full}


_KILLS = {
    "evaluation": sizes(1, 8, 200), "stage 1": sizes(1, 6, 150), "stage 2": sizes(1, 6, 150), "cache": sizes(2, 12, 200),
    "store": sizes(2, 12, 150), "export": sizes(1, 8, 100), "embed": sizes(1, 8, 80),
}  # fmt: skip
_DAMAGES = {
    "evaluation": sizes(2, 25, 900), "stage 1": sizes(2, 15, 500), "stage 2": sizes(2, 15, 500), "cache": sizes(4, 60, 1300),
    "store": sizes(4, 60, 1300), "export": sizes(2, 25, 700),
}  # fmt: skip
_FULL = {name: sizes(1, 5, 30) for name in ("evaluation", "stage 1", "stage 2", "cache", "store", "export", "embed")}


def every(folder: Path) -> list[Attack]:
    """All attacks; what their subjects share is made in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    by_name = subjects(folder)
    found: list[Attack] = [Kills(by_name[name], counts) for name, counts in _KILLS.items()]
    for name, counts in _DAMAGES.items():
        found.append(Damages(by_name[name], counts, needed="verify" if name == "export" else ""))
    found += [FullDisk(by_name[name], counts) for name, counts in _FULL.items()]
    return [
        *found,
        SharedOutput(sizes(1, 1, 10)),
        SharedStore(sizes(1, 5, 50)),
        FuzzedTexts("tiny", sizes(30, 600, 7000)),
        FuzzedTexts("nano", sizes(10, 200, 2000)),
        FuzzedTypes(sizes(40, 600, 5000)),
        FuzzedSettings(sizes(40, 500, 2000)),
        FuzzedConfigs(sizes(20, 300, 3000)),
        FuzzedBeir(sizes(40, 500, 2500)),
        FuzzedModels(sizes(4, 60, 800)),
        FuzzedCommands(sizes(10, 200, 2200)),
        HostilePage(sizes(1, 10, 150)),
    ]
