"""The names of tensors in GGUF files, and those that tensors.TENSORS and FUSED have for them."""

from __future__ import annotations

import re

from .gguf_architectures import Architecture

# Tensors, after "blk.N.", and what they are called after "model.layers.N.".
ONCE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "token_embd_norm.weight": "model.norm.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "per_layer_token_embd.weight": "model.embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "model.per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "model.per_layer_projection_norm.weight",
    "altup_proj.weight": "model.altup_projections.{e}.weight",
    "altup_unembd_proj.weight": "model.altup_unembed_projections.{e}.weight",
    "position_embd.weight": "model.positions.weight",
    "output_norm.bias": "model.norm.bias",
    "output.bias": "lm_head.bias",
}
LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_qkv.weight": "self_attn.qkv_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_qkv.bias": "self_attn.qkv_proj.bias",
    "attn_output.bias": "self_attn.o_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "post_attention_norm.weight": "post_self_attn_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "attn_gate.weight": "self_attn.gate_proj.weight",
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "ffn_gate_inp.bias": "mlp.gate.bias",
    "ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight",
    "ffn_gate_shexp.weight": "mlp.shared_expert.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_expert.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_expert.down_proj.weight",
    "exp_probs_b": "mlp.e_score_correction_bias",  # of HY 3
    "exp_probs_b.bias": "mlp.e_score_correction_bias",
    "attn_q_a.weight": "self_attn.q_a_proj.weight",
    "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn_q_b.weight": "self_attn.q_b_proj.weight",
    "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attn_kv_b.weight": "self_attn.kv_b_proj.weight",
    "attn_k_b.weight": "self_attn.k_b_proj.{h}.weight",
    "attn_v_b.weight": "self_attn.v_b_proj.{h}.weight",
    "post_ffw_norm.weight": "post_mlp_layernorm.weight",
    "layer_output_scale.weight": "layer_scalar",
    "inp_gate.weight": "per_layer_input_gate.weight",
    "proj.weight": "per_layer_projection.weight",
    "post_norm.weight": "post_per_layer_input_norm.weight",
    "laurel_l.weight": "laurel.linear_left.weight",
    "laurel_r.weight": "laurel.linear_right.weight",
    "laurel_post_norm.weight": "laurel.post_laurel_norm.weight",
    "altup_router_norm.weight": "altup.router_norm.weight",
    "altup_router.weight": "altup.modality_router.weight",
    "altup_predict_coef.weight": "altup.prediction_coefs.weight",
    "altup_correct_coef.weight": "altup.correction_coefs.weight",
    "altup_correct_scale.weight": "altup.correct_output_scale",
    "attn_norm.bias": "input_layernorm.bias",
    "ffn_norm.bias": "post_attention_layernorm.bias",
    "ffn_up.bias": "mlp.up_proj.bias",
    "ffn_down.bias": "mlp.down_proj.bias",
    "shortconv.conv.weight": "conv.conv.weight",
    "shortconv.in_proj.weight": "conv.in_proj.weight",
    "shortconv.out_proj.weight": "conv.out_proj.weight",
    "ssm_conv1d.weight": "linear_attn.conv1d.weight",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_ba.weight": "linear_attn.in_proj_ba.weight",
    "ssm_beta.weight": "linear_attn.in_proj_b.weight",
    "ssm_alpha.weight": "linear_attn.in_proj_a.weight",
    "ssm_norm.weight": "linear_attn.gain.weight",
    "ssm_out.weight": "linear_attn.out_proj.weight",
}
AHEAD = ("nextn.", "layer_output_norm.")  # of layers behind the last one, which predict further tokens
# stacked, or one by one in older files
EXPERTS = re.compile(r"ffn_(gate|up|down|gate_up)(?:_exps|\.(\d+))\.(weight|bias)")


def name_of(name: str, row: Architecture) -> str:
    """The name that tensors.TENSORS has for a tensor; the name itself for one that has none. {e} stands for
    all experts of a stack, {h} for all heads."""
    if name in ONCE:
        return ONCE[name]
    layer = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    if not layer:
        return name
    if row.fused and layer[2] == "ffn_up.weight":
        return f"model.layers.{layer[1]}.mlp.gate_up_proj.weight"
    names = LAYER | dict(row.names)
    if layer[2] in names:
        return f"model.layers.{layer[1]}.{names[layer[2]]}"
    expert = EXPERTS.fullmatch(layer[2])
    if expert:
        return f"model.layers.{layer[1]}.mlp.experts.{expert[2] or '{e}'}.{expert[1]}_proj.{expert[3]}"
    if layer[2].startswith(AHEAD):
        return f"model.layers.{layer[1]}.{layer[2]}"
    return name


def native_name(name: str, row: Architecture) -> str:
    """The opposite of name_of."""
    back = {value: key for key, value in (ONCE | LAYER | dict(row.names)).items()}
    if name in back:
        return back[name]
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if not layer:
        return name
    expert = re.fullmatch(r"mlp\.experts\.\d+\.(gate|up|down)_proj\.(weight|bias)", layer[2])
    whole = re.sub(r"(?<=_b_proj\.)\d+(?=\.)", "{h}", layer[2])
    tail = f"ffn_{expert[1]}_exps.{expert[2]}" if expert else back.get(whole, layer[2])
    return f"blk.{layer[1]}.{tail}"
