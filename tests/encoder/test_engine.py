"""The engine compared with Hugging Face's own forward and generate, and with itself when it is broken on purpose."""

import contextlib
import random
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search_r3_mteb.encoder import backbone as backbone_module
from search_r3_mteb.encoder import decode as decode_module
from search_r3_mteb.encoder.decode import Decode, Pace
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.graphs import Recorded
from search_r3_mteb.encoder.masks import DecodeMasks
from search_r3_mteb.encoder.sampling import Sampling
from search_r3_mteb.encoder.slots import SlotLayer, Slots

EMBED, END = 3, 2
VOCABULARY = 24  # so small that random models say every token now and then, and rows end at different steps
TOLERANCE = 1e-4
KINDS = ["qwen2", "llama", "gpt2"]
SAMPLED = Sampling(max_reasoning_tokens=20, temperature=2.0, seed=0)


@pytest.fixture
def small(make_model):
    """`small(kind, seed)`: a random causal LM of 24 tokens."""

    def build(kind="qwen2", seed=0, **overrides):
        model = make_model(kind, seed, **overrides)
        model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
        return model

    return build


def prompts_of(lengths, shared=4, seed=0):
    """Random prompts that begin alike, as prompts with one system prompt do."""
    draw = random.Random(seed)
    prefix = [draw.randrange(4, VOCABULARY) for _ in range(shared)]
    return [prefix + [draw.randrange(4, VOCABULARY) for _ in range(length)] for length in lengths]


PROMPTS = prompts_of([5, 17, 9, 3, 30, 9, 2, 12])


@torch.no_grad()
def reread_one_by_one(model, sequences, temperature=1.0):
    """Final states and log-probabilities (except of the first token) of each sequence alone: no cache, no padding."""
    states, log_probs = [], []
    for ids in sequences:
        output = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        states.append(output.hidden_states[-1][0, -1].float())
        scores = (output.logits[0, :-1].float() / temperature).log_softmax(dim=-1)
        log_probs.append(scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist())
    return torch.stack(states), log_probs


def assert_close(ours, reference):
    difference = (torch.as_tensor(ours) - torch.as_tensor(reference)).abs().max().item()
    assert difference < TOLERANCE, f"differs by {difference}"


def check_against_forward(model, rollouts, prompts, temperature=1.0):
    """Vectors and log-probabilities are those of Hugging Face's own forward over prompt + sampled ids."""
    whole = [[*prompts[p], *ids] for p, ids in zip(rollouts.prompt_index, rollouts.token_ids, strict=True)]
    vectors, log_probs = reread_one_by_one(model, whole, temperature)
    assert_close(rollouts.vectors, vectors)
    for row, ids in enumerate(rollouts.token_ids):
        assert_close(rollouts.log_probs[row], log_probs[row][-len(ids) :])


def check_everything(model, prompts=PROMPTS, **options):
    """Small batches with refills, sampling, rows that end at different steps: all of the engine at once."""
    engine = Engine(model, EMBED, stop_token_ids=(END,), **({"token_budget": 400} | options))
    rollouts = engine.reason(prompts, SAMPLED, group_size=2)
    check_against_forward(model, rollouts, prompts, SAMPLED.temperature)
    return rollouts


# ---- equalities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_is_generate_then_reread(small, kind, share_prefix):
    model = small(kind)
    rollouts = check_everything(model, share_prefix=share_prefix)
    assert len({len(ids) for ids in rollouts.token_ids}) > 5, "the rows must end at different steps to test anything"
    assert 0 < sum(rollouts.finished) < len(rollouts.finished)
    engine = Engine(model, EMBED, (END,), share_prefix=share_prefix)
    reread = engine.reason(PROMPTS, SAMPLED, group_size=2, reread=True)
    assert reread.token_ids == rollouts.token_ids
    assert_close(reread.vectors, rollouts.vectors)
    assert reread.forward_tokens > 1.5 * engine.reason(PROMPTS, SAMPLED, group_size=2).forward_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_batch_of_one_is_batch_of_many(small, kind):
    engine = Engine(small(kind), EMBED, (END,))
    together = engine.reason(PROMPTS, SAMPLED)
    alone = [engine.reason([prompt], SAMPLED) for prompt in PROMPTS]
    assert [one.token_ids[0] for one in alone] == together.token_ids
    assert [one.finished[0] for one in alone] == together.finished
    assert_close(torch.cat([one.vectors for one in alone]), together.vectors)
    embedded = [[*prompt, EMBED] for prompt in PROMPTS]
    assert_close(torch.cat([engine.embed([prompt]) for prompt in embedded]), engine.embed(embedded))


def padded(sequences, side):
    """Ids, mask and positions as Hugging Face users pad them."""
    width = max(map(len, sequences))
    rows = [[0] * (width - len(ids)) + ids if side == "left" else ids + [0] * (width - len(ids)) for ids in sequences]
    real = [[1] * len(ids) for ids in sequences]
    mask = [[0] * (width - len(m)) + m if side == "left" else m + [0] * (width - len(m)) for m in real]
    mask = torch.tensor(mask)
    return torch.tensor(rows), mask, (mask.cumsum(1) - 1).clamp(min=0)


@pytest.mark.parametrize("kind", KINDS)
def test_left_padding_is_right_padding(small, kind):
    model = small(kind)
    engine = Engine(model, EMBED, (END,))
    rollouts = engine.reason(PROMPTS, SAMPLED)  # prefilled right-padded, decoded left-aligned
    whole = [prompt + ids for prompt, ids in zip(PROMPTS, rollouts.token_ids, strict=True)]
    for side in ("left", "right"):
        ids, mask, positions = padded(whole, side)
        with torch.no_grad():
            states = model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
        last = torch.full((len(whole),), ids.shape[1] - 1) if side == "left" else mask.sum(1) - 1
        assert_close(rollouts.vectors, states[torch.arange(len(whole)), last])
        assert_close(engine.embed(whole), states[torch.arange(len(whole)), last])
        wrong = mask.sum(1) - 1 if side == "left" else last * 0 + ids.shape[1] - 1
        with pytest.raises(AssertionError, match="differs by"):  # control: read at the other side's place
            assert_close(rollouts.vectors, states[torch.arange(len(whole)), wrong])


def padding_is_seen(monkeypatch):
    real = DecodeMasks.__call__
    monkeypatch.setattr(
        DecodeMasks, "__call__", lambda self, positions, width: real(self, torch.full_like(positions, width - 1), width)
    )


def positions_off_by_one(monkeypatch):
    real = Slots.enter

    def broken(self, lengths, *rest):
        real(self, lengths, *rest)
        new = self.steps[: self.count] == 0
        for tensor in (self.positions, self.starts, self.ends):
            tensor[: self.count] += new
        self.width += 1

    monkeypatch.setattr(Slots, "enter", broken)


def state_before_the_token_is_read(monkeypatch):
    real = Decode._step

    def broken(self, rows, width):
        before, done = self.slots.hidden[:rows].clone(), self.slots.done[:rows].clone()
        real(self, rows, width)
        hit = (self.slots.done[:rows] & ~done).nonzero()[:, 0]
        self.slots.hidden[hit] = before[hit]

    monkeypatch.setattr(Decode, "_step", broken)


def rows_move_without_their_cache(monkeypatch):
    real, states = Slots.leave, Slots._states

    def broken(self, done):
        monkeypatch.setattr(Slots, "_states", lambda self: [])
        real(self, done)
        monkeypatch.setattr(Slots, "_states", states)

    monkeypatch.setattr(Slots, "leave", broken)


def all_write_into_the_last_column(monkeypatch):
    real = SlotLayer._write

    def broken(self, buffer, states):
        self.window.aligned = self.window.index is not None
        return real(self, buffer, states)

    monkeypatch.setattr(SlotLayer, "_write", broken)


def a_larger_cache_forgets_its_rows(monkeypatch):
    real = Slots.resized

    def broken(self, places, columns):
        new = real(self, places, columns)
        for states in new._states():
            states[:, :, self.prefix :] = 0
        return new

    monkeypatch.setattr(Slots, "resized", broken)


def prefix_too_long(monkeypatch):
    real = backbone_module.common_prefix_length
    monkeypatch.setattr(backbone_module, "common_prefix_length", lambda prompts: real(prompts) + 1)


def draws_of_another_temperature(monkeypatch):
    real = Engine.logits
    monkeypatch.setattr(Engine, "logits", lambda self, hidden: real(self, hidden) * 1.5)


@pytest.mark.parametrize(
    "sabotage",
    [
        padding_is_seen,
        positions_off_by_one,
        state_before_the_token_is_read,
        rows_move_without_their_cache,
        all_write_into_the_last_column,
        a_larger_cache_forgets_its_rows,
        prefix_too_long,
        draws_of_another_temperature,
    ],
)
def test_the_comparison_fails_when_the_engine_is_broken(small, monkeypatch, sabotage):
    model = small("qwen2")
    check_everything(model)
    sabotage(monkeypatch)
    with pytest.raises(AssertionError, match="differs by"):
        check_everything(model)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=9),
    shared=st.integers(0, 6),
    budget=st.integers(1, 400),
    tokens=st.integers(0, 9),
    group=st.integers(1, 3),
    temperature=st.sampled_from([0.0, 1.0, 3.0]),
    pace=st.sampled_from([Pace(), Pace(looks=3, width=16, round_rows=True)]),
)
def test_any_batch_is_hugging_faces_forward(small, lengths, shared, budget, tokens, group, temperature, pace):
    model, prompts = small("qwen2"), prompts_of(lengths, shared)
    sampling = Sampling(tokens, temperature, seed=shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_module, "PACES", {"cpu": pace})
        rollouts = Engine(model, EMBED, (END,), token_budget=budget).reason(prompts, sampling, group_size=group)
    check_against_forward(model, rollouts, prompts, temperature or 1.0)
    assert rollouts.prompt_index == [p for p in range(len(prompts)) for _ in range(group)]
    assert all(ids[-1] == EMBED and EMBED not in ids[:-1] and len(ids) <= tokens + 1 for ids in rollouts.token_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_ids_are_those_of_generate(small, kind):
    model = small(kind, seed=1)
    # The token that ends rows at the most different steps, so that there is something to get wrong.
    runs = {token: Engine(model, token).reason(PROMPTS, Sampling(12)).token_ids for token in range(4, VOCABULARY)}
    token = max(runs, key=lambda t: len({len(ids) for ids in runs[t]}))
    ids, mask, _ = padded(PROMPTS, "left")
    generated = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=token, pad_token_id=0
    )[:, ids.shape[1] :].tolist()
    rollouts = Engine(model, token).reason(PROMPTS, Sampling(12))
    for theirs, ours, finished in zip(generated, rollouts.token_ids, rollouts.finished, strict=True):
        ours = ours[:12]  # `generate` stops at twelve tokens, ours then reads the forced one
        assert theirs[: len(ours)] == ours
        assert finished == (token in theirs) or len(ours) == 12


# ---- what is run, and how often ------------------------------------------------------------------------------------


@contextlib.contextmanager
def counted(model):
    """Shapes (rows, tokens, columns) of all forward passes of the backbone, seen from outside."""
    shapes = []

    def look(module, args, keywords):
        ids, mask = keywords["input_ids"], keywords.get("attention_mask")
        shapes.append((*ids.shape, ids.shape[1] if mask is None else mask.shape[-1]))

    handle = model.base_model.register_forward_pre_hook(look, with_kwargs=True)
    yield shapes
    handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_through_the_model_are_prompt_plus_generated_plus_one(small, kind):
    model = small(kind)
    engine = Engine(model, EMBED, (END,), share_prefix=False)
    for prompt in PROMPTS:
        with counted(model) as shapes:
            rollouts = engine.reason([prompt], SAMPLED)
        reasoning = len(rollouts.token_ids[0]) - 1
        assert sum(rows * tokens for rows, tokens, _ in shapes) == len(prompt) + reasoning + 1
        assert [tokens for _, tokens, _ in shapes] == [len(prompt)] + [1] * (reasoning + 1)  # never a second pass
        assert rollouts.forward_tokens == len(prompt) + reasoning + 1
    with counted(model) as shapes:  # control: the counter sees a second pass
        rollouts = engine.reason([PROMPTS[0]], SAMPLED, reread=True)
    once = len(PROMPTS[0]) + len(rollouts.token_ids[0])
    assert sum(rows * tokens for rows, tokens, _ in shapes) == 2 * once == rollouts.forward_tokens


def test_tokens_of_a_batch_are_those_of_its_rows_and_the_prefix_counts_once(small):
    model = small()
    generated = Engine(model, EMBED, (END,)).reason(PROMPTS, SAMPLED)
    rows = sum(len(p) + len(ids) for p, ids in zip(PROMPTS, generated.token_ids, strict=True))
    assert Engine(model, EMBED, (END,), share_prefix=False).reason(PROMPTS, SAMPLED).forward_tokens == rows
    assert generated.forward_tokens == rows - 4 * (len(PROMPTS) - 1)
    group = Engine(model, EMBED, (END,), share_prefix=False).reason(PROMPTS, SAMPLED, group_size=3)
    said = sum(map(len, group.token_ids))
    assert group.forward_tokens == sum(map(len, PROMPTS)) + said  # a group's prompt is prefilled once


def test_rows_that_are_done_leave_and_waiting_ones_take_their_place(small):
    model = small()
    many = prompts_of([6] * 40, seed=3)
    engine = Engine(model, EMBED, (END,), token_budget=8 * (10 + 20 + 1))
    with counted(model) as shapes:
        rollouts = engine.reason(many, SAMPLED)
    assert rollouts.computed_tokens == sum(rows * tokens for rows, tokens, _ in shapes)
    decode = [(rows, columns) for rows, tokens, columns in shapes if tokens == 1]
    assert sum(rows for rows, _ in decode) < 0.8 * 40 * 21, "every row was run to the end of the budget"
    rows = [rows for rows, _ in decode]
    assert np.mean(rows[: len(rows) * 3 // 4]) > 7, "no waiting prompt took a free place"
    assert rollouts.computed_tokens >= rollouts.forward_tokens


@pytest.mark.parametrize("budget", [60, 150, 500])
def test_rows_times_length_stay_within_the_token_budget(small, budget):
    model = small()
    engine = Engine(model, EMBED, (END,), token_budget=budget)
    with counted(model) as shapes:
        engine.reason(PROMPTS, SAMPLED)
        engine.embed([[*prompt, EMBED] for prompt in PROMPTS])
    assert all(rows == 1 or rows * columns <= budget for rows, _, columns in shapes)
    assert max(rows for rows, _, _ in shapes) > 1 or budget == 60


def test_progress_is_told_of_every_row_once(small):
    engine = Engine(small(), EMBED, (END,), token_budget=150)
    told = []
    engine.reason(PROMPTS, SAMPLED, group_size=2, on_batch=told.append)
    assert sum(told) == 2 * len(PROMPTS)
    assert len(told) > 2
    told.clear()
    engine.embed([[*prompt, EMBED] for prompt in PROMPTS], on_batch=told.append)
    assert sum(told) == len(PROMPTS)


@pytest.mark.parametrize(
    "pace",
    [
        Pace(looks=8),
        Pace(round_rows=True),
        Pace(looks=3, width=16, round_rows=True),
        Pace(looks=8, width=128, round_rows=True, record=True),
    ],
    ids=["looks seldom", "rounds rows", "rounds all", "records"],
)
def test_the_pace_of_a_gpu_changes_nothing(small, monkeypatch, pace):
    """What a GPU does, on the CPU: rare looks, rounded sizes, and steps that are replayed instead of run."""
    model, recorded = small(), []

    def capture(step, pool):
        recorded.append(step)
        return step, pool

    plain = check_everything(model)
    monkeypatch.setattr(decode_module, "PACES", {"cpu": pace})
    monkeypatch.setattr(decode_module, "Recorded", partial(Recorded, capture=capture))
    paced = check_everything(model)
    assert paced.token_ids == plain.token_ids
    assert paced.finished == plain.finished
    assert paced.forward_tokens == plain.forward_tokens
    assert paced.computed_tokens > plain.computed_tokens  # unneeded steps are the price of looking seldom
    assert bool(recorded) == pace.record


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_wait_to_leave_stay_inside_the_window(make_model, monkeypatch, kind):
    """GPT-2 has no position beyond its window: a row that was done there took another step and broke the run."""
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(decode_module, "PACES", {"cpu": Pace(looks=8)})
    config = make_model(kind).config
    config.max_position_embeddings = len(PROMPTS[4]) + 12 + 1
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    rollouts = Engine(model, EMBED, (END,)).reason(PROMPTS, Sampling(12))
    check_against_forward(model, rollouts, PROMPTS)


# ---- what ends a row -----------------------------------------------------------------------------------------------


class Scripted(Engine):
    """An engine whose model follows a script: one list of tokens per row."""

    script: dict

    def logits(self, hidden):
        """Certainty for the scripted token of each decoding row."""
        decode = self.decode
        logits = torch.full((len(hidden), VOCABULARY), -9.0)
        for place, (row, step) in enumerate(zip(decode.slots.row.tolist(), decode.slots.steps.tolist(), strict=True)):
            if place == len(hidden):
                break
            said = self.script[row]
            logits[place, said[min(step, len(said) - 1)]] = 9.0
        return logits


def scripted(monkeypatch, model, script, budget, **options):
    real = Decode.all

    def remember(self):
        self.backbone.decode = self
        real(self)

    monkeypatch.setattr(Decode, "all", remember)
    engine = Scripted(model, EMBED, (END,), **options)
    engine.script = dict(enumerate(script))
    return engine.reason(prompts_of([3] * len(script)), Sampling(budget))


def test_what_ends_a_row_and_what_counts_as_finished(small, monkeypatch):
    script = [
        [7, 8, EMBED],  # says the token itself
        [7, 8, 9, EMBED],  # says it exactly where the budget is spent: its own
        [7, 8, 9, 10, 11],  # never says it: forced
        [7, END, 8],  # ends its turn: forced at once
        [EMBED],  # does not reason
        [7, 8, END],  # ends its turn with the last token of the budget
        [END, EMBED],  # ends its turn; that it would say the token afterwards does not count
    ]
    rollouts = scripted(monkeypatch, small(), script, budget=3)
    assert rollouts.token_ids == [
        [7, 8, EMBED],
        [7, 8, 9, EMBED],
        [7, 8, 9, EMBED],
        [7, END, EMBED],
        [EMBED],
        [7, 8, END, EMBED],
        [END, EMBED],
    ]
    assert rollouts.finished == [True, True, False, False, True, False, False]
    assert [len(row) for row in rollouts.log_probs] == [len(ids) for ids in rollouts.token_ids]
    # What the model said was nearly certain, what was forced upon it nearly impossible.
    assert [row[-1] > -0.1 for row in rollouts.log_probs] == [True, True, False, False, True, False, True]


def test_without_a_budget_the_token_follows_the_prompt(small):
    model = small()
    rollouts = Engine(model, EMBED).reason(PROMPTS, Sampling(0))
    assert rollouts.token_ids == [[EMBED]] * len(PROMPTS)
    assert_close(rollouts.vectors, Engine(model, EMBED).embed([[*prompt, EMBED] for prompt in PROMPTS]))
    check_against_forward(model, rollouts, PROMPTS)


def test_nothing_gives_nothing(small):
    engine = Engine(small(), EMBED)
    assert engine.embed([]).shape == (0, 32)
    rollouts = engine.reason([], SAMPLED)
    assert rollouts.vectors.shape == (0, 32)
    assert rollouts.token_ids == rollouts.log_probs == rollouts.finished == rollouts.prompt_index == []
    assert rollouts.forward_tokens == 0


# ---- sampling ------------------------------------------------------------------------------------------------------


def test_a_row_draws_the_same_whatever_stands_beside_it(small):
    model = small()
    first = Engine(model, EMBED, (END,)).reason(PROMPTS, SAMPLED, group_size=2)
    order = [4, 0, 7, 2, 1, 6]
    other = Engine(model, EMBED, (END,), token_budget=120).reason([PROMPTS[i] for i in order], SAMPLED, group_size=3)
    for place, index in enumerate(order):
        assert other.token_ids[3 * place : 3 * place + 2] == first.token_ids[2 * index : 2 * index + 2]
    assert first.token_ids[0] != first.token_ids[1], "rows of a group must differ"


def test_seeds_decide_the_draws_and_nothing_else(small):
    engine = Engine(small(), EMBED, (END,))
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002 - the global generator is what is tested
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = engine.reason(PROMPTS, SAMPLED)
    torch.manual_seed(77)
    assert engine.reason(PROMPTS, SAMPLED).token_ids == first.token_ids
    torch.set_rng_state(before[0])
    assert engine.reason(PROMPTS, Sampling(20, 2.0, seed=1)).token_ids != first.token_ids
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


def test_samples_follow_the_models_distribution_at_that_temperature(small):
    model = small()
    drawn = Engine(model, EMBED).reason([PROMPTS[0]], Sampling(1, temperature=1.5), group_size=2000)
    shares = Counter(ids[0] for ids in drawn.token_ids)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].float()

    def distance(temperature):
        expected = (logits / temperature).softmax(dim=-1)
        return 0.5 * sum(abs(shares[token] / 2000 - expected[token].item()) for token in range(VOCABULARY))

    assert distance(1.5) < 0.06
    assert distance(0.7) > 0.12  # control: another temperature is told apart


# ---- architectures, types, wrappers --------------------------------------------------------------------------------


def tiny(name, **own):
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
    shape |= {"tie_word_embeddings": True}
    shape |= {"initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **(shape | own))).eval()


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("gemma2", {"final_logit_softcapping": 1.0, "sliding_window": 6, "query_pre_attn_scalar": 8}),
        ("granite", {"logits_scaling": 3.0}),
        ("cohere", {"logit_scale": 0.3}),
        ("hyperclovax", {"logits_scaling": 0.3}),
        ("mistral", {"sliding_window": 6}),
        ("bloom", {"n_layer": 2, "n_head": 4}),
        ("gpt_neo", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 6}),
        ("bert", {"is_decoder": True}),
    ],
)
def test_what_an_architecture_does_to_its_logits_is_respected(name, own):
    model = tiny(name, **own)
    rollouts = check_everything(model)
    assert len({tuple(ids) for ids in rollouts.token_ids}) > 5
    with torch.no_grad():
        output = model(input_ids=torch.tensor([PROMPTS[1]]), output_hidden_states=True)
    engine = Engine(model, EMBED)
    assert_close(engine.logits(output.hidden_states[-1][0]), output.logits[0])
    if name not in ("mistral", "bloom", "gpt_neo"):
        with pytest.raises(AssertionError, match="differs by"):  # control: the bare head is something else
            assert_close(model.get_output_embeddings()(output.hidden_states[-1][0]), output.logits[0])


@pytest.mark.parametrize("name", ["qwen2", "mistral", "gpt2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_attention_gets_its_kind_of_mask(name, attention):
    own = {"sliding_window": 6} if name == "mistral" else {}
    if name == "gpt2":
        own = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    model = tiny(name, **own)
    model.set_attn_implementation(attention)
    check_everything(model)


def test_recurrent_models_are_refused(make_model):
    with pytest.raises(ValueError, match="MambaForCausalLM keeps a recurrent or compressed state"):
        Engine(tiny("mamba", state_size=4), EMBED)
    model = make_model()
    model.config.layer_types = ["conv", "full_attention"]
    with pytest.raises(ValueError, match="conv, full_attention"):
        Engine(model, EMBED)
    with pytest.raises(ValueError, match="Qwen2Model has no language-model head"):
        Engine(make_model().base_model, EMBED)


def test_bfloat16_runs_and_stays_near(small):
    model = small()
    exact = Engine(model, EMBED, (END,)).embed([[*prompt, EMBED] for prompt in PROMPTS])
    engine = Engine(model.to(torch.bfloat16), EMBED, (END,))
    rollouts = engine.reason(PROMPTS, SAMPLED)
    assert rollouts.vectors.dtype == torch.float32
    assert torch.isfinite(rollouts.vectors).all()
    near = torch.nn.functional.cosine_similarity(engine.embed([[*prompt, EMBED] for prompt in PROMPTS]), exact)
    assert near.min() > 0.99


def test_an_adapter_counts(small):
    from peft import LoraConfig, get_peft_model

    plain = small()
    before = Engine(plain, EMBED, (END,)).reason(PROMPTS, SAMPLED)
    model = get_peft_model(plain, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], trainable_token_indices=[EMBED]))
    engine = Engine(model, EMBED, (END,))
    assert_close(engine.reason(PROMPTS, SAMPLED).vectors, before.vectors)  # LoRA starts at nothing
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "trainable_tokens" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted = engine.reason(PROMPTS, SAMPLED)
    assert (adapted.vectors - before.vectors).abs().max() > 0.1
    merged = model.merge_and_unload()
    check_against_forward(merged, adapted, PROMPTS, SAMPLED.temperature)


def test_weights_that_change_between_calls_are_the_ones_that_run(small):
    model = small()
    engine = Engine(model, EMBED, (END,))
    before = engine.reason(PROMPTS, SAMPLED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    after = engine.reason(PROMPTS, SAMPLED)
    assert (after.vectors - before.vectors).abs().max() > 0.01
    check_against_forward(model, after, PROMPTS, SAMPLED.temperature)  # no state of a prefix was kept


def test_a_model_in_training_mode_runs_without_dropout_and_with_its_cache(make_model):
    model = make_model("qwen2", attention_dropout=0.5)
    quiet = Engine(model, EMBED).reason(PROMPTS, Sampling(5))
    model.train()
    model.model.norm.eval()  # a module that training left alone
    model.gradient_checkpointing_enable()
    engine = Engine(model, EMBED)
    assert_close(engine.reason(PROMPTS, Sampling(5)).vectors, quiet.vectors)
    assert_close(engine.embed([[*p, EMBED] for p in PROMPTS]), engine.embed([[*p, EMBED] for p in PROMPTS]))
    assert model.training
    assert not model.model.norm.training
    assert all(p.grad_fn is None and p.requires_grad for p in model.parameters())


# ---- errors --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_run_is_named(small):
    engine = Engine(small(), EMBED)
    with pytest.raises(ValueError, match="Prompt 1 has no tokens; render it"):
        engine.reason([[5], []], SAMPLED)
    with pytest.raises(ValueError, match="Prompt 1 ends in token 6, not in the embed token 3"):
        engine.embed([[5, EMBED], [5, 6]])
    with pytest.raises(ValueError, match="group_size=0: each prompt needs at least one rollout"):
        engine.reason([[5]], SAMPLED, group_size=0)
    with pytest.raises(ValueError, match="max_reasoning_tokens=-1 is negative"):
        Sampling(-1)
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"must be 0 \(greedy\) or a positive number"):
            Sampling(temperature=temperature)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_gives_what_the_cpu_gives(small, kind):
    model = small(kind)
    here = Engine(model, EMBED, (END,), token_budget=150).reason(PROMPTS, SAMPLED, group_size=2)
    there = Engine(model.to("cuda"), EMBED, (END,), token_budget=150).reason(PROMPTS, SAMPLED, group_size=2)
    assert there.token_ids == here.token_ids
    assert there.finished == here.finished
    assert (there.vectors - here.vectors).abs().max() < 1e-3
    half = Engine(model.to(torch.bfloat16), EMBED, (END,)).reason(PROMPTS, SAMPLED)
    assert torch.isfinite(half.vectors).all()
