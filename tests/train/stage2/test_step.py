"""The gradient of stage 2's step: that of the losses written out, in parts, under the KL and the frozen policy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.train.loops import FORCED, LORA, byte_folder, cache_arrays, events, largest_difference, rl_config
from train.model import model as models
from train.rl import open_environment, sample, train
from train.run.run import Run
from train.stage2.step import PolicyStep


class OneStep:
    """The parts of one step, before its gradient."""

    def __init__(self, config):
        self.config = config
        self.run = Run.begin(config, unit="query")
        base = models.Base.of(self.run.checkpoint) if config.reads_start else None
        self.environment = open_environment(self.run, base)
        self.rows = self.run.data.next_batch()
        self.groups = sample(self.run, self.environment.encoder.engine, self.rows, 1)
        self.step = PolicyStep(self.run, self.environment, self.groups, base)
        self.documents = self.step.documents()
        self.environment.encoder.know(self.documents.texts, self.documents.vectors)
        self.judged = self.environment.judge(self.groups, 1)
        self.advantages = self.step.advantages(self.judged)

    def gradient(self, advantages=None):
        losses = self.step.backward(self.judged, advantages or self.advantages, self.documents)
        found = {n: p.grad.clone() for n, p in models.trainable(self.run.model) if p.grad is not None}
        self.run.optimizer.zero_grad(set_to_none=True)
        return losses, found


def by_hand(one, *, policy_weight=1.0, contrastive=0.5, kl=0.0, base=None, advantages=None):
    """GRPO and InfoNCE of the same rollouts, written out: one row at a time, Hugging Face's forward, no shared code."""
    run, groups, judged = one.run, one.groups, one.judged
    model, renderer = run.checkpoint.model, run.renderer
    rewards = judged.rewards.total
    head = model.get_output_embeddings()
    policy, vectors, tokens = [], [], 0
    for r, ids in enumerate(groups.rollouts.token_ids):
        prompt = renderer.render(one.rows[groups.prompt[r]].query, "reason").token_ids
        states = model.base_model(torch.tensor([prompt + ids])).last_hidden_state[0]
        vectors.append(torch.nn.functional.normalize(states[-1], dim=0))
        mine = [rewards[o] for o in range(len(rewards)) if groups.prompt[o] == groups.prompt[r]]
        advantage = (rewards[r] - np.mean(mine)) if advantages is None else advantages[r]
        chosen = len(ids) - (not groups.rollouts.finished[r])
        for t in range(chosen):
            logits = head(states[len(prompt) + t - 1]) / one.config.rollout.temperature
            log_prob = logits.log_softmax(-1)[ids[t]]
            ratio = (log_prob - groups.rollouts.log_probs[r][t]).exp()
            term = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
            if base is not None:
                before = base.base_model(torch.tensor([prompt + ids])).last_hidden_state[0]
                logits = base.get_output_embeddings()(before[len(prompt) + t - 1]) / one.config.rollout.temperature
                reference = logits.log_softmax(-1)[ids[t]].detach()
                term = term + kl * ((reference - log_prob).exp() - (reference - log_prob) - 1)
            policy.append(term)
            tokens += 1
    loss = policy_weight * torch.stack(policy).sum() / tokens
    if not contrastive:
        return loss
    positives = list(dict.fromkeys(row.positive for row in one.rows))
    table = [
        torch.nn.functional.normalize(
            model.base_model(torch.tensor([renderer.render(text, "direct").token_ids])).last_hidden_state[0, -1], dim=0
        )
        for text in positives
    ]
    hard = []
    for p in range(len(one.rows)):
        own = set(one.environment.cache.rows_of(list(judged.relevance[p])).tolist())
        ranked = [
            int(row) for rank in judged.rows[[r for r, q in enumerate(groups.prompt) if q == p]].T for row in rank
        ]
        hard += list(dict.fromkeys(row for row in ranked if row not in own))[: one.config.contrastive.hard_negatives]
    texts = one.environment.corpus.texts.texts
    hard = [row for row in dict.fromkeys(hard) if texts[row] not in positives]
    table += [torch.from_numpy(one.environment.cache.values(np.array([row]))[0]) for row in hard]
    similarity = torch.stack(vectors) @ torch.stack(table).T / one.config.contrastive.temperature
    targets = torch.tensor([positives.index(one.rows[p].positive) for p in groups.prompt])
    terms = torch.nn.functional.cross_entropy(similarity, targets, reduction="none")
    return loss + contrastive * (terms * torch.from_numpy(rewards >= one.config.contrastive.min_reward)).mean()


@pytest.mark.parametrize("limit", [8, 2], ids=["some finish", "most are forced"])
def test_one_step_s_gradient_is_that_of_the_losses_written_out(tmp_path, model, limit):
    one = OneStep(rl_config(tmp_path / "run", model, f"rollout.max_reasoning_tokens={limit}"))
    assert len({row.query for row in one.rows}) == len(one.rows)
    assert np.ptp(one.judged.rewards.total) > 0
    losses, ours = one.gradient()
    truth = by_hand(one)
    truth.backward()
    expected = {n: p.grad for n, p in models.trainable(one.run.model)}
    assert largest_difference(ours, expected) < 1e-5
    assert losses["loss"] == pytest.approx(truth.item(), rel=1e-4, abs=1e-6)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-2
    assert losses["gap_max"] < 1e-4, "sampler and trainer disagree"
    assert not all(one.groups.rollouts.finished) or limit == 8


@pytest.mark.parametrize("size", [1, 3, 5])
def test_mini_batches_of_rollouts_add_up(tmp_path, model, size):
    whole, parts = (
        OneStep(rl_config(tmp_path / name, model, *more))
        for name, more in (("whole", []), ("parts", [f"optimization.mini_batch_size={size}"]))
    )
    a, b = whole.gradient(), parts.gradient()
    assert largest_difference(a[1], b[1]) < 1e-5
    for name in ("loss", "policy", "contrastive", "entropy", "gap_mean"):
        assert a[0][name] == pytest.approx(b[0][name], rel=1e-4, abs=1e-6), name


def test_leaving_out_groups_of_equal_rewards_changes_nothing(tmp_path, model, monkeypatch):
    """Without a contrastive term; with one, or with a KL, every rollout runs."""
    found = []
    for skip in ("true", "false"):
        one = OneStep(
            rl_config(tmp_path / skip, model, "contrastive.weight=0", f"policy.skip_zero_variance={skip}", *FORCED)
        )
        one.judged.rewards.total[[r for r, p in enumerate(one.groups.prompt) if p < 2]] = 0.25
        one.advantages = one.step.advantages(one.judged)
        found.append((len(one.step.chosen(one.advantages)), one.gradient()))
    (few, skipped), (many, complete) = found
    assert few < many == 16
    assert largest_difference(skipped[1], complete[1]) < 1e-6
    assert max(float(g.abs().max()) for g in complete[1].values()) > 1e-4
    assert skipped[0]["policy"] == pytest.approx(complete[0]["policy"], abs=1e-6)
    with_kl = OneStep(rl_config(tmp_path / "kl", model, "contrastive.weight=0", "policy.kl_weight=0.1"))
    assert len(with_kl.step.chosen(with_kl.advantages)) == 16


def test_a_batch_without_any_variance_has_no_policy_gradient(tmp_path, model):
    one = OneStep(rl_config(tmp_path / "run", model, "contrastive.weight=0"))
    one.judged.rewards.total[:] = 0.5
    advantages = one.step.advantages(one.judged)
    assert advantages.zero_variance_groups == 4
    losses, gradient = one.gradient(advantages)
    assert all(not g.any() for g in gradient.values())
    assert losses["loss"] == 0.0


def test_negated_advantages_give_the_negative_gradient(tmp_path, model):
    one = OneStep(rl_config(tmp_path / "run", model, "contrastive.weight=0"))
    _, ours = one.gradient()
    _, negative = one.gradient(replace(one.advantages, values=-one.advantages.values))
    assert max(float(g.abs().max()) for g in ours.values()) > 1e-4
    assert all(torch.allclose(ours[name], -negative[name], atol=1e-8) for name in ours)


def test_rewards_shuffled_within_groups_teach_nothing(tmp_path, model):
    """Averaged over shuffles the gradient vanishes; that of the true rewards does not."""
    one = OneStep(rl_config(tmp_path / "run", model, "contrastive.weight=0", "rollout.prompts_per_step=2"))
    _, truth = one.gradient()

    def norm(gradient):
        return sum(float(g.square().sum()) for g in gradient.values()) ** 0.5

    rng, mean, shuffles = np.random.default_rng(0), None, 24
    values = one.advantages.values.reshape(2, 4)
    for _ in range(shuffles):
        shuffled = torch.stack([row[torch.from_numpy(rng.permutation(4))] for row in values]).flatten()
        _, gradient = one.gradient(replace(one.advantages, values=shuffled))
        mean = gradient if mean is None else {n: mean[n] + g for n, g in gradient.items()}
    assert norm(mean) / shuffles < 0.5 * norm(truth)


def test_frozen_documents_with_lora(tmp_path):
    """The corpus never moves: its vectors are those of the model before training, in the contrastive term as well."""
    folder = byte_folder(tmp_path / "base")
    config = rl_config(tmp_path / "run", folder, *LORA, "corpus_cache.policy=frozen", *FORCED)
    train(config)
    from search_r3_mteb import SearchR3Encoder

    arrays, _ = cache_arrays(tmp_path / "run", 3)
    one = OneStep(rl_config(tmp_path / "again", folder, *LORA, "corpus_cache.policy=frozen", *FORCED))
    texts = list(one.environment.corpus.texts.texts[:20])
    before = SearchR3Encoder(folder, mode="direct", max_length=96).encode_document(texts)
    np.testing.assert_allclose(arrays["vectors"][:20], before, atol=1e-5)
    assert not one.documents.vectors.requires_grad
    rows = one.environment.cache.rows_of([one.environment.corpus.positive_id(row) for row in one.rows])
    unique = list(dict.fromkeys(rows.tolist()))
    np.testing.assert_array_equal(one.documents.vectors.numpy(), one.environment.cache.values(np.array(unique)))
    losses, gradient = one.gradient()
    assert losses["contrastive"] > 0
    assert any(g.abs().max() > 0 for g in gradient.values())


def test_positives_are_encoded_once(tmp_path, model, monkeypatch):
    """The cache takes the vectors of the gradient's forward: the engine is never asked for them."""
    asked = []
    original = models.embed_prompts
    monkeypatch.setattr(
        "train.stage2.documents.embed_prompts", lambda e, ids: asked.extend(map(tuple, ids)) or original(e, ids)
    )
    one = OneStep(rl_config(tmp_path / "run", model, "optimization.learning_rate=1e-3"))
    assert len(asked) == 500  # the first cache
    losses, _ = one.gradient()
    assert losses["loss"] > 0
    one.step.backward(one.judged, one.advantages, one.step.documents())
    one.run.optimizer.step()
    one.run.optimizer.zero_grad()
    asked.clear()
    documents = one.step.documents()
    one.environment.encoder.know(documents.texts, documents.vectors)
    judged = one.environment.judge(one.groups, 2)
    assert asked, "the budget was spent on nothing"
    positives = one.environment.encoder.tokenize([row.positive for row in one.rows])
    assert not set(asked) & set(map(tuple, positives))
    rows = one.environment.cache.rows_of([one.environment.corpus.positive_id(row) for row in one.rows])
    assert set(rows.tolist()) <= set(judged.refresh.rows.tolist())
    vectors = torch.nn.functional.normalize(documents.vectors.detach(), dim=-1).numpy()
    for row, place in zip(rows, (documents.column[p] for p in range(len(one.rows))), strict=True):
        np.testing.assert_allclose(one.environment.cache.values(np.array([row]))[0], vectors[place], atol=1e-6)
    assert judged.refresh.tokens > 200, "what costs nothing is not counted against the budget"


@pytest.mark.parametrize("copy", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["adapter", "copy"])
def test_kl_to_the_start(tmp_path, model, copy):
    """0 at the first step, above it later; its gradient is that of the formula."""
    folder = byte_folder(tmp_path / "base")
    settings = ["policy.kl_weight=0.5", "contrastive.weight=0", *FORCED, *([] if copy else LORA)]
    train(rl_config(tmp_path / "run", folder, *settings))
    kl = [event["kl"] for event in events(tmp_path / "run", "step")]
    assert abs(kl[0]) < 1e-6 < kl[1]
    one = OneStep(rl_config(tmp_path / "again", folder, *settings))
    with torch.no_grad():
        for name, parameter in models.trainable(one.run.checkpoint.model):
            if "lora_B" in name or (copy and "mlp" in name):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    _, ours = one.gradient()
    from search_r3_mteb.encoder import checkpoints
    from search_r3_mteb.encoder.backbone import unwrap

    run_model, one.run.checkpoint.model = one.run.checkpoint.model, unwrap(one.run.checkpoint.model)
    by_hand(one, contrastive=0, kl=0.5, base=checkpoints.load(folder).model).backward()
    expected = {n: p.grad for n, p in models.trainable(run_model) if p.grad is not None}
    scale = max(float(g.abs().max()) for g in expected.values())
    assert largest_difference(ours, expected) < 1e-5 * max(1, scale)
    assert scale > 1e-3


def test_the_policy_alone_and_the_contrast_alone(tmp_path, model):
    train(rl_config(tmp_path / "policy", model, "contrastive.weight=0", "optimization.steps=2"))
    assert all(event["contrastive"] == 0 for event in events(tmp_path / "policy", "step"))
    one = OneStep(rl_config(tmp_path / "contrast", model, "policy.weight=0"))
    _, ours = one.gradient()
    by_hand(one, policy_weight=0.0).backward()
    assert largest_difference(ours, {n: p.grad for n, p in models.trainable(one.run.model)}) < 1e-5


def test_the_contrast_of_rollouts_that_found_their_document(tmp_path, model):
    every = OneStep(rl_config(tmp_path / "every", model, "policy.weight=0"))
    bound = float(np.ptp(every.judged.rewards.total) / 2 + every.judged.rewards.total.min())
    settings = ["policy.weight=0", f"contrastive.min_reward={bound}", "optimization.mini_batch_size=3"]
    some = OneStep(rl_config(tmp_path / "some", model, *settings))
    assert 0 < (some.judged.rewards.total >= bound).sum() < len(some.groups.prompt)
    _, ours = some.gradient()
    by_hand(some, policy_weight=0.0).backward()
    assert largest_difference(ours, {n: p.grad for n, p in models.trainable(some.run.model)}) < 1e-5
    assert largest_difference(ours, every.gradient()[1]) > 1e-3, "the control: the bound matters"
    none = OneStep(rl_config(tmp_path / "none", model, "policy.weight=0", "contrastive.min_reward=1"))
    losses, gradient = none.gradient()
    assert losses["contrastive"] == 0
    assert all(float(g.abs().max()) == 0 for g in gradient.values())
