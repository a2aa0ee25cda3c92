"""The start of mini: a BERT-like sentence encoder, turned into a causal language model that can say the embed token.

    python results/mini/mini_start.py --encoder FOLDER --traces runs/mini/data/arxiv.jsonl ... --output runs/mini/start

The weights are the encoder's; attention becomes causal, the word embeddings serve as the head's projection, and the
transform before it, which sentence encoders do not carry, begins as the identity. Vectors are then far from the
encoder's, because each token sees only what precedes it: stage 1 brings them back (`loss.distill`).

The word embeddings stay as they are (`model.freeze`): the reply's gradient would move every row at every step. So what
they would have to learn is there from the start: the head's bias is the log frequency of the word pieces in the traces,
and the embed token's row is as long as the others, or nothing could make the model say it.

Source: our choice. The paper starts from Qwen2.5; this is the way to a model of 22M weights that knows real words.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from search_r3_mteb.encoder.checkpoints import Checkpoint, add_embed_token
from search_r3_mteb.encoder.merging import save_compared
from search_r3_mteb.encoder.profiles import EMBED_TOKEN, Profile, Template

# BERT's own frame. One word tells a text to embed from a query to reason about.
MINI_PROFILE = Profile(
    reason=Template("query", "{reasoning}{embed_token}"),
    direct=Template("text", "{embed_token}"),
    instruction="{instruction} : ",
    plain="[CLS] {system} : {text} [SEP]",
    tokenization="apart",  # mini's vectors are published
)


def causal_bert(folder: str | Path, traces: Sequence[str] = (), seed: int = 0) -> Checkpoint:
    """The encoder in `folder` as a causal LM that will say `traces`, with the embed token, whose row `seed` draws.

    Raises ValueError for a model that is not BERT's kind, or whose weights lack more than the head.
    """
    from transformers import AutoConfig, AutoTokenizer, BertLMHeadModel

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type != "bert":
        raise ValueError(
            f"{Path(folder).name} is of type {config.model_type!r}; only BERT's kind is turned into a causal LM here. "
            "A causal LM can be named in [model] path as it is."
        )
    config.is_decoder, config.tie_word_embeddings = True, True
    # No dropout: stage 2 must train the model that samples, and stage 1 sees hardly a text twice.
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(seed)
    model, report = BertLMHeadModel.from_pretrained(
        folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    lacking = sorted(name for name in report["missing_keys"] if not name.startswith("cls.predictions."))
    if lacking:
        raise ValueError(
            f"{Path(folder).name} lacks weights: {', '.join(lacking[:3])}. The file is incomplete; copy it again."
        )
    with torch.no_grad():
        head = model.cls.predictions
        head.transform.dense.weight.copy_(torch.eye(config.hidden_size))
        head.transform.dense.bias.zero_()
        head.bias.zero_()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.eos_token = tokenizer.sep_token
    tokenizer.model_max_length = config.max_position_embeddings
    token = add_embed_token(model, tokenizer, EMBED_TOKEN)
    with torch.no_grad():
        words = model.get_input_embeddings().weight
        row = torch.randn(config.hidden_size, generator=torch.Generator().manual_seed(seed))
        words[token] = row / row.norm() * words[:token].norm(dim=1).mean()
        head.decoder.bias.copy_(log_frequencies(tokenizer, [trace + EMBED_TOKEN for trace in traces], len(words)))
    return Checkpoint(model.eval(), tokenizer, MINI_PROFILE, f"local/{Path(folder).name}")


def log_frequencies(tokenizer: Any, texts: Sequence[str], rows: int) -> Tensor:
    """(rows,) log share of each id among the texts' tokens and one of every id; 0 where there are no texts."""
    if not texts:
        return torch.zeros(rows)
    counts = torch.ones(rows)
    for ids in tokenizer(list(texts), add_special_tokens=False).input_ids:
        counts += torch.bincount(torch.tensor(ids), minlength=rows)
    return (counts / counts.sum()).log()


def traces_of(files: Sequence[Path]) -> list[str]:
    """The traces of JSONL files of rows."""
    found = []
    for file in files:
        with file.open(encoding="utf-8") as stream:
            found += [row["reasoning"] for row in map(json.loads, stream) if "reasoning" in row]
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--encoder", type=Path, required=True, help="folder of a BERT-like encoder, as saved by transformers"
    )
    parser.add_argument("--traces", type=Path, nargs="*", default=[], help="JSONL files of results/mini/mini_data.py")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    print(save_compared(causal_bert(options.encoder, traces_of(options.traces)), options.output))


if __name__ == "__main__":
    main()
