"""The writer: its prompts, its texts beside transformers' own, and what a text does not depend on."""

import pytest
import torch

from search_r3_mteb.encoder.checkpoints import load_tokenizer
from search_r3_mteb.encoder.sampling import Sampling
from search_r3_mteb.expansion.generation import generated
from search_r3_mteb.expansion.methods import METHODS
from search_r3_mteb.expansion.settings import ExpansionSettings
from search_r3_mteb.expansion.writer import Writer
from tests.conftest import build_model, build_tokenizer
from tests.expansion.conftest import QUERIES, save_writer


def make(folder, method="hyde", **settings):
    return Writer(
        folder, METHODS[method], ExpansionSettings(**{"max_reasoning_tokens": 12, "temperature": 0} | settings)
    )


def prompts_of(writer, queries=QUERIES, contexts=None):
    return writer.prompts(queries, [None] * len(queries), contexts or [[] for _ in queries])


def test_the_prompt_of_a_chat_model_is_the_papers_in_its_template(writer):
    made = make(writer)
    found = [made.tokenizer.decode(ids) for ids in prompts_of(made)]
    assert found == [
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPlease write a passage to "
        f"answer the question.\nQuestion: {query}\nPassage:<|im_end|>\n<|im_start|>assistant\n"
        for query in QUERIES
    ]


def test_the_titles_stand_in_the_prompt_of_feedback(writer):
    made = make(writer, "feedback")
    (found,) = prompts_of(made, ["the {context} query"], [["Salt", "{query}"]])  # braces of a text stay text
    assert "the context:\n\nContext: Salt\n{query}\nQuery: the {context} query\nPassage:<|im_end|>" in (
        made.tokenizer.decode(found)
    )


def test_a_writer_without_a_chat_template_sees_two_examples(base):
    made = make(base)
    found = made.tokenizer.decode(prompts_of(made)[0])
    assert found.startswith("Please write a passage to answer the question.\nQuestion: how do vaccines")
    assert found.count("Question:") == 3
    assert found.endswith("\n\nPlease write a passage to answer the question.\nQuestion: the query\nPassage:")
    keywords = make(base, "keywords")
    assert keywords.tokenizer.decode(prompts_of(keywords)[0]).endswith("following query: the query\n")


def test_an_instruction_precedes_the_methods_prompt(writer):
    made = make(writer)
    (found,) = made.prompts(["the query"], ["Find it"], [[]])
    assert "<|im_start|>user\nFind it\n\nPlease write" in made.tokenizer.decode(found)


def test_a_long_query_is_cut_and_the_rest_of_the_prompt_stays(writer):
    made = make(writer, "feedback")
    contexts = [["title " * 300, "other " * 300, "third"]]
    (whole,) = prompts_of(made, ["long " * 3000], contexts)
    assert len(whole) <= made.renderer.max_length
    text = made.tokenizer.decode(whole)
    assert text.endswith("\nPassage:<|im_end|>\n<|im_start|>assistant\n")
    assert "Query: long long" in text
    (short,) = prompts_of(made, ["the query"], contexts)  # lines of context go first, from the last one on
    text = made.tokenizer.decode(short)
    assert "Query: the query\n" in text
    assert "third" not in text


@pytest.mark.parametrize("kind", ["chat", "base"])
def test_greedy_texts_are_those_of_transformers_one_by_one(writer, base, kind):
    folder = writer if kind == "chat" else base
    made = make(folder)
    prompts = prompts_of(made, [*QUERIES, "query"])
    model = build_model("qwen2", 3)
    stops = [made.end_id, *made.stop_ids]
    for prompt, written in zip(prompts, made.write(prompts), strict=True):
        output = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=12,
            eos_token_id=stops, pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
        finished = output[-1] in stops
        assert written.finished == finished
        while made.tokenizer.decode(output).endswith("\ufffd"):  # a random model writes bytes that are not characters
            output.pop()
        assert written.token_ids == [each for each in output if each != made.end_id]
        text = made.tokenizer.decode(output, skip_special_tokens=True)
        assert written.texts == ((text.partition("\n")[0] if kind == "base" else text).strip(),)


def test_a_text_ends_where_the_turn_ends(writer, tmp_path):
    made = make(writer)
    free = made.write(prompts_of(made))[0].token_ids
    assert len(free) == 12
    third = free[2]
    assert third not in free[:2]
    stopping = make(save_writer(tmp_path / "stopping", stops=[third]))
    assert third in stopping.stop_ids
    (ended, _) = stopping.write(prompts_of(stopping))
    assert ended.token_ids == free[:3]
    assert ended.finished
    assert not made.write(prompts_of(made))[0].finished


def test_a_writer_without_a_template_writes_one_line(base):
    made = make(base)
    newline = made.tokenizer("\n")["input_ids"]
    assert set(newline) <= set(made.stop_ids)
    assert make_text(made, [*made.tokenizer("one")["input_ids"], *newline]) == "one"


def make_text(writer, ids):
    return writer.texts_of(ids)[0]


def test_no_text_depends_on_its_company_and_seeds_decide_samples(writer):
    made = make(writer, samples=3, temperature=1.0)
    prompts = prompts_of(made, [*QUERIES, "system user assistant " * 9])
    together = made.write(prompts)
    assert [made.write([prompt])[0] for prompt in prompts] == together
    assert len(set(together[0].texts)) == 3
    assert make(writer, samples=3, temperature=1.0).write(prompts) == together
    assert make(writer, samples=3, temperature=1.0, seed=1).write(prompts) != together
    assert [each.texts[:1] for each in make(writer, samples=1, temperature=1.0).write(prompts)] == [
        each.texts[:1] for each in together
    ]
    assert all(made.texts_of(each.token_ids) == each.texts for each in together)


def test_texts_end_with_a_whole_character(writer):
    """Written by the model, given as a text, as ids, and kept in a store by ids: all the same."""
    made = make(writer, max_reasoning_tokens=6)
    encode = made.tokenizer.encode
    for text, kept in (
        ("ab😀", "ab😀"),
        ("abc😀", "abc"),
        ("abcde😀", "abcde"),
        ("กกก", "กก"),
        ("a\ufffdbcdefg", None),
    ):
        ids = encode(text, add_special_tokens=False)
        cut = made.given([text])
        spoken = made.given_ids(ids)
        assert cut == spoken == made._written([ids[:6]], len(ids) <= 6)
        assert (
            made.texts_of(cut.token_ids)
            == made.texts_of(ids[:6])
            == cut.texts
            == (made.tokenizer.decode(cut.token_ids),)
        )
        assert cut.texts[0] == kept or kept is None
        assert text.startswith(cut.texts[0])
    assert made.tokenizer.decode(encode("abc😀", add_special_tokens=False)[:6]) == "abc\ufffd", "control"
    assert made.given(["ab\ufffd"]).texts == ("ab\ufffd",)  # the text's own, and not cut


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_transformers_generate_writes_the_same_where_the_decode_loop_refuses(writer, temperature):
    samples = 2 if temperature else 1
    made = make(writer, samples=samples, temperature=temperature)
    prompts = prompts_of(made, [*QUERIES, "a query of another length altogether"])
    ours = made.write(prompts)
    made.engine = None
    assert made.write(prompts) == ours


def test_a_model_with_a_recurrent_state_is_run_by_transformers(tmp_path, caplog):
    from transformers import Mamba2Config, Mamba2ForCausalLM

    torch.manual_seed(0)
    config = Mamba2Config(
        vocab_size=384, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16, state_size=8, n_groups=1,
        eos_token_id=2, bos_token_id=0, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    Mamba2ForCausalLM(config).save_pretrained(tmp_path / "mamba")
    build_tokenizer(False).save_pretrained(tmp_path / "mamba")
    made = make(tmp_path / "mamba", samples=2, temperature=1.0)
    assert made.engine is None
    assert "transformers' generate" in caplog.text
    prompts = prompts_of(made, [*QUERIES, "the quer"])
    together = made.write(prompts)
    assert [made.write([prompt])[0] for prompt in prompts] == together
    assert len(together[0].texts) == 2


def test_rows_of_generate_end_at_their_own_stop(writer):
    made = make(writer)
    model, prompts = made.checkpoint.model, prompts_of(made)
    free = generated(model, prompts, Sampling(12), 1, [2], 4096)
    stop = free[0][3]
    assert stop not in free[0][:3]
    cut = generated(model, prompts, Sampling(12), 1, [2, stop], 4096)
    assert cut[0] == free[0][:4]
    assert generated(model, prompts, Sampling(0), 1, [2], 4096) == [[], []]


def test_a_budget_of_nothing_gives_empty_texts(writer):
    made = make(writer, max_reasoning_tokens=0, samples=3, temperature=1.0)
    (written,) = made.write(prompts_of(made, ["the query"]))
    assert written.texts == ("", "", "")
    assert made.texts_of(written.token_ids) == written.texts


def test_a_writer_that_nothing_ends_is_refused(tmp_path):
    model, tokenizer = build_model(), build_tokenizer(False)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    model.save_pretrained(tmp_path / "endless")
    tokenizer.save_pretrained(tmp_path / "endless")
    assert load_tokenizer(tmp_path / "endless", False).eos_token_id is None
    with pytest.raises(ValueError, match="names a special token that ends a text"):
        make(tmp_path / "endless")


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([5, 10**6], ValueError, "holds the token id 1000000, and"),
        ([-1], ValueError, "holds the token id -1, and"),
        ([5.0], TypeError, "5.0"),
        ([True], TypeError, "True"),
    ],
)
def test_what_is_no_token_of_the_writer_is_refused(writer, ids, error, message):
    made = make(writer)
    with pytest.raises(error, match=message):
        made.given_ids(ids)
    assert made.given_ids([5, 6]).token_ids == [5, 6]


def test_what_decides_a_text_in_half_precision_is_known(writer, monkeypatch):
    """Batches, instructions and threads; none of them in float32."""
    half, single = (make(writer, dtype=dtype, device="cpu") for dtype in ("bfloat16", "float32"))
    assert single.arithmetic == {}
    before = half.arithmetic
    assert before["batch_tokens"] == half.settings.batch_tokens
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert half.arithmetic != before
    assert single.arithmetic == {}
