/* fuzz.c - valid model files with hostile numbers, run through the engine: FIRST COUNT [TOGETHER] does the runs
 * FIRST to FIRST + COUNT, TOGETHER of them at once on threads that share the models.
 *
 * Every run makes a model of random features and sizes, the same in all layers or not, whose weights are random
 * bits, NaN, infinities, denormal or huge numbers, or sound ones, tensor by tensor; now and then damages its
 * header or layers, which are then refused or run; opens a session on it with a random instruction set, and
 * appends, copies, truncates, loads random states and samples. Nothing may touch what it should not: build it
 * with -DLLM_GUARD (pages behind every buffer that fault; there is one behind the model too) and the
 * sanitizers. What llm.h promises is checked beside: logits are finite or an error, and after an error nothing
 * has changed. Ends with status 0 and a line of counts; or with the number of the run that failed. */
#define _GNU_SOURCE
#include "llm.h"
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_SEQS = 4, MAX_TOKENS = 700, MAX_LAYERS = 4, GUARD = 1 << 16 };

/* ---------------------------------------------------------------------------------------------------------
 * Failing */

static _Thread_local unsigned long run; /* the one at hand */
static _Atomic unsigned long begun;     /* the last one that began: what the engine's own threads are at */

static void say_run(void) {
    char line[64];
    const int n = snprintf(line, sizeof line, "fuzz: run %lu failed\n", run ? run : begun);
    if (write(STDERR_FILENO, line, (size_t)n) < 0)
        _exit(3);
}

static void on_fault(int number) {
    say_run();
    signal(number, SIG_DFL);
    raise(number);
}

#define CHECK(condition)                                                      \
    do {                                                                      \
        if (!(condition)) {                                                   \
            fprintf(stderr, "fuzz.c:%d: not so: %s\n", __LINE__, #condition); \
            say_run();                                                        \
            _exit(1);                                                         \
        }                                                                     \
    } while (0)

/* ---------------------------------------------------------------------------------------------------------
 * Random numbers: splitmix64 */

typedef struct dice {
    uint64_t state;
} dice;

static uint64_t bits(dice *d) {
    uint64_t z = d->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint32_t from_to(dice *d, uint32_t least, uint32_t most) {
    return least + (uint32_t)(bits(d) % (most - least + 1u));
}

/* One in n */
static int chance(dice *d, uint32_t n) { return bits(d) % n == 0; }

static float number(dice *d, float scale) { return scale * ((float)(bits(d) >> 40) / 8388608.0f - 1.0f); }

static float any_float(dice *d) {
    const uint32_t some[] = {
        0, 0x7fc00000, 0x7f800000, 0xff800000, 0x7f7fffff, 1, 0x80000000, (uint32_t)bits(d)};
    float f;
    memcpy(&f, &some[from_to(d, 0, 7)], sizeof f);
    return f;
}

/* ---------------------------------------------------------------------------------------------------------
 * Models */

static uint32_t size(dice *d, uint32_t most) {
    return chance(d, 6) ? 64 * from_to(d, 1, 2) : from_to(d, 1, most);
}

/* What a model's file says before the weights */
typedef struct model {
    llm_header h;
    llm_layer layers[MAX_LAYERS];
} model;

static void make_experts(dice *d, llm_layer *l) {
    l->ffn = LLM_EXPERTS;
    l->n_experts = from_to(d, 1, chance(d, 12) ? 200 : 9);
    l->n_active = from_to(d, 1, l->n_experts < 12 ? l->n_experts : 12);
    l->ffn_dim = l->n_experts > 9 ? 1 : l->ffn_dim;
    l->flags |= bits(d) & (LLM_ROUTER_NORMALIZE | LLM_ROUTER_SIGMOID | LLM_ROUTER_BIAS | LLM_ROUTER_SCALED);
    l->shared_dim = chance(d, 2) ? size(d, 70) : 0;
    if (l->shared_dim && chance(d, 2))
        l->flags |= chance(d, 2) ? LLM_SHARED_GATE : LLM_SHARED_NORMS;
    l->flags |= bits(d) & bits(d) & (LLM_ROUTER_LOGIT_BIAS | LLM_EXPERT_INPUT);
    if (l->n_experts % 3 == 0 && chance(d, 2)) {
        l->n_groups = chance(d, 2) ? 3 : l->n_experts;
        l->n_active_groups = from_to(d, 1, l->n_groups);
        const uint32_t enough = l->n_experts / l->n_groups * l->n_active_groups;
        l->n_active = l->n_active < enough ? l->n_active : enough;
        l->flags |= bits(d) & LLM_ROUTER_BEST;
    }
}

/* What a few families have */
static void make_small_print(dice *d, llm_layer *l) {
    l->flags |= bits(d) & bits(d) & (LLM_FFN_BIAS | LLM_ATTN_OUT_BIAS | LLM_SINK);
    if (l->flags & LLM_QK_NORM && !(l->flags & LLM_QK_NORM_WHOLE))
        l->flags |= bits(d) & LLM_QK_NORM_LATE;
    if (chance(d, 3))
        l->flags |= LLM_OUT_GATE | (bits(d) & (LLM_OUT_GATE_HEAD | LLM_OUT_GATE_SOFTPLUS));
    l->value_dim = chance(d, 3) ? from_to(d, 1, 40) : 0;
    if (l->value_dim || l->flags & LLM_OUT_GATE)
        l->flags &= ~(uint64_t)LLM_V_IS_K;
    const int gated = !(l->flags & LLM_NO_GATE);
    l->gate_limit = gated && chance(d, 4) ? fabsf(number(d, 9)) : 0;
    l->gate_slope = gated && l->activation == LLM_SILU && chance(d, 4) ? number(d, 9) : 0;
    l->up_shift = gated && chance(d, 4) ? number(d, 9) : 0;
    l->query_span = chance(d, 4) ? from_to(d, 1, 90) : 0;
    l->query_shift = l->query_span ? from_to(d, 0, 9) : 0;
    l->query_growth = l->query_span ? number(d, 9) : 0;
    l->low_rank = chance(d, 4) ? size(d, 70) : 0;
    l->low_rank = l->flags & LLM_PARALLEL ? 0 : l->low_rank;
    l->gate_cut = gated && chance(d, 4) ? number(d, 3) : 0;
}

/* Without the one flag it has none of the others either. */
static void without(llm_layer *l, uint64_t flag, uint64_t others) {
    if (!(l->flags & flag))
        l->flags &= ~others;
}

/* Keys and values of a latent */
static void make_latent(dice *d, llm_layer *l) {
    l->flags &=
        ~(uint64_t)(LLM_QK_NORM | LLM_QK_NORM_WHOLE | LLM_QK_NORM_LATE | LLM_OUT_GATE | LLM_OUT_GATE_HEAD |
                    LLM_OUT_GATE_SOFTPLUS | LLM_V_NORM | LLM_V_IS_K | LLM_QK_NORM_EACH);
    l->qkv_clip = 0;
    l->n_kv_heads = 1;
    l->n_heads = from_to(d, 1, chance(d, 8) ? 24 : 5);
    l->head_dim = l->head_dim < 4 ? 4 : l->head_dim;
    l->turn_dim = 2 * from_to(d, 1, l->head_dim / 2 - 1);
    l->latent_dim = size(d, 90);
    l->q_rank = chance(d, 2) ? size(d, 70) : 0;
    l->latent_eps = chance(d, 4) ? 0 : 1e-6f;
}

/* A state takes the place of attention. */
static void make_state(dice *d, llm_layer *l) {
    l->n_heads = l->n_kv_heads = l->head_dim = 0;
    l->attn_cap = 0;
    l->query_growth = 0;
    l->value_dim = l->query_span = l->query_shift = l->low_rank = 0;
    l->flags &= ~(uint64_t)(LLM_QKV_BIAS | LLM_QK_NORM | LLM_QK_NORM_WHOLE | LLM_QK_NORM_LATE | LLM_SINK |
                            LLM_ATTN_OUT_BIAS | LLM_OUT_GATE | LLM_OUT_GATE_HEAD | LLM_OUT_GATE_SOFTPLUS |
                            LLM_V_NORM | LLM_V_IS_K | LLM_QK_NORM_EACH | LLM_PARALLEL | LLM_ONE_NORM);
    l->qkv_clip = 0;
    l->mixer = from_to(d, LLM_SHORT_CONV, LLM_DELTA_RULE);
    l->conv_kernel = from_to(d, 2, chance(d, 8) ? 16 : 5);
    if (l->mixer == LLM_SHORT_CONV)
        return;
    l->delta_key_heads = from_to(d, 1, 3);
    l->delta_heads = l->delta_key_heads * from_to(d, 1, 3);
    l->delta_key_dim = from_to(d, 1, chance(d, 8) ? 100 : 20);
    l->delta_value_dim = size(d, chance(d, 8) ? 100 : 20);
}

static llm_layer make_layer(dice *d) {
    llm_layer l = {0};
    l.n_kv_heads = from_to(d, 1, 3);
    l.n_heads = l.n_kv_heads * from_to(d, 1, chance(d, 8) ? 9 : 3);
    l.head_dim = 2 * from_to(d, 1, chance(d, 8) ? 50 : 12);
    l.attn_scale = chance(d, 9) ? number(d, 9e5f) : 0.2f;
    l.attn_cap = chance(d, 4) ? fabsf(number(d, 50)) : 0;
    l.activation = from_to(d, LLM_SILU, LLM_XIELU);
    l.qkv_clip = chance(d, 4) ? fabsf(number(d, 5)) : 0;
    l.ffn_dim = size(d, 70);
    l.expert_scale = chance(d, 9) ? number(d, 9e5f) : 1;
    l.flags = bits(d) & (LLM_QKV_BIAS | LLM_QK_NORM | LLM_QK_NORM_WHOLE | LLM_NO_PRE_NORM | LLM_POST_NORM |
                            LLM_V_NORM | LLM_V_IS_K | LLM_LAYER_SCALED);
    if (chance(d, 2))
        l.flags |= bits(d) & (LLM_LAYER_NORM | LLM_NORM_BIAS | LLM_QK_NORM_EACH | LLM_PARALLEL |
                                 LLM_ONE_NORM | LLM_NO_GATE);
    without(&l, LLM_QK_NORM, LLM_QK_NORM_WHOLE | LLM_QK_NORM_EACH);
    without(&l, LLM_LAYER_NORM, LLM_NORM_BIAS);
    if (l.flags & LLM_QK_NORM_WHOLE)
        l.flags &= ~(uint64_t)LLM_QK_NORM_EACH;
    if (l.flags & LLM_NO_PRE_NORM)
        l.flags &= ~(uint64_t)LLM_PARALLEL;
    without(&l, LLM_PARALLEL, LLM_ONE_NORM);
    if (chance(d, 2))
        make_experts(d, &l);
    if (chance(d, 2))
        make_small_print(d, &l);
    if (chance(d, 4))
        make_latent(d, &l);
    else if (chance(d, 4))
        make_state(d, &l);
    return l;
}

/* Layer i uses the keys and values of an earlier one, if one that makes its own is hit. */
static void borrow(dice *d, llm_layer *layers, uint32_t i) {
    const uint32_t from = from_to(d, 0, i - 1);
    if (layers[from].kv_layer != from || layers[from].latent_dim || layers[i].latent_dim ||
        layers[from].mixer || layers[i].mixer)
        return;
    layers[i].kv_layer = from;
    layers[i].flags &= ~(uint64_t)(LLM_V_NORM | LLM_V_IS_K);
    layers[i].n_kv_heads = layers[from].n_kv_heads;
    layers[i].head_dim = layers[from].head_dim;
    layers[i].value_dim = layers[from].value_dim;
    layers[i].n_heads = layers[i].n_kv_heads * from_to(d, 1, 3);
}

static int is_matrix(const model *m, uint32_t id, uint32_t layer) {
    llm_tensor t;
    CHECK(!llm_layout(&m->h, m->layers, id, layer, 0, &t, NULL, 0));
    return t.size && t.dtype != LLM_FP32;
}

static uint8_t some_dtype(dice *d) {
    static const uint8_t all[] = {LLM_FP16, LLM_INT8, LLM_INT8_ROTATED, LLM_INT4};
    return all[from_to(d, 0, sizeof all - 1)];
}

/* A dtype for every matrix; for all of them, or for each of its own */
static void make_dtypes(dice *d, model *m) {
    const int mixed = chance(d, 3);
    const uint8_t one = some_dtype(d);
    for (uint32_t layer = 0; layer < m->h.n_layers; layer++)
        for (uint32_t id = 0; id < LLM_N_TENSORS; id++) {
            if (!llm_tensor_name(id) || (id < LLM_ATTN_NORM && layer) || !is_matrix(m, id, layer))
                continue;
            uint8_t *dtype =
                id < LLM_ATTN_NORM ? &m->h.dtype[id] : &m->layers[layer].dtype[id - LLM_ATTN_NORM];
            *dtype = mixed ? some_dtype(d) : one;
        }
}

static void make_description(dice *d, model *m) {
    memset(m, 0, sizeof *m);
    m->h = (llm_header){.magic = "PYLLM\r\n\032", .version = LLM_VERSION};
    llm_header *h = &m->h;
    h->dim = size(d, 70);
    h->vocab_size = from_to(d, 1, 50);
    h->context = from_to(d, 1, 400);
    h->n_layers = from_to(d, 1, chance(d, 3) ? MAX_LAYERS : 2);
    h->n_rope = from_to(d, 1, 3);
    h->norm_eps = chance(d, 4) ? 0 : 1e-5f;
    h->logit_cap = chance(d, 4) ? fabsf(number(d, 50)) : 0;
    h->embed_scale = chance(d, 9) ? number(d, 9e5f) : 1;
    h->residual_scale = chance(d, 9) ? number(d, 9e5f) : 1;
    h->ple_dim = chance(d, 3) ? size(d, 70) : 0;
    h->n_streams = chance(d, 4) ? from_to(d, 0, 8) : 0;
    h->ple_scale = h->ple_dim ? number(d, chance(d, 9) ? 9e5f : 1) : 0;
    h->required = from_to(d, 0, 1) ? LLM_TIED : 0;
    if (chance(d, 2))
        h->required |= bits(d) & (LLM_POSITION_TABLE | LLM_OUTPUT_BIAS | LLM_INPUT_NORM);
    h->rope_dim = 2;
    h->optional = chance(d, 9) ? bits(d) & ~(uint64_t)LLM_HAS_CHECKSUMS : 0;
    const int differ = chance(d, 2);
    for (uint32_t i = 0; i < h->n_layers; i++) {
        llm_layer *l = &m->layers[i];
        *l = i && !differ ? m->layers[0] : make_layer(d);
        l->kv_layer = i;
        l->rope = l->mixer ? 0 : from_to(d, 0, h->n_rope - 1);
        l->window = chance(d, 2) && !l->mixer ? from_to(d, 0, 90) : 0;
        l->flags &= ~(uint64_t)LLM_CHUNKED;
        l->flags |= l->window && chance(d, 3) ? LLM_CHUNKED : 0;
        if (i && chance(d, 2))
            borrow(d, m->layers, i);
        if (h->n_streams > 1)
            l->flags &= ~(uint64_t)LLM_LAYER_SCALED;
        if (h->ple_dim)
            l->flags &= ~(uint64_t)LLM_NO_GATE;
        h->required |= l->flags;
        const uint32_t turning = l->latent_dim ? l->turn_dim : l->head_dim;
        h->rope_dim = turning > h->rope_dim ? turning : h->rope_dim;
    }
    make_dtypes(d, m);
}

/* n bytes of a tensor. A style is for all of it, sound ones the likeliest, so that hostile numbers meet sound
 * ones of every other tensor. */
static void fill(dice *d, uint8_t *at, size_t n, uint32_t dtype, uint32_t sound_styles) {
    static const uint16_t hostile[] = {0x7e00, 0xfe01, 0x7c00, 0xfc00, 0x7bff, 0xfbff, 0x0001, 0x8000};
    const uint32_t style = from_to(d, 0, 2 + sound_styles);
    const uint16_t one = hostile[from_to(d, 0, 7)];
    for (size_t i = 0; i + 4 <= n; i += 4) {
        const uint16_t sound[] = {
            (uint16_t)(0x2000 + (bits(d) & 0x9bff)), (uint16_t)(0x2000 + (bits(d) & 0x9bff))};
        const float weight = number(d, 1);
        if (style == 0)
            memcpy(at + i, &(uint32_t){(uint32_t)bits(d)}, 4);
        else if (style == 1 || (style == 2 && chance(d, 50)))
            memcpy(at + i, dtype == LLM_FP32 ? (const uint16_t[]){0, one} : (const uint16_t[]){one, one}, 4);
        else if (dtype == LLM_FP32)
            memcpy(at + i, &weight, 4);
        else
            memcpy(at + i, sound, 4);
    }
}

static void make_tables(dice *d, const model *m, llm_angle *angles) {
    const int sound = !chance(d, 9);
    for (uint32_t i = 0; i < m->h.n_rope * m->h.rope_dim / 2; i++)
        angles[i] = sound ? (llm_angle){number(d, 1), 1} : (llm_angle){any_float(d), any_float(d)};
}

/* The file in a mapping of *mapped bytes that ends at a page which faults; NULL when it would be large. */
static uint8_t *make_file(dice *d, model *m, size_t *mapped) {
    char err[256];
    llm_header *h = &m->h;
    h->file_size = llm_file_size(h, m->layers, err, sizeof err);
    CHECK(h->file_size);
    if (h->file_size > 1 << 20)
        return NULL;
    h->checksum = llm_checksum(h);
    const size_t whole = (h->file_size + GUARD - 1) / GUARD * GUARD;
    *mapped = whole + GUARD;
    uint8_t *map = mmap(NULL, *mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(map != MAP_FAILED && !mprotect(map + whole, GUARD, PROT_NONE));
    uint8_t *data = map + whole - h->file_size;
    memcpy(data, h, sizeof *h);
    memcpy(data + sizeof *h, m->layers, h->n_layers * sizeof *m->layers);
    make_tables(d, m, (llm_angle *)(data + sizeof *h + h->n_layers * sizeof *m->layers));
    const uint32_t soundness = from_to(d, 0, 2) * 60 + 2;
    llm_tensor t;
    for (uint32_t id = 0; id < LLM_N_TENSORS; id++)
        for (uint32_t layer = 0; layer < (id < LLM_ATTN_NORM ? 1 : h->n_layers); layer++)
            for (uint32_t e = 0; !llm_layout(h, m->layers, id, layer, e, &t, err, sizeof err); e++)
                fill(d, data + t.offset, t.size, t.dtype, soundness);
    return data;
}

/* Other bytes in the header or a layer, around weights that stay */
static void damage(dice *d, uint8_t *data) {
    llm_header *h = (llm_header *)data;
    llm_layer *layers = (llm_layer *)(data + sizeof *h);
    const size_t used = chance(d, 2) ? offsetof(llm_layer, dtype) : sizeof *layers;
    const uint32_t n_layers = h->n_layers; /* before it may be damaged, too */
    for (uint32_t n = from_to(d, 1, 3); n; n--) {
        const size_t at = sizeof h->magic + bits(d) % (offsetof(llm_header, checksum) - sizeof h->magic);
        uint8_t *byte = chance(d, 9) ? data + at : (uint8_t *)&layers[bits(d) % n_layers] + bits(d) % used;
        *byte = (uint8_t)(chance(d, 2) ? from_to(d, 0, 5) : *byte ^ 1u << from_to(d, 0, 7));
    }
    h->checksum = llm_checksum(h);
}

/* ---------------------------------------------------------------------------------------------------------
 * Runs */

typedef struct counts {
    unsigned long runs, forwards, refused, states, tokens, experts, shared, stateful, damaged, unsound, gone,
        dropped;
} counts;

static int has_isa(const llm_model *m, const char *name) {
    setenv("PYLLM_ISA", name, 1);
    llm_session *s = llm_session_open(m, NULL, NULL, 0);
    llm_session_close(s);
    return s != NULL;
}

static const char *isas[8];
static uint32_t n_isas;

static void find_isas(const llm_model *m) {
    static const char *const names[] = {
        "scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "dotprod", "i8mm"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (has_isa(m, names[i]))
            isas[n_isas++] = names[i];
}

static void sample(dice *d, const float *logits, size_t vocab) {
    llm_sampling p = llm_sampling_default();
    uint32_t top[5];
    float logprobs[5];
    p.seed = bits(d);
    p.temperature = chance(d, 3) ? 0 : fabsf(number(d, 3));
    p.top_k = chance(d, 2) ? from_to(d, 0, 200) : 0;
    p.top_p = chance(d, 2) ? 1 : fabsf(number(d, 1)) + 1e-6f;
    p.top_p = p.top_p > 1 ? 1 : p.top_p;
    p.repeat_penalty = chance(d, 2) ? 1 : 1 + fabsf(number(d, 3));
    llm_sampler *s = llm_sampler_open(&p, vocab, NULL, 0);
    CHECK(s);
    for (int i = 0; i < 3; i++)
        CHECK(llm_sample(s, logits, NULL) < vocab);
    llm_sampler_close(s);
    llm_logprobs(logits, vocab, from_to(d, 0, (uint32_t)vocab - 1), 5, top, logprobs);
    CHECK(top[0] < vocab);
}

/* A random state for sequence seq: bits, NaN, or sound numbers. What the session keeps of it comes out again. */
static void load_state(dice *d, llm_session *s, const llm_model *m, uint32_t seq, size_t *length) {
    const llm_options *o = llm_session_options(s);
    const llm_header *h = llm_model_header(m);
    const uint32_t n = from_to(d, 0, o->context), oldest = chance(d, 2) ? from_to(d, 0, n) : 0;
    const size_t bytes = llm_kv_size(h, llm_model_layers(m), o->kv, n, oldest);
    uint8_t *state = malloc(bytes + 4), *again = malloc(bytes + 4);
    char err[256];
    CHECK(state && again);
    fill(d, state, bytes, LLM_FP16, 3);
    CHECK(!llm_state(s, seq, n, oldest, state, 1, err, sizeof err));
    length[seq] = n;
    const size_t kept = llm_oldest(s, seq);
    CHECK(kept >= oldest && kept <= n);
    CHECK(llm_kv_size(h, llm_model_layers(m), o->kv, n, kept) <= bytes);
    CHECK(!llm_state(s, seq, n, kept, again, 0, err, sizeof err));
    CHECK(kept > oldest || !memcmp(state, again, bytes));
    free(state);
    free(again);
}

/* Whether sequence seq can be cut to a length, as llm_cut() and llm_oldest() say */
static int is_there(const llm_session *s, uint32_t seq, size_t length) {
    const size_t cut = llm_cut(s, seq, length);
    CHECK(cut <= length && (!cut || cut >= llm_oldest(s, seq)));
    return cut == length;
}

static int has_states(const llm_model *m) {
    llm_counts of_model;
    CHECK(!llm_count(llm_model_header(m), llm_model_layers(m), &of_model, NULL, 0));
    return of_model.state > 0;
}

static void forward(dice *d, llm_session *s, const llm_model *m, size_t *length, float *logits, counts *c) {
    const llm_options *o = llm_session_options(s);
    const uint32_t vocab = llm_model_header(m)->vocab_size;
    size_t n = from_to(d, 1, chance(d, 3) ? 2 * o->batch + 3 : 12), n_want = 0, ahead[MAX_SEQS],
           oldest[MAX_SEQS];
    uint32_t tokens[MAX_TOKENS], seqs[MAX_TOKENS];
    uint8_t want[MAX_TOKENS];
    char err[256] = "";
    n = n < MAX_TOKENS ? n : MAX_TOKENS;
    memcpy(ahead, length, sizeof ahead);
    for (uint32_t q = 0; q < o->n_seqs; q++)
        oldest[q] = llm_oldest(s, q);
    const int together = chance(d, 2);
    for (size_t i = 0; i < n; i++) {
        tokens[i] = from_to(d, 0, vocab - 1);
        seqs[i] = i && together ? seqs[i - 1] : from_to(d, 0, o->n_seqs - 1);
        want[i] = chance(d, 3);
        n_want += want[i];
        ahead[seqs[i]]++;
    }
    int fits = 1;
    for (uint32_t q = 0; q < o->n_seqs; q++)
        fits &= ahead[q] <= o->context;
    const int failed = llm_forward(s, n, tokens, seqs, want, logits, err, sizeof err);
    CHECK(!failed || *err);
    CHECK(failed || fits);
    for (uint32_t q = 0; q < o->n_seqs; q++) {
        const size_t most = ahead[q] > o->rewind ? ahead[q] - o->rewind : 0;
        CHECK(llm_oldest(s, q) <= (most > oldest[q] ? most : oldest[q]) || has_states(m));
        CHECK(llm_cut(s, q, SIZE_MAX) == llm_length(s, q));
        CHECK(llm_oldest(s, q) <= llm_length(s, q));
    }
    for (size_t i = 0; !failed && i < n_want * vocab; i++)
        CHECK(isfinite(logits[i]));
    for (uint32_t q = 0; q < o->n_seqs; q++) {
        const size_t now = llm_length(s, q);
        const int may_be_dropped = ahead[q] - length[q] > (size_t)o->rewind + o->batch;
        CHECK(now == (failed ? length : ahead)[q] || (failed && may_be_dropped && !now));
        c->dropped += failed && now < length[q];
        length[q] = now;
    }
    if (!failed && n_want)
        sample(d, logits, vocab);
    c->forwards++;
    c->refused += (unsigned long)(failed && fits);
    c->tokens += n;
}

static void one_run(counts *c, int setup_isa) {
    begun = run;
    dice d = {run * 0x2545f4914f6cdd1du};
    char err[256];
    size_t mapped, length[MAX_SEQS] = {0};
    model made;
    make_description(&d, &made);
    uint8_t *data = make_file(&d, &made, &mapped);
    if (!data)
        return;
    const int damaged = chance(&d, 6);
    const size_t bytes = made.h.file_size;
    if (damaged)
        damage(&d, data);
    *err = 0;
    llm_model *m = llm_open_memory(data, bytes, err, sizeof err);
    CHECK(m || (damaged && *err));
    c->damaged += (unsigned long)damaged;
    c->unsound += !m;
    if (!m || llm_model_header(m)->context > 1000) { /* what a session would reserve */
        llm_close(m);
        munmap(data - (mapped - GUARD - bytes), mapped);
        return;
    }
    const llm_header h = *llm_model_header(m);
    if (!n_isas)
        find_isas(m);
    const char *isa = isas[chance(&d, 8) ? 0 : from_to(&d, n_isas > 1, n_isas - 1)]; /* 0: scalar, slow */
    if (setup_isa)
        setenv("PYLLM_ISA", isa, 1);
    const uint32_t longest = h.required & LLM_POSITION_TABLE ? h.context : 700;
    const llm_options o = {.context = chance(&d, 2) ? 0 : from_to(&d, 1, longest),
        .n_seqs = from_to(&d, 1, MAX_SEQS),
        .threads = chance(&d, 4) ? from_to(&d, 2, 3) : 1, /* more cost time where others run too */
        .batch = chance(&d, 20) ? 0 : from_to(&d, 1, 64),
        .kv = from_to(&d, LLM_KV_DEFAULT, LLM_KV_INT8),
        .exact = chance(&d, 3),
        .rewind = chance(&d, 3) ? from_to(&d, 0, 200) : 1};
    llm_session *s = llm_session_open(m, &o, err, sizeof err);
    float *logits = malloc(MAX_TOKENS * (size_t)h.vocab_size * sizeof *logits);
    CHECK(s && logits);
    for (uint32_t i = from_to(&d, 1, 4); i > 0; i--) {
        const uint32_t from = from_to(&d, 0, o.n_seqs - 1), to = from_to(&d, 0, o.n_seqs - 1);
        const size_t part = length[from] ? bits(&d) % (length[from] + 1) : 0;
        if (chance(&d, 4)) {
            load_state(&d, s, m, from, length);
            c->states++;
        } else if (chance(&d, 6)) {
            const int there = is_there(s, from, part);
            CHECK(there == !llm_copy(s, from, to, part, err, sizeof err));
            length[to] = there ? part : length[to];
            c->gone += !there;
        } else if (chance(&d, 4)) {
            const int there = is_there(s, from, part);
            CHECK(there == !llm_truncate(s, from, part, err, sizeof err));
            length[from] = there ? part : length[from];
            c->gone += !there;
        }
        forward(&d, s, m, length, logits, c);
    }
    free(logits);
    llm_session_close(s);
    llm_close(m);
    munmap(data - (mapped - GUARD - bytes), mapped);
    c->runs++;
    for (uint32_t i = 0, experts = 0, shared = 0, stateful = 0; i < h.n_layers; i++) {
        c->experts += made.layers[i].n_experts && !experts;
        c->shared += made.layers[i].kv_layer != i && !shared;
        c->stateful += made.layers[i].mixer && !stateful;
        stateful |= made.layers[i].mixer;
        experts |= made.layers[i].n_experts;
        shared |= made.layers[i].kv_layer != i;
    }
}

typedef struct share {
    unsigned long first, count;
    counts c;
} share;

static void *do_share(void *given) {
    share *mine = given;
    for (run = mine->first; run < mine->first + mine->count; run++)
        one_run(&mine->c, 0);
    return NULL;
}

/* Sanitizers call it before they end the process. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

int main(int argc, char **argv) {
    const unsigned long first = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    const unsigned long count = argc > 2 ? strtoul(argv[2], NULL, 10) : 1000;
    const unsigned long together = argc > 3 ? strtoul(argv[3], NULL, 10) : 1;
    share shares[8] = {0};
    counts all = {0};
    signal(SIGSEGV, on_fault);
    signal(SIGBUS, on_fault);
    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(say_run);
    CHECK(together >= 1 && together <= 8);
    if (together == 1)
        for (run = first; run < first + count; run++)
            one_run(&all, 1);
    pthread_t threads[8];
    if (together >
        1) { /* the environment is not theirs to set: a sound model's run finds the instruction sets */
        for (run = first; !n_isas; run++)
            one_run(&all, 1);
        unsetenv("PYLLM_ISA");
    }
    for (unsigned long i = 0; together > 1 && i < together; i++) {
        shares[i] = (share){.first = first + count * i / together, .count = count / together};
        CHECK(!pthread_create(&threads[i], NULL, do_share, &shares[i]));
    }
    for (unsigned long i = 0; together > 1 && i < together; i++) {
        CHECK(!pthread_join(threads[i], NULL));
        const counts *c = &shares[i].c;
        all.runs += c->runs, all.forwards += c->forwards, all.refused += c->refused, all.states += c->states;
        all.tokens += c->tokens, all.experts += c->experts, all.shared += c->shared;
        all.stateful += c->stateful;
        all.damaged += c->damaged, all.unsound += c->unsound;
        all.gone += c->gone, all.dropped += c->dropped;
    }
    printf("%lu runs (%lu with experts, %lu with shared keys, %lu with states), %lu of %lu damaged files "
           "refused, %lu states, "
           "%lu lengths gone, %lu calls with %lu tokens, %lu of them not finite (%lu sequences dropped);",
        all.runs, all.experts, all.shared, all.stateful, all.unsound, all.damaged, all.states, all.gone,
        all.forwards, all.tokens, all.refused, all.dropped);
    for (uint32_t i = 0; i < n_isas; i++)
        printf(" %s", isas[i]);
    putchar('\n');
    return 0;
}
