"""Tiny models and a small tokenizer, made here: no test downloads anything."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)
gc.set_threshold(50_000, 50, 50)  # with all libraries loaded, collections at Python's own rate are a tenth of the suite

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|embed_token|>"]
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "search-r3-extension"
VOCABULARY_SIZE = 384  # 256 bytes, the special tokens, some merges, and free rows as real checkpoints have them
COLOURS = ("FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def pytest_configure() -> None:
    """The same run whatever the caller's shell or CI has set: the environment of programs, and hypothesis' examples."""
    from hypothesis import HealthCheck, settings

    for name in (*COLOURS, *LAUNCHERS, "SEARCH_R3_API_KEY"):
        os.environ.pop(name, None)
    os.environ["COLUMNS"] = "80"  # what programs take where there is no terminal
    settings.register_profile(
        "same", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("same")


def build_tokenizer(with_embed_token: bool = True) -> Any:
    """A byte-level BPE tokenizer with ChatML, trained on two lines: about 300 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = SPECIAL_TOKENS if with_embed_token else SPECIAL_TOKENS[:-1]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the query and the document", "system user assistant embedding is"] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    fast.add_special_tokens(
        {"additional_special_tokens": [t for t in special if t not in ("<|im_end|>", "<|endoftext|>")]},
        replace_extra_special_tokens=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(kind: str = "qwen2", seed: int = 0, **overrides: Any) -> Any:
    """A random tiny causal LM of the kind named: 2 layers, width 32, 384 tokens."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,  # large enough that vectors and samples differ visibly
    }
    if kind == "qwen2":
        config: Any = Qwen2Config(**(shape | overrides))
    elif kind == "llama":
        config = LlamaConfig(**(shape | overrides))
    elif kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=4096, initializer_range=0.2
        )
    else:
        raise ValueError(f"no tiny model of kind {kind!r}")
    config.eos_token_id, config.bos_token_id, config.pad_token_id = 2, 0, 0
    return AutoModelForCausalLM.from_config(config).eval()


def save_sentence_transformer(tokenizer: Any, folder: Path, seed: int) -> Path:
    """An ordinary sentence-transformers model in a folder: a BERT of width 32 whose random weights tell texts apart."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    base = folder.with_name(f"{folder.name}-base")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=VOCABULARY_SIZE, initializer_range=0.5, **size)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    module = Transformer(str(base), max_seq_length=64)
    SentenceTransformer(modules=[module, Pooling(32)], device="cpu").save_pretrained(str(folder))
    return folder


def without_manifest(folder: Path) -> Path:
    """A saved folder as other programs leave it: nothing in it says how its files should be."""
    from search_r3_mteb.encoder.manifest import MANIFEST_FILE

    (folder / MANIFEST_FILE).unlink()
    return folder


@pytest.fixture(scope="session", autouse=True)
def remembered_probes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What has passed the probe is remembered in a folder of this run, also by the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEARCH_R3_CACHE", str(tmp_path_factory.mktemp("remembered")))
        yield


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """The small tokenizer; treat it as read-only."""
    return build_tokenizer()


@pytest.fixture
def make_model() -> Callable[..., Any]:
    """`make_model(kind, seed)` gives a random tiny causal LM."""
    return build_model


@pytest.fixture
def tiny_checkpoint(tiny_tokenizer: Any) -> Any:
    """A random Qwen2-shaped checkpoint in memory, fp32."""
    from search_r3_mteb.encoder.checkpoints import Checkpoint
    from search_r3_mteb.encoder.profiles import Profile

    return Checkpoint(model=build_model(), tokenizer=tiny_tokenizer, profile=Profile.default(), name="tests/tiny")


@pytest.fixture
def tiny_folder(tiny_checkpoint: Any, tmp_path: Path) -> Path:
    """The tiny checkpoint saved as a folder."""
    from search_r3_mteb.encoder.checkpoints import save

    folder = tmp_path / "tiny"
    save(tiny_checkpoint, folder)
    return folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """Run one command of `search-r3`; returns (exit code, standard output, standard error)."""
    from search_r3_mteb import cli

    def run(*arguments: Any) -> tuple[Any, str, str]:
        monkeypatch.setattr("sys.argv", ["search-r3"])
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(each) for each in arguments])
        shown = capsys.readouterr()
        return stopped.value.code, shown.out, shown.err

    return run


# ---- packages with extensions ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the example is installed, as `pip install` does it, without a network."""
    folder = tmp_path_factory.mktemp("site")
    command = "pip install --quiet --no-index --no-deps --no-build-isolation --no-compile --disable-pip-version-check"
    subprocess.run(
        [sys.executable, "-m", *command.split(), "--target", str(folder), str(EXAMPLE)], check=True, timeout=300
    )
    return folder


@pytest.fixture
def registries() -> Iterator[None]:
    """What a test registers is gone after it, and its modules with it."""
    from search_r3_mteb import extensions

    before, modules = [dict(registry._registered) for registry in extensions.REGISTRIES], set(sys.modules)
    yield
    for registry, kept in zip(extensions.REGISTRIES, before, strict=True):
        registry._registered.clear()
        registry._registered.update(kept)
    for name in set(sys.modules) - modules:
        if name.startswith(("search_r3_extension", "own_")):
            del sys.modules[name]


@pytest.fixture
def example(target: Path, registries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example package is installed."""
    monkeypatch.syspath_prepend(str(target))


@pytest.fixture
def package(tmp_path: Path, registries: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`package(name, group, entries, code)` installs a package of one module by hand."""

    def make(name: str, group: str, entries: dict[str, str], code: str) -> None:
        folder = tmp_path / f"site-{name}"
        metadata = folder / f"{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "".join(f"{key} = {value}\n" for key, value in entries.items())
        (metadata / "entry_points.txt").write_text(f"[{group}]\n{lines}")
        (folder / f"own_{name}.py").write_text(code)
        monkeypatch.syspath_prepend(str(folder))

    return make
