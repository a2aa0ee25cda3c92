"""One question with and without reasoning, as the bundled nano answers it: one_query.json, and from it one_query.svg.

    python results/picture/picture.py           # asks the model, then draws
    python results/picture/picture.py --draw    # draws what one_query.json says

The question is one of hopworld's test split: its single facts were trained on, no question that combines them was. It
was chosen because it shows the mechanism; the averages over all questions are in results/README.md.
"""

import argparse
import json
import textwrap
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import write_json, write_text

HERE = Path(__file__).resolve().parent
DATA, PICTURE = HERE / "one_query.json", HERE / "one_query.svg"
QUESTION = "Who is the teacher of the teacher of the founder of Radix Dynamics?"
SHOWN = 3  # documents of each ranking
WIDTH, MARGIN, LINE = 720, 28, 26  # pixels
STYLE = """
    .page { fill: #ffffff; stroke: #d0d7de }
    .lane { fill: #f6f8fa }
    text { font: 16px ui-sans-serif, system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
    .quiet { fill: #59636e; font-size: 14px }
    .title { font-weight: 600 }
    .thought { font-style: italic }
    .right { fill: #116329; font-weight: 600 }
    .bar { fill: #8c959f }
    .bar.best { fill: #1a7f37 }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; stroke: #3d444d }
      .lane { fill: #151b23 }
      text { fill: #f0f6fc }
      .quiet { fill: #9198a1 }
      .right { fill: #56d364 }
      .bar { fill: #6e7681 }
      .bar.best { fill: #3fb950 }
    }
"""


def asked() -> dict[str, Any]:
    """What nano says to the question, the best documents without and with it, and where the relevant one stands."""
    from search_r3_mteb import HopWorld, SearchR3Encoder

    world = HopWorld()
    (query,) = [query for query in world.iterate_queries("test", (3,)) if query.text == QUESTION]
    ids = list(world.corpus)
    texts = [world.corpus[key]["text"] for key in ids]
    encoder = SearchR3Encoder("nano", device="cpu", show_progress_bar=False)
    direct = SearchR3Encoder(encoder.checkpoint, mode="direct", device="cpu", show_progress_bar=False)
    documents = encoder.encode_document(texts)
    thought = encoder.think(QUESTION)[0]
    vectors = {"direct": direct.encode_query(QUESTION), "reason": thought.vector}
    rankings = {}
    for mode, vector in vectors.items():
        cosines = documents @ vector
        order = cosines.argsort()[::-1]
        rankings[mode] = {
            "rank": [ids[row] for row in order].index(query.positive_id) + 1,
            "top": [{"text": texts[row], "cosine": round(float(cosines[row]), 2)} for row in order[:SHOWN]],
        }
    return {
        "command": "python results/picture/picture.py",
        "model": "nano",
        "parameters": sum(parameter.numel() for parameter in encoder.model.parameters()),
        "documents": len(texts),
        "question": QUESTION,
        "relevant": world.corpus[query.positive_id]["text"],
        "reasoning": thought.text.strip(),
        "tokens": len(thought.token_ids),
        "finished": thought.finished,
        **rankings,
    }


def drawn(data: Mapping[str, Any]) -> str:
    """The picture as SVG: a page of its own colour, so that it is readable on a light and on a dark one."""
    parts: list[str] = []
    y = _text(parts, MARGIN, 40, "A question that needs three facts", "quiet")
    y = _text(parts, MARGIN, y, data["question"], "title") + 4
    y = _lane(parts, y, "Without reasoning: the question is embedded as it is", [], data, "direct")
    thought = textwrap.wrap(f"“{data['reasoning']}”", 76)
    title = f"With reasoning: the model writes {data['tokens']} tokens, then <|embed_token|>"
    y = _lane(parts, y + 16, title, thought, data, "reason")
    size = f"{data['parameters'] / 1e6:.2f} million weights"
    note = f"Output of {data['model']} ({size}, bundled). Bars: cosine with the query, {data['documents']:,} documents."
    y = _text(parts, MARGIN, y + 32, note, "quiet")
    height = y - 6
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    label = (
        f"{data['question']} Without reasoning the right document has rank {data['direct']['rank']}, with reasoning "
    )
    label += f"rank {data['reason']['rank']}."
    return "\n".join((
        f'{head} role="img" aria-labelledby="label">',
        f'  <title id="label">{escape(label)}</title>',
        f"  <style>{STYLE}  </style>",
        f'  <rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10"/>',
        *parts,
        "</svg>",
        "",
    ))  # fmt: skip


def _lane(parts: list[str], top: int, title: str, thought: list[str], data: Mapping[str, Any], mode: str) -> int:
    """One way to embed the question: what is written, the best documents, where the relevant one is; its lower end."""
    ranking = data[mode]
    below = ranking["rank"] > SHOWN
    found = "is not among these: it has" if below else "has"
    height = 18 + LINE * (2 + len(thought) + len(ranking["top"]))
    parts.append(f'  <rect class="lane" x="16" y="{top}" width="{WIDTH - 32}" height="{height}" rx="8"/>')
    y = _text(parts, MARGIN, top + 28, title, "title")
    for line in thought:
        y = _text(parts, MARGIN, y, line, "thought")
    for place, document in enumerate(ranking["top"], start=1):
        right = document["text"] == data["relevant"]
        width = round(max(document["cosine"], 0) * 60)
        parts.append(
            f'  <rect class="bar{" best" * right}" x="{MARGIN}" y="{y - 11}" width="{width}" height="10" rx="2"/>'
        )
        _text(parts, MARGIN + 68, y, f"{document['cosine']:.2f}", "quiet")
        y = _text(parts, MARGIN + 108, y, f"{place}. {document['text']}{' ✓' * right}", "right" * right)
    _text(parts, MARGIN, y, f"The document that answers the question {found} rank {ranking['rank']:,}.", "quiet")
    return top + height


def _text(parts: list[str], x: int, y: int, text: str, kind: str) -> int:
    """Add a line of text; the place of the next one."""
    parts.append(f'  <text x="{x}" y="{y}"{f" class={chr(34)}{kind}{chr(34)}" * bool(kind)}>{escape(text)}</text>')
    return y + LINE


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="do not ask the model again")
    if not parser.parse_args(arguments).draw:
        write_json(DATA, asked())
    write_text(PICTURE, drawn(json.loads(DATA.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
