"""The benchmark's runner: ratios from turns, and no ratio for work that is not the same."""

import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder.checkpoints import Checkpoint, load, save
from search_r3_mteb.encoder.probe import own_forward
from search_r3_mteb.encoder.profiles import Profile, Template
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.evaluation import bench as module
from search_r3_mteb.evaluation import bench_cases, bench_peers
from search_r3_mteb.evaluation.bench_cases import BENCHMARKS, Case, cases
from search_r3_mteb.evaluation.bench_memory import available, peak_bytes
from search_r3_mteb.evaluation.bench_models import nearest_size, whole_words
from search_r3_mteb.evaluation.bench_work import RealModel, Stepping, Subject, together
from tests.conftest import build_model, build_tokenizer
from tests.encoder.test_chat_templates import LLAMA
from tests.encoder.test_probe import tiny_causal
from tests.programs import mostly_slow, python

only_on_linux = pytest.mark.skipif(not available(), reason="only Linux can reset a recorded peak")


@pytest.fixture(autouse=True)
def small_heap():
    """Every timed run begins with a garbage collection, which takes half a second where all libraries are loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


class Clock:
    """Seconds that pass only in the work of `case`, so that no measurement depends on how busy the machine is."""

    def __init__(self):
        self.now, self.slowness = 0.0, 1.0

    def __call__(self):
        return self.now


def case(ours=2.0, theirs=6.0, difference=0.0, clock=None, slower=1.0, their_items=None):
    """Ten items in `ours` and `theirs` seconds of `clock`; each run is `slower` times as slow as the one before."""
    clock = clock or Clock()

    def side(seconds, vector):
        def work():
            clock.now += seconds * clock.slowness
            clock.slowness *= slower
            return np.full((2, 3), vector)

        return work

    return Case("c", "p", "items/s", 10, 5, side(ours, 1.0), side(theirs, 1.0 + difference), their_items)


def test_the_ratio_is_how_much_faster_we_are():
    clock = Clock()
    assert module.measure(case(clock=clock), clock) == {
        "case": "c", "peer": "p", "ratio": 3.0, "ours": 5.0, "theirs": 1.667, "unit": "items/s", "runs": 5
    }  # fmt: skip


def test_a_machine_that_becomes_slower_hardly_changes_the_ratio():
    # The second of a round's two runs takes 1.1 times as long; each side is second in two of four rounds.
    clock = Clock()
    slowing = replace(case(clock=clock, slower=1.1), rounds=4)
    assert module.measure(slowing, clock)["ratio"] == pytest.approx(3.0, rel=0.01)


def test_work_that_is_not_the_same_has_no_ratio():
    with pytest.raises(ValueError, match="this is not the same work"):
        module.measure(case(difference=0.01))


@pytest.mark.parametrize(("kind", "least"), mostly_slow([("reason", 3), ("encode", 9), ("rollout", 2)], ("rollout", 2)))
def test_the_peers_do_the_same_work(kind, least):
    """The real libraries on nano: `measure` raises where a side's vectors or lengths are not the other's."""
    timed = (one for one in cases(kind, Subject("nano"), quick=True) if isinstance(one, Case))
    records = [module.measure(one) for one in itertools.islice(timed, least)]
    assert len(records) == least
    assert all(record["ratio"] > 0 for record in records)


@pytest.mark.slow
def test_quick_ends_within_a_minute(tmp_path):
    command = [
        str(Path(sys.executable).with_name("search-r3")),
        "bench",
        "--quick",
        "--output",
        str(tmp_path / "b.json"),
    ]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    assert time.perf_counter() - started < 60
    names = [record["case"] for record in json.loads((tmp_path / "b.json").read_text())]
    assert {kind for kind in BENCHMARKS for name in names if kind in name} == set(BENCHMARKS)


def test_unknown_kind():
    with pytest.raises(ValueError, match="There is no benchmark speed; there are reason, encode, rollout"):
        module.bench(["speed"])


def test_records_are_written_as_they_come(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "Subject", lambda size: size)
    monkeypatch.setattr(module, "cases", lambda kind, subject, quick: iter([case(), case()]))
    told = []
    records = module.bench(["encode"], quick=True, output=tmp_path / "bench.json", tell=told.append)
    assert records == told == json.loads((tmp_path / "bench.json").read_text())
    assert len(records) == 2


def test_what_was_measured_is_kept_and_not_run_again(monkeypatch, tmp_path):
    one, two = case(), replace(case(), case="another")
    monkeypatch.setattr(module, "Subject", lambda size: size)
    monkeypatch.setattr(module, "cases", lambda kind, subject, quick: iter([one, two]))
    measured, told = [{"case": one.case, "peer": one.peer, "ratio": 3.0}], []
    records = module.bench(["encode"], quick=True, output=tmp_path / "b.json", tell=told.append, measured=measured)
    assert records == [*measured, *told]
    assert [record["case"] for record in told] == ["another"]


@only_on_linux
def test_a_peak_is_what_the_work_held_at_once():
    # In a process of its own, as in the benchmark: in this one, earlier tests have left memory that may go meanwhile.
    program = """
import numpy as np
from search_r3_mteb.evaluation.bench_memory import rise
print(rise(lambda: np.ones(8 << 20).sum()), rise(lambda: [np.ones(1 << 20).sum() for _ in range(8)]))
"""
    whole, parts = map(int, python("-c", program).split())
    assert whole == pytest.approx(64 << 20, rel=0.1)
    assert parts < (64 << 20) / 2


@pytest.mark.slow
@only_on_linux
def test_memory_is_measured_in_a_process_of_its_own():
    work = {"work": "reason", "size": "nano", "batch": 2}
    assert peak_bytes(work | {"side": "ours"}) < peak_bytes(work | {"side": "theirs"})
    with pytest.raises(RuntimeError, match="exit status 1"):
        peak_bytes({"work": "reason"})


def test_fewer_items_on_the_other_side_are_counted():
    clock = Clock()
    assert module.measure(case(50.0, 5.0, clock=clock, their_items=1), clock)["ratio"] == 1.0
    assert module.measure(case(50.0, 5.0, clock=clock), clock)["ratio"] == 0.1


def test_documents_are_no_longer_than_both_sides_read():
    subject = Subject("30m")
    texts = subject.documents(48, "scifact")
    before, after = subject.encoder.renderer.frame_ids("direct")
    found = subject.checkpoint.tokenizer(texts, add_special_tokens=False).input_ids
    longest = max(len(before) + len(ids) + len(after) for ids in found)
    assert 500 < longest <= subject.encoder.max_length


def test_the_peers_read_the_prompts_that_we_read():
    """Date and thinking are the profile's, edges are trimmed as the template trims them."""
    profile = Profile(direct=Template("Embed.", "It is {embed_token}"), thinking=False, date="2020-05-01")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = LLAMA.replace("m['content']", "m['content'] | trim").replace(
        "assistant\n", "assistant\n<think>\n"
    )
    checkpoint = Checkpoint(build_model(), tokenizer, profile, "tests/dated")
    texts = [" the query\n", "the document"]
    found = [tokenizer(text).input_ids for text in bench_peers.prompt_texts(checkpoint, texts)]
    assert found == [row.token_ids for row in Renderer(tokenizer, profile, 900).render_batch(texts, "direct")]
    messages = [{"role": "system", "content": "Embed."}, {"role": "user", "content": texts[1]}]
    plain = (
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + "It is <|embed_token|>"
    )
    assert tokenizer(plain).input_ids != found[1], "control: today's date, and a block that is open"


def test_the_peers_count_positions_as_the_architecture_does():
    causal = tiny_causal("roberta")
    checkpoint = Checkpoint(causal, build_tokenizer(), Profile(), "tests/roberta")
    rows = [[5, 6, 7, 8, 9], [10, 11, 12]]
    wanted = torch.stack([own_forward(causal, causal.base_model, row)[0][-1] for row in rows])
    torch.testing.assert_close(bench_peers.read(checkpoint, rows), wanted, atol=1e-4, rtol=1e-4)
    plain = causal.base_model(input_ids=torch.tensor(rows[:1]), position_ids=torch.arange(5)[None]).last_hidden_state
    assert not torch.allclose(plain[:, -1], wanted[:1], atol=1e-2), "control"


# ---- a real model ----------------------------------------------------------------------------------------------------


def of_half(case, cosine):
    """A case of half precision whose vectors have this cosine."""
    angle = np.array([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]])
    return replace(case, ours=lambda: angle[:1], theirs=lambda: 3 * angle[1:])


def test_half_precision_is_compared_by_the_direction_of_vectors():
    near = replace(of_half(case(), 0.9995), half=True)
    assert near.check(near.ours(), near.theirs()) == pytest.approx(5e-4)
    far = replace(of_half(case(), 0.99), half=True)
    with pytest.raises(ValueError, match="this is not the same work"):
        far.check(far.ours(), far.theirs())
    full = replace(near, half=False)
    with pytest.raises(ValueError, match="this is not the same work"):
        full.check(full.ours(), full.theirs())  # control: in float32 the same vectors are refused


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_is_measured_in_the_type_that_is_named(dtype):
    subject = Subject.of(RealModel("nano", dtype, longest=16, rounds=2))
    assert (subject.size, subject.scale, subject.half) == (f"nano {dtype}", "nano", dtype == "bfloat16")
    one = next(cases("reason", subject, quick=True))
    assert module.measure(one)["case"] == f"reason nano {dtype} batch 1"
    _, ids = one.ours()
    assert max(map(len, ids)) <= 16 + 1, "the longest reasoning that was asked for, and the embed token"
    assert one.half == subject.half
    assert next(cases("reason", subject, quick=False)).rounds == 2
    peer = subject.peer
    assert {parameter.dtype for parameter in peer.parameters()} == {subject.checkpoint.model.dtype}


def test_the_benchmark_of_a_checkpoint_has_its_name(monkeypatch):
    monkeypatch.setattr(module, "cases", lambda kind, subject, quick: iter([replace(case(), case=subject.size)]))
    records = module.bench(["reason"], real=RealModel("nano", "bfloat16"))
    assert [record["case"] for record in records] == ["nano bfloat16"]
    monkeypatch.setattr(module, "SIZES", ("nano",))
    assert [record["case"] for record in module.bench(["reason"])] == ["nano"], "control: the sizes"


def test_a_checkpoints_own_penalties_are_not_the_peers():
    """Qwen2.5-Instruct's generation_config.json has a repetition penalty: the peer said other words than we did."""
    subject = Subject.of(RealModel("nano", longest=24))
    own = subject.checkpoint.model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size = 3.0, 2
    prompts = subject.prompts(4)
    _, ours = together(subject, prompts, [20] * 4, 4)
    _, theirs = bench_peers.two_passes(subject.checkpoint, prompts, [20] * 4, 4)
    assert ours == theirs
    assert subject.checkpoint.model.generation_config is own


def test_vllm_reads_a_lora_folder_merged(tmp_path, monkeypatch):
    """It was given the adapter's own folder, which has no config.json, and ended after minutes of other cases."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    base = Subject.of(RealModel("nano")).checkpoint
    save(base, tmp_path / "base")
    model = get_peft_model(
        load(tmp_path / "base").model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    )
    save(replace(base, model=model), tmp_path / "lora")
    subject = Subject.of(RealModel(str(tmp_path / "lora"), vllm=Path(sys.executable)))

    def peer(python, folder, *rest, **named):
        whole = load(folder).model
        ids = torch.arange(4, 20)[None]
        assert torch.allclose(whole(ids).logits, subject.checkpoint.model(ids).logits, atol=1e-4)
        assert len(AutoTokenizer.from_pretrained(folder)) == len(subject.checkpoint.tokenizer)
        raise ZeroDivisionError

    monkeypatch.setattr(bench_cases, "VllmPeer", peer)
    for kind in ("reason", "encode"):
        with pytest.raises(ZeroDivisionError), torch.no_grad():
            list(cases(kind, subject, quick=True))


def test_a_kind_that_is_named_twice_is_measured_once(monkeypatch):
    monkeypatch.setattr(module, "cases", lambda kind, subject, quick: iter([replace(case(), case=kind)]))
    records = module.bench(["reason", "encode", "reason"], real=RealModel("nano"))
    assert [record["case"] for record in records] == ["reason", "encode"]


def test_sizes_of_work():
    assert [nearest_size(count) for count in (700_000, 30_000_000, 135_000_000, 7_000_000_000)] == [
        "nano", "30m", "120m", "120m"
    ]  # fmt: skip


def test_a_model_that_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match="4 reasoning tokens and 3 rounds"):
        RealModel("nano", longest=4)
    with pytest.raises(ValueError, match="marks none as the start of a word"):
        whole_words(build_tokenizer_without_words())
    small = Subject.of(RealModel("nano"))
    small.checkpoint.model.config.max_position_embeddings = 400
    with pytest.raises(ValueError, match="reads 400 tokens: too few to compare a long context with one of 256"):
        next(cases("context", small, quick=False))


def build_tokenizer_without_words():
    class Bytes:
        def get_vocab(self):
            return {"a": 0, "bc": 1, "Ġ12": 2, "Ġé": 3}

    return Bytes()


def test_rows_take_the_steps_that_are_timed():
    subject = Subject("nano")
    stepping = Stepping(subject, 40, 6, most=9)
    before = subject.checkpoint.model.training
    assert stepping(3).tolist() == [[3]] * 6
    assert stepping(2).tolist() == [[2]] * 6
    contexts = stepping._run.slots.positions[:6].tolist()
    assert sorted(contexts) == [40 - 8 + 5] * 3 + [40 + 5] * 3
    assert subject.checkpoint.model.training == before
    one = next(cases("context", subject, quick=True))
    assert one.case == "context nano batch 16, 32 to 256 tokens"
    assert module.measure(one)["unit"] == "tokens/s"


def test_a_python_without_vllm_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        module.bench(["reason"], real=RealModel("nano", vllm=tmp_path / "python"))
    plain = tmp_path / "plain"
    plain.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    plain.chmod(0o700)
    with pytest.raises(ValueError, match="this Python has no vLLM"):
        module.bench(["reason"], real=RealModel("nano", vllm=plain))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_peer_that_stands_still_ends_with_a_killed_benchmark():
    """It is a session of its own, so that nothing else would ever wake it."""
    child = "import os, signal; from search_r3_mteb.evaluation.bench_vllm import end_with_parent; "
    child += "end_with_parent(); print('up', flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
    program = f"""if True:
        import os, signal, subprocess, sys
        from pathlib import Path
        peer = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True)
        peer.stdout.readline()
        while Path(f"/proc/{{peer.pid}}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            pass
        print(peer.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip(), done.stderr
    peer = Path("/proc", done.stdout.strip(), "stat")
    for _ in range(3000):
        try:
            if peer.read_text().rpartition(")")[2].split()[0] in "ZX":
                return
        except OSError:  # it is gone, also between opening and reading
            return
        time.sleep(0.02)
    os.kill(int(done.stdout), signal.SIGKILL)
    raise AssertionError("the peer still stands still")


def test_options_of_a_model_need_one(call):
    code, _, err = call("bench", "context", "--dtype", "bfloat16")
    assert code == 2
    assert "Name a model too" in err
    code, out, _ = call("bench", "context", "--quick", "--model", "nano", "--dtype", "float32", "--json")
    assert code == 0
    assert [row["case"] for row in json.loads(out)] == ["context nano float32 batch 16, 32 to 256 tokens"]
