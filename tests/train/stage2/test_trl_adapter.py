"""The adapter to TRL: two steps on the CPU, masks, the vector of TRL's own pass, TRL's policy loss equal to ours."""

import warnings

import pytest
import torch

from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.prompts import Renderer
from train.config.grpo import PolicySettings, RewardSettings
from train.losses.checks import unit
from train.losses.grpo import PolicyBatch, grpo_loss
from train.losses.stage1 import token_scores

pytestmark = pytest.mark.slow  # importing TRL alone takes 7 s

DOCUMENTS = {
    f"d{i}": text for i, text in enumerate(["the query", "a document", "the system", "an embedding", "it is", "user"])
}
JUDGEMENTS = {"q0": {"d0": 2, "d1": 1}, "q1": {"d2": 1}, "q2": {"d3": 1}}
TOKENS = 6


@pytest.fixture
def adapter(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from train.stage2 import trl_adapter as module
    return module


@pytest.fixture
def environment(adapter, tiny_checkpoint):
    renderer = Renderer(tiny_checkpoint.tokenizer, tiny_checkpoint.profile)
    engine = Engine(tiny_checkpoint.model, tiny_checkpoint.embed_token_id)
    rows = [row.token_ids for row in renderer.render_batch(list(DOCUMENTS.values()), "direct")]
    index = unit(engine.embed(rows))
    ids = list(DOCUMENTS)

    def search(vectors, k):
        scores, columns = (unit(vectors) @ index.T).topk(k)
        return [[ids[column] for column in row] for row in columns.tolist()], scores

    return adapter.SearchEnvironment(DOCUMENTS, JUDGEMENTS, search, lambda some: index[[ids.index(d) for d in some]])


def make_trainer(adapter, tiny_checkpoint, environment, folder, contrastive_weight=1.0, **settings):
    from datasets import Dataset

    args = adapter.GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_steps=2,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_generations=4,
        max_completion_length=TOKENS,
        scale_rewards="none",
        epsilon_high=0.28,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=3,
    )
    rows = [{"prompt": f"text of {query}", "query_id": query} for query in JUDGEMENTS]
    return adapter.SearchR3GRPOTrainer(
        tiny_checkpoint,
        environment,
        args,
        Dataset.from_list(rows),
        adapter.AdapterSettings(
            reward=adapter.RewardSettings(margin=1.0, k=5),
            contrastive=adapter.ContrastiveSettings(weight=contrastive_weight, hard_negatives=3),
        ),
        **settings,
    )


def one_batch(trainer):
    """Rollouts of two prompts, four each, before TRL shuffles them."""
    rows = [{"prompt": f"text of {query}", "query_id": query} for query in ("q0", "q2") for _ in range(4)]
    trainer.model.train()
    return trainer._generate_and_score_completions(rows)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lora", [False, True])
def test_two_steps_train(adapter, tiny_checkpoint, environment, tmp_path, lora):
    from peft import LoraConfig

    peft_config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False) if lora else None
    trainer = make_trainer(adapter, tiny_checkpoint, environment, tmp_path, peft_config=peft_config)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 2
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert lora == all("lora" in name for name in trained)
    logs = [entry for entry in trainer.state.log_history if "contrastive" in entry]
    assert len(logs) == 2
    for entry in logs:
        assert entry["contrastive"] > 0
        assert 0 <= entry["forced_share"] <= 1
        assert entry["rewards/retrieval_reward/mean"] == entry["reward"]


@pytest.mark.filterwarnings("ignore")
def test_rollouts_end_in_the_token_and_forced_ones_are_masked(adapter, tiny_checkpoint, environment, tmp_path):
    trainer = make_trainer(adapter, tiny_checkpoint, environment, tmp_path)
    embed = tiny_checkpoint.embed_token_id
    rolled = trainer.roll_out([f"text of {query}" for query in ("q0", "q1") for _ in range(4)], trainer)
    for ids, mask, done in zip(rolled["completion_ids"], rolled["env_mask"], rolled["finished"], strict=True):
        assert ids.index(embed) == len(ids) - 1 <= TOKENS - 1
        assert mask == [1] * (len(ids) - 1) + [int(done)]
    assert rolled["reasoning_tokens"] == [len(ids) - 1 for ids in rolled["completion_ids"]]
    assert not all(rolled["finished"])
    # The rollouts of a group differ from each other.
    assert len({tuple(ids) for ids in rolled["completion_ids"][:4]}) > 1


def test_close_turn(adapter):
    assert adapter.close_turn([5, 9, 7], 9) == ([5, 9], True)
    assert adapter.close_turn([5, 7], 9) == ([5, 7, 9], False)


@pytest.mark.filterwarnings("ignore")
def test_rollouts_from_vllm_are_cut_or_closed(adapter, tiny_checkpoint, environment, tmp_path, monkeypatch):
    trainer = make_trainer(adapter, tiny_checkpoint, environment, tmp_path)
    embed = tiny_checkpoint.embed_token_id
    sampled = [[10, 11, embed, 12], [10, 11, 12]]  # one ran past the token, one never came to it
    monkeypatch.setattr(trainer, "use_vllm", True)
    monkeypatch.setattr(trainer, "_generate_single_turn", lambda *args: (sampled, [[-1.0] * 4, [-2.0] * 3]))
    rolled = trainer.roll_out(["text of q0"] * 2, trainer)
    assert rolled["completion_ids"] == [[10, 11, embed], [10, 11, 12, embed]]
    assert rolled["env_mask"] == [[1, 1, 1], [1, 1, 1, 0]]
    assert rolled["finished"] == [True, False]
    assert rolled["logprobs"] == [[-1.0] * 3, [-2.0, -2.0, -2.0, 0.0]]
    rows = [prompt + ids for prompt, ids in zip(rolled["prompt_ids"], rolled["completion_ids"], strict=True)]
    expected = Engine(tiny_checkpoint.model, embed).embed(rows)
    torch.testing.assert_close(torch.stack(rolled["vector"]), expected)


@pytest.mark.filterwarnings("ignore")
def test_the_vector_is_that_of_trls_own_pass(adapter, tiny_checkpoint, environment, tmp_path, monkeypatch):
    trainer = make_trainer(adapter, tiny_checkpoint, environment, tmp_path)
    batch = one_batch(trainer)
    seen = {}

    def watch(vectors, documents, positives, keys, query_keys, *, relevant, temperature, taught):
        assert taught.all()  # the least reward that teaches is below all of these
        seen.update(vectors=vectors, documents=documents, positives=positives, keys=keys, relevant=relevant)
        return vectors.sum() * 0 + documents.sum() * 0

    monkeypatch.setattr(adapter, "gathered_info_nce", watch)
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, batch)
    rows = [
        [t for t, keep in zip(ids, mask, strict=True) if keep]
        for ids, mask in zip(
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1).tolist(),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1).tolist(),
            strict=True,
        )
    ]
    expected = Engine(tiny_checkpoint.model, tiny_checkpoint.embed_token_id).embed(rows)
    torch.testing.assert_close(seen["vectors"].detach(), expected, rtol=1e-5, atol=1e-5)
    assert seen["vectors"].requires_grad
    # Two different positives, encoded once each with gradient, then 8 x 3 negatives from the cache.
    assert seen["documents"].shape[0] == 2 + 8 * 3
    assert seen["positives"].tolist() == [0] * 4 + [1] * 4
    assert seen["keys"][:2].tolist() == [0, 3]  # d0 is the better of q0's two documents
    judged = [(q, d) for q in trainer.query_ids for d, gain in environment.judgements[q].items() if gain > 0]
    numbers = {(trainer.query_numbers[q], trainer.document_numbers[d]) for q, d in judged}
    assert {tuple(pair) for pair in seen["relevant"].tolist()} <= numbers
    assert sum(q == 0 for q, _ in seen["relevant"].tolist()) == 2, "both documents of q0 are not negatives"
    torch.testing.assert_close(unit(seen["documents"][:2]), environment.vectors(["d0", "d3"]), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_trls_policy_loss_equals_ours(adapter, tiny_checkpoint, environment, tmp_path):
    trainer = make_trainer(adapter, tiny_checkpoint, environment, tmp_path, contrastive_weight=0.0)
    batch = one_batch(trainer)
    model = tiny_checkpoint.model
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation  # one batch is the whole window
    theirs = trainer._compute_loss(trainer.model, batch)
    theirs.backward()
    their_gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    start = batch["prompt_ids"].shape[1]
    hidden = model.base_model(ids, attention_mask=attention, use_cache=False).last_hidden_state[:, start - 1 : -1]
    completion = batch["completion_ids"]
    scores = token_scores(hidden.flatten(0, 1), model.lm_head, completion.flatten()).log_probs.view(completion.shape)
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    assert not mask.all()
    rewards = batch["advantages"]  # rewards minus their mean: the mean of each group is 0 again
    groups = batch["query_numbers"]
    policy = PolicyBatch(scores, scores.detach(), mask, groups, rewards)
    ours = grpo_loss(policy, PolicySettings())
    torch.testing.assert_close(theirs.detach(), ours.loss.detach(), rtol=1e-5, atol=1e-6)
    ours.loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, their_gradients[name], rtol=1e-4, atol=1e-6, msg=name)
    assert ours.loss.abs() > 1e-8 or max(g.abs().max() for g in their_gradients.values()) > 1e-6


@pytest.mark.filterwarnings("ignore")
def test_rollouts_below_the_least_reward_are_not_contrasted(adapter, tiny_checkpoint, environment, tmp_path):
    """`contrastive.min_reward`, as in train/rl.py: the others' terms stay, and so does the divisor."""
    from dataclasses import replace

    trainer = make_trainer(adapter, tiny_checkpoint, environment, tmp_path)
    trainer.current_gradient_accumulation_steps = 1

    def contrastive(min_reward):
        changed = trainer.search_settings.contrastive.replaced(min_reward=min_reward)
        trainer.search_settings = replace(trainer.search_settings, contrastive=changed)
        torch.manual_seed(0)
        batch = one_batch(trainer)
        trainer._compute_loss(trainer.model, batch)
        return trainer._metrics["train"]["contrastive"][-1], batch["taught"].tolist()

    every, all_taught = contrastive(-10.0)
    bound = sorted(trainer._rewards)[len(trainer._rewards) // 2]
    some, taught = contrastive(bound)
    assert all(all_taught)
    assert 0 < sum(taught) < len(taught)
    assert 0 < some < every
    assert contrastive(10.0) == (0.0, [False] * len(taught))


def test_an_anchor_that_would_do_nothing_is_refused(adapter):
    settings = adapter.AdapterSettings(reward=RewardSettings(anchor=1.0))
    with pytest.raises(ValueError, match=r"reward\.anchor = 1\.0: on TRL's trainer"):
        adapter.SearchR3GRPOTrainer(None, None, None, None, settings)
