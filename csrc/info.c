/* info.c - the command `info`: what is in a model file, and the memory and time that it needs. */
#include "command.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

static const char *dtype_name(uint32_t dtype) { return dtype == LLM_INT8 ? "int8" : "fp16"; }

static void print_size(run *r) {
    const llm_header *h = r->h;
    llm_header other = *h;
    other.dtype = h->dtype == LLM_INT8 ? LLM_FP16 : LLM_INT8;
    uint64_t other_size = llm_file_size(&other, r->err, sizeof r->err);
    printf("%-18s%" PRIu64 " bytes (%s), format %u\n", "file", h->file_size, size_text((double)h->file_size),
        h->version);
    printf("%-18s%s", "weights", dtype_name(h->dtype));
    if (h->dtype == LLM_INT8)
        printf(", with an fp16 scale for every 64");
    printf("; %" PRIu64 " bytes (%s) as %s\n", other_size, size_text((double)other_size),
        dtype_name(other.dtype));
}

static void print_parameters(const llm_header *h, const llm_counts *n) {
    printf("%-18s%" PRIu64, "parameters", n->parameters);
    if (h->n_experts)
        printf(", %" PRIu64 " of them for each token", n->active);
    putchar('\n');
}

static void print_shape(const llm_header *h) {
    printf("%-18s%u layers, width %u, feed-forward %u", "shape", h->n_layers, h->dim, h->ffn_dim);
    if (h->n_experts)
        printf(" in %u experts, %u for each token", h->n_experts, h->n_active);
    if (h->shared_dim)
        printf(" and a shared one of %u", h->shared_dim);
    putchar('\n');
}

static void print_attention(const llm_header *h, const llm_layer *layers) {
    uint32_t with_window = 0, widest = 0;
    for (uint32_t i = 0; i < h->n_layers; i++) {
        with_window += layers[i].window != 0;
        if (layers[i].window > widest)
            widest = layers[i].window;
    }
    printf(
        "%-18s%u heads of %u, %u for keys and values", "attention", h->n_heads, h->head_dim, h->n_kv_heads);
    if (with_window)
        printf(", in %u layers over %u positions at most", with_window, widest);
    putchar('\n');
}

/* What sets the model apart from Llama. */
static void print_variant(const llm_header *h) {
    static const struct {
        uint32_t flag;
        const char *name;
    } flags[] = {
        {LLM_QKV_BIAS, "bias on q, k and v"},
        {LLM_QK_NORM, "norm on q and k"},
        {LLM_QK_NORM_WHOLE, "over all heads"},
        {LLM_NO_PRE_NORM, "no norm before a block"},
        {LLM_POST_NORM, "norm after a block"},
        {LLM_GELU, "GELU"},
        {LLM_ROUTER_SIGMOID, "experts by sigmoid"},
        {LLM_ROUTER_BIAS, "bias on their choice"},
        {LLM_SHARED_GATE, "gate on the shared expert"},
    };
    const struct {
        float value, usual;
        const char *name;
    } numbers[] = {
        {h->attn_cap, 0, "scores up to"},
        {h->logit_cap, 0, "logits up to"},
        {h->embed_scale, 1, "embedding times"},
        {h->residual_scale, 1, "blocks times"},
        {h->expert_scale, 1, "experts times"},
    };
    printf("%-18soutput %s", "variant", h->flags & LLM_TIED ? "tied to the embedding" : "of its own");
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (h->flags & flags[i].flag)
            printf(", %s", flags[i].name);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i].value != numbers[i].usual)
            printf(", %s %g", numbers[i].name, numbers[i].value);
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
    double kv;      /* bytes of keys and values then */
    double weights; /* bytes of weights that are read for a token ... */
    double with_kv; /* ... and with the keys and values that are read for the last one */
} needs;

static needs count_needs(const run *r, const llm_counts *n) {
    const llm_header *h = r->h;
    double context = r->o->context ? r->o->context : h->context;
    double seen = (double)llm_kv_read(h, llm_model_layers(r->model), (uint64_t)context);
    return (needs){context, (double)n->kv * context, (double)n->read, (double)n->read + seen};
}

static void print_needs(const run *r, const llm_counts *n, const needs *x) {
    printf("%-18s%u\n", "context", r->h->context);
    printf("%-18s%" PRIu64 " bytes a token, %s at a context of %.0f\n", "keys and values", n->kv,
        size_text(x->kv), x->context);
    printf("%-18s%s with those\n", "memory", size_text((double)r->h->file_size + x->kv));
    printf("%-18s%s of weights a token, %s with those\n", "decode reads", size_text(x->weights),
        size_text(x->with_kv));
    printf("%-18s%s, %u threads\n", "runs with", llm_session_isa(r->session), r->threads);
}

/* Decoding reads all of its weights, and the keys and values so far, for each token: what memory allows. */
static int print_speed(run *r, const needs *x) {
    enum { N = 1 << 25 }; /* more than caches hold */
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE), speed = 0;
    uint64_t *words = take(r, N, sizeof *words);
    if (!words)
        return FAILED;
    memset(words, 1, N * sizeof *words);
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
    if (llm_count(h, &n, r->err, sizeof r->err))
        return engine_failed(r);
    if (open_session(r, 1) != OK) /* for its threads and instruction set */
        return FAILED;
    if (print_section(r, LLM_NAME, "name") != OK || print_section(r, LLM_ABOUT, "about") != OK)
        return FAILED;
    print_size(r);
    print_parameters(h, &n);
    print_shape(h);
    print_attention(h, llm_model_layers(r->model));
    print_variant(h);
    if (print_tokenizer(r) != OK)
        return FAILED;
    print_chat(r);
    needs x = count_needs(r, &n);
    print_needs(r, &n, &x);
    return r->o->speed ? print_speed(r, &x) : OK;
}
