"""The released Search-R3 checkpoints as MTEB describes models.

It has the form of a file in mteb/models/model_implementations and can be proposed there as it is. Importing it imports
mteb; `search_r3_mteb.integrations.mteb.register_models` does so when it is called.
"""

from typing import Any

from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction

SEARCH_R3_CITATION = """@misc{gui2025searchr3,
      title={Search-R3: Unifying Reasoning and Embedding Generation in Large Language Models},
      author={Yuntao Gui and James Cheng},
      year={2025},
      eprint={2510.07048},
      archivePrefix={arXiv},
      primaryClass={cs.CL},
      url={https://arxiv.org/abs/2510.07048},
}"""

# Stage-1 data as summaries of the paper name it; no more detailed list is public. Declared so that MTEB does not count
# these tasks as zero-shot. S2ORC and TriviaQA are not MTEB tasks, but other entries name them in the same way.
SEARCH_R3_TRAINING_DATA = {
    "TriviaQA",
    "MSMARCO",
    "CodeSearchNetRetrieval",
    "CosQA",
    "MIRACLRetrieval",
    "S2ORC",
}


def search_r3_loader(
    model_name: str,
    revision: str | None = None,
    device: str | None = None,
    **kwargs: Any,
) -> Any:
    """The encoder, for `ModelMeta.load_model`; `kwargs` are settings of SearchR3Encoder, such as `mode`."""
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    return SearchR3Encoder(model_name, revision=revision, device=device, **kwargs)


_SHARED: dict[str, Any] = {
    "loader": search_r3_loader,
    "model_type": ["dense"],
    "languages": ["eng-Latn"],
    "open_weights": True,
    "release_date": "2025-10-08",  # arXiv v1; the repositories' first commits are not known to us
    "license": "afl-3.0",
    "max_tokens": 32768,
    "similarity_fn_name": ScoringFunction.COSINE,
    "framework": ["PyTorch", "Transformers", "safetensors"],
    "use_instructions": True,
    "training_datasets": SEARCH_R3_TRAINING_DATA,
    "public_training_code": None,
    "public_training_data": None,
    "citation": SEARCH_R3_CITATION,
}

search_r3_0_small = ModelMeta(
    name="ytgui/Search-R3.0-Small",
    revision="6e8f95d30b513363e68081cdb3926c43762da97d",
    n_parameters=1_543_714_304,
    n_embedding_parameters=233_373_696,
    memory_usage_mb=2944,
    embed_dim=1536,
    reference="https://huggingface.co/ytgui/Search-R3.0-Small",
    adapted_from="Qwen/Qwen2.5-1.5B-Instruct",
    **_SHARED,
)

search_r3_0_large = ModelMeta(
    name="ytgui/Search-R3.0-Large",
    revision="main",  # its commits are not known to us: pin one before proposing this entry to MTEB
    n_parameters=7_615_616_512,
    n_embedding_parameters=544_997_376,
    memory_usage_mb=14526,
    embed_dim=3584,
    reference="https://huggingface.co/ytgui/Search-R3.0-Large",
    adapted_from="Qwen/Qwen2.5-7B-Instruct",
    **_SHARED,
)

SEARCH_R3_MODELS = (search_r3_0_small, search_r3_0_large)
