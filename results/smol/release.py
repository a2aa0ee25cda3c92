"""A trained adapter becomes what is shipped: cast to bfloat16, with card, profile, record of its base and manifest.

    python results/smol/release.py --model runs/smol/rl/last --gates FILE               # the package's smol
    python results/smol/release.py --model runs/qwen/rl/last --output runs/qwen/model   # of another base

Into the assets goes only an adapter whose base is the one that `search-r3 base smol` makes, with the embed token's row:
every other tensor is compared. More than 15 MB of weights are refused there; with --output any size is written.
`status.json` beside this file says what the model is and is not; its sentences stand first in the card.

--gates is what gates.py found on a dev set: the weight of the reasoned vector that gained most there becomes the
profile's `anchor`, which encoders take by default, and its scores become the card's results.
"""

import argparse
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from results.smol.judged_split import interval
from search_r3_mteb.atomic import replaced_folder, write_json, write_text
from search_r3_mteb.encoder.adapters import ADAPTER_CONFIG, BASE_FILE, find_base, weights_digest
from search_r3_mteb.encoder.manifest import write_manifest
from search_r3_mteb.encoder.model_names import ASSETS, BUNDLED_PREFIX, resolve
from search_r3_mteb.encoder.packaged_bases import BASES, SHAPE, base_folder
from search_r3_mteb.encoder.profiles import PROFILE_FILE, Profile
from search_r3_mteb.encoder.token_rows import ROWS_FILE
from search_r3_mteb.json_files import read_object
from search_r3_mteb.report.model_card import Facts, facts_of_run, opening_of, write_model_card

LIMIT = 15_000_000  # bytes of the weights of an adapter in the package
STATUS = Path(__file__).with_name("status.json")
WEIGHTS = "adapter_model.safetensors"
COPIED = (ROWS_FILE, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
LICENCES = {
    "arxiv": "CC0 (arXiv metadata)",
    "code": "that of each row's repository",
    "medical": "CC BY 4.0 (MedQuAD)",
    "written": "as its queries and documents: NFCorpus, MedQuAD, SQuAD, SciFact",
    "nfcorpus": "for academic use (NFCorpus, Heidelberg University)",
    "squad": "CC BY-SA 4.0",
    "scifact": "claims CC BY 4.0, abstracts ODC-By",
}


def cast(source: Path, target: Path, limit: int | None = None) -> None:
    """Write an adapter's tensors in bfloat16. Raises ValueError where they take more than `limit` bytes."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in load_file(source).items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if limit is not None and size > limit:
        raise ValueError(
            f"{source}: {size:,} bytes in bfloat16, more than {limit:,} that the package has room for. Train a lower "
            "rank ([model.lora] rank), or give it a folder of its own (--output)."
        )
    save_file(tensors, target, metadata={"format": "pt"})


def check_same_base(trained: Path, packaged: Path) -> None:
    """ValueError unless the base that was trained on is the packaged one; only rows of new tokens may be added."""
    import torch
    from safetensors import safe_open

    with (
        safe_open(trained / "model.safetensors", framework="pt") as ours,
        safe_open(packaged / "model.safetensors", framework="pt") as theirs,
    ):
        other = set(ours.keys()) ^ set(theirs.keys())
        for name in set(ours.keys()) & set(theirs.keys()):
            first, second = ours.get_tensor(name), theirs.get_tensor(name)
            if not torch.equal(first[: len(second)], second) or first.shape[1:] != second.shape[1:]:
                other.add(name)
    if other:
        raise ValueError(
            f"{trained} is not {packaged} with rows of new tokens: {len(other)} tensors differ ({min(other)}), so the "
            "adapter would act on other weights than it was trained on. Train on the packaged base, or give --output."
        )


def release(model: Path, output: Path, packaged: str | None, gates: Path | None = None) -> Path:
    """Write the shipped form of the adapter in `model` to `output`; complete or absent."""
    config = read_object(model / ADAPTER_CONFIG)
    base = find_base(model, config, resolve)
    config["target_modules"] = sorted(config["target_modules"])
    if packaged:
        made = base_folder(packaged)
        if not (made / "config.json").is_file():
            raise FileNotFoundError(f"{made} is not there, and the base is compared with it: search-r3 base {packaged}")
        check_same_base(base, made)
        shape = read_object(made / "config.json")
        record: dict[str, Any] = {
            "packaged": packaged,
            "path": BASES[packaged].hub,
            "digest": weights_digest(made),
            "shape": {key: shape[key] for key in SHAPE},
        }
        config["base_model_name_or_path"] = BASES[packaged].hub
    else:
        place = Path(os.path.relpath(base, output.resolve())).as_posix()
        record = read_object(model / BASE_FILE) | {"path": place}
        config["base_model_name_or_path"] = str(base)
    with replaced_folder(output) as folder:
        cast(model / WEIGHTS, folder / WEIGHTS, LIMIT if packaged else None)
        for name in COPIED:
            if (model / name).exists():
                shutil.copyfile(model / name, folder / name)
                (folder / name).chmod(0o644)
        profile = Profile.load(model)
        if gates is not None:
            profile = replace(profile, anchor=read_object(gates)["anchor"])
        write_json(folder / PROFILE_FILE, profile.to_dict())
        write_json(folder / ADAPTER_CONFIG, config)
        write_json(folder / BASE_FILE, record)
        described = packaged is not None and output == ASSETS / packaged  # status.json is about that one
        results = () if gates is None else measured(read_object(gates))
        write_card(folder, model.parent, packaged, read_object(model / "model_card.json"), described, results)
        write_manifest(folder)
    return output


def measured(found: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """What gates.py found as results of a card: the direct vector, and the anchored one where an anchor gains.

    Raises ValueError for gates of another model's documents, or of a part of the corpus.
    """
    if found.get("start") or found.get("documents") != found.get("whole_corpus", found.get("documents")):
        raise ValueError(
            f"These gates of {found['task']} have documents of another model ({found.get('start')}) or a part of the "
            f"corpus ({found.get('documents')} documents): not this model's scores. Give those without --start and "
            "--documents."
        )
    task, split = found["task"].split(":")
    rows = []
    for mode, tokens in (("direct", 0.0), ("reason", found["tokens"])):
        if mode == "reason" and not found["anchor"]:
            continue
        mean, low, high = interval(np.array([one[mode] for one in found["texts"]]))
        row = {"task": task, "split": split, "mode": mode, "ndcg_at_10": mean, "interval": [low, high]}
        rows.append(row | {"queries": found["queries"], "reasoning_tokens_per_query": tokens})
    return tuple(rows)


def write_card(
    folder: Path,
    run: Path,
    packaged: str | None,
    kept: dict[str, Any],
    described: bool,
    results: tuple[dict[str, Any], ...],
) -> None:
    """The run's card; where it is `described`, with what `status.json` says in its first sentences."""
    name = f"{BUNDLED_PREFIX}{packaged}" if packaged else run.name
    facts: Facts = facts_of_run(run, name=name, license="apache-2.0", licences=LICENCES, results=results)
    if packaged:
        facts = replace(facts, base_model=BASES[packaged].hub, max_reasoning_tokens=None)
    else:
        facts = replace(facts, base_model=kept.get("base_model"))
    card = write_model_card(folder, facts, called=packaged or folder.name)
    if not described:
        return
    text, opening = card.read_text(encoding="utf-8"), opening_of(facts)
    status = json.loads(STATUS.read_text(encoding="utf-8"))
    example = f'SearchR3Encoder("{packaged}")'
    reasons = "  # reasons, then embeds"
    if status["mode"] == "direct":
        for found in (opening, example, reasons):
            if found not in text:
                raise ValueError(f"The card's template has no {found!r} any more; mend results/smol/release.py.")
        text = text.replace(example, f'SearchR3Encoder("{packaged}", mode="direct")').replace(reasons, "")
    text = text.replace(opening, "\n".join(status["card"]) + f"\n\n{opening}")
    write_text(card, text)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the folder of a stage: .../last")
    parser.add_argument("--output", type=Path, help="default: the package's assets, as smol")
    parser.add_argument("--gates", type=Path, help="of gates.py on a dev set: chooses the anchor")
    options = parser.parse_args(arguments)
    packaged = None if options.output else "smol"
    folder = release(options.model, options.output or ASSETS / "smol", packaged, options.gates)
    print(f"{folder}: {(folder / WEIGHTS).stat().st_size:,} bytes of weights")


if __name__ == "__main__":
    main()
