"""Which keys of a config.json are known. A quirk that a model's authors switch on by a key of their own is in
no row of the table of families; what nobody here has read is named after the conversion, not passed over."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from .configuration import Config
from .families import DEFAULTS, FAMILIES, ONLY
from .sources import listing, shown

# What the converter reads, beside the keys that a row of the table names
READ = frozenset(
    """
    architectures model_type text_config license description transformers_weights
    quantization_config compression_config
    vocab_size hidden_size intermediate_size
    num_hidden_layers num_attention_heads num_key_value_heads head_dim
    layer_types sliding_window sliding_window_pattern no_rope_layers no_rope_layer_interval
    max_position_embeddings original_max_position_embeddings rope_theta rope_scaling rope_parameters
    rope_local_base_freq rotary_dim partial_rotary_factor
    num_experts num_local_experts n_routed_experts moe_num_experts num_experts_per_tok moe_k
    routed_scaling_factor num_nextn_predict_layers
    decoder_sparse_step mlp_only_layers first_k_dense_replace mlp_layer_types moe_layers
    n_group topk_group attention_chunk_size num_attention_heads_per_layer layer_rope_theta moe_topk
    moe_layer_start_index moe_layer_end_index moe_layer_interval
    embedding_multiplier residual_multiplier attention_multiplier logits_scaling query_pre_attn_scalar
    attn_logit_softcapping final_logit_softcapping
    num_kv_shared_layers per_layer_config num_global_key_value_heads attention_k_eq_v
    use_double_wide_mlp enable_moe_block top_k_experts vocab_size_per_layer_input
    activation_sparsity_pattern laurel_rank
    clip_qkv model_max_length new_decoder_architecture num_ln_in_parallel_attn
    full_attn_idxs full_attention_interval tie_embedding block_ff_dim
    linear_conv_kernel_dim linear_key_head_dim linear_value_head_dim linear_num_key_heads
    linear_num_value_heads
    """.split()
)
READ_OF_ROPE = frozenset(
    """
    rope_type type rope_theta factor low_freq_factor high_freq_factor original_max_position_embeddings
    beta_fast beta_slow mscale mscale_all_dim attention_factor truncate short_factor long_factor
    partial_rotary_factor rotary_dim frequency_factors alpha llama_4_scaling_beta mrope_section
    mrope_interleaved
    """.split()
)

# What changes no logit of the model: where it comes from, how transformers runs it, its training, its use;
# and biases of matrices that no family has here, which their tensors tell
WITHOUT_INFLUENCE = frozenset(
    """
    _name_or_path name_or_path auto_map dtype torch_dtype transformers_version transformers.js_config
    unsloth_version unsloth_fixed is_llama_config finetuning_task problem_type task_specific_params id2label
    label2id tokenizer_class prefix

    use_cache cache_implementation return_dict output_attentions output_hidden_states output_router_logits
    attn_implementation _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled use_flash_attn
    torchscript use_bfloat16 tf_legacy_loss pruned_heads chunk_size_feed_forward pretraining_tp
    is_encoder_decoder is_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder
    _sliding_window_pattern
    qk_head_dim ep_size seq_aux aux_loss_alpha num_mtp_layers

    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature
    top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens

    altup_coef_clip altup_lr_multiplier

    mlp_bias attention_out_bias lm_head_bias
    n_ctx reorder_and_upcast_attn attention_softmax_in_fp32 scale_attention_softmax_in_fp32
    summary_type summary_use_proj summary_activation summary_proj_to_labels
    use_parallel_embedding

    mtp_num_hidden_layers mtp_use_dedicated_embeddings mamba_ssm_dtype mrope_section
    block_dim block_norm_eps block_mlp_init_scale block_out_init_scale block_use_xavier_init
    conv_dim conv_dim_out conv_use_xavier_init num_heads
    """.split()
)
# Ids of tokens, which the tokenizer's files have too, and training
ENDS = re.compile(r".*(_token_id|dropout|dropout_prob|_pdrop|initializer_range|_loss_coef|_jitter_noise)")
# Known with this value only
NEUTRAL = {
    "rotary": True,
    "apply_residual_connection_post_layernorm": False,
    "rope_interleaved": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "moe_norm_min": 1e-12,
}


def named_in_rows() -> set[str]:
    """The keys that the rows of the table name."""
    keys = {*DEFAULTS, *ONLY}
    for family in FAMILIES.values():
        keys |= {*family.defaults, *family.switches, *family.only, family.ffn, family.dense, *family.keys}
        keys |= {family.norm_eps}
        keys |= {key for key in (family.shared, family.n_shared, family.ple) if key}
    return keys


def unknown(config: Config) -> Iterator[str]:
    """The keys of a configuration, and of the rotary one in it, that are not known; null says nothing."""
    known = READ | named_in_rows() | WITHOUT_INFLUENCE
    for key, value in config.items():
        neutral = key in NEUTRAL and value == NEUTRAL[key]
        if not (key in known or neutral or value is None or ENDS.fullmatch(key)):
            yield key
    for key in ("rope_scaling", "rope_parameters"):
        yield from unknown_of_rope(config.get(key), key)


def unknown_of_rope(rope: object, where: str) -> Iterator[str]:
    """unknown, of rotary parameters, which may be one for each kind of layer."""
    for key, value in rope.items() if isinstance(rope, Mapping) else ():
        if isinstance(value, Mapping):
            yield from unknown_of_rope(value, f"{where}.{key}")
        elif value is not None and key not in READ_OF_ROPE:
            yield f"{where}.{key}"


def note(config: Config) -> list[str]:
    """The note that names these keys, if there are any."""
    return told("the configuration", list(unknown(config)))


def told(where: str, keys: list[str]) -> list[str]:
    """The note that what is read there has these keys."""
    names = [key if re.fullmatch(r"[\w.-]{1,100}", key, re.ASCII) else shown(key) for key in keys]
    what = f"{where} has keys that are not known here, and nothing was made of them"
    return [f"{what}: {listing(names)}"] if names else []
