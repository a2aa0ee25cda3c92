"""A tiny random model of each causal architecture of transformers, from a shrunken default configuration."""

from typing import Any

import torch

ROWS = 384  # of the vocabulary
# Values by the names that configurations use.
_NAMES = {
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_encoder_layers "
    "num_decoder_layers num_experts_per_tok moe_topk num_key_value_heads num_kv_heads linear_num_key_heads "
    "linear_num_value_heads index_n_heads linear_num_heads swa_num_key_value_heads num_blocks top_k depth "
    "num_global_layers vision_layers moe_k index_topk_blocks",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads attention_heads swa_num_attention_heads "
    "n_routed_experts num_experts num_local_experts moe_num_experts mamba_num_heads zero_expert_num rotary_dim "
    "index_topk index_block_size",
    8: "head_dim attention_head_dim d_head dim_head attention_head_size qk_nope_head_dim qk_rope_head_dim v_head_dim "
    "linear_key_head_dim linear_value_head_dim linear_head_dim index_head_dim mamba_d_head mamba_headdim swa_head_dim "
    "mamba_head_dim kv_channels global_head_dim sliding_window sliding_window_size local_attention window_size "
    "attention_window_size attention_chunk_size rel_extent d_rel mamba_d_state state_size ssm_state_size "
    "mamba_chunk_size chunk_size mamba_n_heads query_pre_attn_scalar local_attention_window_len",
    16: "kv_lora_rank q_lora_rank o_lora_rank moe_intermediate_size shared_expert_intermediate_size qk_head_dim "
    "embedding_size input_embedding_size output_embedding_size pronunciation_embed_dim shape_embed_dim image_size "
    "hidden_size_per_layer_input",
    32: "hidden_size d_model n_embd emb_dim embedding_dim word_embed_proj_dim attention_hidden_size lru_width "
    "embed_dim backbone_hidden_size output_dim hidden_size_global",
    64: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size d_inner n_inner dff dim_ff "
    "feed_forward_size shared_intermediate_size dense_intermediate_size intermediate_size_mlp mamba_d_ssm "
    "expert_ffn_hidden_size shared_experts_intermediate_size moe_shared_expert_intermediate_size "
    "encoder_hash_byte_group_vocab",
    ROWS: "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size shape_vocab_size "
    "pronunciation_vocab_size audio_vocab_size ngram_vocab_size_base",
    4096: "max_position_embeddings n_positions n_ctx max_seq_len context_length",
    0: "pad_token_id",
    1: "bos_token_id",
}
_VALUES = {name: value for value, names in _NAMES.items() for name in names.split()} | {"eos_token_id": 2}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_WINDOWED = {"layer_types": ["sliding_attention", "full_attention"]}
_USE_WINDOW = {"use_sliding_window": True, "max_window_layers": 0, **_WINDOWED}
# What a configuration of that size needs besides.
_BESIDES: dict[str, dict[str, Any]] = {
    "qwen2": _USE_WINDOW,
    "qwen2_moe": _USE_WINDOW,
    "qwen3": _USE_WINDOW,
    "qwen3_moe": {"use_sliding_window": True},
    "smollm3": {"sliding_window": 8, **_USE_WINDOW},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, **_WINDOWED},
    "laguna": _WINDOWED,
    "mellum": _WINDOWED,
    "ministral": {"head_dim": 8, **_WINDOWED},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(_WINDOWED["layer_types"], _ROPE), **_WINDOWED},
    "axk1": {"n_group": 2, "topk_group": 1},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dory": {
        "num_hidden_layers": 4,
        "n_input_layers": 1,
        "n_recurrent_layers": 2,
        "n_output_layers": 1,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "hidden_size": 32, "moe_top_k": 2},
    },
    "dots3_note_text": {"per_layer_config": None, "head_dim": 16},
    "gemma3n_text": {"num_kv_shared_layers": 2, "num_hidden_layers": 4, "layer_types": 2 * _WINDOWED["layer_types"]},
    "gemma4_text": {"per_layer_config": None},
    "gemma4_unified_text": {"per_layer_config": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "kimi_linear": {"num_experts_per_tok": 1, "n_group": 1, "topk_group": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "nemotron_h": {"n_groups": 1, "mamba_num_heads": 8},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (64, 64), "attn_layers": ["local", "lsh"]},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
    "qwen4_exp_text": {
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
    },
    "xmod": {"default_language": "en_XX"},
    "xlm-roberta": {"pad_token_id": 1, "bos_token_id": 0},
    "roberta": {"pad_token_id": 1, "bos_token_id": 0},
}


def tiny_config(kind: str, **given: Any) -> Any:
    """The configuration of this model type in width 32, with two layers or one of each kind."""
    from transformers import CONFIG_MAPPING

    return _shrunk(CONFIG_MAPPING[kind], {**_BESIDES.get(kind, {}), **given})


def tiny_model(config: Any, seed: int = 0, most: int = 20_000_000) -> Any:
    """The random causal LM, float32; ValueError when it would have more than `most` parameters."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > most:
        raise ValueError(f"the shrunken configuration still has {size:,} parameters")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    for module in model.modules():  # some initialise with zeros, which would hide what is not applied
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def _shrunk(configuration: Any, besides: dict[str, Any]) -> Any:
    default = configuration()
    names = default.to_dict()
    given: dict[str, Any] = {}
    for name in names:
        value = getattr(default, name, None) if name.endswith("_config") else names[name]
        if hasattr(value, "to_dict") and value.model_type != "":
            given[name] = _shrunk(type(value), _BESIDES.get(value.model_type, {})).to_dict()
        elif name in _VALUES and (isinstance(value, int) or name.endswith("_token_id")) and not isinstance(value, bool):
            given[name] = _VALUES[name]
    kinds = list(dict.fromkeys(names.get("layer_types") or ()))
    if kinds and "num_hidden_layers" in given:
        given["layer_types"] = (kinds * 2)[: max(2, len(kinds))]
        given["num_hidden_layers"] = len(given["layer_types"])
    if "initializer_range" in names:
        given["initializer_range"] = 0.2  # large enough that vectors and choices differ visibly
    if "is_decoder" in names:
        given["is_decoder"] = True
    if "kv_lora_rank" in names:  # keys are rebuilt for each head
        given["num_key_value_heads"] = 4
    return configuration(**(given | besides))
