"""Search-R3 in sentence-transformers: queries reason, documents are embedded directly, with the library's own class.

`export` writes a folder of the library's own modules (Transformer, last-token Pooling, Normalize) around our model
type. There are three ways to load it:

    from search_r3_mteb import SentenceTransformer         # the library's own class; this import registers the type
    search_r3_mteb.register()                              # for code that imports the library itself
    SentenceTransformer(folder, trust_remote_code=True)    # anywhere, through modeling_search_r3.py in the folder

`encode_query` reasons, within `max_reasoning_tokens` of the call or else of the folder; `encode_document` and plain
`encode` are direct, and the latter says so once. Libraries that call plain `encode` for queries, too, lose the
reasoning unless they pass `prompt_name="query"`, `task="query"` or the prompt itself, `model.prompts["query"]`: see
`ROLES` below, and results/serving/wrappers.md for what each library passes. Any other `prompt` is the profile's
instruction before the text; after `model.prompts["query"]` may stand one, too.
`SentenceTransformer(folder, config_kwargs={"max_reasoning_tokens": 64})` changes the folder's budget. With an anchor,
the direct prompt of a text that is cut holds what its reasoning prompt has kept. Training: see
`transformers_model`.

In MTEB, a SentenceTransformer gets its own `prompts`, never the task's: for the score of `SearchR3Encoder` on a task
with a prompt, give `prompts={"query": ...}`. MTEB gives all local folders one name, so pass `cache=None` there.
"""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_r3_mteb.atomic import replaced_folder, write_json, write_text
from search_r3_mteb.encoder.folders import is_export
from search_r3_mteb.extras import how_to_install

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer as SentenceTransformer

    from search_r3_mteb.encoder.checkpoints import Checkpoint
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

# Texts that must have the same ids after an export: markers, white space, unusual characters.
_PROBES = ("", " two  spaces ", "a\nb\t<|im_end|>", "naïve 東京 🙂 Ünï\u200b", "1234567890 don't it's")

# How a folder's queries keep their reasoning, by who calls: `search-r3 export` prints it, and the card begins with it.
ROLES = (
    'Queries: encode_query(texts), or encode(texts, prompt_name="query").',
    "Plain encode(texts) embeds documents: a query that goes through it loses its reasoning.",
)
REMEDIES = (
    ("LangChain", 'HuggingFaceEmbeddings(model_name=FOLDER, query_encode_kwargs={"prompt_name": "query"})'),
    ("LlamaIndex", 'HuggingFaceEmbedding(FOLDER, query_instruction="[search-r3: reason about this query]")'),
    ("Haystack", 'SentenceTransformersTextEmbedder(model=FOLDER, encode_kwargs={"prompt_name": "query"})'),
    ("BEIR", 'SentenceBERT(FOLDER, prompt_names={"query": "query", "passage": "document"})'),
)
_CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, search-r3]
---

# {name}, for sentence-transformers

**{roles}** Where a library calls it for you, tell it so (after `search_r3_mteb.register()`):

{remedies}

Queries reason in text before they are embedded; documents are embedded directly. Needs the package search-r3-mteb
({install}), which has classes of its own for LangChain, LlamaIndex and Haystack that know the difference.

```python
from search_r3_mteb import SentenceTransformer  # sentence-transformers' own class, this model type registered

model = SentenceTransformer("{folder}")
queries = model.encode_query(["..."])  # reasons; max_reasoning_tokens={budget} unless given here
documents = model.encode_document(["..."])
model.similarity(queries, documents)
```

`search_r3_mteb.register()` does the same for code that imports sentence-transformers itself; elsewhere the folder loads
with `SentenceTransformer("{folder}", trust_remote_code=True)`.
"""


def __getattr__(name: str) -> Any:
    """`SentenceTransformer`: sentence-transformers' own class, after `register`."""
    if name != "SentenceTransformer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer


def register() -> None:
    """Register the model type of exported folders with transformers; calling it again is harmless."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    from search_r3_mteb.encoder.folders import EXPORT_TYPE
    from search_r3_mteb.integrations.transformers_model import SearchR3Config, SearchR3Model
    from search_r3_mteb.integrations.transformers_tokenizer import SearchR3Tokenizer

    AutoConfig.register(EXPORT_TYPE, SearchR3Config, exist_ok=True)
    AutoModel.register(SearchR3Config, SearchR3Model, exist_ok=True)
    AutoTokenizer.register(SearchR3Config, tokenizer_class=SearchR3Tokenizer, exist_ok=True)


def export(
    model: "str | Path | Checkpoint | SearchR3Encoder",
    output: str | Path,
    *,
    max_reasoning_tokens: int | None = None,
    max_length: int | None = None,
) -> Path:
    """Write `model` as a sentence-transformers folder; returns the folder.

    `model` is what `SearchR3Encoder` takes, or an encoder, whose settings are kept; a copy of a LoRA checkpoint is
    merged. `max_reasoning_tokens` and `max_length` (tokens) become the folder's defaults. A previous export at `output`
    is replaced, once the new one has given the source's vectors and logits for a few texts, in one step on Linux. Where
    a system or file system cannot exchange two folders, a kill between the two renames leaves the old one complete as
    `.NAME.TAG.replaced`: sentence-transformers finds no folder until `SearchR3Encoder` or the next export of that name
    has put it back. Raises FileExistsError when `output` holds
    anything else, ValueError for an encoder in mode "direct", for a checkpoint that `SearchR3Encoder` refuses, and for
    one whose export is another model than it.
    """
    output = Path(output)
    _check_output(output)
    encoder = _encoder(model, max_reasoning_tokens, max_length)
    from search_r3_mteb.encoder.checkpoints import Checkpoint
    from search_r3_mteb.encoder.comparison import allowed_difference, probe_outputs, probe_prompts, refuse_difference
    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.integrations.transformers_model import SearchR3Model

    in_memory = isinstance(model, Checkpoint | SearchR3Encoder)
    index = encoder.checkpoint.embed_token_id
    prompts = probe_prompts(encoder.tokenizer, index)
    source = probe_outputs(encoder.model, index, prompts)
    allowed = allowed_difference(encoder.model, merged=hasattr(encoder.model, "merge_and_unload"))
    device = encoder.engine.device
    with replaced_folder(output) as folder:
        _write(encoder, folder, output.name, keep_adapter=in_memory)
        del encoder  # a large model is not held twice
        exported = SearchR3Model.from_pretrained(folder).to(device).eval()
        refuse_difference(source, probe_outputs(exported.causal, index, prompts), allowed, f"The export {output.name}")
    return output


def load_library_model(
    folder: Path, *, device: str | None = None, trust_remote_code: bool = False, verify: bool = False
) -> "SentenceTransformer":
    """The model of sentence-transformers in a folder, an export or an ordinary one, once its files were looked at.

    Weights come from safetensors only, and nothing from a hub, which the library would ask for what a folder lacks.
    Raises ValueError and FileNotFoundError, which name the file where one is at fault.
    """
    from search_r3_mteb.encoder.folders import built_from, check_json, check_tokenizer, refuse_pickled_modules
    from search_r3_mteb.encoder.manifest import check_files, deciding_files

    refuse_pickled_modules(folder)
    check_files(folder, verify=verify)
    check_json(folder)
    if (folder / "config.json").exists():
        check_tokenizer(folder)
    if is_export(folder):
        register()
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(
            str(folder.absolute()),
            device=device,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
    except Exception as error:  # missing libraries, newer formats: each library raises errors of its own
        raise ValueError(
            f"{folder.name}: sentence-transformers {version('sentence-transformers')} cannot load this folder: "
            f"{type(error).__name__}: {error}. {built_from(folder, deciding_files(folder))}"
        ) from error


def _check_output(output: Path) -> None:
    """FileExistsError unless `output` is free, empty, or a previous export."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())) or is_export(output):
        return
    raise FileExistsError(
        f"{output} exists and is not a previous export; writing there would destroy what it holds. Choose another "
        "output, or delete it first."
    )


def _encoder(model: Any, max_reasoning_tokens: int | None, max_length: int | None) -> "SearchR3Encoder":
    """An encoder on the CPU, or the given one, with the folder's defaults as its settings."""
    from search_r3_mteb.encoder.checkpoints import Checkpoint
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    given = {"max_reasoning_tokens": max_reasoning_tokens, "max_length": max_length}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if isinstance(model, SearchR3Encoder):
        if model.mode != "reason":
            raise ValueError(
                "This encoder's mode is 'direct', but an exported folder reasons on queries. Export an encoder with "
                "mode='reason'; in the folder, `encode` and `encode_document` embed directly."
            )
        if model.truncate_dim is not None:
            raise ValueError(
                f"This encoder's truncate_dim is {model.truncate_dim}, but an exported folder has whole vectors. Write "
                "one without it, and load the folder with SentenceTransformer(folder, truncate_dim="
                f"{model.truncate_dim})."
            )
        kept = ("max_reasoning_tokens", "temperature", "seed", "max_length")
        settings = {name: model.settings[name] for name in kept} | model.batches | {"anchor": model.anchor}
        return SearchR3Encoder(model.checkpoint, **(settings | chosen))
    # The weights are only written, so they are not loaded onto a device that may lack room for them.
    place: dict[str, Any] = {} if isinstance(model, Checkpoint) else {"device": "cpu"}
    return SearchR3Encoder(model, **(place | chosen))


def _write(encoder: "SearchR3Encoder", folder: Path, name: str, *, keep_adapter: bool) -> None:
    import torch
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    from search_r3_mteb.encoder.manifest import write_manifest
    from search_r3_mteb.encoder.merging import merged
    from search_r3_mteb.encoder.profiles import TEMPLATES
    from search_r3_mteb.integrations.transformers_model import SearchR3Config, SearchR3Model
    from search_r3_mteb.integrations.transformers_tokenizer import SearchR3Tokenizer

    causal = merged(encoder.model, keep=keep_adapter)
    config = SearchR3Config(
        backbone_config=_backbone_config(causal),
        embed_token_id=encoder.checkpoint.embed_token_id,
        stop_token_ids=list(encoder.engine.stop_token_ids),
        max_reasoning_tokens=encoder.settings["max_reasoning_tokens"],
        reasoning_temperature=encoder.settings["temperature"],
        reasoning_seed=encoder.settings["seed"],
        **encoder.batches,
        anchor=encoder.anchor,
        frames=None if encoder.anchor is None else {name: encoder.renderer.frame_ids(name) for name in TEMPLATES},
        hidden_size=encoder.dim,
        tie_word_embeddings=bool(getattr(causal.config, "tie_word_embeddings", False)),
        dtype=causal.dtype,
    )
    with torch.device("meta"):  # no second set of weights, and no new initialisation of the trained ones
        model = SearchR3Model(config)
    model.causal = causal
    model.save_pretrained(folder)
    tokenizer = SearchR3Tokenizer.wrap(encoder.tokenizer, encoder.checkpoint.profile)
    tokenizer.model_max_length = encoder.max_length
    tokenizer.save_pretrained(folder)
    _check_tokenizer(SearchR3Tokenizer.from_pretrained(folder), encoder)
    for module, place in ((Pooling(encoder.dim, pooling_mode="lasttoken"), "1_Pooling"), (Normalize(), "2_Normalize")):
        (folder / place).mkdir()
        module.save(str(folder / place))
    _write_module_files(folder)
    remedies = "\n".join(f"- {who}: `{call.replace('FOLDER', repr(name))}`" for who, call in REMEDIES)
    card = _CARD.format(
        name=encoder.name,
        folder=name,
        budget=config.max_reasoning_tokens,
        roles=" ".join(ROLES),
        remedies=remedies,
        install=how_to_install(),
    )
    write_text(folder / "README.md", card)
    write_manifest(folder)


def _write_module_files(folder: Path) -> None:
    """Write the three files in which sentence-transformers describes a folder's modules."""
    import sentence_transformers
    import torch
    import transformers
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    from search_r3_mteb.integrations.transformers_tokenizer import QUERY_PROMPT

    modules: list[dict[str, Any]] = [
        {"idx": index, "name": str(index), "path": path, "type": f"{kind.__module__}.{kind.__name__}"}
        for index, (path, kind) in enumerate([("", Transformer), ("1_Pooling", Pooling), ("2_Normalize", Normalize)])
    ]
    modules[0]["kwargs"] = ["max_reasoning_tokens"]  # what `encode` passes on to our model's forward
    write_json(folder / "modules.json", modules)
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    transformer = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": text, "message": text | {"format": "flat"}},
        "module_output_name": "token_embeddings",
        # Our tokenizer truncates the user's text only. Restoring the template's end would guess it by comparing
        # renders, and overwrite text where a small vocabulary maps both fillers to one token.
        "processing_kwargs": {"chat_template": {"restore_suffix": False}},
        "unpad_inputs": False,  # the engine wants rows
    }
    write_json(folder / Transformer.config_file_name, transformer)
    versions = {
        "sentence_transformers": sentence_transformers.__version__,
        "transformers": transformers.__version__,
        "pytorch": torch.__version__,
    }
    library = {
        "model_type": "SentenceTransformer",
        "__version__": versions,
        "prompts": {"query": QUERY_PROMPT, "document": ""},  # `encode(texts, prompt_name="query")` reasons, too
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    write_json(folder / "config_sentence_transformers.json", library)


def _backbone_config(causal: Any) -> dict[str, Any]:
    """The causal LM's configuration without this machine's paths; ValueError for one that transformers lacks."""
    from transformers import CONFIG_MAPPING

    config: dict[str, Any] = causal.config.to_dict()
    if config["model_type"] not in CONFIG_MAPPING:
        raise ValueError(
            f"The backbone's model type {config['model_type']!r} has code of its own, which an exported folder cannot "
            "hold. Export a checkpoint whose architecture is part of transformers, or use SearchR3Encoder."
        )
    return {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}


def _check_tokenizer(tokenizer: Any, encoder: "SearchR3Encoder") -> None:
    """ValueError unless the saved tokenizer gives the ids that the encoder gives."""
    renderer = tokenizer.renderer(encoder.max_length)
    texts = [*_PROBES, encoder.checkpoint.profile.embed_token]
    for template in ("reason", "direct"):
        if renderer.render_batch(texts, template) != encoder.renderer.render_batch(texts, template):
            raise ValueError(
                f"{type(encoder.tokenizer).__name__} does not survive saving: the exported folder would give other "
                "token ids than the checkpoint. Save it as tokenizer.json with its own library, and export that."
            )
