/* info.c - the command `info`: what is in a model file, and the memory and time that it needs. */
#include "command.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

/* ---------------------------------------------------------------------------------------------------------
 * What it is */

/* Matrices whose dtype is a choice: those that occur once, and those of a layer */
static const uint32_t ONCE[] = {
    LLM_EMBED, LLM_OUTPUT, LLM_PLE_EMBED, LLM_PLE_PROJ, LLM_STREAM_IN, LLM_STREAM_OUT};
static const uint32_t MATRICES[] = {LLM_QKV, LLM_ATTN_OUT, LLM_GATE_UP, LLM_DOWN, LLM_SHARED_GATE_UP,
    LLM_SHARED_DOWN, LLM_PLE_GATE, LLM_PLE_OUT, LLM_LAUREL_LEFT, LLM_LAUREL_RIGHT, LLM_Q_UP, LLM_K_UP,
    LLM_V_UP};
enum { N_ONCE = sizeof ONCE / sizeof *ONCE, N_MATRICES = sizeof MATRICES / sizeof *MATRICES };

/* Whether the model has this matrix, in layer l if it is one of a layer */
static int has_matrix(const llm_header *h, const llm_layer *l, uint32_t id) {
    switch (id) {
    case LLM_OUTPUT:
        return !(h->required & LLM_TIED);
    case LLM_PLE_EMBED:
    case LLM_PLE_PROJ:
    case LLM_PLE_GATE:
    case LLM_PLE_OUT:
        return h->ple_dim > 0;
    case LLM_SHARED_GATE_UP:
    case LLM_SHARED_DOWN:
        return l->shared_dim > 0;
    case LLM_LAUREL_LEFT:
    case LLM_LAUREL_RIGHT:
        return l->low_rank > 0;
    case LLM_STREAM_IN:
    case LLM_STREAM_OUT:
        return h->n_streams > 1;
    case LLM_Q_UP:
        return l->q_rank > 0;
    case LLM_K_UP:
    case LLM_V_UP:
        return l->latent_dim > 0;
    default:
        return 1;
    }
}

/* A bit for each dtype that the model's matrices have */
static unsigned dtypes_of(const llm_header *h, const llm_layer *layers) {
    unsigned bits = 0;
    for (size_t k = 0; k < N_ONCE; k++)
        if (has_matrix(h, layers, ONCE[k]))
            bits |= 1u << h->dtype[ONCE[k]];
    for (uint32_t i = 0; i < h->n_layers; i++)
        for (size_t k = 0; k < N_MATRICES; k++)
            if (has_matrix(h, &layers[i], MATRICES[k]))
                bits |= 1u << layers[i].dtype[MATRICES[k] - LLM_ATTN_NORM];
    return bits;
}

/* What pyllm-convert makes of a model: the dtype of the matrices that occur once and of LLM_DOWN in the first layers,
 * one of FIRST; and of the others' */
enum { FIRST = 12 };

static const struct precision {
    const char *name;
    uint8_t once, layer;
} PRECISIONS[] = {
    {"fp16", LLM_FP16, LLM_FP16},
    {"int8", LLM_INT8_ROTATED, LLM_INT8_ROTATED},
    {"int4", LLM_INT8_ROTATED, LLM_INT4},
};

/* The size of the file if its matrices were such; 0: unknown */
static uint64_t size_as(run *r, const struct precision *p) {
    llm_header h = *r->h;
    llm_layer *layers = take(r, h.n_layers, sizeof *layers);
    if (!layers)
        return 0;
    memcpy(layers, llm_model_layers(r->model), h.n_layers * sizeof *layers);
    for (size_t k = 0; k < N_ONCE; k++)
        if (has_matrix(&h, layers, ONCE[k]))
            h.dtype[ONCE[k]] = p->once;
    for (uint32_t i = 0; i < h.n_layers; i++)
        for (size_t k = 0; k < N_MATRICES; k++) {
            if (!has_matrix(&h, &layers[i], MATRICES[k]))
                continue;
            const int first = MATRICES[k] == LLM_DOWN && i < h.n_layers / FIRST;
            layers[i].dtype[MATRICES[k] - LLM_ATTN_NORM] = first ? p->once : p->layer;
        }
    return llm_file_size(&h, layers, r->err, sizeof r->err);
}

static void print_size(run *r) {
    const llm_header *h = r->h;
    const unsigned dtypes = dtypes_of(h, llm_model_layers(r->model));
    const char *between = "";
    printf("%-18s%" PRIu64 " bytes (%s), format %u\n", "file", h->file_size, size_text((double)h->file_size),
        h->version);
    printf("%-18s", "weights");
    for (uint32_t dtype = 0; dtype < LLM_N_DTYPES; dtype++) {
        if (!(dtypes >> dtype & 1))
            continue;
        printf("%s%s", between, llm_dtype_name(dtype));
        between = " and ";
    }
    const unsigned by_64 = dtypes & (1u << LLM_INT8 | 1u << LLM_INT8_ROTATED);
    const unsigned by_32 = dtypes & 1u << LLM_INT4;
    const char *every = by_64 ? "64" : NULL;
    if (by_32)
        every = by_64 ? "64 or 32" : "32";
    if (every)
        printf(", with an fp16 scale for every %s", every);
    between = ";";
    for (size_t i = 0; i < sizeof PRECISIONS / sizeof *PRECISIONS; i++) {
        const uint64_t size = size_as(r, &PRECISIONS[i]);
        if (size == h->file_size)
            continue;
        printf("%s %" PRIu64 " bytes (%s) as %s", between, size, size_text((double)size), PRECISIONS[i].name);
        between = ",";
    }
    putchar('\n');
}

/* What a reader of the file must know, and whether it can be checked. */
static void print_features(const run *r) {
    const char *between = "";
    printf("%-18s", "features");
    for (uint32_t bit = 0; llm_feature_name(bit); bit++) {
        if (!(r->h->required >> bit & 1))
            continue;
        printf("%s%s", between, llm_feature_name(bit));
        between = ", ";
    }
    printf("%s\n", r->h->required ? "" : "none");
    const char *checksums = "none";
    if (has_section(r, LLM_CHECKSUMS))
        checksums = r->o->verify ? "right" : "there, see --verify";
    printf("%-18s%s\n", "checksums", checksums);
}

static void print_parameters(const llm_counts *n) {
    printf("%-18s%" PRIu64, "parameters", n->parameters);
    if (n->active != n->parameters)
        printf(", %" PRIu64 " of them for each token", n->active);
    putchar('\n');
}

static int same_ffn(const llm_layer *a, const llm_layer *b) {
    return a->ffn == b->ffn && a->ffn_dim == b->ffn_dim && a->n_experts == b->n_experts &&
           a->n_active == b->n_active && a->n_groups == b->n_groups &&
           a->n_active_groups == b->n_active_groups && a->shared_dim == b->shared_dim;
}

static int same_heads(const llm_layer *a, const llm_layer *b) {
    return a->n_heads == b->n_heads && a->n_kv_heads == b->n_kv_heads && a->head_dim == b->head_dim &&
           a->value_dim == b->value_dim && a->latent_dim == b->latent_dim && a->turn_dim == b->turn_dim &&
           a->q_rank == b->q_rank;
}

/* How many of the layers are as layer i; 0: an earlier one is, and was counted. */
static uint32_t count_alike(const llm_header *h, const llm_layer *layers, uint32_t i,
    int (*same)(const llm_layer *, const llm_layer *)) {
    uint32_t n = 0;
    for (uint32_t k = 0; k < h->n_layers; k++) {
        if (!same(&layers[i], &layers[k]))
            continue;
        if (k < i)
            return 0;
        n++;
    }
    return n;
}

static void print_ffn(const llm_layer *l) {
    printf("feed-forward %u", l->ffn_dim);
    if (l->n_experts)
        printf(" in %u experts, %u for each token", l->n_experts, l->n_active);
    if (l->n_groups)
        printf(" from %u of %u groups", l->n_active_groups, l->n_groups);
    if (l->shared_dim)
        printf(" and a shared one of %u", l->shared_dim);
}

static void print_shape(const llm_header *h, const llm_layer *layers) {
    printf("%-18s%u layers, width %u, ", "shape", h->n_layers, h->dim);
    for (uint32_t i = 0; i < h->n_layers; i++) {
        const uint32_t alike = count_alike(h, layers, i, same_ffn);
        if (!alike)
            continue;
        if (i)
            printf("; ");
        print_ffn(&layers[i]);
        if (alike < h->n_layers)
            printf(" in %u layers", alike);
    }
    putchar('\n');
}

static int same_state(const llm_layer *a, const llm_layer *b) {
    return a->mixer == b->mixer && a->conv_kernel == b->conv_kernel &&
           a->delta_key_heads == b->delta_key_heads && a->delta_heads == b->delta_heads &&
           a->delta_key_dim == b->delta_key_dim && a->delta_value_dim == b->delta_value_dim;
}

/* What layers without attention have in its place */
static void print_states(const llm_header *h, const llm_layer *layers) {
    const char *label = "with a state";
    for (uint32_t i = 0; i < h->n_layers; i++) {
        const llm_layer *l = &layers[i];
        const uint32_t alike = count_alike(h, layers, i, same_state);
        if (l->mixer == LLM_ATTENTION || !alike)
            continue;
        printf("%-18s", label);
        if (l->mixer == LLM_SHORT_CONV)
            printf("gated convolutions over %u positions", l->conv_kernel);
        else
            printf("gated delta rule, %u heads of %u by %u, %u for keys, convolutions over %u positions",
                l->delta_heads, l->delta_key_dim, l->delta_value_dim, l->delta_key_heads, l->conv_kernel);
        printf(", in %u layers\n", alike);
        label = "";
    }
}

static void print_attention(const llm_header *h, const llm_layer *layers) {
    uint32_t with_window = 0, widest = 0, borrowing = 0;
    const char *between = "";
    printf("%-18s", "attention");
    for (uint32_t i = 0; i < h->n_layers; i++) {
        const llm_layer *l = &layers[i];
        with_window += l->window != 0;
        borrowing += l->kv_layer != i;
        if (l->window > widest)
            widest = l->window;
        const uint32_t alike = count_alike(h, layers, i, same_heads);
        if (!alike || l->mixer != LLM_ATTENTION)
            continue;
        printf("%s%u heads of %u, ", between, l->n_heads, l->head_dim);
        between = "; ";
        if (l->latent_dim)
            printf("a latent of %u and %u that turn for keys and values", l->latent_dim, l->turn_dim);
        else
            printf("%u for keys and values", l->n_kv_heads);
        if (l->value_dim)
            printf(" of %u", l->value_dim);
        if (l->q_rank)
            printf(", queries of rank %u", l->q_rank);
        if (alike < h->n_layers)
            printf(" in %u layers", alike);
    }
    if (with_window)
        printf(", in %u layers over %u positions at most", with_window, widest);
    if (borrowing)
        printf(", in %u layers with those of another", borrowing);
    printf("%s\n", *between ? "" : "none");
}

/* A number of a layer that is not what it usually is, once. */
static void print_unusual(
    const llm_header *h, const llm_layer *layers, size_t field, float usual, const char *name) {
    for (uint32_t i = 0; i < h->n_layers; i++) {
        float value;
        memcpy(&value, (const char *)&layers[i] + field, sizeof value);
        if (value != usual) {
            printf(", %s %g", name, value);
            return;
        }
    }
}

/* What sets the model apart from Llama, in words. */
static void print_variant(const llm_header *h, const llm_layer *layers) {
    static const struct {
        uint64_t flag;
        const char *name;
    } flags[] = {
        {LLM_QKV_BIAS, "bias on q, k and v"},
        {LLM_QK_NORM, "norm on q and k"},
        {LLM_QK_NORM_WHOLE, "over all heads"},
        {LLM_NO_PRE_NORM, "no norm before a block"},
        {LLM_POST_NORM, "norm after a block"},
        {LLM_ROUTER_SIGMOID, "experts by sigmoid"},
        {LLM_ROUTER_BIAS, "bias on their choice"},
        {LLM_SHARED_GATE, "gate on the shared expert"},
        {LLM_ROUTER_BEST, "groups by their best expert"},
        {LLM_ROUTER_LOGIT_BIAS, "bias on the router"},
        {LLM_EXPERT_INPUT, "experts' inputs weighted"},
        {LLM_FFN_BIAS, "bias in feed-forward blocks"},
        {LLM_ATTN_OUT_BIAS, "bias on attention's output"},
        {LLM_SINK, "sinks"},
        {LLM_QK_NORM_LATE, "after the rotation"},
        {LLM_CHUNKED, "chunks instead of windows"},
        {LLM_OUT_GATE, "gate on attention's output"},
        {LLM_OUT_GATE_HEAD, "for each head"},
        {LLM_OUT_GATE_SOFTPLUS, "by softplus"},
        {LLM_V_NORM, "norm on v"},
        {LLM_V_IS_K, "values that are keys"},
        {LLM_SHARED_NORMS, "norms for the shared expert and for the others"},
        {LLM_ROUTER_SCALED, "a scale for each expert"},
        {LLM_LAYER_SCALED, "a scale for each layer"},
        {LLM_LAYER_NORM, "LayerNorm"},
        {LLM_NORM_BIAS, "with biases"},
        {LLM_QK_NORM_EACH, "weights of each head for its norm"},
        {LLM_PARALLEL, "blocks side by side"},
        {LLM_ONE_NORM, "behind one norm"},
        {LLM_NO_GATE, "no gate"},
        {LLM_POSITION_TABLE, "learned positions"},
        {LLM_OUTPUT_BIAS, "bias on logits"},
        {LLM_INPUT_NORM, "norm of the embedding"},
    };
    printf("%-18soutput %s", "variant", h->required & LLM_TIED ? "tied to the embedding" : "of its own");
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (h->required & flags[i].flag)
            printf(", %s", flags[i].name);
    static const char *const activations[] = {
        [LLM_SILU] = "",
        [LLM_GELU] = ", GELU",
        [LLM_GELU_ERF] = ", GELU with erf",
        [LLM_RELU2] = ", squared ReLU",
        [LLM_XIELU] = ", xIELU",
    };
    printf("%s", activations[layers[0].activation]);
    print_unusual(h, layers, offsetof(llm_layer, attn_cap), 0, "scores up to");
    print_unusual(h, layers, offsetof(llm_layer, qkv_clip), 0, "q, k and v up to");
    if (h->logit_cap != 0)
        printf(", logits up to %g", h->logit_cap);
    if (h->embed_scale != 1)
        printf(", embedding times %g", h->embed_scale);
    if (h->n_streams > 1)
        printf(", %u residual streams", h->n_streams);
    if (h->ple_dim)
        printf(", embeddings of %u for each layer", h->ple_dim);
    if (h->residual_scale != 1)
        printf(", blocks times %g", h->residual_scale);
    if (layers[h->n_layers - 1].ffn == LLM_EXPERTS)
        print_unusual(h, layers, offsetof(llm_layer, expert_scale), 1, "experts times");
    print_unusual(h, layers, offsetof(llm_layer, gate_limit), 0, "gates up to");
    print_unusual(h, layers, offsetof(llm_layer, gate_slope), 0, "their slope");
    print_unusual(h, layers, offsetof(llm_layer, up_shift), 0, "up plus");
    print_unusual(h, layers, offsetof(llm_layer, query_growth), 0, "queries growing by");
    putchar('\n');
}

/* ---------------------------------------------------------------------------------------------------------
 * Text */

static void print_token(run *r, const char *label, int64_t token) {
    if (token >= 0)
        printf("%-18s%" PRId64 " %s\n", label, token, visible_token(r, (uint32_t)token));
}

static void print_stops(run *r) {
    enum { SHOWN = 16 };
    size_t n;
    const uint32_t *stops = llm_token_stops(r->tokenizer, &n);
    for (size_t i = 0; i < n && i < SHOWN; i++)
        print_token(r, "ends a text", stops[i]);
    if (n > SHOWN)
        printf("%-18s%zu more\n", "", n - SHOWN);
}

static int print_tokenizer(run *r) {
    printf("%-18s%u\n", "vocabulary", r->h->vocab_size);
    if (!has_section(r, LLM_TOKENIZER)) {
        printf("%-18snone in this file\n", "tokenizer");
        return OK;
    }
    if (open_tokenizer(r) != OK)
        return FAILED;
    print_token(r, "BOS", llm_token_bos(r->tokenizer));
    print_token(r, "EOS", llm_token_eos(r->tokenizer));
    print_stops(r);
    return OK;
}

static void print_chat(run *r) {
    const char *answer = "no";
    if (has_section(r, LLM_CHAT_PARTS))
        answer = "yes";
    else if (has_section(r, LLM_CHAT_TEMPLATE))
        answer = "only from Python";
    printf("%-18s%s\n", "chat", answer);
    print_section(r, LLM_CHAT_WHY, "");
}

/* ---------------------------------------------------------------------------------------------------------
 * What it needs */

typedef struct needs {
    double context; /* positions */
    double kv;      /* bytes that keys and values take then, and states */
    double weights; /* bytes of weights that are read for a token ... */
    double with_kv; /* ... and with the keys and values that are read for the last one */
} needs;

static needs count_needs(const run *r, const llm_counts *n) {
    const llm_header *h = r->h;
    const llm_layer *layers = llm_model_layers(r->model);
    const llm_options *o = llm_session_options(r->session);
    const uint64_t context = r->o->context ? r->o->context : h->context, back = o->rewind + o->batch;
    const uint64_t oldest = context > back ? context - back : 0;
    double kept =
        (double)(llm_kv_size(h, layers, LLM_KV_DEFAULT, context, oldest) + (LLM_STATES - 1) * n->state);
    double seen = (double)llm_kv_read(h, layers, LLM_KV_DEFAULT, context);
    return (needs){(double)context, kept, (double)n->read, (double)n->read + seen};
}

static void print_needs(const run *r, const llm_counts *n, const needs *x) {
    printf("%-18s%u\n", "context", r->h->context);
    printf("%-18s%" PRIu64 " bytes a token, %s at a context of %.0f\n", "keys and values", n->kv,
        size_text(x->kv - (double)(LLM_STATES * n->state)), x->context);
    if (n->state)
        printf("%-18s%" PRIu64 " bytes each, %s for the %d that are kept\n", "states", n->state,
            size_text((double)(LLM_STATES * n->state)), LLM_STATES);
    printf("%-18s%s with those\n", "memory", size_text((double)r->h->file_size + x->kv));
    printf("%-18s%s of weights a token, %s with those\n", "decode reads", size_text(x->weights),
        size_text(x->with_kv));
    printf("%-18s%s, %u threads\n", "runs with", llm_session_isa(r->session), r->threads);
}

/* Decoding reads all of its weights, and the keys and values so far, for each token: what memory allows. */
static int print_speed(run *r, const needs *x) {
    enum { N = 1 << 25 }; /* more than caches hold */
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE), speed = 0;
    uint64_t *words = take_words(r, N);
    if (!words)
        return FAILED;
    for (int i = 0; i < 3; i++)
        speed = fmax(speed, read_speed(r, words, N));
    printf("%-18s%.2f GB/s\n", "read bandwidth", speed / 1e9);
    printf("%-18sat most %.1f tokens/s, %.1f at the end of that context\n", "decode", speed / x->weights,
        speed / x->with_kv);
    if ((double)r->h->file_size > memory)
        printf("%-18sfar less: %s of memory do not hold the file\n", "", size_text(memory));
    return OK;
}

int run_info(run *r) {
    const llm_header *h = r->h;
    llm_counts n;
    const llm_layer *layers = llm_model_layers(r->model);
    if (llm_count(h, layers, &n, r->err, sizeof r->err))
        return engine_failed(r);
    if (r->o->verify && llm_verify(r->model, r->err, sizeof r->err))
        return report(FAILED, "%s: %s", r->o->model ? r->o->model : "the built-in model", r->err);
    if (open_session(r, 1) != OK) /* for its threads and instruction set */
        return FAILED;
    if (print_section(r, LLM_NAME, "name") != OK || print_section(r, LLM_ABOUT, "about") != OK)
        return FAILED;
    print_size(r);
    print_features(r);
    print_parameters(&n);
    print_shape(h, layers);
    print_attention(h, layers);
    print_states(h, layers);
    print_variant(h, layers);
    if (print_tokenizer(r) != OK)
        return FAILED;
    print_chat(r);
    needs x = count_needs(r, &n);
    print_needs(r, &n, &x);
    return r->o->speed ? print_speed(r, &x) : OK;
}
