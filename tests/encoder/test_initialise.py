"""`search-r3 init`: any ordinary causal LM becomes a checkpoint that encodes at once and that training takes."""

import json
import shutil

import numpy as np
import pytest
import torch

from search_r3_mteb import SearchR3Encoder, atomic
from search_r3_mteb.encoder import initialise as module
from search_r3_mteb.encoder.checkpoints import load
from search_r3_mteb.encoder.initialise import RECORD_FILE, initialise
from search_r3_mteb.encoder.profiles import PLAIN, PROFILE_FILE, Profile
from tests.conftest import CHAT_TEMPLATE, build_model, build_tokenizer
from tests.encoder.test_chat_templates import GEMMA, LLAMA, QWEN3, R1

USED = len(build_tokenizer(False))


def make_base(folder, kind="qwen2", template=CHAT_TEMPLATE, **shape):
    """An ordinary causal LM: it has no embed token and no profile."""
    build_model(kind, **shape).save_pretrained(folder)
    tokenizer = build_tokenizer(with_embed_token=False)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("bases") / "base")


# ---- the checkpoint ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("qwen2", {}),
        pytest.param("qwen2", {"vocab_size": USED}, marks=pytest.mark.slow),
        ("llama", {"tie_word_embeddings": False}),
        pytest.param("llama", {"tie_word_embeddings": False, "vocab_size": USED}, marks=pytest.mark.slow),
        ("gpt2", {}),
    ],
    ids=["tied, padded", "tied, full", "untied, padded", "untied, full", "another architecture"],
)
def test_it_encodes_at_once_and_nothing_but_the_token_has_changed(tmp_path, kind, shape):
    source = make_base(tmp_path / "base", kind, **shape)
    done = initialise(source, tmp_path / "out")
    rows = shape.get("vocab_size", 384)
    assert (done.token_id, done.row, done.rows, done.used) == (USED, "free" if rows > USED else "new", rows, USED)
    assert done.tied == shape.get("tie_word_embeddings", True)
    before, after = build_model(kind, **shape), load(tmp_path / "out")
    assert after.embed_token_id == done.token_id
    assert after.model.get_input_embeddings().weight.shape[0] == max(rows, USED + 1)
    for name, tensor in before.state_dict().items():
        kept = after.model.state_dict()[name][: len(tensor)].clone()
        if tensor.ndim == 2 and tensor.shape[0] == rows and rows > USED:
            tensor = tensor.clone()
            assert not torch.equal(kept[USED], tensor[USED])
            kept[USED] = tensor[USED]
        assert torch.equal(kept, tensor), name
    for matrix in (after.model.get_input_embeddings(), after.model.get_output_embeddings()):
        torch.testing.assert_close(matrix.weight[USED], matrix.weight[:USED].mean(dim=0))
    encoder = SearchR3Encoder(tmp_path / "out", max_reasoning_tokens=4)
    vectors = np.concatenate([encoder.encode_document(["a", "b"]), encoder.encode_query(["a"])])
    assert vectors.shape == (3, done.dim) == (3, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_two_times_give_one_fingerprint(base, tmp_path):
    """An earlier result is replaced, and nothing in it is random."""
    prints = []
    for _ in range(2):
        initialise(base, tmp_path / "out")
        prints.append(load(tmp_path / "out").fingerprint())
    assert prints[0] == prints[1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_options_reach_the_checkpoint(base, tmp_path):
    done = initialise(base, tmp_path / "out", embed_token="<embed>", dtype="bfloat16")
    loaded = load(tmp_path / "out")
    assert loaded.profile.embed_token == "<embed>"
    assert loaded.tokenizer.convert_tokens_to_ids("<embed>") == done.token_id
    assert loaded.model.dtype == torch.bfloat16
    assert done.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("template", "decided"),
    [
        pytest.param(CHAT_TEMPLATE, {}, marks=pytest.mark.slow),
        pytest.param(GEMMA, {}, marks=pytest.mark.slow),
        (LLAMA, {"date": "2025-10-08"}),
        (QWEN3, {"thinking": False}),
        pytest.param(R1, {"thinking": False}, marks=pytest.mark.slow),
        (None, {"plain": PLAIN}),
    ],
    ids=["chatml", "gemma", "llama", "qwen3", "r1", "none"],
)
def test_what_the_template_leaves_open_is_written_down(tmp_path, template, decided):
    initialise(make_base(tmp_path / "base", template=template), tmp_path / "out")
    written = json.loads((tmp_path / "out" / PROFILE_FILE).read_text(encoding="utf-8"))
    assert written == Profile.default().to_dict() | decided
    assert json.loads((tmp_path / "out" / RECORD_FILE).read_text())["row"] == "free"


def test_a_base_that_has_the_token_keeps_its_row(tmp_path):
    build_model().save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    done = initialise(tmp_path / "base", tmp_path / "out")
    assert done.row == "known"
    assert torch.equal(
        load(tmp_path / "out").model.get_input_embeddings().weight, build_model().get_input_embeddings().weight
    )
    assert "whether the base says <|embed_token|> under them is not known" in " ".join(done.next_steps())
    assert "untrained" not in " ".join(done.next_steps())


# ---- refusals, and what is left behind -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (" ", "is empty or begins or ends with white space"),
        ("<e> ", "is empty or begins or ends with white space"),
        ("the", "is an ordinary word of this vocabulary"),
        ("<|im_end|>", "is this tokenizer's eos_token, so it has another task"),
        ("<|im_start|>", "stands in the chat template, so it has another task"),
    ],
)
def test_a_token_that_cannot_be_the_embed_token_is_refused(base, tmp_path, token, message):
    with pytest.raises(ValueError, match=message):
        initialise(base, tmp_path / "out", embed_token=token)
    assert not list(tmp_path.iterdir())


def test_other_folders_are_never_replaced(base, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all I have")
    with pytest.raises(ValueError, match=r"exists and was not written by `search-r3 init`"):
        initialise(base, tmp_path / "mine")
    copied = shutil.copytree(base, tmp_path / "parent" / "base")
    for output in (copied, copied.parent):
        with pytest.raises(ValueError, match="holds the base base, which would be replaced"):
            initialise(copied, output)
    with pytest.raises(ValueError, match="is a file; name a folder"):
        initialise(base, tmp_path / "mine" / "thesis.txt")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all I have"
    assert (copied / "config.json").exists()
    (tmp_path / "empty").mkdir()
    initialise(base, tmp_path / "empty")


def test_an_output_that_is_a_link_stays_one(base, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "model")  # which is not there yet
    for _ in range(2):
        initialise(base, tmp_path / "out")
        assert (tmp_path / "out").is_symlink()
        assert load(tmp_path / "disk" / "model").fingerprint() == load(tmp_path / "out").fingerprint()
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]
    # A kill between the two renames of the replacement, seen through the link.
    (tmp_path / "disk" / "model").rename(tmp_path / "disk" / ".model.123abc.replaced")
    assert load(tmp_path / "out").embed_token_id == USED
    assert (tmp_path / "disk" / "model").is_dir()
    atomic.removed_folder(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert not any((tmp_path / "disk").iterdir())


def test_what_is_no_ordinary_model_is_refused(base, tmp_path, monkeypatch):
    initialise(base, tmp_path / "out")
    with pytest.raises(ValueError, match=r"out has a search_r3.json: it is a reason-then-embed checkpoint already"):
        initialise(tmp_path / "out", tmp_path / "again")
    with pytest.raises(ValueError, match=r"nano has a search_r3\.json"):
        initialise("nano", tmp_path / "again")
    with pytest.raises(FileNotFoundError, match=r"There is no model './nowhere'"):
        initialise("./nowhere", tmp_path / "again")
    with pytest.raises(ValueError, match="dtype='int8' is not supported"):
        initialise(base, tmp_path / "again", dtype="int8")
    adapter = shutil.copytree(base, tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="adapter is a LoRA adapter; a whole model is needed"):
        initialise(adapter, tmp_path / "again")
    twice = make_base(tmp_path / "twice", template=CHAT_TEMPLATE + CHAT_TEMPLATE)
    with monkeypatch.context() as patch:
        patch.setattr(module.checkpoints, "load_model", None)
        with pytest.raises(ValueError, match="shows the user's text 2 times"):  # before gigabytes are read
            initialise(twice, tmp_path / "again")
    short = make_base(tmp_path / "short", max_position_embeddings=100)
    with pytest.raises(ValueError, match="leaves no room for text"):
        initialise(short, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_result_that_does_not_embed_is_not_written(base, tmp_path, monkeypatch):
    """The folder is read again before it takes its place; the earlier result stays."""
    initialise(base, tmp_path / "out")
    earlier = load(tmp_path / "out").fingerprint()
    save = module.checkpoints.save

    def broken(checkpoint, folder):
        with torch.no_grad():
            checkpoint.model.get_input_embeddings().weight[checkpoint.embed_token_id] = float("nan")
        return save(checkpoint, folder)

    monkeypatch.setattr(module.checkpoints, "save", broken)
    with pytest.raises(ValueError, match=r"does not embed|finite|NaN|nan"):
        initialise(base, tmp_path / "out")
    assert load(tmp_path / "out").fingerprint() == earlier
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_folder_is_whole_or_absent(base, tmp_path, monkeypatch):
    """Killed before the rename, nothing stands in its place, and the next start cleans up."""
    monkeypatch.setattr(atomic, "flush", lambda folder: (_ for _ in ()).throw(SystemExit(9)))
    with pytest.raises(SystemExit):
        initialise(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    initialise(base, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
