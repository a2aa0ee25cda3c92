#!/usr/bin/env bash
# Digests of what a refactoring must not change: 20 steps of both stages of nano with one thread, and vectors of nano and mini.
# Usage: results/house/equal.sh [TREE [FOLDER]]    a clone of any commit, and where its runs go
set -euo pipefail
tree=$(cd "${1:-.}" && pwd)
out=${2:-$(mktemp -d)}
python=${PYTHON:-$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin/python}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= PYTHONPATH="$tree"
mkdir -p "$out"
rm -rf "$out/sft" "$out/rl"
cd "$tree"
short=(--set optimization.steps=20 --set evaluate.every=0 --set evaluate.max_queries=20 --set checkpoint.every=10)
"$python" train/sft.py --config train/configs/nano.toml "${short[@]}" --set optimization.warmup_steps=5 \
  --set output.log_every=1 --set output.folder="$out/sft" > "$out/sft.log" 2>&1
"$python" train/rl.py --config train/configs/rl_nano.toml "${short[@]}" --set model.path=nano \
  --set output.folder="$out/rl" > "$out/rl.log" 2>&1
(cd "$out" && sha256sum sft/last/*.safetensors rl/last/*.safetensors)
"$python" - "$out" <<'P'
import hashlib, json, sys
from search_r3_mteb import HopWorld, SearchR3Encoder

world = HopWorld()
documents = [document["text"] for document in world.corpus.values()][:60]
queries = [query.text for hops in (1, 2, 3, 4) for query in world.queries("test", hops)[:10]][:20]
for name in ("nano", "mini"):
    reasons, direct = SearchR3Encoder(name, max_reasoning_tokens=32), SearchR3Encoder(name, mode="direct")
    vectors = [reasons.encode_document(documents), reasons.encode_query(queries), direct.encode_query(queries)]
    print(hashlib.sha256(b"".join(each.tobytes() for each in vectors)).hexdigest(), f"{name} vectors")
for stage in ("sft", "rl"):
    lines = open(f"{sys.argv[1]}/{stage}/log.jsonl", encoding="utf-8").read().splitlines()
    events = [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]
    digest = hashlib.sha256(json.dumps(events, sort_keys=True).encode()).hexdigest()
    print(digest, f"{stage} log without times, {len(events)} events")
P
