"""Steps of TRL's trainer with rollouts of vLLM, in a process of their own: trl_vllm_worker.py FOLDER SYNC DTYPE.

SYNC is "sync", or "once": then vLLM gets the weights before the first step only. DTYPE is vLLM's; "auto", which TRL
takes, is bfloat16 for a float32 model on a processor. Prints the log as JSON. TRL starts vLLM in this very process
(colocate), and leaves process groups and variables of the environment behind.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))


def keep_plain_weights():
    """Let vLLM's build for processors multiply by the weights as they are.

    It packs them when they are loaded and drops the originals (`dispatch_cpu_unquantized_gemm`), so that TRL, which
    writes new weights in place, finds no `weight_loader` ("'Parameter' object has no attribute 'weight_loader'"), and
    a head that keeps its packed copy would stay as it was. On a GPU nothing is packed.
    """
    from vllm.model_executor.layers import utils

    def plain(layer, remove_weight):
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = plain


def main(folder, sync, dtype):
    from datasets import Dataset
    from trl.generation import vllm_generation

    from search_r3_mteb.encoder.checkpoints import load, save
    from search_r3_mteb.encoder.prompts import Renderer
    from tests.encoder.vllm.talkative import own_engine, talkative
    from tests.train.stage2.test_trl_adapter import DOCUMENTS, JUDGEMENTS
    from train.losses.checks import unit
    from train.stage2 import trl_adapter as adapter

    keep_plain_weights()
    vllm_generation.LLM = partial(vllm_generation.LLM, dtype=dtype)
    checkpoint = load(save(talkative(), folder))
    renderer = Renderer(checkpoint.tokenizer, checkpoint.profile)
    rows = [row.token_ids for row in renderer.render_batch(list(DOCUMENTS.values()), "direct")]
    index, ids = unit(own_engine(checkpoint).embed(rows)), list(DOCUMENTS)

    def search(vectors, k):
        scores, columns = (unit(vectors) @ index.T).topk(k)
        return [[ids[column] for column in row] for row in columns.tolist()], scores

    trainer = adapter.SearchR3GRPOTrainer(
        checkpoint,
        adapter.SearchEnvironment(DOCUMENTS, JUDGEMENTS, search, lambda some: index[[ids.index(d) for d in some]]),
        adapter.GRPOConfig(
            output_dir=str(folder / "run"),
            use_cpu=True,
            bf16=False,
            report_to="none",
            max_steps=3,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            num_generations=4,
            max_completion_length=8,
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            seed=3,
            temperature=1.0,
            use_vllm=True,
            vllm_mode="colocate",
            vllm_max_model_length=600,
        ),
        Dataset.from_list([{"prompt": f"text of {query}", "query_id": query} for query in JUDGEMENTS]),
        adapter.AdapterSettings(
            reward=adapter.RewardSettings(margin=1.0, k=5),
            contrastive=adapter.ContrastiveSettings(weight=1.0, hard_negatives=3),
        ),
    )
    if sync == "once":
        push, calls = trainer.vllm_generation.sync_weights, []
        trainer.vllm_generation.sync_weights = lambda: calls or calls.append(push())
    trainer.train()
    print(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
