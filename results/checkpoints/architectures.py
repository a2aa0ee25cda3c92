"""Every causal architecture of the installed transformers, tiny and random, through the probe of a loaded checkpoint.

    python results/checkpoints/architectures.py [KIND ...]   writes architectures.json and .md beside this file

What the probe lets pass is run again by something that shares no code with it: six prompts of other lengths, a longer
reasoning, each row beside the model's own forward over that row alone. A difference there is a silent mismatch.
"""

import argparse
import json
import logging
import random
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from tiny_models import tiny_config, tiny_model

from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.probe import check_model, own_forward
from search_r3_mteb.encoder.sampling import Sampling

HERE = Path(__file__).resolve().parent
EMBED, SILENT = 300, 1e-3
VERDICTS = ("works", "refused", "cannot be built", "silent mismatch")


def verdict(kind: str, config: Any = None) -> dict[str, Any]:
    """What happens to this model type: the class, a verdict, the reason, and the largest error of what passes."""
    try:
        model = tiny_model(tiny_config(kind) if config is None else config)
        with torch.no_grad():
            model(input_ids=torch.arange(3, 20)[None], use_cache=False)
    except Exception as error:  # noqa: BLE001 - whatever an architecture's own code raises is the entry
        return {"verdict": "cannot be built", "reason": f"{type(error).__name__}: {short(error)}"}
    found = {"class": type(model).__name__}
    try:
        check_model(kind, model, EMBED, prompts(0, (14, 9)))
    except ValueError as error:
        return found | {"verdict": "refused", "reason": short(error).removeprefix(f"{kind}: ")}
    error = longer(model)
    found |= {"verdict": "works" if error <= SILENT else "silent mismatch", "error": float(f"{error:.1e}")}
    try:
        check_model(kind, model.to(torch.bfloat16), EMBED, prompts(0, (14, 9)))
    except ValueError as refusal:
        found |= {"verdict": "refused", "reason": f"in bfloat16: {short(refusal)}"}
    return found


@torch.no_grad()
def longer(model: Any) -> float:
    """The largest error of a vector of unit length, over direct and reasoned rows."""
    rows = prompts(1, (33, 7, 21, 12, 26, 16))
    engine = Engine(model, EMBED)
    rolled = engine.reason(rows, Sampling(12, temperature=1.0))
    whole = [[*row, *ids] for row, ids in zip(rows, rolled.token_ids, strict=True)]
    direct = engine.embed(whole)
    own = torch.stack([own_forward(model, engine.base_model, row)[0][-1] for row in whole])
    own, direct, reasoned = (torch.nn.functional.normalize(v.float(), dim=-1) for v in (own, direct, rolled.vectors))
    return float(torch.maximum((direct - own).norm(dim=-1), (reasoned - own).norm(dim=-1)).max())


def prompts(seed: int, lengths: tuple[int, ...]) -> list[list[int]]:
    """Random prompts of these lengths that share five tokens."""
    chance = random.Random(seed)
    shared = [chance.randrange(3, EMBED) for _ in range(5)]
    return [[*shared, *(chance.randrange(3, EMBED) for _ in range(length - 5))] for length in lengths]


def short(error: Exception) -> str:
    """The message on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 420 else text[:417] + "..."


def page(found: dict[str, dict[str, Any]], version: str) -> str:
    """The table as Markdown."""
    counts = Counter(each["verdict"] for each in found.values())
    lines = [
        "# Architectures",
        "",
        f"Every causal architecture of transformers {version}, tiny and with random weights, through the probe that a "
        "loaded checkpoint goes through (float32, then bfloat16). What passed was run again on six longer rows; "
        "`error` is the largest distance of a vector of unit length from the one of the model's own forward, float32.",
        "",
        "Made by `python results/checkpoints/architectures.py`.",
        "",
        *(f"- {name}: {counts.get(name, 0)}" for name in VERDICTS),
        "",
        "| model type | class | verdict | error | why |",
        "|---|---|---|---|---|",
    ]
    for name in reversed(VERDICTS):
        for kind, each in sorted(found.items()):
            if each["verdict"] == name:
                error = f"{each['error']:.0e}" if "error" in each else ""
                reason = each.get("reason", "").replace("|", "\\|")
                lines.append(f"| {kind} | {each.get('class', '')} | {name} | {error} | {reason} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="model types; with any, nothing is written")
    kinds = parser.parse_args().kinds
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {}
    for kind in kinds or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        found[kind] = verdict(kind)
        print(kind, found[kind], flush=True)
    if not kinds:
        version = transformers.__version__
        (HERE / "architectures.json").write_text(json.dumps({"transformers": version, "kinds": found}, indent=1) + "\n")
        (HERE / "architectures.md").write_text(page(found, version))
    return int(any(each["verdict"] == "silent mismatch" for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())
