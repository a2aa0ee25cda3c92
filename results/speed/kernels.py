"""Other ways to multiply in a decode step, one layer of SmolLM2's shape at a time: kernels.json and kernels.md.

    OMP_NUM_THREADS=1 python results/speed/kernels.py       # three minutes; --page: the page again

Microseconds of the processor, the least of several turns, on random numbers. Each product goes over as many copies of
its weight as 64 MB hold, as a step goes over the layers of a model: a copy that stays in the cache would flatter it.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from results.measure import commit, write_json
from results.pages import read_json, table

HERE = Path(__file__).resolve().parent
WIDTH, INNER, HEADS, GROUPS, DIM = 576, 1536, 9, 3, 64  # of SmolLM2-135M
SHAPES = ((384, 384), (384, 1024), (WIDTH, WIDTH), (WIDTH, INNER), (768, 2176))
BYTES, TURNS, COMMON = 1 << 26, 5, 100
TYPES = (torch.float32, torch.bfloat16)
ops: Any = torch.ops.mkldnn


def least(work: Callable[[], object]) -> float:
    """Microseconds of the processor that `work` takes at least."""
    work()
    took = []
    for _ in range(TURNS):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return round(1e6 * min(took), 1)


def copies(inputs: int, outputs: int, dtype: torch.dtype) -> list[Tensor]:
    """Random weights of this shape, 64 MB together."""
    count = max(1, BYTES // (inputs * outputs * dtype.itemsize))
    return [torch.randn(outputs, inputs).to(dtype) for _ in range(count)]


def packed(weights: Sequence[Tensor], rows: int = 16) -> list[Tensor]:
    """The weights in the layout of oneDNN that is best for so many rows."""
    return [ops._reorder_linear_weight(weight, rows) for weight in weights]


def product(inputs: Tensor, weight: Tensor, after: str = "none") -> Any:
    """Inputs x weight, and a function of it in the same kernel."""
    return ops._linear_pointwise.default(inputs, weight, None, after, [], "")


def each(weights: Sequence[Any], work: Callable[[Any], object]) -> float:
    """Microseconds per weight."""
    return round(least(lambda: [work(weight) for weight in weights]) / len(weights), 1)


def few_rows(dtype: torch.dtype) -> list[dict[str, Any]]:
    """How many times as fast a packed weight is as a plain one, by shape and rows; packing is not counted."""
    found = []
    for shape in SHAPES:
        plain = copies(*shape, dtype)
        ready, row = packed(plain), {"layer": f"{shape[0]} x {shape[1]}"}
        for rows in (1, 2, 3, 4, 8, 16, 64):
            x = torch.randn(rows, shape[0]).to(dtype)
            ours, theirs = each(ready, lambda w, x=x: product(x, w)), each(plain, lambda w, x=x: linear(x, w))
            row[f"{rows} rows"] = round(theirs / ours, 2)  # type: ignore[assignment]
        found.append(row)
    return found


def perceptron(dtype: torch.dtype, rows: int) -> dict[str, float]:
    """The layer's perceptron as it is; gate and up in one product; the other operations inside the products."""
    x, rest = (torch.randn(rows, WIDTH).to(dtype) for _ in range(2))
    plain = [(copies(WIDTH, INNER, dtype), copies(WIDTH, INNER, dtype), copies(INNER, WIDTH, dtype))]
    gates, ups, downs = plain[0]
    both = packed([torch.cat(pair) for pair in zip(gates, ups, strict=True)])
    layers = list(zip(packed(gates), packed(ups), packed(downs), strict=True))

    def as_is(layer: Any) -> Tensor:
        gate, up, down = layer
        return rest + product(silu(product(x, gate)) * product(x, up), down)

    def joined(layer: Any) -> Tensor:
        gate, up = product(x, layer[0]).chunk(2, dim=-1)
        return rest + product(silu(gate) * up, layer[1])

    def inside(layer: Any) -> Any:
        gate, up, down = layer
        hidden = ops._linear_pointwise.binary(x, product(x, gate, "swish"), up, None, "mul")
        return ops._linear_pointwise.binary(hidden, rest, down, None, "add")

    pairs = list(zip(both, packed(downs), strict=True))
    return {
        "as it is": each(layers, as_is),
        "gate and up in one": each(pairs, joined),
        "all inside the products": each(layers, inside),
    }


def projections(dtype: torch.dtype, rows: int) -> dict[str, float]:
    """Query, key and value by three products and by one; layouts; weights times rows."""
    x, keys = torch.randn(rows, WIDTH).to(dtype), GROUPS * DIM
    three = [copies(WIDTH, size, dtype) for size in (WIDTH, keys, keys)]
    parts = list(zip(*three, strict=False))
    one = packed([torch.cat(part) for part in parts])
    apart = list(zip(*(packed(weights) for weights in zip(*parts, strict=True)), strict=True))
    plain = copies(WIDTH, INNER, dtype)
    return {
        "query, key, value apart": each(apart, lambda layer: [product(x, weight) for weight in layer]),
        "in one": each(one, lambda weight: product(x, weight)),
        **{
            f"gate, layout for {count} rows": each(packed(plain, count), lambda weight: product(x, weight))
            for count in (1, 16, 32, 64)
        },
        "gate, weights times rows": each(plain, lambda weight: (weight @ x.T).T),
    }


def attention(dtype: torch.dtype, columns: int, rows: int = 64) -> dict[str, float]:
    """What each row attends to by itself, by torch's kernel and by products; and what all share, once."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    shape = (rows, GROUPS, COMMON + columns, DIM)
    keys, values = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    query = torch.randn(rows, GROUPS, HEADS // GROUPS, DIM).to(dtype)
    together = query.transpose(0, 1).reshape(1, GROUPS, -1, DIM)
    own_keys, own_values = keys[:, :, COMMON:], values[:, :, COMMON:]

    def products(keys: Tensor, values: Tensor, query: Tensor) -> Tensor:
        scores = torch.matmul(query, keys.transpose(2, 3)).float() / DIM**0.5
        return torch.matmul(scores.softmax(dim=-1).to(values.dtype), values)

    many = range(20)
    return {
        "common, once": each(many, lambda _: kernel(together, keys[:1, :, :COMMON], values[:1, :, :COMMON])),
        "own, by the kernel": each(many, lambda _: kernel(query, own_keys, own_values)),
        "own, by products": each(many, lambda _: products(own_keys, own_values, query)),
        "own, by float32 products": each(many, lambda _: products(own_keys.float(), own_values.float(), query.float())),
        "all, by the kernel": each(many, lambda _: kernel(query, keys, values)),
    }


def prompts(dtype: torch.dtype, tokens: int = 1593, layers: int = 30) -> float:
    """Seconds of a model's linear layers for the tokens that 64 claims do not share, packed."""
    shapes = [(WIDTH, WIDTH)] * 2 + [(WIDTH, GROUPS * DIM)] * 2 + [(WIDTH, INNER)] * 2 + [(INNER, WIDTH)]
    ready = [(packed([torch.randn(outputs, inputs).to(dtype)])[0], inputs) for inputs, outputs in shapes * layers]
    x = {inputs: torch.randn(tokens, inputs).to(dtype) for inputs in (WIDTH, INNER)}
    return round(least(lambda: [product(x[inputs], weight) for weight, inputs in ready]) / 1e6, 2)


def measure() -> None:
    """All of it, into kernels.json."""
    found: dict[str, Any] = {"commit": commit(), "threads": torch.get_num_threads()}
    with torch.inference_mode():
        for dtype in TYPES:
            found[str(dtype).removeprefix("torch.")] = {
                "few rows": few_rows(dtype),
                "perceptron": {f"{rows} rows": perceptron(dtype, rows) for rows in (16, 64)},
                "projections": {f"{rows} rows": projections(dtype, rows) for rows in (16, 64)},
                "attention": {f"{columns} own columns": attention(dtype, columns) for columns in (64, 160)},
                "prompts, s": prompts(dtype),
            }
            print(found, flush=True)
    write_json(HERE / "kernels.json", found)


def page(found: dict[str, Any]) -> str:
    """The text of kernels.md."""
    lines = [
        "# Other ways to multiply in a decode step",
        "",
        f"`OMP_NUM_THREADS={found['threads']} python results/speed/kernels.py` at commit {found['commit']}: one",
        "layer of SmolLM2's shape, microseconds of the processor, the least of several turns.",
        "",
    ]
    for dtype in (name for name in found if name not in ("commit", "threads")):
        one = found[dtype]
        lines += [f"## {dtype}", "", "How many times as fast a packed weight is as a plain one:", ""]
        lines += [*table(list(one["few rows"][0]), (row.values() for row in one["few rows"]))]
        for what in ("perceptron", "projections", "attention"):
            names = list(next(iter(one[what].values())))
            rows = ([case, *(values[name] for name in names)] for case, values in one[what].items())
            lines += [*table([what if what != "attention" else "attention of 64 rows", *names], rows)]
        lines += [f"The linear layers of 30 layers for 1,593 tokens, packed: {one['prompts, s']} s.", ""]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true")
    if not parser.parse_args().page:
        measure()
    (HERE / "kernels.md").write_text(page(read_json(HERE / "kernels.json")), encoding="utf-8")


if __name__ == "__main__":
    main()
