"""vLLM's rows against our own engine's: the same ids and vectors, however a row ends, in one pass."""

import random
from collections import Counter

import pytest
import torch

from search_r3_mteb.encoder.sampling import Sampling
from search_r3_mteb.encoder.vllm.engine import VllmEngine
from tests.encoder.vllm.talkative import EMBED, END, MARKS, own_engine, talkative

pytestmark = MARKS
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of a component, as a share of the row's root mean square
BUDGET = 4
# Rows are prefilled in several chunks, and begin alike, so that most of a prompt is in the prefix cache.
OPTIONS = {"max_num_batched_tokens": 64, "max_num_seqs": 8}


def prompts_of(lengths, shared=40, seed=0):
    draw = random.Random(seed)
    prefix = [draw.randrange(4, 300) for _ in range(shared)]
    return [prefix + [draw.randrange(4, 300) for _ in range(length)] for length in lengths]


PROMPTS = prompts_of([5, 17, 9, 3, 30, 9, 2, 12, 41, 3, 70, 8, 6, 25, 11, 19, 4, 33, 1, 100])
POSITIONS = 200


def ends(found):
    """How each row ended: by itself, because the model ended its turn, or because the budget was spent."""
    pairs = zip(found.token_ids, found.finished, strict=True)
    return ["said" if own else "stopped" if ids[-2:-1] == [END] else "spent" for ids, own in pairs]


def difference(ours, theirs):
    """The largest difference of each row, as a share of its root mean square."""
    return (ours - theirs).abs().amax(dim=1) / ours.square().mean(dim=1).sqrt()


def equal_rows(ours, theirs, dtype):
    """Rows with the same ids, all of which must have the same vector and end."""
    same = [row for row, (one, two) in enumerate(zip(ours.token_ids, theirs.token_ids, strict=True)) if one == two]
    assert difference(ours.vectors[same], theirs.vectors[same]).max() < TOLERANCE[dtype]
    assert [ours.finished[row] for row in same] == [theirs.finished[row] for row in same]
    return len(same)


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def checkpoint(request):
    return talkative(request.param, tie_word_embeddings=request.param == "qwen2")


@pytest.fixture(scope="module")
def vllm(checkpoint):
    made = VllmEngine(checkpoint, own_engine(checkpoint), folder=None, positions=POSITIONS, options=OPTIONS)
    yield made
    made.running().stop()


def test_greedy_rows_are_our_own_however_they_end(checkpoint, vllm):
    rows = []
    ours, theirs = own_engine(checkpoint).reason(PROMPTS, Sampling(BUDGET)), None
    theirs = vllm.reason(PROMPTS, Sampling(BUDGET), on_batch=rows.append)
    assert theirs.token_ids == ours.token_ids
    assert equal_rows(ours, theirs, torch.float32) == len(PROMPTS) == sum(rows)
    assert ends(theirs) == ends(ours)
    assert set(ends(ours)) == {"said", "stopped", "spent"}, Counter(ends(ours))
    # A vector of the next row, or of the state one token earlier, would not pass for this one.
    assert difference(ours.vectors, theirs.vectors.roll(1, 0)).min() > 100 * TOLERANCE[torch.float32]
    before = [[*PROMPTS[row], *ids[:-1]] for row, ids in enumerate(ours.token_ids)]
    engine = own_engine(checkpoint)
    with engine.evaluating():
        early = engine.prefill(before, 0, None)
    assert difference(ours.vectors, early).min() > 100 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_a_budget_is_kept(checkpoint, vllm, budget):
    ours, theirs = own_engine(checkpoint).reason(PROMPTS, Sampling(budget)), vllm.reason(PROMPTS, Sampling(budget))
    assert theirs.token_ids == ours.token_ids
    assert equal_rows(ours, theirs, torch.float32) == len(PROMPTS)
    assert max(map(len, theirs.token_ids)) == budget + 1
    assert all(ids[-1] == EMBED for ids in theirs.token_ids)


def test_draws_and_groups_are_our_own(checkpoint, vllm):
    sampling = Sampling(BUDGET, temperature=1.5, seed=7)
    ours = own_engine(checkpoint).reason(PROMPTS, sampling, group_size=2)
    theirs = vllm.reason(PROMPTS, sampling, group_size=2)
    assert theirs.token_ids == ours.token_ids
    assert equal_rows(ours, theirs, torch.float32) == 2 * len(PROMPTS)
    assert theirs.prompt_index == ours.prompt_index
    assert theirs.token_ids != vllm.reason(PROMPTS, Sampling(BUDGET, 1.5, seed=8), group_size=2).token_ids


def test_prefixes_are_cached_and_counted(vllm):
    vllm.running().engine.reset_prefix_cache()
    first, again = vllm.reason(PROMPTS, Sampling(2)), vllm.reason(PROMPTS, Sampling(2))
    said = sum(map(len, first.token_ids))
    assert said < again.forward_tokens < first.forward_tokens < sum(map(len, PROMPTS)) + said
    assert difference(first.vectors, again.vectors).max() < TOLERANCE[torch.float32]


def test_direct_prompts_by_vllm_are_our_own(checkpoint, vllm):
    direct = [[*prompt, EMBED] for prompt in PROMPTS]
    ours = own_engine(checkpoint).embed(direct)
    assert not vllm.embeds  # in float32 on a processor our own engine does it
    assert torch.equal(vllm.embed(direct), ours)
    by_vllm = VllmEngine(checkpoint, vllm.own, folder=None, positions=POSITIONS, options=OPTIONS, embeds=True)
    assert by_vllm.running() is vllm.running()  # both modes of an encoder share it
    found = by_vllm.embed(direct)
    assert 0 < difference(ours, found).max() < TOLERANCE[torch.float32]
    with pytest.raises(ValueError, match="not in the embed token"):
        by_vllm.embed(PROMPTS)


def test_what_cannot_be_is_refused(checkpoint, vllm):
    with pytest.raises(ValueError, match="log_probs=True"):
        vllm.reason(PROMPTS, Sampling(2), log_probs=True)
    with pytest.raises(ValueError, match=f"vLLM was started for {POSITIONS}"):
        vllm.reason(PROMPTS, Sampling(POSITIONS))
    with pytest.raises(ValueError, match="Prompt 1 has no tokens"):
        vllm.reason([PROMPTS[0], []], Sampling(2))
    assert len(vllm.reason([], Sampling(2)).token_ids) == 0


def test_an_interrupt_leaves_no_row_behind(checkpoint, vllm):
    def stop(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vllm.reason(PROMPTS, Sampling(BUDGET), on_batch=stop)
    assert not vllm.running().engine.has_unfinished_requests()
    ours, theirs = own_engine(checkpoint).reason(PROMPTS, Sampling(BUDGET)), vllm.reason(PROMPTS, Sampling(BUDGET))
    assert theirs.token_ids == ours.token_ids
    assert equal_rows(ours, theirs, torch.float32) == len(PROMPTS)


def test_rows_that_vllm_takes_out_and_begins_again_are_our_own(monkeypatch):
    checkpoint, preempted = talkative(), []
    few = OPTIONS | {"num_gpu_blocks_override": 12}  # 384 tokens, for 8 rows of up to 200
    made = VllmEngine(checkpoint, own_engine(checkpoint), folder=None, positions=POSITIONS, options=few)
    scheduler = type(made.running().engine.engine_core.engine_core.scheduler)
    preempt = scheduler._preempt_request
    counting = lambda *given, **named: preempted.append(1) or preempt(*given, **named)  # noqa: E731
    monkeypatch.setattr(scheduler, "_preempt_request", counting)
    sampling = Sampling(58, temperature=3.0, seed=1)
    ours, theirs = own_engine(checkpoint).reason(PROMPTS, sampling), made.reason(PROMPTS, sampling)
    made.running().stop()
    assert preempted, "vLLM had room for all rows, so this test would pass"
    assert theirs.token_ids == ours.token_ids
    assert equal_rows(ours, theirs, torch.float32) == len(PROMPTS)


def test_weights_of_another_model_are_refused(tmp_path):
    checkpoint = talkative()
    talkative(seed=5).model.save_pretrained(tmp_path)
    wrong = VllmEngine(checkpoint, own_engine(checkpoint), folder=tmp_path, positions=POSITIONS)
    with pytest.raises(ValueError, match="computes other hidden states"):
        wrong.reason(PROMPTS, Sampling(2))


def test_changed_weights_are_refused():
    changing = talkative()
    made = VllmEngine(changing, own_engine(changing), folder=None, positions=POSITIONS)
    with torch.no_grad():
        changing.model.get_input_embeddings().weight.mul_(2)
    with pytest.raises(ValueError, match="the weights have changed"):
        made.reason(PROMPTS, Sampling(2))


def test_bfloat16_vectors_are_near_where_ids_are_equal():
    checkpoint = talkative(dtype=torch.bfloat16)
    made = VllmEngine(checkpoint, own_engine(checkpoint), folder=None, positions=POSITIONS)
    ours, theirs = own_engine(checkpoint).reason(PROMPTS, Sampling(BUDGET)), made.reason(PROMPTS, Sampling(BUDGET))
    assert made.embeds
    direct = [[*prompt, EMBED] for prompt in PROMPTS]
    embedded = own_engine(checkpoint).embed(direct), made.embed(direct)
    assert not torch.equal(*embedded)
    assert torch.nn.functional.cosine_similarity(*embedded).min() >= 0.999
    made.running().stop()
    same = [row for row, ids in enumerate(ours.token_ids) if ids == theirs.token_ids[row]]
    assert len(same) >= len(PROMPTS) // 2
    cosines = torch.nn.functional.cosine_similarity(ours.vectors[same], theirs.vectors[same])
    assert cosines.min() >= 0.999
    assert torch.nn.functional.cosine_similarity(ours.vectors, theirs.vectors.roll(1, 0)).max() < 0.99
