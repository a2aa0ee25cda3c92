"""The dry run: from config.json alone, and with what is there read as training reads it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Qwen2Config

from results.qwen import SHAPES
from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.encoder.model_names import ASSETS
from search_r3_mteb.encoder.profiles import Profile
from tests.conftest import build_model, without_manifest
from tests.train.loops import LORA, RL, SFT, byte_folder, rl_config, sft_config
from train import rl, sft
from train.plan.base import planned_model
from train.plan.dry_run import DryRun, describe, how_to_prepare
from train.plan.work import Machine

CONFIGS = Path(__file__).parents[3] / "train" / "configs"
PUBLISHED = {"qwen2.5-1.5b": 1_543_714_304, "qwen2.5-7b": 7_615_616_512}  # the models' safetensors, on the hub


def qwen(name):
    return Qwen2Config(**SHAPES[name])


@pytest.fixture
def offline(monkeypatch):
    """No hub, without waiting for a name that cannot be resolved."""
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def only_bases(tmp_path, monkeypatch, offline):
    """A directory that holds nothing but the config.json of each base."""
    monkeypatch.chdir(tmp_path)
    for name in SHAPES:
        qwen(name).save_pretrained(name)
    for place in ("runs/mini/start", "runs/own/start"):
        Path(place).mkdir(parents=True)
        (Path(place) / "config.json").write_bytes((ASSETS / "mini" / "config.json").read_bytes())
    return tmp_path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_described_where_only_the_base_s_config_is(path, only_bases, capsys):
    before = sorted(only_bases.rglob("*"))
    stage = rl if "rl" in path.stem.split("_") else sft
    stage.main(["--config", str(path), "--dry-run", "--gpus", "8"])
    shown = capsys.readouterr().out
    for part in ("parameters: ", "memory estimate per device in ", "tokens per step", "time estimate: "):
        assert f"# {part}" in shown
    assert ("# corpus cache: " in shown) == (stage is rl)
    for name, count in PUBLISHED.items():
        if path.stem.endswith(name):
            trained = count if name == "qwen2.5-1.5b" else 80_747_520  # rank 32, and the token's two rows
            total = count if name == "qwen2.5-1.5b" else count + trained
            assert f"# parameters: {total:,}, trainable: {trained:,}" in shown
    assert sorted(only_bases.rglob("*")) == before, "nothing is written"


def test_a_hub_id_is_found_in_the_hub_s_cache_or_the_message_says_what_to_download(tmp_path, monkeypatch, offline):
    import huggingface_hub.constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    name = "Qwen/Qwen2.5-1.5B-Instruct"
    config = sft_config(tmp_path / "run", model=name)
    with pytest.raises(FileNotFoundError) as missing:
        planned_model(config.model)
    for part in (f"hf download {name} config.json", f"huggingface.co/{name}/resolve/main/config.json", "--base BASE"):
        assert part in str(missing.value)
    cached = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    qwen(name).save_pretrained(cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    assert planned_model(config.model).folder == cached / "snapshots" / "abc"
    qwen(name).save_pretrained(tmp_path / "copied")
    for base in ("copied", "copied/config.json"):
        assert planned_model(config.model, base=base).folder == Path("copied")


def test_the_sizes_are_those_of_the_model_that_training_loads(tmp_path):
    from train.model import model as models

    for number, more in enumerate([[], LORA, [*LORA, "model.lora.train_embed_token=true"]]):
        folder = byte_folder(tmp_path / f"base-{number}", kind="llama", tie_word_embeddings=False)
        config = sft_config(tmp_path / "run", *more, model=folder)
        planned, loaded = planned_model(config.model).model, models.prepare(config.model, seed=0).model
        count = lambda model: [(n, p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()]  # noqa: E731
        assert count(planned) == count(loaded)
        assert all(parameter.is_meta for parameter in planned.parameters())


def test_stage_two_s_base_is_that_of_the_stage_one_that_comes_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_model().config.save_pretrained("base")
    text = SFT.replace("[model.scratch]", '[model]\npath = "base"\n[model.lora]\nrank = 4\n[x]')
    text = text[: text.index("[x]")] + "[data]" + text.split("[data]", 1)[1]
    Path("one.toml").write_text(text.replace("[output]", '[output]\nfolder = "runs/one"'))
    planned = planned_model(rl_config(tmp_path / "two", "runs/one/last").model, Path("one.toml").absolute())
    assert planned.steps[0] == "runs/one/last is not there yet: it is what stage 1 of one.toml will write"
    assert planned.folder == Path("base")
    with pytest.raises(FileNotFoundError, match=r"There is no model 'runs/other/last'.*--base"):
        planned_model(rl_config(tmp_path / "two", "runs/other/last").model, Path("one.toml").absolute())


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f'[[data.sources]]\nkind = "jsonl"\npath = "{path}"\n'


def test_a_file_without_positives_fails_in_the_dry_run_and_at_the_start(tmp_path, monkeypatch):
    from train.model import model as models

    rows = [{"query": f"text {i}", "positive": f"answer {i}"} for i in range(5)]
    sources = jsonl(tmp_path / "rows.jsonl", *rows, {"query": "alone"})
    config = sft_config(tmp_path / "run", model=byte_folder(tmp_path / "base"), sources=sources)
    with pytest.raises(ValueError, match=r"rows.jsonl, line 6: there is no 'positive'"):
        describe(config)
    with pytest.raises(ValueError, match=r"rows.jsonl, line 6: there is no 'positive'"):
        sft.train(config)
    assert not (tmp_path / "run").exists()
    sound = sft_config(tmp_path / "run", "data.on_bad_row=skip", model=tmp_path / "base", sources=sources)
    describe(sound)
    empty = jsonl(tmp_path / "rows.jsonl", {"query": "alone"})
    with pytest.raises(ValueError, match="none of its rows can be trained on"):
        describe(sft_config(tmp_path / "run", "data.on_bad_row=skip", model=tmp_path / "base", sources=empty))
    assert models.adapter_start(config.model, tmp_path / "base") is None


def test_a_public_set_that_is_not_here_comes_with_the_command_that_makes_it(tmp_path):
    assert how_to_prepare(Path("data/msmarco").absolute()) == "; python -m train.prepare msmarco makes it"
    rows = how_to_prepare(tmp_path / "miracl" / "rows.jsonl")
    assert rows == f"; python -m train.prepare miracl --output {tmp_path} makes it"
    assert not how_to_prepare(tmp_path / "rows.jsonl")
    assert not how_to_prepare(tmp_path / "own")


def test_what_a_processor_would_refuse_is_said_before_anything_is_rented(only_bases, capsys):
    rl.main(["--config", str(CONFIGS / "rl_qwen2.5-1.5b.toml"), "--dry-run"])
    shown = capsys.readouterr().out
    assert (
        "# without a GPU, if the corpus has the assumed size, this run would be refused at its start: 1,000,000"
        in shown
    )
    assert "python -m train.prepare hotpotqa makes it" in shown
    rl.main(["--config", str(CONFIGS / "rl_nano.toml"), "--dry-run"])
    assert "without a GPU" not in capsys.readouterr().out, "the control: 2,000 documents"


def test_what_is_not_here_is_named_and_the_rest_is_described(tmp_path, capsys, offline):
    sources = jsonl(tmp_path / "rows.jsonl", {"query": "text", "positive": ["one", "two"], "negatives": ["three"]})
    sources += f'[[data.sources]]\nkind = "beir"\npath = "{tmp_path}/away"\n'
    sources += '[[data.sources]]\nkind = "hub"\npath = "some/dataset"\n'
    config = sft_config(tmp_path / "run", model=byte_folder(tmp_path / "base"), sources=sources)
    describe(config)
    shown = capsys.readouterr().out
    assert "# source rows.jsonl: 1 of 1 rows read; on average 2.0 relevant documents and 1.0 negatives" in shown
    assert f"# not here: source away: {tmp_path}/away" in shown
    assert "# not here: source dataset: the dataset some/dataset of the hub (no network)" in shown
    with pytest.raises(FileNotFoundError, match="away"):
        sft.train(config)


def test_lengths_are_measured_where_the_tokenizer_is_here(tmp_path, capsys):
    sources = jsonl(tmp_path / "rows.jsonl", *({"query": "a", "positive": "b" * 40} for _ in range(3)))
    folder = byte_folder(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    describe(sft_config(tmp_path / "run", model=folder, sources=sources))
    assert "(measured on the first rows)" in capsys.readouterr().out
    (folder / "tokenizer.json").unlink()
    describe(sft_config(tmp_path / "run", model=folder, sources=sources))
    assert "(at most: every text fills max_length)" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_too_small_a_max_length_fails_at_the_start(tmp_path, stage):
    folder = byte_folder(tmp_path / "base")
    make = sft_config if stage == "sft" else rl_config
    given = {"model": folder} if stage == "sft" else {}
    arguments = [] if stage == "sft" else [folder]
    config = make(tmp_path / "run", *arguments, "data.max_length=4", **given)
    train = sft.train if stage == "sft" else rl.train
    for run in (describe, train):
        with pytest.raises(ValueError, match=r"data.max_length=4 leaves no room for text") as error:
            run(config)
    assert not (tmp_path / "run").exists()
    needed = int(re.search(r"Set max_length to more than (\d+)", str(error.value))[1])
    assert "'reason' template" in str(error.value), "the larger of the two"
    describe(make(tmp_path / "run", *arguments, f"data.max_length={needed + 1}", **given))


@pytest.mark.parametrize(("room", "warned"), [(31, True), (32, False)])
def test_little_room_for_text_is_warned_of(tmp_path, capsys, room, warned):
    from tests.train.loops import events

    def config(length, *overrides):
        return sft_config(tmp_path / "run", f"data.max_length={length}", *overrides, model=byte_folder(tmp_path / "b"))

    with pytest.raises(ValueError, match="no room") as error:
        describe(config(4))
    needed = int(re.search(r"Set max_length to more than (\d+)", str(error.value))[1])
    said = f"data.max_length = {needed + room} leaves {room} tokens for the text: the larger prompt takes {needed}"
    describe(config(needed + room))
    assert (f"# warning: {said}" in capsys.readouterr().out) == warned
    sft.train(config(needed + room, "optimization.steps=1"))
    assert any(said in event["text"] for event in events(tmp_path / "run", "warning")) == warned


@pytest.mark.parametrize("named", [False, True])
def test_the_prompts_are_the_adapter_s_and_not_its_base_s(tmp_path, capsys, named):
    base, adapter = byte_folder(tmp_path / "base"), tmp_path / "first" / "last"
    sft.train(sft_config(tmp_path / "first", "optimization.steps=1", *LORA, model=base))
    profile = Profile.load(without_manifest(adapter))
    replace(profile, reason=replace(profile.reason, system="Say what a document says.")).save(adapter)
    room = renderer_of(adapter, 64).check_room("direct", "reason")
    assert room < 32 <= renderer_of(base, 64).check_room("direct", "reason"), "the base's prompts warn of nothing"
    capsys.readouterr()
    describe(
        sft_config(tmp_path / "run", "data.max_length=64", *LORA, model=adapter),
        DryRun(base=str(base) if named else None),
    )
    assert f"data.max_length = 64 leaves {room} tokens for the text" in capsys.readouterr().out


def renderer_of(folder, max_length):
    return SearchR3Encoder(folder, dtype="float32", max_length=max_length).renderer


def test_a_reasoning_beyond_the_window_fails_at_the_start(tmp_path):
    folder = byte_folder(tmp_path / "base", max_position_embeddings=100)
    with pytest.raises(ValueError, match=r"was made for 100"):
        rl.train(rl_config(tmp_path / "run", folder, "rollout.max_reasoning_tokens=64"))
    assert not (tmp_path / "run").exists()


def test_unused_negatives_and_missing_traces_are_warned_of(tmp_path, capsys):
    from tests.train.loops import events

    rows = [{"query": f"text {i}", "positive": f"answer {i}", "negatives": [f"no {i}"]} for i in range(8)]
    sources = jsonl(tmp_path / "rows.jsonl", *rows)
    folder = byte_folder(tmp_path / "base")
    wanted = ["loss.hard_negatives=true", "optimization.steps=1"]
    config = sft_config(tmp_path / "run", *wanted, model=folder, sources=sources)
    describe(config)
    shown = capsys.readouterr().out
    assert (
        "# warning: rows.jsonl: 8 of the first 8 rows have negatives of their own, and data.hard_negatives = 0" in shown
    )
    assert "# warning: none of the first rows has a reasoning trace" in shown
    sft.train(config)
    said = [event["text"] for event in events(tmp_path / "run", "warning")]
    assert ["hard_negatives = 0" in text for text in said] == [True, False]
    for row in rows:
        row["reasoning"] = "thought"
    jsonl(tmp_path / "rows.jsonl", *rows)
    sft.train(sft_config(tmp_path / "used", *wanted, "data.hard_negatives=1", model=folder, sources=sources))
    assert events(tmp_path / "used", "warning") == []


def test_a_corpus_that_is_here_is_counted(tmp_path, capsys):
    sources = jsonl(tmp_path / "rows.jsonl", {"query": "text", "positive": ["one", "two"]})
    from train.stage2.corpus import SearchedCorpus

    config = rl_config(tmp_path / "run", byte_folder(tmp_path / "base"), sources=sources)
    describe(config, corpus=SearchedCorpus)
    assert "# corpus cache: 2 documents of " in capsys.readouterr().out
    describe(rl_config(tmp_path / "run", tmp_path / "base"))
    assert "# corpus cache: 500 documents of " in capsys.readouterr().out


def test_rows_are_looked_up_in_the_corpus_that_is_named(tmp_path, capsys):
    """As the run does it: by text where a row has no id, and a refusal that names file, row and text."""
    from search_r3_mteb.tasks.beir_folder import write_beir
    from train.stage2.corpus import SearchedCorpus

    write_beir(tmp_path / "beir", corpus=[("1", "", "one"), ("2", "", "two")], queries=[], qrels={})
    corpus = f'[[data.corpus]]\nkind = "beir"\npath = "{tmp_path / "beir"}"\n'
    sources = jsonl(tmp_path / "rows.jsonl", {"query": "q", "positive": "one"}) + corpus
    config = rl_config(tmp_path / "run", byte_folder(tmp_path / "base"), sources=sources)
    describe(config, corpus=SearchedCorpus)
    assert "# corpus cache: 2 documents of " in capsys.readouterr().out
    jsonl(tmp_path / "rows.jsonl", {"query": "q", "positive": "one"}, {"query": "r", "positive": "three"})
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: no document of the searched corpus .* is 'three'"):
        describe(config, corpus=SearchedCorpus)
    (tmp_path / "rows.jsonl").unlink()
    describe(config, corpus=SearchedCorpus)
    assert "# not here: source rows.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["1.5b", "7b"])
def test_the_comments_of_the_large_configurations_are_the_estimate_s(name, only_bases, capsys):
    """Regression: they had forgotten the cache's float32 originals, and the logits were those of whole rows."""
    path = CONFIGS / f"rl_qwen2.5-{name}.toml"
    rl.main(["--config", str(path), "--dry-run", "--gpus", "8"])
    shown = capsys.readouterr().out
    comment = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    per_document = re.search(r"documents \(assumed\) of ([\d,]+) bytes: host memory ([\d.]+) GiB", shown)
    assert f"{per_document[1]} bytes per document" in comment
    assert f"{float(per_document[2]):.1f} GiB per million" in comment
    memory = next(line for line in shown.splitlines() if line.startswith("# memory estimate"))
    parts = dict(re.findall(r"(weights|activations|head|rollouts|total) ([\d.]+)", memory))
    for part, before in (("weights", "weights "), ("activations", "gradient checkpointing "), ("head", "positions ")):
        assert f"{before}{float(parts[part]):.1f}" in comment, part
    assert f"65,536 tokens {float(parts['rollouts']):.1f}" in comment
    assert f"About {float(parts['total']):.0f}" in comment


@pytest.mark.parametrize(
    "wrong",
    [{"hidden_size": "big"}, {"vocab_size": -1}, {"num_attention_heads": 0}, {"num_hidden_layers": -1}, {"dtype": 7}],
    ids=lambda wrong: next(iter(wrong)),
)
@pytest.mark.parametrize("stage", [sft, rl], ids=["sft", "rl"])
def test_wrong_values_of_a_base_s_config_are_one_message(tmp_path, capsys, stage, wrong):
    folder = without_manifest(byte_folder(tmp_path / "base"))
    file = tmp_path / "tiny.toml"
    file.write_text(SFT if stage is sft else RL)
    place = ["--set", f"model.path={folder}"] if stage is rl else ["--base", str(folder)]
    if stage is sft:
        file.write_text(SFT.replace(SFT[: SFT.index("[data]")], f'[model]\npath = "{folder}"\n'))
    stage.main(["--config", str(file), *place, "--dry-run"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | wrong))
    with pytest.raises(SystemExit) as end:
        stage.main(["--config", str(file), *place, "--dry-run"])
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert re.search(rf"^{stage.__name__.split('.')[1]}.py: {folder}.*config.json", shown, re.MULTILINE)
    assert "Traceback" not in shown


def test_rows_that_the_devices_cannot_share_are_refused_in_the_dry_run_and_at_the_start(tmp_path, monkeypatch):
    from train.processes import collectives

    folder = byte_folder(tmp_path / "base")
    replayed = ["replay.rows_per_step=4", 'replay.sources=[{kind="hopworld", documents=500}]']
    cases = [
        (sft_config(tmp_path / "run", "optimization.batch_size=8"), "optimization.batch_size = 8"),
        (rl_config(tmp_path / "run", folder, "rollout.prompts_per_step=4"), "rollout.prompts_per_step = 4"),
        (rl_config(tmp_path / "run", folder, "rollout.prompts_per_step=3", *replayed), "replay.rows_per_step = 4"),
    ]
    for config, said in cases:
        message = f"{said} cannot be shared evenly by 3 processes.*multiple of 3"
        with pytest.raises(ValueError, match=message):
            describe(config, DryRun(machine=Machine(gpus=3)))
        with monkeypatch.context() as group:
            group.setattr(collectives, "world_size", lambda: 3)
            with pytest.raises(ValueError, match=message):
                (sft if "batch_size" in said else rl).train(config)
        assert not (tmp_path / "run").exists()
    describe(cases[0][0], DryRun(machine=Machine(gpus=4)))


def test_rows_that_were_not_read_are_not_warned_of(tmp_path, capsys):
    plain = jsonl(tmp_path / "rows.jsonl", {"query": "text", "positive": "answer"})
    away = f'[[data.sources]]\nkind = "jsonl"\npath = "{tmp_path}/away.jsonl"\n'
    for sources, warned in ((away, False), (plain + away, False), (plain, True)):
        describe(sft_config(tmp_path / "run", sources=sources))
        assert ("none of the first rows has a reasoning trace" in capsys.readouterr().out) == warned
