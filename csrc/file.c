/* file.c - the flat file: where its parts lie, whether all of it is sound, and the model that is mapped from
 * it.
 *
 * It trusts no byte before check() has seen it. What the numbers mean is the forward pass's business. */
#include "file.h"
#include "fail.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define NEWER "made by a newer version of pyllm"

const dtype_info dtypes[LLM_N_DTYPES] = {
    [LLM_FP16] = {"fp16", .bits = 16},
    [LLM_INT8] = {"int8", .bits = 8, .group = LLM_GROUP},
    [LLM_FP32] = {"fp32", .bits = 32},
    [LLM_INT8_ROTATED] = {"int8r", .bits = 8, .group = LLM_GROUP, .rotated = 1},
    [LLM_INT4] = {"int4", .bits = 4, .group = LLM_GROUP / 2, .head = 64},
};

const char *llm_dtype_name(uint32_t dtype) { return dtype < LLM_N_DTYPES ? dtypes[dtype].name : NULL; }

static const char *const feature_names[] = {
    "tied",
    "qkv_bias",
    "qk_norm",
    "qk_norm_whole",
    "no_pre_norm",
    "post_norm",
    "router_normalize",
    "router_sigmoid",
    "router_bias",
    "shared_gate",
    "router_best",
    "router_logit_bias",
    "expert_input",
    "ffn_bias",
    "attn_out_bias",
    "sink",
    "qk_norm_late",
    "chunked",
    "out_gate",
    "out_gate_head",
    "out_gate_softplus",
    "v_norm",
    "v_is_k",
    "shared_norms",
    "router_scaled",
    "layer_scaled",
    "layer_norm",
    "norm_bias",
    "qk_norm_each",
    "parallel",
    "no_gate",
    "position_table",
    "output_bias",
    "input_norm",
    "one_norm",
};

enum { N_FEATURES = sizeof feature_names / sizeof *feature_names };

/* Features that no layer has */
enum { OF_HEADER = LLM_TIED | LLM_POSITION_TABLE | LLM_OUTPUT_BIAS | LLM_INPUT_NORM };

const char *llm_feature_name(uint32_t bit) { return bit < N_FEATURES ? feature_names[bit] : NULL; }

static const char *const tensor_names[LLM_N_TENSORS] = {
    [LLM_EMBED] = "embed",
    [LLM_OUT_NORM] = "out_norm",
    [LLM_OUTPUT] = "output",
    [LLM_PLE_EMBED] = "ple_embed",
    [LLM_PLE_PROJ] = "ple_proj",
    [LLM_PLE_NORM] = "ple_norm",
    [LLM_STREAM_IN] = "stream_in",
    [LLM_STREAM_OUT] = "stream_out",
    [LLM_POSITIONS] = "positions",
    [LLM_OUTPUT_ADD] = "output_add",
    [LLM_EMBED_NORM] = "embed_norm",
    [LLM_ATTN_NORM] = "attn_norm",
    [LLM_QKV] = "qkv",
    [LLM_BIAS] = "bias",
    [LLM_Q_NORM] = "q_norm",
    [LLM_K_NORM] = "k_norm",
    [LLM_ATTN_OUT] = "attn_out",
    [LLM_ATTN_POST_NORM] = "attn_post_norm",
    [LLM_FFN_NORM] = "ffn_norm",
    [LLM_ROUTER] = "router",
    [LLM_ROUTER_ADD] = "router_add",
    [LLM_GATE_UP] = "gate_up",
    [LLM_DOWN] = "down",
    [LLM_SHARED_GATE_UP] = "shared_gate_up",
    [LLM_SHARED_DOWN] = "shared_down",
    [LLM_FFN_POST_NORM] = "ffn_post_norm",
    [LLM_SINKS] = "sinks",
    [LLM_OUT_BIAS] = "out_bias",
    [LLM_ROUTER_LOGITS] = "router_logits",
    [LLM_GATE_UP_BIAS] = "gate_up_bias",
    [LLM_DOWN_BIAS] = "down_bias",
    [LLM_ROUTER_NORM] = "router_norm",
    [LLM_SHARED_NORM] = "shared_norm",
    [LLM_SHARED_POST] = "shared_post",
    [LLM_EXPERTS_POST] = "experts_post",
    [LLM_ROUTER_SCALE] = "router_scale",
    [LLM_PLE_GATE] = "ple_gate",
    [LLM_PLE_OUT] = "ple_out",
    [LLM_PLE_POST_NORM] = "ple_post_norm",
    [LLM_LAYER_SCALE] = "layer_scale",
    [LLM_LAUREL_LEFT] = "laurel_left",
    [LLM_LAUREL_RIGHT] = "laurel_right",
    [LLM_LAUREL_NORM] = "laurel_norm",
    [LLM_STREAM_NORM] = "stream_norm",
    [LLM_STREAM_ROUTER] = "stream_router",
    [LLM_STREAM_PREDICT] = "stream_predict",
    [LLM_STREAM_CORRECT] = "stream_correct",
    [LLM_STREAM_SCALE] = "stream_scale",
    [LLM_XIELU_NUMBERS] = "xielu_numbers",
    [LLM_Q_UP] = "q_up",
    [LLM_K_UP] = "k_up",
    [LLM_V_UP] = "v_up",
    [LLM_CONV] = "conv",
    [LLM_STATE_GATES] = "state_gates",
    [LLM_DECAY] = "decay",
    [LLM_STATE_NORM] = "state_norm",
};

const char *llm_tensor_name(uint32_t id) { return id < LLM_N_TENSORS ? tensor_names[id] : NULL; }

/* ------------------------------------------------------------------------------------------------------
 * What may stand in a header and in a layer */

/* A 32-bit field and its range. No product that the layout forms of numbers in these ranges, and no sum of
 * them, reaches 2^63: the largest is n_layers * n_experts * 3 * ffn_dim * dim * 2 bytes. */
typedef struct range {
    const char *name;
    size_t offset;
    uint32_t min, max;
} range;

static const range header_ranges[] = {
    {"n_layers", offsetof(llm_header, n_layers), 1, LLM_MAX_LAYERS},
    {"dim", offsetof(llm_header, dim), 1, 1 << 20},
    {"vocab_size", offsetof(llm_header, vocab_size), 1, 1 << 24},
    {"context", offsetof(llm_header, context), 1, 1 << 28},
    {"n_rope", offsetof(llm_header, n_rope), 1, 1 << 10},
    {"rope_dim", offsetof(llm_header, rope_dim), 2, MAX_HEAD},
    {"ple_dim", offsetof(llm_header, ple_dim), 0, 1 << 16},
    {"n_streams", offsetof(llm_header, n_streams), 0, MAX_STREAMS},
};

static const range attention_ranges[] = {
    {"n_heads", offsetof(llm_layer, n_heads), 1, 1 << 12},
    {"n_kv_heads", offsetof(llm_layer, n_kv_heads), 1, 1 << 12},
    {"head_dim", offsetof(llm_layer, head_dim), 2, MAX_HEAD},
    {"conv_kernel", offsetof(llm_layer, conv_kernel), 0, 0},
};

/* Of a layer without attention, */
static const range state_ranges[] = {
    {"n_heads", offsetof(llm_layer, n_heads), 0, 0},
    {"n_kv_heads", offsetof(llm_layer, n_kv_heads), 0, 0},
    {"head_dim", offsetof(llm_layer, head_dim), 0, 0},
    {"window", offsetof(llm_layer, window), 0, 0},
    {"rope", offsetof(llm_layer, rope), 0, 0},
    {"value_dim", offsetof(llm_layer, value_dim), 0, 0},
    {"query_span", offsetof(llm_layer, query_span), 0, 0},
    {"query_shift", offsetof(llm_layer, query_shift), 0, 0},
    {"low_rank", offsetof(llm_layer, low_rank), 0, 0},
    {"latent_dim", offsetof(llm_layer, latent_dim), 0, 0},
    {"turn_dim", offsetof(llm_layer, turn_dim), 0, 0},
    {"q_rank", offsetof(llm_layer, q_rank), 0, 0},
    {"conv_kernel", offsetof(llm_layer, conv_kernel), 2, MAX_KERNEL},
};

/* and of one with the delta rule, or without */
static const range delta_ranges[] = {
    {"delta_key_heads", offsetof(llm_layer, delta_key_heads), 1, 1 << 12},
    {"delta_heads", offsetof(llm_layer, delta_heads), 1, 1 << 12},
    {"delta_key_dim", offsetof(llm_layer, delta_key_dim), 1, MAX_HEAD},
    {"delta_value_dim", offsetof(llm_layer, delta_value_dim), 1, MAX_HEAD},
};

static const range no_delta_ranges[] = {
    {"delta_key_heads", offsetof(llm_layer, delta_key_heads), 0, 0},
    {"delta_heads", offsetof(llm_layer, delta_heads), 0, 0},
    {"delta_key_dim", offsetof(llm_layer, delta_key_dim), 0, 0},
    {"delta_value_dim", offsetof(llm_layer, delta_value_dim), 0, 0},
};

static const range layer_ranges[] = {
    {"ffn_dim", offsetof(llm_layer, ffn_dim), 1, 1 << 20},
    {"n_experts", offsetof(llm_layer, n_experts), 0, MAX_EXPERTS},
    {"n_active", offsetof(llm_layer, n_active), 0, MAX_EXPERTS},
    {"shared_dim", offsetof(llm_layer, shared_dim), 0, 1 << 20},
    {"low_rank", offsetof(llm_layer, low_rank), 0, 1 << 16},
    {"value_dim", offsetof(llm_layer, value_dim), 0, MAX_HEAD},
    {"n_groups", offsetof(llm_layer, n_groups), 0, MAX_EXPERTS},
    {"n_active_groups", offsetof(llm_layer, n_active_groups), 0, MAX_EXPERTS},
    {"query_span", offsetof(llm_layer, query_span), 0, 1 << 28},
    {"query_shift", offsetof(llm_layer, query_shift), 0, 1 << 28},
    {"latent_dim", offsetof(llm_layer, latent_dim), 0, MAX_HEAD},
    {"turn_dim", offsetof(llm_layer, turn_dim), 0, MAX_HEAD},
    {"q_rank", offsetof(llm_layer, q_rank), 0, 1 << 20},
};

#define CHECK_RANGES(where, fields, table) \
    TRY(check_ranges(where, fields, table, sizeof table / sizeof *table, err, errlen))

/* `where` is "header" or "layer 3", for the sentence. */
static int check_ranges(
    const char *where, const void *fields, const range *ranges, size_t n, char *err, size_t errlen) {
    for (size_t i = 0; i < n; i++) {
        const range *r = &ranges[i];
        uint32_t v;
        memcpy(&v, (const char *)fields + r->offset, sizeof v);
        REQUIRE(r->max || !v, "%s: %s is %u, in a layer that has none", where, r->name, v);
        REQUIRE(v >= r->min && v <= r->max, "%s: %s is %u, not %u to %u", where, r->name, v, r->min, r->max);
    }
    return 0;
}

static int check_zeros(const char *where, const uint8_t *bytes, size_t n, char *err, size_t errlen) {
    for (size_t i = 0; i < n; i++)
        REQUIRE(!bytes[i], "%s: a reserved byte is set: " NEWER, where);
    return 0;
}

/* No bit but those of enum llm_feature */
static int check_bits(const char *where, uint64_t bits, char *err, size_t errlen) {
    const uint64_t known = ((uint64_t)1 << N_FEATURES) - 1;
    REQUIRE(!(bits & ~known), "%s: it needs feature %d, which is not known here: " NEWER, where,
        __builtin_ctzll(bits & ~known));
    return 0;
}

/* Of a header's features, or a layer's */
static int check_norm_bias(const char *where, uint64_t flags, char *err, size_t errlen) {
    const int layer_norm = (flags & LLM_LAYER_NORM) != 0;
    REQUIRE(layer_norm || !(flags & LLM_NORM_BIAS), "%s: biases of norms that are not LayerNorm", where);
    return 0;
}

static int check_scale(const char *where, const char *name, float scale, char *err, size_t errlen) {
    REQUIRE(fabsf(scale) < 1e6f, "%s: %s is %g", where, name, scale);
    return 0;
}

static int check_header(const llm_header *h, char *err, size_t errlen) {
    TRY(check_bits("header", h->required, err, errlen));
    TRY(check_norm_bias("header", h->required, err, errlen));
    TRY(check_zeros("header", h->reserved, sizeof h->reserved, err, errlen));
    CHECK_RANGES("header", h, header_ranges);
    REQUIRE(h->rope_dim % 2 == 0, "header: rope_dim %u is odd", h->rope_dim);
    REQUIRE(h->text_size % 64 == 0 && h->text_size >> 40 == 0, "header: text_size is wrong");
    REQUIRE(h->norm_eps >= 0 && h->norm_eps < 1, "header: norm_eps is %g", h->norm_eps);
    TRY(check_scale("header", "embed_scale", h->embed_scale, err, errlen));
    TRY(check_scale("header", "residual_scale", h->residual_scale, err, errlen));
    TRY(check_scale("header", "logit_cap", h->logit_cap, err, errlen));
    TRY(check_scale("header", "ple_scale", h->ple_scale, err, errlen));
    REQUIRE(h->ple_dim || h->ple_scale == 0, "header: a scale of embeddings that layers do not have");
    return 0;
}

/* Flags that say more of what another one switches on */
static int check_attention_flags(const char *where, const llm_layer *l, char *err, size_t errlen) {
    const uint64_t norms = LLM_QK_NORM_WHOLE | LLM_QK_NORM_LATE,
                   several = LLM_QK_NORM_WHOLE | LLM_QK_NORM_EACH;
    const uint64_t gates = LLM_OUT_GATE_HEAD | LLM_OUT_GATE_SOFTPLUS;
    REQUIRE(l->flags & LLM_QK_NORM || !(l->flags & norms), "%s: no q and k norm to be whole or late", where);
    REQUIRE((l->flags & norms) != norms, "%s: a late q and k norm is of each head", where);
    REQUIRE(l->flags & LLM_QK_NORM || !(l->flags & LLM_QK_NORM_EACH),
        "%s: no q and k norm to be of each head", where);
    REQUIRE((l->flags & several) != several, "%s: a q and k norm that is whole and of each head", where);
    REQUIRE(l->flags & LLM_OUT_GATE || !(l->flags & gates), "%s: a kind of gate, and no gate", where);
    REQUIRE(l->window || !(l->flags & LLM_CHUNKED), "%s: chunks of no positions", where);
    return 0;
}

/* Keys and values of a latent, or nothing of it */
static int check_latent(const char *where, const llm_layer *l, size_t layer, char *err, size_t errlen) {
    if (!l->latent_dim) {
        const int none = !l->turn_dim && !l->q_rank && l->latent_eps == 0;
        REQUIRE(none, "%s: what goes with a latent, and no latent_dim", where);
        return 0;
    }
    REQUIRE(l->turn_dim >= 2 && l->turn_dim % 2 == 0 && l->turn_dim < l->head_dim,
        "%s: turn_dim is %u, of a head_dim of %u", where, l->turn_dim, l->head_dim);
    REQUIRE(kept_key_dim(l) <= MAX_HEAD, "%s: a key of %u + %u numbers", where, l->latent_dim, l->turn_dim);
    REQUIRE(l->n_kv_heads == 1, "%s: a latent for %u kv heads", where, l->n_kv_heads);
    REQUIRE(l->kv_layer == layer, "%s: a latent of layer %u", where, l->kv_layer);
    const uint64_t other = LLM_QK_NORM | LLM_OUT_GATE | LLM_V_NORM | LLM_V_IS_K;
    REQUIRE(!(l->flags & other) && !l->qkv_clip,
        "%s: a latent, and norms of heads, gates or values that are keys, or a qkv_clip", where);
    REQUIRE(l->latent_eps >= 0 && l->latent_eps < 1, "%s: latent_eps is %g", where, l->latent_eps);
    return 0;
}

static int check_attention(
    const char *where, const llm_header *h, const llm_layer *layers, size_t layer, char *err, size_t errlen) {
    const llm_layer *l = &layers[layer];
    CHECK_RANGES(where, l, attention_ranges);
    CHECK_RANGES(where, l, no_delta_ranges);
    REQUIRE(l->n_heads % l->n_kv_heads == 0, "%s: %u heads on %u kv heads", where, l->n_heads, l->n_kv_heads);
    REQUIRE(l->head_dim % 2 == 0, "%s: head_dim %u is odd", where, l->head_dim);
    TRY(check_latent(where, l, layer, err, errlen));
    REQUIRE(turning_of(l) <= h->rope_dim, "%s: head_dim %zu, and rotary tables of %u", where, turning_of(l),
        h->rope_dim);
    REQUIRE(l->rope < h->n_rope, "%s: there is no rotary table %u", where, l->rope);
    TRY(check_scale(where, "attn_scale", l->attn_scale, err, errlen));
    TRY(check_scale(where, "attn_cap", l->attn_cap, err, errlen));
    TRY(check_scale(where, "query_growth", l->query_growth, err, errlen));
    REQUIRE(l->query_span || (!l->query_growth && !l->query_shift),
        "%s: queries that grow, and no query_span", where);
    TRY(check_attention_flags(where, l, err, errlen));
    REQUIRE(!(l->flags & LLM_V_IS_K) || (value_dim_of(l) == l->head_dim && !(l->flags & LLM_OUT_GATE)),
        "%s: values that are keys, of another size or with gates", where);
    TRY(check_scale(where, "qkv_clip", l->qkv_clip, err, errlen));
    if (l->kv_layer == layer)
        return 0;
    REQUIRE(!(l->flags & (LLM_V_NORM | LLM_V_IS_K)), "%s: it has no values of its own", where);
    REQUIRE(l->kv_layer < layer, "%s: kv_layer %u is not one before it", where, l->kv_layer);
    const llm_layer *own = &layers[l->kv_layer];
    REQUIRE(own->kv_layer == l->kv_layer, "%s: layer %u has no keys of its own", where, l->kv_layer);
    const int same = !own->latent_dim && own->n_kv_heads == l->n_kv_heads && own->head_dim == l->head_dim &&
                     value_dim_of(own) == value_dim_of(l);
    REQUIRE(same, "%s: its kv heads are not those of layer %u", where, l->kv_layer);
    return 0;
}

static int check_gate(const char *where, const llm_layer *l, char *err, size_t errlen) {
    TRY(check_scale(where, "gate_limit", l->gate_limit, err, errlen));
    TRY(check_scale(where, "gate_slope", l->gate_slope, err, errlen));
    TRY(check_scale(where, "up_shift", l->up_shift, err, errlen));
    TRY(check_scale(where, "gate_cut", l->gate_cut, err, errlen));
    REQUIRE(l->gate_limit >= 0, "%s: gate_limit is %g", where, l->gate_limit);
    REQUIRE(!l->gate_slope || l->activation == LLM_SILU, "%s: a gate_slope, and not SiLU", where);
    const int bent = l->gate_limit || l->gate_slope || l->up_shift || l->gate_cut;
    REQUIRE(!bent || !(l->flags & LLM_NO_GATE), "%s: no gate to be limited", where);
    return 0;
}

/* Groups of experts: all of one size, at least two, and enough of them are active */
static int check_groups(const char *where, const llm_layer *l, char *err, size_t errlen) {
    const uint32_t n = l->n_groups;
    if (n == 0) {
        const int none = !l->n_active_groups && !(l->flags & LLM_ROUTER_BEST);
        REQUIRE(none, "%s: active groups of experts, and no groups", where);
        return 0;
    }
    REQUIRE(l->n_experts % n == 0, "%s: %u experts in %u groups", where, l->n_experts, n);
    REQUIRE(l->n_active_groups >= 1 && l->n_active_groups <= n, "%s: %u of %u groups of experts are active",
        where, l->n_active_groups, n);
    const uint32_t enough = l->n_experts / n * l->n_active_groups;
    REQUIRE(l->n_active <= enough, "%s: %u experts are active, and their groups have %u", where, l->n_active,
        enough);
    return 0;
}

/* A layer with a state */
static int check_state(const char *where, const llm_layer *l, size_t layer, char *err, size_t errlen) {
    const uint64_t of_attention = LLM_QKV_BIAS | LLM_QK_NORM | LLM_QK_NORM_WHOLE | LLM_QK_NORM_LATE |
                                  LLM_ATTN_OUT_BIAS | LLM_SINK | LLM_CHUNKED | LLM_OUT_GATE |
                                  LLM_OUT_GATE_HEAD | LLM_OUT_GATE_SOFTPLUS | LLM_V_NORM | LLM_V_IS_K |
                                  LLM_QK_NORM_EACH | LLM_PARALLEL | LLM_ONE_NORM;
    REQUIRE(l->mixer <= LLM_DELTA_RULE, "%s: positions mixed by kind %u: " NEWER, where, l->mixer);
    CHECK_RANGES(where, l, state_ranges);
    REQUIRE(!(l->flags & of_attention), "%s: a flag of attention, in a layer that has none", where);
    REQUIRE(l->kv_layer == layer, "%s: keys and values of layer %u, and no attention", where, l->kv_layer);
    REQUIRE(l->attn_cap == 0, "%s: attn_cap is %g, and no attention", where, l->attn_cap);
    REQUIRE(l->qkv_clip == 0, "%s: qkv_clip is %g, and no attention", where, l->qkv_clip);
    REQUIRE(l->query_growth == 0, "%s: query_growth is %g, and no attention", where, l->query_growth);
    REQUIRE(l->latent_eps == 0, "%s: latent_eps is %g, and no attention", where, l->latent_eps);
    TRY(check_scale(where, "attn_scale", l->attn_scale, err, errlen));
    if (l->mixer == LLM_SHORT_CONV)
        CHECK_RANGES(where, l, no_delta_ranges);
    else
        CHECK_RANGES(where, l, delta_ranges);
    REQUIRE(l->mixer == LLM_SHORT_CONV || l->delta_heads % l->delta_key_heads == 0,
        "%s: %u value heads on %u key heads", where, l->delta_heads, l->delta_key_heads);
    return 0;
}

static int check_ffn(const char *where, const llm_layer *l, char *err, size_t errlen) {
    const uint64_t routed = LLM_ROUTER_NORMALIZE | LLM_ROUTER_SIGMOID | LLM_ROUTER_BIAS | LLM_SHARED_GATE |
                            LLM_ROUTER_BEST | LLM_ROUTER_LOGIT_BIAS | LLM_EXPERT_INPUT | LLM_SHARED_NORMS |
                            LLM_ROUTER_SCALED;
    REQUIRE(l->ffn <= LLM_EXPERTS, "%s: a feed-forward block of kind %u: " NEWER, where, l->ffn);
    REQUIRE(l->activation <= LLM_XIELU, "%s: an activation of kind %u: " NEWER, where, l->activation);
    REQUIRE(!l->low_rank || !(l->flags & LLM_PARALLEL),
        "%s: blocks side by side, and a product past attention", where);
    const uint64_t both = LLM_PARALLEL | LLM_NO_PRE_NORM;
    REQUIRE((l->flags & both) != both, "%s: blocks side by side without norms before them", where);
    REQUIRE(l->flags & LLM_PARALLEL || !(l->flags & LLM_ONE_NORM), "%s: one norm, and no blocks side by side",
        where);
    TRY(check_scale(where, "expert_scale", l->expert_scale, err, errlen));
    TRY(check_gate(where, l, err, errlen));
    if (l->ffn == LLM_DENSE) {
        const int none = !l->n_experts && !l->n_active && !l->shared_dim && !l->n_groups &&
                         !l->n_active_groups && !(l->flags & routed);
        REQUIRE(none, "%s: a router without experts", where);
        return 0;
    }
    REQUIRE(l->n_active >= 1 && l->n_active <= l->n_experts, "%s: %u of %u experts are active", where,
        l->n_active, l->n_experts);
    REQUIRE(l->shared_dim || !(l->flags & LLM_SHARED_GATE), "%s: a gate without a shared expert", where);
    REQUIRE(l->shared_dim || !(l->flags & LLM_SHARED_NORMS), "%s: norms without a shared expert", where);
    REQUIRE(!(l->flags & LLM_SHARED_GATE) || !(l->flags & LLM_SHARED_NORMS),
        "%s: the shared expert has a gate and norms of its own", where);
    return check_groups(where, l, err, errlen);
}

static int check_layer(const llm_header *h, const llm_layer *layers, size_t layer, char *err, size_t errlen) {
    const llm_layer *l = &layers[layer];
    char where[32];
    snprintf(where, sizeof where, "layer %zu", layer);
    TRY(check_bits(where, l->flags, err, errlen));
    TRY(check_zeros(where, l->reserved, sizeof l->reserved, err, errlen));
    CHECK_RANGES(where, l, layer_ranges);
    REQUIRE(!(l->flags & OF_HEADER), "%s: a flag that is the header's", where);
    REQUIRE(!(l->flags & ~h->required), "%s: a flag that the header does not require", where);
    REQUIRE(
        h->n_streams < 2 || !(l->flags & LLM_LAYER_SCALED), "%s: a scale of one stream of several", where);
    REQUIRE(
        !h->ple_dim || !(l->flags & LLM_NO_GATE), "%s: embeddings by layer, and blocks without gates", where);
    TRY(check_norm_bias(where, l->flags, err, errlen));
    if (l->mixer == LLM_ATTENTION)
        TRY(check_attention(where, h, layers, layer, err, errlen));
    else
        TRY(check_state(where, l, layer, err, errlen));
    TRY(check_ffn(where, l, err, errlen));
    return 0;
}

/* ------------------------------------------------------------------------------------------------------
 * Where tensors lie */

static llm_tensor stored(uint64_t rows, uint64_t padded, uint64_t cols, uint32_t dtype) {
    llm_tensor t = {.rows = rows, .cols = cols, .dtype = dtype, .experts = 1};
    t.stride = align(cols, LLM_GROUP);
    if (dtype >= LLM_N_DTYPES || !padded)
        return t;
    const dtype_info *d = &dtypes[dtype];
    const uint64_t scales = d->group ? t.stride / d->group : 0;
    t.size = d->head + padded * (t.stride * d->bits / 8 + scales * sizeof(uint16_t));
    return t;
}

static llm_tensor vectors_of(uint64_t rows, uint64_t cols) {
    return stored(rows, rows, rows ? cols : 0, LLM_FP32);
}

static llm_tensor vector(int present, uint64_t cols) { return vectors_of(present != 0, cols); }

/* The weights of `rows` norms, and their biases */
static llm_tensor norm_weights(uint64_t flags, uint64_t rows, uint64_t cols) {
    return vectors_of(flags & LLM_NORM_BIAS ? 2 * rows : rows, cols);
}

/* ... of queries or keys, of n heads together or of each, or the same of all */
static llm_tensor head_norm(const llm_layer *l, uint64_t n) {
    const int present = n && l->flags & LLM_QK_NORM;
    if (l->flags & LLM_QK_NORM_WHOLE)
        return norm_weights(l->flags, present, n * l->head_dim);
    return norm_weights(
        l->flags, present && l->flags & LLM_QK_NORM_EACH ? n : (uint64_t)present, l->head_dim);
}

static llm_tensor matrix_tensor(int present, uint64_t rows, uint64_t cols, uint32_t dtype) {
    return present ? stored(rows, align(rows, LLM_TILE), cols, dtype) : stored(0, 0, 0, dtype);
}

/* Where the dtype of a tensor stands, if it is a matrix */
static uint32_t dtype_of(const llm_header *h, const llm_layer *l, uint32_t id) {
    return id < LLM_ATTN_NORM ? h->dtype[id] : l->dtype[id - LLM_ATTN_NORM];
}

/* Everything about tensor `id` of a layer but its offset; size 0 if there is none. */
static llm_tensor shape(const llm_header *h, const llm_layer *layers, size_t layer, uint32_t id) {
    const llm_layer *l = &layers[layer];
    const uint32_t dtype = dtype_of(h, l, id);
    const uint64_t q_dim = (uint64_t)l->n_heads * l->head_dim;
    const uint64_t kv_heads = l->kv_layer == layer ? l->n_kv_heads : 0;
    const uint64_t k_dim = kv_heads * l->head_dim;
    const uint64_t att_dim = (uint64_t)l->n_heads * value_dim_of(l);
    const uint64_t v_dim = l->flags & LLM_V_IS_K ? 0 : kv_heads * value_dim_of(l);
    const uint64_t qkv_rows = l->latent_dim ? latent_rows_of(l) : q_dim + k_dim + v_dim + gate_dim_of(l);
    const int routed = l->ffn == LLM_EXPERTS;
    const uint64_t ups = l->flags & LLM_NO_GATE ? 1 : 2; /* rows for each inner number: gate and up */
    const int pre_norm = !(l->flags & LLM_NO_PRE_NORM), post_norm = (l->flags & LLM_POST_NORM) != 0;
    const int apart = (l->flags & LLM_SHARED_NORMS) != 0;
    const uint64_t ple_dim = h->ple_dim, all_layers = ple_dim * h->n_layers;
    const uint64_t rank = l->low_rank, streams = h->n_streams;
    const int delta = l->mixer == LLM_DELTA_RULE;
    const uint64_t channels = channels_of(h, l), values = (uint64_t)l->delta_heads * l->delta_value_dim;
    llm_tensor t;
    switch (id) {
    case LLM_EMBED:
        return matrix_tensor(1, h->vocab_size, h->dim, dtype);
    case LLM_OUT_NORM:
        return norm_weights(h->required, 1, h->dim);
    case LLM_OUTPUT:
        return matrix_tensor(!(h->required & LLM_TIED), h->vocab_size, h->dim, dtype);
    case LLM_PLE_EMBED:
        return matrix_tensor(ple_dim > 0, h->vocab_size, all_layers, dtype);
    case LLM_PLE_PROJ:
        return matrix_tensor(ple_dim > 0, all_layers, h->dim, dtype);
    case LLM_PLE_NORM:
        return vector(ple_dim > 0, ple_dim);
    case LLM_STREAM_IN:
    case LLM_STREAM_OUT:
        t = matrix_tensor(streams > 1, h->dim, h->dim, dtype);
        t.experts = streams > 1 ? (uint32_t)streams - 1 : 1;
        return t;
    case LLM_POSITIONS:
        return matrix_tensor((h->required & LLM_POSITION_TABLE) != 0, h->context, h->dim, dtype);
    case LLM_OUTPUT_ADD:
        return vector((h->required & LLM_OUTPUT_BIAS) != 0, h->vocab_size);
    case LLM_EMBED_NORM:
        return norm_weights(h->required, (h->required & LLM_INPUT_NORM) != 0, h->dim);
    case LLM_ATTN_NORM:
        return norm_weights(l->flags, pre_norm, h->dim);
    case LLM_FFN_NORM:
        return norm_weights(l->flags, pre_norm && !(l->flags & LLM_ONE_NORM), h->dim);
    case LLM_QKV:
        if (l->mixer == LLM_SHORT_CONV)
            return matrix_tensor(1, 3 * channels, h->dim, dtype);
        return matrix_tensor(1, delta ? channels + values : qkv_rows, h->dim, dtype);
    case LLM_BIAS:
        return vector((l->flags & LLM_QKV_BIAS) != 0, qkv_rows);
    case LLM_Q_NORM:
        return l->latent_dim ? vector(l->q_rank > 0, l->q_rank) : head_norm(l, l->n_heads);
    case LLM_K_NORM:
        return l->latent_dim ? vector(1, l->latent_dim) : head_norm(l, kv_heads);
    case LLM_ATTN_OUT:
        if (l->mixer == LLM_SHORT_CONV)
            return matrix_tensor(1, h->dim, channels, dtype);
        return matrix_tensor(1, h->dim, delta ? values : att_dim, dtype);
    case LLM_ATTN_POST_NORM:
    case LLM_FFN_POST_NORM:
        return norm_weights(l->flags, post_norm, h->dim);
    case LLM_ROUTER:
        return matrix_tensor(routed, l->n_experts + (uint64_t)!!(l->flags & LLM_SHARED_GATE), h->dim, dtype);
    case LLM_ROUTER_ADD:
        return vector((l->flags & LLM_ROUTER_BIAS) != 0, l->n_experts);
    case LLM_GATE_UP:
    case LLM_DOWN:
        t = id == LLM_GATE_UP ? matrix_tensor(1, ups * l->ffn_dim, h->dim, dtype)
                              : matrix_tensor(1, h->dim, l->ffn_dim, dtype);
        t.experts = routed ? l->n_experts : 1;
        return t;
    case LLM_SHARED_GATE_UP:
        return matrix_tensor(l->shared_dim > 0, ups * l->shared_dim, h->dim, dtype);
    case LLM_SHARED_DOWN:
        return matrix_tensor(l->shared_dim > 0, h->dim, l->shared_dim, dtype);
    case LLM_SINKS:
        return vector((l->flags & LLM_SINK) != 0, l->n_heads);
    case LLM_OUT_BIAS:
        return vector((l->flags & LLM_ATTN_OUT_BIAS) != 0, h->dim);
    case LLM_ROUTER_LOGITS:
        return vector((l->flags & LLM_ROUTER_LOGIT_BIAS) != 0, l->n_experts);
    case LLM_GATE_UP_BIAS:
    case LLM_DOWN_BIAS:
        t = vector((l->flags & LLM_FFN_BIAS) != 0, id == LLM_DOWN_BIAS ? h->dim : ups * l->ffn_dim);
        t.experts = routed ? l->n_experts : 1;
        return t;
    case LLM_ROUTER_NORM:
    case LLM_SHARED_NORM:
    case LLM_SHARED_POST:
    case LLM_EXPERTS_POST:
        return vector(apart, h->dim);
    case LLM_ROUTER_SCALE:
        return vector((l->flags & LLM_ROUTER_SCALED) != 0, l->n_experts);
    case LLM_PLE_GATE:
        return matrix_tensor(ple_dim > 0, ple_dim, h->dim, dtype);
    case LLM_PLE_OUT:
        return matrix_tensor(ple_dim > 0, h->dim, ple_dim, dtype);
    case LLM_PLE_POST_NORM:
        return vector(ple_dim > 0, h->dim);
    case LLM_LAYER_SCALE:
        return vector((l->flags & LLM_LAYER_SCALED) != 0, 1);
    case LLM_LAUREL_LEFT:
        return matrix_tensor(rank > 0, rank, h->dim, dtype);
    case LLM_LAUREL_RIGHT:
        return matrix_tensor(rank > 0, h->dim, rank, dtype);
    case LLM_LAUREL_NORM:
        return vector(rank > 0, h->dim);
    case LLM_STREAM_NORM:
    case LLM_STREAM_SCALE:
        return vector(streams > 1, h->dim);
    case LLM_STREAM_ROUTER:
        return matrix_tensor(streams > 1, streams, h->dim, dtype);
    case LLM_STREAM_PREDICT:
        return vector(streams > 1, streams * streams * streams);
    case LLM_STREAM_CORRECT:
        return vector(streams > 1, streams * streams);
    case LLM_XIELU_NUMBERS:
        return vector(l->activation == LLM_XIELU, 2);
    case LLM_Q_UP:
        return matrix_tensor(l->q_rank > 0, q_dim, l->q_rank, dtype);
    case LLM_K_UP:
    case LLM_V_UP:
        t = id == LLM_K_UP ? matrix_tensor(l->latent_dim > 0, l->latent_dim, l->head_dim - l->turn_dim, dtype)
                           : matrix_tensor(l->latent_dim > 0, value_dim_of(l), l->latent_dim, dtype);
        t.experts = l->latent_dim ? l->n_heads : 1;
        return t;
    case LLM_CONV:
        return vector(l->mixer != LLM_ATTENTION, l->conv_kernel * channels);
    case LLM_STATE_GATES:
        return matrix_tensor(delta, 2 * (uint64_t)l->delta_heads, h->dim, dtype);
    case LLM_DECAY:
        return vector(delta, 2 * (uint64_t)l->delta_heads);
    case LLM_STATE_NORM:
        return vector(delta, l->delta_value_dim);
    default: /* an id between those that occur once and a layer's */
        return matrix_tensor(0, 0, 0, dtype);
    }
}

/* The dtypes of the tensors from `first` up to `last`: one that the kernels multiply where there is a matrix,
 * 0 elsewhere */
static int check_dtypes(const llm_header *h, const llm_layer *layers, size_t layer, uint32_t first,
    uint32_t last, char *err, size_t errlen) {
    for (uint32_t id = first; id < last; id++) {
        const uint32_t dtype = dtype_of(h, &layers[layer], id);
        const int named = llm_tensor_name(id) != NULL;
        const llm_tensor t = named ? shape(h, layers, layer, id) : (llm_tensor){0};
        const int is_matrix = t.rows > 0 && t.dtype == dtype;
        const int multiplied = dtype < LLM_N_DTYPES && dtype != LLM_FP32;
        const int fits = is_matrix ? multiplied : dtype == 0;
        REQUIRE(fits, "layer %zu: dtype %u for tensor %u (%s): " NEWER, layer, dtype, id,
            named ? llm_tensor_name(id) : "unknown");
    }
    return 0;
}

/* Header and layers describe a model that can be laid out. */
static int check_layers(const llm_header *h, const llm_layer *layers, char *err, size_t errlen) {
    const uint32_t last = LLM_ATTN_NORM + sizeof layers->dtype;
    TRY(check_header(h, err, errlen));
    for (size_t i = 0; i < h->n_layers; i++) {
        TRY(check_layer(h, layers, i, err, errlen));
        TRY(check_dtypes(h, layers, i, LLM_ATTN_NORM, last, err, errlen));
    }
    TRY(check_dtypes(h, layers, 0, 0, LLM_ATTN_NORM, err, errlen));
    return 0;
}

static uint64_t tensor_bytes(const llm_tensor *t) { return t->experts * align(t->size, LLM_GROUP); }

/* The bytes of a layer's tensors from `first` up to `last` */
static uint64_t span(
    const llm_header *h, const llm_layer *layers, size_t layer, uint32_t first, uint32_t last) {
    uint64_t sum = 0;
    for (uint32_t id = first; id < last; id++) {
        const llm_tensor t = shape(h, layers, layer, id);
        sum += tensor_bytes(&t);
    }
    return sum;
}

/* The file's first tensor */
static uint64_t first_offset(const llm_header *h) {
    const uint64_t rope = (uint64_t)h->n_rope * (h->rope_dim / 2) * sizeof(llm_angle);
    const uint64_t layers = (uint64_t)h->n_layers * sizeof(llm_layer);
    return align(LLM_HEADER_SIZE + h->text_size + layers + rope, LLM_GROUP);
}

/* The first tensor of a layer, or what follows the last layer */
static uint64_t layer_offset(const llm_header *h, const llm_layer *layers, size_t layer) {
    uint64_t offset = first_offset(h) + span(h, layers, 0, 0, LLM_ATTN_NORM);
    for (size_t i = 0; i < layer; i++)
        offset += span(h, layers, i, LLM_ATTN_NORM, LLM_N_TENSORS);
    return offset;
}

int llm_layout(const llm_header *h, const llm_layer *layers, uint32_t id, uint32_t layer, uint32_t expert,
    llm_tensor *t, char *err, size_t errlen) {
    TRY(check_layers(h, layers, err, errlen));
    const int known = id < LLM_N_TENSORS && layer < (id < LLM_ATTN_NORM ? 1 : h->n_layers);
    REQUIRE(known, "no tensor %u in layer %u", id, layer);
    *t = shape(h, layers, layer, id);
    REQUIRE(expert < t->experts, "no expert %u of tensor %u in layer %u", expert, id, layer);
    if (id < LLM_ATTN_NORM)
        t->offset = first_offset(h) + span(h, layers, 0, 0, id);
    else
        t->offset = layer_offset(h, layers, layer) + span(h, layers, layer, LLM_ATTN_NORM, id);
    t->offset += expert * align(t->size, LLM_GROUP);
    return 0;
}

uint64_t llm_file_size(const llm_header *h, const llm_layer *layers, char *err, size_t errlen) {
    if (check_layers(h, layers, err, errlen))
        return 0;
    return layer_offset(h, layers, h->n_layers) + LLM_GROUP;
}

/* ------------------------------------------------------------------------------------------------------
 * What a model is and needs */

const char *llm_kv_name(uint32_t kv) {
    static const char *const names[] = {"default", "fp16", "int8"};
    return kv < sizeof names / sizeof *names ? names[kv] : NULL;
}

uint32_t llm_kv_kind(const llm_layer *layers, uint32_t kv) {
    const uint32_t dtype = layers[0].dtype[LLM_QKV - LLM_ATTN_NORM];
    if (kv != LLM_KV_DEFAULT)
        return kv;
    return dtype == LLM_INT8_ROTATED || dtype == LLM_INT4 ? LLM_KV_INT8 : LLM_KV_FP16;
}

size_t kv_head_bytes(const llm_layer *l, uint32_t kv, int is_value) {
    const size_t width = align(is_value ? kept_value_dim(l) : kept_key_dim(l), LLM_TILE);
    if (kv == LLM_KV_FP16)
        return width * sizeof(uint16_t);
    const size_t scales = is_value ? sizeof(float) : align(width, LLM_GROUP) / LLM_GROUP * sizeof(uint16_t);
    return width + scales;
}

/* Bytes of keys and values of one position of a layer */
static uint64_t kv_bytes(const llm_layer *l, uint32_t kv) {
    return (uint64_t)l->n_kv_heads * (kv_head_bytes(l, kv, 0) + kv_head_bytes(l, kv, 1));
}

/* ... of all layers */
static uint64_t kv_bytes_of(const llm_header *h, const llm_layer *layers, uint32_t kv) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < h->n_layers; i++)
        bytes += layers[i].kv_layer == i ? kv_bytes(&layers[i], llm_kv_kind(layers, kv)) : 0;
    return bytes;
}

uint32_t kv_window(const llm_header *h, const llm_layer *layers, size_t layer) {
    uint32_t widest = layers[layer].window;
    for (size_t i = layer + 1; widest && i < h->n_layers; i++) {
        const uint32_t window = layers[i].window;
        if (layers[i].kv_layer == layer && (!window || window > widest))
            widest = window;
    }
    return widest;
}

size_t window_numbers(const llm_header *h, const llm_layer *l) {
    return l->mixer == LLM_ATTENTION ? 0 : (l->conv_kernel - 1) * channels_of(h, l);
}

size_t head_numbers(const llm_layer *l) { return l->delta_key_dim * align(l->delta_value_dim, LLM_GROUP); }

uint64_t state_bytes(const llm_header *h, const llm_layer *l) {
    return align((window_numbers(h, l) + l->delta_heads * head_numbers(l)) * sizeof(float), 64);
}

uint64_t state_bytes_of(const llm_header *h, const llm_layer *layers) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < h->n_layers; i++)
        bytes += state_bytes(h, &layers[i]);
    return bytes;
}

uint64_t llm_kv_size(
    const llm_header *h, const llm_layer *layers, uint32_t kv, uint64_t length, uint64_t oldest) {
    uint64_t bytes = length ? state_bytes_of(h, layers) : 0;
    for (size_t i = 0; i < h->n_layers; i++) {
        const uint64_t skipped = first_page(kv_window(h, layers, i), oldest) * LLM_PAGE;
        if (layers[i].kv_layer == i)
            bytes += kv_bytes(&layers[i], llm_kv_kind(layers, kv)) * (align(length, LLM_PAGE) - skipped);
    }
    return bytes;
}

static void count_tensor(
    llm_counts *counts, const llm_header *h, const llm_layer *l, uint32_t id, const llm_tensor *t) {
    const int chosen = t->experts > 1 && id >= LLM_ATTN_NORM && id != LLM_K_UP && id != LLM_V_UP;
    const uint64_t active = chosen ? l->n_active : t->experts;
    const int of_token = id == LLM_PLE_EMBED || (id == LLM_EMBED && !(h->required & LLM_TIED));
    const int one_row = of_token || id == LLM_POSITIONS;
    counts->parameters += t->experts * t->rows * t->cols;
    counts->active += active * t->rows * t->cols;
    counts->read += one_row && t->size ? t->size / t->rows : active * t->size;
}

int llm_count(const llm_header *h, const llm_layer *layers, llm_counts *counts, char *err, size_t errlen) {
    TRY(check_layers(h, layers, err, errlen));
    *counts = (llm_counts){0};
    for (size_t layer = 0; layer < h->n_layers; layer++) {
        for (uint32_t id = layer ? LLM_ATTN_NORM : 0; id < LLM_N_TENSORS; id++) {
            const llm_tensor t = shape(h, layers, layer, id);
            count_tensor(counts, h, &layers[layer], id, &t);
        }
    }
    counts->kv = kv_bytes_of(h, layers, LLM_KV_DEFAULT);
    counts->state = state_bytes_of(h, layers);
    return 0;
}

uint64_t llm_kv_read(const llm_header *h, const llm_layer *layers, uint32_t kv, uint64_t context) {
    uint64_t bytes = state_bytes_of(h, layers);
    for (size_t i = 0; i < h->n_layers; i++) {
        const uint32_t window = layers[i].window;
        bytes +=
            kv_bytes(&layers[i], llm_kv_kind(layers, kv)) * (window && window < context ? window : context);
    }
    return bytes;
}

/* FNV-1a over the header's bytes before this field. */
uint64_t llm_checksum(const llm_header *h) {
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < offsetof(llm_header, checksum); i++)
        hash = (hash ^ ((const uint8_t *)h)[i]) * 0x100000001b3;
    return hash;
}

/* ------------------------------------------------------------------------------------------------------
 * Models */

/* Reads the head of the section that begins at *at or at the next multiple of 16, and moves *at behind it; 0
 * at the end of the sections. */
static int next_section(const llm_model *m, uint64_t *at, llm_section_head *head) {
    *at = align(*at, 16);
    if (*at >= LLM_HEADER_SIZE + m->h.text_size)
        return 0;
    memcpy(head, m->data + *at, sizeof *head); /* always whole: where the sections end is a multiple of 16 */
    *at += sizeof *head;
    return head->tag != 0;
}

/* What a file that does not begin as a model does is, for those who took one for the other. */
static const char *other_kind(const uint8_t *data, size_t size) {
    static const char lfs[] = "version https://git-lfs";
    if (size >= 4 && !memcmp(data, "GGUF", 4))
        return "a GGUF file, of which pyllm-convert makes a pyllm model file";
    if (size >= sizeof lfs - 1 && !memcmp(data, lfs, sizeof lfs - 1))
        return "a git-lfs pointer, not the file itself: git lfs pull fetches it";
    return "not a pyllm model file";
}

/* The table of all tensors; header and layers have been checked. */
static int list_tensors(llm_model *m, char *err, size_t errlen) {
    m->tensors = calloc((size_t)m->h.n_layers * LLM_N_TENSORS, sizeof *m->tensors);
    REQUIRE(m->tensors, "out of memory");
    uint64_t offset = first_offset(&m->h);
    for (size_t layer = 0; layer < m->h.n_layers; layer++)
        for (uint32_t id = layer ? LLM_ATTN_NORM : 0; id < LLM_N_TENSORS; id++) {
            llm_tensor *t = &m->tensors[layer * LLM_N_TENSORS + id];
            *t = shape(&m->h, m->layers, layer, id);
            t->offset = offset;
            offset += tensor_bytes(t);
        }
    return 0;
}

static int check_version(uint32_t version, char *err, size_t errlen) {
    REQUIRE(version >= LLM_VERSION,
        "its format is %u, from before the first release: convert the model again, for format %d", version,
        LLM_VERSION);
    REQUIRE(
        version == LLM_VERSION, "its format is %u, and this reads format %d: " NEWER, version, LLM_VERSION);
    return 0;
}

static int check_sections(const llm_model *m, char *err, size_t errlen) {
    const uint64_t end = LLM_HEADER_SIZE + m->h.text_size;
    llm_section_head head;
    int last = 0;
    for (uint64_t at = LLM_HEADER_SIZE; next_section(m, &at, &head); at += head.size) {
        REQUIRE(head.size <= end - at, "section %u does not fit into the file", head.tag);
        REQUIRE(!head.reserved, "section %u: a reserved field is set: " NEWER, head.tag);
        REQUIRE(!last, "section %u lies behind the checksums, which do not cover it", head.tag);
        last = head.tag == LLM_CHECKSUMS;
    }
    return 0;
}

/* Everything in the file that the engine relies on. Whatever passes may hold wrong numbers, never a wrong
 * size or offset. */
static int check(llm_model *m, char *err, size_t errlen) {
    const int ours = m->size >= 8 && !memcmp(m->data, "PYLLM\r\n\032", 8);
    REQUIRE(ours, "%s", other_kind(m->data, m->size));
    REQUIRE(m->size >= sizeof m->h, "the file is cut short: it has %zu bytes", m->size);
    memcpy(&m->h, m->data, sizeof m->h);
    TRY(check_version(m->h.version, err, errlen));
    REQUIRE(m->h.checksum == llm_checksum(&m->h), "header: the checksum is wrong: the file is damaged");
    TRY(check_header(&m->h, err, errlen));
    REQUIRE(first_offset(&m->h) <= m->size, "the file is cut short: it has %zu bytes", m->size);
    m->layers = (const llm_layer *)(m->data + LLM_HEADER_SIZE + m->h.text_size);
    m->rope = (const llm_angle *)(m->layers + m->h.n_layers);
    const uint64_t size = llm_file_size(&m->h, m->layers, err, errlen);
    TRY(size == 0);
    REQUIRE(size == m->size && size == m->h.file_size, "it has %zu bytes, not %zu", m->size, (size_t)size);
    TRY(check_sections(m, err, errlen));
    return list_tensors(m, err, errlen);
}

llm_model *llm_open_memory(const void *data, size_t size, char *err, size_t errlen) {
    REQUIRE_OR_NULL((uintptr_t)data % 64 == 0, "a model in memory must be aligned to 64 bytes");
    llm_model *m = calloc(1, sizeof *m);
    REQUIRE_OR_NULL(m, "out of memory");
    m->data = data;
    m->size = size;
    if (!check(m, err, errlen))
        return m;
    llm_close(m);
    return NULL;
}

/* Asks for large pages, so that fewer of them are looked up while weights are read: 6 to 10 % faster. Some file
 * systems have them, for what is read from now on; others refuse, and all is as before. */
static void ask_for_huge_pages(void *data, size_t size) {
#ifdef MADV_HUGEPAGE
    madvise(data, size, MADV_HUGEPAGE);
#else
    (void)data, (void)size;
#endif
}

/* Maps a regular file; NULL: err says why not. */
static void *map_file(int fd, size_t *size, char *err, size_t errlen) {
    struct stat st;
    REQUIRE_OR_NULL(fd >= 0 && !fstat(fd, &st), "%s", strerror(errno));
    REQUIRE_OR_NULL(!S_ISDIR(st.st_mode), "it is a directory, not a model file");
    REQUIRE_OR_NULL(S_ISREG(st.st_mode), "it is not a regular file, and cannot be mapped");
    REQUIRE_OR_NULL(st.st_size > 0, "the file is empty");
    *size = (size_t)st.st_size;
    void *data = mmap(NULL, *size, PROT_READ, MAP_SHARED, fd, 0);
    REQUIRE_OR_NULL(data != MAP_FAILED, "its %zu bytes cannot be mapped: %s", *size, strerror(errno));
    ask_for_huge_pages(data, *size);
    return data;
}

llm_model *llm_open(const char *path, char *err, size_t errlen) {
    char why[256];
    size_t size;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO without a writer: do not wait */
    void *data = map_file(fd, &size, why, sizeof why);
    if (fd >= 0)
        close(fd);
    llm_model *m = data ? llm_open_memory(data, size, why, sizeof why) : NULL;
    if (!m && data)
        munmap(data, size);
    REQUIRE_OR_NULL(m, "%s: %s", path, why);
    m->mapped = 1;
    return m;
}

void llm_close(llm_model *m) {
    if (!m)
        return;
    if (m->mapped)
        munmap((void *)m->data, m->size);
    free(m->tensors);
    free(m);
}

const llm_header *llm_model_header(const llm_model *m) { return &m->h; }

const llm_layer *llm_model_layers(const llm_model *m) { return m->layers; }

const void *llm_section(const llm_model *m, uint32_t tag, size_t *size) {
    llm_section_head head;
    for (uint64_t at = LLM_HEADER_SIZE; next_section(m, &at, &head); at += head.size)
        if (head.tag == tag) {
            *size = (size_t)head.size;
            return m->data + at;
        }
    *size = 0;
    return NULL;
}

size_t llm_kv_bytes(const llm_model *m, uint32_t kv) { return (size_t)kv_bytes_of(&m->h, m->layers, kv); }
