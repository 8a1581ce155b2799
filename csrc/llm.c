/* llm.c - the engine: runs the forward pass over a model that file.c has mapped and checked.
 *
 * It owns the kernels and the keys and values, and nothing else: no text, no files, no model families (what
 * differs between them is in the header's numbers and flags). It allocates nothing once a session is open,
 * and never prints or exits.
 *
 * Read it in this order: a session's memory, products and the instruction sets that compute them, a session's
 * functions, and the forward pass with its kernels, which stands at the end because the file includes itself
 * to compile that part for each instruction set. */
#ifndef ISA
#include "file.h"
#include "fail.h"
#include "threads.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MANY 16        /* tokens from which on AMX is worth its while */
#define SPAN LLM_PAGE  /* positions that attend() takes at a time */
#define MAX_BATCH 1024 /* tokens that go through the layers together */

/* The bytes that a buffer takes of the arena. With LLM_GUARD, which tests define, each ends where pages begin
 * that nothing may touch: a number written behind it ends the process at once. */
#ifdef LLM_GUARD
#define GUARD ((size_t)1 << 16) /* a multiple of every page size */
#define ROOM(size) (align(size, GUARD) + GUARD)
#else
#define GUARD ((size_t)0)
#define ROOM(size) align(size, 64)
#endif

/* ------------------------------------------------------------------------------------------------------
 * Sessions: their memory */

/* One product y = W x, or y += W x, of n tokens whose rows of x and y token() tells. W is in tiles of 16
 * rows, see llm.h; a word of it is one fp16 or two int8. */
typedef struct product {
    const uint16_t *w;       /* tile words from one tile to the next */
    size_t tile, rows, cols; /* cols: padded */
    const float *x;          /* (., ldx) */
    size_t ldx;
    float *y; /* (., ldy) */
    size_t ldy, add;
    const llm_session *s;
    const uint32_t *index;
    const int16_t *q; /* for int8 x = q * by: (n, ldq), (n, cols / 64); with tiles bf16 (n, ldq) */
    size_t ldq, int8;
    const uint16_t *scale; /* behind w */
    const float *by;
} product;

/* An instruction set: its name, the forward pass compiled for it, and its way, or NULL, to multiply rows r to
 * r + 32 of a product of n >= MANY tokens whose activations are bf16 */
typedef struct isa {
    const char *name;
    void (*forward)(llm_session *s, size_t n, const uint32_t *ids, size_t n_rows, float *logits);
    void (*tiles)(const product *p, size_t r, size_t n);
} isa;

/* The buffers, with B tokens in a batch; rows are padded to 64 columns and heads to `width`, and the padding
 * stays 0:
 *   kv                (n_seqs) of (n_layers, k and v, n_kv_heads, span / SPAN) pages fp16, see place()
 *   length            (2, n_seqs) positions of each sequence; and as many to count ahead in
 *   x, xb, out        (B, dim) residual stream, its norm, and what a block adds to it
 *   qkv, att          (B, q_dim + 2 kv_dim), (B, q_dim)
 *   q, parts          (n_kv_heads, B, group, width) queries, rotated and scaled; (at most 8, n_kv_heads, B,
 *                     group, width + 2) their attention over a part of the positions, largest score and sum
 *                     of probabilities
 *   scores            (threads, run * group, SPAN)
 *   gate, hidden      (B, 2 ffn), (B, ffn)
 *   quants, scales    (B, columns + 32), (B, columns / 64) activations as int16 by 64, or as bf16
 *   rotation          (n_rope, B, head_dim) cosines, then sines
 *   router, chosen, gains  (B, n_experts + 1) probabilities, (B, picks) experts of a token and their weights
 *   members, starts   (B * picks) places in `chosen` of expert 0, then of 1, ...; (n_experts + 2) where they
 *                     begin; the shared expert is number n_experts
 *   pos, seqs, rows   (B) position and sequence of each token; tokens whose logits are wanted
 *   runs              (n_runs + 1) tokens at which runs begin: tokens that follow each other in a sequence
 *
 * ffn: of the widest expert; picks: experts of a token; width: of a head in the cache; group: query heads
 * that share a kv head; run: tokens in a run at most; span: positions that the cache has room for; part,
 * n_parts: positions in a part at most, and parts; seq_size, part_size: numbers in a sequence's cache (whole
 * pages) and in one of s->parts; arena_size: bytes. */
struct llm_session {
    const llm_model *m;
    const isa *isa;
    llm_options o;
    meeting meeting;
    size_t dim, ffn, q_dim, qkv_dim, width; /* padded */
    size_t picks, group, run, span, part, n_parts, n_runs, seq_size, part_size, arena_size;
    uint8_t *arena; /* one mapping that holds all of these: */
    uint16_t *kv;
    size_t *length;
    float *x, *xb, *out, *qkv, *q, *att, *parts, *scores, *gate, *hidden, *scales, *rotation, *router, *gains;
    int16_t *quants;
    uint32_t *chosen, *members, *starts, *pos, *seqs, *rows, *runs;
};

/* The keys (part 0) or values (part 1) of one head of one layer of a sequence */
static uint16_t *cache(const llm_session *s, size_t seq, size_t layer, size_t part, size_t head) {
    const size_t rows = (layer * 2 + part) * s->m->h.n_kv_heads + head;
    return s->kv + seq * s->seq_size + rows * s->span * s->width;
}

/* Where number c of a position lies in there: in a page of SPAN positions, whose keys or transposed values
 * are in tiles, as weights are, so that both are multiplied as they are */
static size_t place(const llm_session *s, size_t part, size_t pos, size_t c) {
    return pos / SPAN * SPAN * s->width +
           (part ? in_tile(c, pos % SPAN, SPAN) : in_tile(pos % SPAN, c, s->width));
}

/* ------------------------------------------------------------------------------------------------------
 * Instruction sets */

/* The row of x and y that token t of a product has: t, or with an index of places in s->chosen the token of
 * place index[t]. */
static size_t token(const llm_session *s, const uint32_t *index, size_t t) {
    return index ? index[t] / s->picks : t;
}

/* Rows r to r + n, as far as there are so many, of token t */
static inline void put(const product *p, size_t r, size_t t, const float *sums, size_t n) {
    float *y = p->y + token(p->s, p->index, t) * p->ldy + r;
    n = p->rows - r < n ? p->rows - r : n;
    for (size_t i = 0; i < n; i++)
        y[i] = sums[i] + (p->add ? y[i] : 0);
}

/* x of token i from its embedding; and its angles' cosines and sines in every rotary table */
static void embed(llm_session *s, size_t i, uint32_t id) {
    const size_t half = s->m->h.head_dim / 2;
    read_row(s->m, LLM_EMBED, id, s->m->h.embed_scale, s->x + i * s->dim);
    for (size_t k = 0; k < s->m->h.n_rope * half; k++) {
        const llm_angle a = s->m->rope[k];
        float *r = s->rotation + (k / half * s->o.batch + i) * 2 * half + k % half;
        r[0] = a.magnitude * cosf((float)s->pos[i] * a.frequency);
        r[half] = a.magnitude * sinf((float)s->pos[i] * a.frequency);
    }
}

static float sigmoid(float x) { return 1 / (1 + expf(-x)); }

/* x (n,) to exp(x) / the sum of all of them */
static void softmax(float *x, size_t n) {
    float max = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        max = fmaxf(max, x[i]);
    for (size_t i = 0; i < n; i++)
        sum += x[i] = expf(x[i] - max);
    for (size_t i = 0; i < n; i++)
        x[i] /= sum;
}

/* The experts of token i and their weights: the n_active whose weight + bias is largest (the lower number
 * among equals), and the shared one. No expert is chosen twice, whatever the numbers are: NaN is larger than
 * nothing, and the buffers of a product have room for each token once. */
static void choose_experts(llm_session *s, size_t layer, size_t i) {
    const llm_header *h = &s->m->h;
    const float *bias = h->flags & LLM_ROUTER_BIAS ? weights(s->m, LLM_ROUTER_ADD, layer, 0) : NULL;
    const size_t n = h->n_experts;
    float *p = s->router + i * (n + 1), *gains = s->gains + i * s->picks;
    uint32_t *chosen = s->chosen + i * s->picks;
    uint8_t taken[MAX_EXPERTS] = {0};
    if (h->flags & LLM_ROUTER_SIGMOID)
        for (size_t e = 0; e < n; e++)
            p[e] = sigmoid(p[e]);
    else
        softmax(p, n);
    float sum = 0;
    for (size_t k = 0; k < h->n_active; k++) {
        size_t best = n;
        for (size_t e = 0; e < n; e++)
            if (!taken[e] && (best == n || p[e] + (bias ? bias[e] : 0) > p[best] + (bias ? bias[best] : 0)))
                best = e;
        taken[best] = 1;
        chosen[k] = (uint32_t)best;
        gains[k] = p[best];
        sum += p[best];
    }
    const float scale = h->flags & LLM_ROUTER_NORMALIZE ? h->expert_scale / sum : h->expert_scale;
    for (size_t k = 0; k < h->n_active; k++)
        gains[k] *= scale;
    if (h->shared_dim) {
        chosen[h->n_active] = (uint32_t)n;
        gains[h->n_active] = h->flags & LLM_SHARED_GATE ? sigmoid(p[n]) : 1;
    }
}

/* The words that the kernels need beside plain vectors of VL floats:
 *   HALF(p)        VL fp16 numbers as floats; TO_HALF(p, v) the other way
 *   MADD(i, w, x)  i + the products of 2 * VL pairs of int16, neighbours added up: VL int32. Exact, as 127 *
 *                  32767 * 64 < 2^31.
 *   WIDEN(p)       2 * VL int8 numbers as int16
 *   SUM(v)         the sum of VL floats */
#define CONCAT2(a, b) a##_##b
#define CONCAT(a, b) CONCAT2(a, b)
#define FN(name) CONCAT(name, ISA)
#define INLINE static inline __attribute__((always_inline)) TARGET
#define VEC FN(vec)
#define LOAD(type, p) (*(FN(type) *)(p))

#define ISA scalar
#define TARGET
#define VL 1
#define HALF_scalar(p) ((VEC){0} + half_to_float(*(p)))
#define TO_HALF_scalar(p, v) (*(p) = float_to_half((v)[0]))
#define MADD_scalar(i, w, x) ((i) + (w)[0] * (x)[0] + (w)[1] * (x)[1])
#define SUM_scalar(v) (v)[0]
#define WIDEN_scalar(p) ((FN(shorts)){((const int8_t *)(p))[0], ((const int8_t *)(p))[1]})
#include "llm.c"

#if defined(__x86_64__)
#include <immintrin.h>
#define ISA avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define VL 8
#define HALF_avx2(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define TO_HALF_avx2(p, v) _mm_storeu_si128((__m128i *)(p), _mm256_cvtps_ph(v, 0))
#define MADD_avx2(i, w, x) ((i) + (FN(ints))_mm256_madd_epi16((__m256i)(w), (__m256i)(x)))
#define WIDEN_avx2(p) _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p)))
#define SUM_avx2(v) sum4(_mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1))
#define sum4(v) _mm_cvtss_f32(_mm_dp_ps(v, _mm_set1_ps(1), 0xff))
#include "llm.c"

#define ISA avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")))
#define VL 16
#define HALF_avx512(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define TO_HALF_avx512(p, v) _mm256_storeu_si256((__m256i *)(p), _mm512_cvtps_ph(v, 0))
#define MADD_avx512(i, w, x) (FN(ints)) _mm512_dpwssd_epi32((__m512i)(i), (__m512i)(w), (__m512i)(x))
#define WIDEN_avx512(p) _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(p)))
#define SUM_avx512(v) _mm512_reduce_add_ps(v)
#include "llm.c"
/* AMX (Intel's optimization manual, chapter 20): 32 rows of a product, two tiles of them, as the processor
 * wants them: pairs of columns, each 16 rows of two bf16 */
#define AMX __attribute__((target("avx512f,avx512bw,avx512bf16,f16c,amx-tile,amx-bf16")))
#define COLUMNS 512 /* that are taken at a time */

static AMX void expand(const product *p, size_t r, size_t c0, size_t pairs, __m512i *out) {
    const uint16_t *w = p->w + r / LLM_TILE * p->tile + (c0 * LLM_TILE >> p->int8);
    const uint16_t *scale = p->scale + in_tile(r, c0 / LLM_GROUP, p->cols / LLM_GROUP);
    for (size_t k = 0; k < pairs; k++, w += 2 * LLM_TILE >> p->int8) {
        __builtin_prefetch(w + 1024);
        const ints_avx512 two = (ints_avx512)WIDEN_avx512(w), even = two << 16 >> 16, odd = two >> 16;
        const __m512 by = p->int8 ? HALF_avx512(scale + k / 32 * LLM_TILE) : _mm512_set1_ps(1);
        const __m512 a = p->int8 ? _mm512_mul_ps(by, _mm512_cvtepi32_ps((__m512i)even)) : HALF_avx512(w);
        const __m512 b = p->int8 ? _mm512_mul_ps(by, _mm512_cvtepi32_ps((__m512i)odd)) : HALF_avx512(w + 16);
        out[k] = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a)) |
                 _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b)), 16);
    }
}

#define FOUR(move)                    \
    move(0, sums[t], 128);            \
    move(1, sums[t] + LLM_TILE, 128); \
    move(2, sums[t + LLM_TILE], 128); \
    move(3, sums[t + LLM_TILE] + LLM_TILE, 128)

static AMX void tiles(const product *p, size_t r, size_t n) {
    /* palette 1, 8 tiles of 16 rows of 64 bytes */
    static const uint16_t config[32] = {[0] = 1, [8 ... 15] = 64, [24 ... 27] = 0x1010};
    __m512i w[2][COLUMNS / 2];
    float sums[MAX_BATCH][32];
    _tile_loadconfig(config);
    memset(sums, 0, align(n, 32) * sizeof *sums);
    for (size_t c0 = 0; c0 < p->cols; c0 += COLUMNS) {
        const size_t pairs = (p->cols - c0 < COLUMNS ? p->cols - c0 : COLUMNS) / 2;
        expand(p, r, c0, pairs, w[0]);
        expand(p, r + LLM_TILE < p->rows ? r + LLM_TILE : r, c0, pairs, w[1]);
        for (size_t t = 0; t < n; t += 32) {
            const int16_t *a = p->q + t * p->ldq + c0, *a2 = a + LLM_TILE * p->ldq;
            FOUR(_tile_loadd);
            for (size_t k = 0; k < pairs; k += 16) {
                for (size_t i = 0; i < 32; i++) /* what comes next, into the first cache */
                    __builtin_prefetch(a + 2 * k + 32 + i * p->ldq);
                _tile_loadd(4, a + 2 * k, p->ldq * 2);
                _tile_loadd(6, w[0] + k, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, w[1] + k, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, a2 + 2 * k, p->ldq * 2);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            FOUR(_tile_stored);
        }
    }
    for (size_t t = 0; t < n; t++)
        put(p, r, t, sums[t], 32);
    _tile_release();
}

#elif defined(__aarch64__)
#include <arm_neon.h>
#define ISA neon
#define TARGET
#define VL 4
#define HALF_neon(p) vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))
#define TO_HALF_neon(p, v) vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)))
#define MADD_neon(i, w, x) \
    ((i) + vpaddq_s32(vmull_s16(vget_low_s16(w), vget_low_s16(x)), vmull_high_s16(w, x)))
#define WIDEN_neon(p) vmovl_s8(vld1_s8((const int8_t *)(p)))
#define SUM_neon(v) vaddvq_f32(v)
#include "llm.c"
#endif

/* The best first */
static const isa isas[] = {
#if defined(__x86_64__)
    {"amx", forward_avx512, tiles}, {"avx512", forward_avx512, NULL}, {"avx2", forward_avx2, NULL},
#elif defined(__aarch64__)
    {"neon", forward_neon, NULL},
#endif
    {"scalar", forward_scalar, NULL}};

/* The best instruction set that the processor has, or the one that PYLLM_ISA names */
static const isa *pick_isa(char *err, size_t errlen) {
    const char *want = getenv("PYLLM_ISA");
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++)
        if ((!want || !*want || !strcmp(want, isas[i].name)) && processor_has(isas[i].name))
            return &isas[i];
    return FAIL_NULL("PYLLM_ISA: this processor or build has no \"%.32s\"", want);
}

/* ------------------------------------------------------------------------------------------------------
 * Sessions: their functions */

/* Reserves the buffers; memory is taken as they are first written. */
static int open_buffers(llm_session *s, char *err, size_t errlen) {
    const llm_header *h = &s->m->h;
    const size_t b = s->o.batch, n_seqs = s->o.n_seqs, context = s->o.context;
    s->dim = align(h->dim, 64);
    s->ffn = align(h->ffn_dim > h->shared_dim ? h->ffn_dim : h->shared_dim, 64);
    s->picks = h->n_active + !!h->shared_dim;
    s->q_dim = align((uint64_t)h->n_heads * h->head_dim, 64);
    s->qkv_dim = align(((uint64_t)h->n_heads + 2 * h->n_kv_heads) * h->head_dim, 64);
    s->width = align(h->head_dim, 16);
    s->span = align(context, SPAN);
    s->seq_size = align((uint64_t)h->n_layers * 2 * h->n_kv_heads * s->width * s->span, 1 << 15);
    s->group = h->n_heads / h->n_kv_heads;
    s->run = align((48 + s->group - 1) / s->group, 8);
    s->part = s->span > 8 * 512 ? align(s->span / 8, SPAN) : 512;
    s->part_size = b * h->n_heads * (s->width + 2);
    s->n_parts = (s->span + s->part - 1) / s->part;
    const size_t columns = align(b, 32) * (s->dim + s->q_dim + s->ffn + 32), f = sizeof(float);
    const struct {
        void *slot;
        size_t size;
    } buffers[] = {{&s->kv, n_seqs * s->seq_size * 2}, {&s->length, 2 * n_seqs * sizeof(size_t)},
        {&s->x, b * s->dim * f}, {&s->xb, b * s->dim * f}, {&s->out, b * s->dim * f},
        {&s->qkv, b * s->qkv_dim * f}, {&s->q, b * h->n_heads * s->width * f}, {&s->att, b * s->q_dim * f},
        {&s->parts, s->n_parts * s->part_size * f}, {&s->gate, 2 * b * s->ffn * f},
        {&s->scores, s->o.threads * s->run * s->group * SPAN * f}, {&s->hidden, b * s->ffn * f},
        {&s->quants, columns * 2}, {&s->scales, columns / 64 * f},
        {&s->rotation, b * h->n_rope * h->head_dim * f}, {&s->router, b * (h->n_experts + 1) * f},
        {&s->gains, b * s->picks * f}, {&s->chosen, b * s->picks * f}, {&s->members, b * s->picks * f},
        {&s->starts, (h->n_experts + 2) * f}, {&s->pos, b * f}, {&s->seqs, b * f}, {&s->rows, b * f},
        {&s->runs, (b + 1) * f}};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        s->arena_size += ROOM(buffers[i].size);
    const int map = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if ((double)s->seq_size * (double)n_seqs < 0x1p60)
        s->arena = mmap(NULL, s->arena_size, PROT_READ | PROT_WRITE, map, -1, 0);
    REQUIRE(s->arena && s->arena != MAP_FAILED, "no memory for %zu sequences of %zu", n_seqs, context);
    uint8_t *at = s->arena;
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        at += ROOM(buffers[i].size) - GUARD;
        const uint8_t *start = at - align(buffers[i].size, 64);
        memcpy(buffers[i].slot, &start, sizeof start);
        REQUIRE(!GUARD || !mprotect(at, GUARD, PROT_NONE), "no memory for guard pages");
        at += GUARD;
    }
    return 0;
}

llm_session *llm_session_open(const llm_model *m, const llm_options *options, char *err, size_t errlen) {
    llm_session *s = calloc(1, sizeof *s);
    REQUIRE_OR_NULL(s, "out of memory");
    *s = (llm_session){.m = m, .isa = pick_isa(err, errlen), .o = options ? *options : (llm_options){0}};
    s->o.context = s->o.context ? s->o.context : m->h.context;
    s->o.n_seqs = s->o.n_seqs ? s->o.n_seqs : 1;
    s->o.threads = s->o.threads ? s->o.threads : llm_default_threads();
    s->o.batch = s->o.batch ? s->o.batch : 256;
    if (s->o.context > 1 << 28 || s->o.n_seqs > 1 << 16 || s->o.threads > 1024 || s->o.batch > MAX_BATCH)
        FAIL("over 2^28 positions, 65536 sequences, 1024 threads or batches of 1024");
    else if (s->isa && !open_buffers(s, err, errlen))
        return s;
    free(s);
    return NULL;
}

void llm_session_close(llm_session *s) {
    if (s)
        munmap(s->arena, s->arena_size);
    free(s);
}

const llm_options *llm_session_options(const llm_session *s) { return &s->o; }

const char *llm_session_isa(const llm_session *s) { return s->isa->name; }

size_t llm_length(const llm_session *s, uint32_t seq) { return seq < s->o.n_seqs ? s->length[seq] : 0; }

static int check_sequence(const llm_session *s, uint32_t seq, size_t length, char *err, size_t errlen) {
    REQUIRE(seq < s->o.n_seqs, "there is no sequence %u: the session has %u", seq, s->o.n_seqs);
    REQUIRE(length <= s->length[seq], "sequence %u has %zu positions, not %zu", seq, s->length[seq], length);
    return 0;
}

int llm_truncate(llm_session *s, uint32_t seq, size_t length, char *err, size_t errlen) {
    TRY(check_sequence(s, seq, length, err, errlen));
    if (length == 0 && s->length[seq])
        madvise(cache(s, seq, 0, 0, 0), s->seq_size * sizeof *s->kv, MADV_DONTNEED);
    s->length[seq] = length;
    return 0;
}

int llm_copy(llm_session *s, uint32_t from, uint32_t to, size_t length, char *err, size_t errlen) {
    const size_t size = align(length, SPAN) * s->width * sizeof *s->kv;
    TRY(check_sequence(s, from, length, err, errlen) || check_sequence(s, to, 0, err, errlen));
    if (from != to)
        llm_truncate(s, to, 0, err, errlen);
    for (size_t i = 0; i < (size_t)s->m->h.n_layers * 2 * s->m->h.n_kv_heads && from != to; i++)
        memcpy(cache(s, to, 0, 0, i), cache(s, from, 0, 0, i), size);
    s->length[to] = length;
    return 0;
}

int llm_state(llm_session *s, uint32_t seq, size_t length, void *state, int set, char *err, size_t errlen) {
    const size_t size = align(length, SPAN) * s->width * sizeof *s->kv;
    TRY(check_sequence(s, seq, set ? 0 : length, err, errlen));
    REQUIRE(length <= s->o.context, "%zu positions do not fit into a context of %u", length, s->o.context);
    if (set)
        llm_truncate(s, seq, 0, err, errlen);
    for (size_t i = 0; i < (size_t)s->m->h.n_layers * 2 * s->m->h.n_kv_heads; i++) {
        uint8_t *at = (uint8_t *)state + i * size;
        set ? memcpy(cache(s, seq, 0, 0, i), at, size) : memcpy(at, cache(s, seq, 0, 0, i), size);
    }
    s->length[seq] = set ? length : s->length[seq];
    return 0;
}

/* ------------------------------------------------------------------------------------------------------
 * The forward pass.
 *
 * Every function below that has EACH, DEAL or meet() is run by all threads of one parallel region together:
 * EACH shares its numbers out between them, meet() waits for all of them, and everything else is done by each
 * of them alike. No sum is split between threads, and the order of a sum does not depend on what else is
 * computed: so results depend neither on the number of threads nor on the batch; but for AMX, which MANY
 * tokens or more go through, and which rounds differently. */

/* What llm_forward was called with is sound, and fits. */
static int check_tokens(
    llm_session *s, size_t n, const uint32_t *tokens, const uint32_t *seqs, char *err, size_t errlen) {
    size_t *length = s->length + s->o.n_seqs;
    memcpy(length, s->length, s->o.n_seqs * sizeof *length);
    for (size_t i = 0; i < n; i++) {
        const uint32_t seq = seqs ? seqs[i] : 0;
        REQUIRE(tokens[i] < s->m->h.vocab_size, "token %zu is %u, beyond the vocabulary", i, tokens[i]);
        REQUIRE(seq < s->o.n_seqs, "there is no sequence %u: the session has %u", seq, s->o.n_seqs);
        length[seq]++;
        REQUIRE(
            length[seq] <= s->o.context, "%zu positions, and the context has %u", length[seq], s->o.context);
    }
    return 0;
}

/* One batch on its way through the layers */
typedef struct batch {
    llm_session *s;
    size_t n, n_rows;
    const uint32_t *tokens; /* (n,) */
    float *logits;          /* (n_rows, vocab_size) */
} batch;

static void run_batch(void *context) {
    const batch *b = context;
    b->s->isa->forward(b->s, b->n, b->tokens, b->n_rows, b->logits);
}

static int all_finite(const float *x, size_t n) {
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++)
        bad |= (bits_of(x[i]) & 0x7f800000) == 0x7f800000;
    return !bad;
}

int llm_forward(llm_session *s, size_t n, const uint32_t *tokens, const uint32_t *seqs, const uint8_t *want,
    float *logits, char *err, size_t errlen) {
    const size_t vocab = s->m->h.vocab_size;
    TRY(check_tokens(s, n, tokens, seqs, err, errlen));
    for (size_t at = 0; at < n; at += s->o.batch) {
        const size_t count = n - at < s->o.batch ? n - at : s->o.batch;
        size_t n_rows = 0, run = 0;
        for (size_t i = 0; i < count; i++) {
            s->seqs[i] = seqs ? seqs[at + i] : 0;
            s->pos[i] = (uint32_t)s->length[s->seqs[i]]++;
            if (i == 0 || s->seqs[i] != s->seqs[i - 1] || i == s->runs[run - 1] + s->run)
                s->runs[run++] = (uint32_t)i;
            if (logits && (want ? want[at + i] : at + i + 1 == n))
                s->rows[n_rows++] = (uint32_t)i;
        }
        s->runs[s->n_runs = run] = (uint32_t)count;
        team(s->o.threads, run_batch, &(batch){s, count, n_rows, tokens + at, logits});
        for (size_t r = 0; r < n_rows; r++, logits += vocab) {
            if (all_finite(logits, vocab))
                continue;
            for (size_t i = 0; i < at + count; i++)
                s->length[seqs ? seqs[i] : 0]--;
            return FAIL("the logits after token %zu are not finite: a number in the model or in what its "
                        "sequence keeps is not, or grew too large",
                at + s->rows[r]);
        }
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------------
 * The kernels and the pass itself, compiled once for each instruction set */
#else
typedef float VEC __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int32_t FN(ints) __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef uint32_t FN(words) __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int16_t FN(shorts) __attribute__((vector_size(4 * VL), aligned(2), may_alias));
#define V (VL == 16 ? 2 : 16 / VL) /* vectors of rows, */
#define PASS (V * VL)              /* rows and */
#define T_MAX (VL == 16 ? 8 : 4)   /* tokens at a time */

/* PASS rows and T tokens of a product, from row r and token t on, n of which there are. Every sum runs over
 * the columns in their order, whatever T is; int8 weights by 64 with int16 activations by 64, whose sum over
 * a group is exact and then scaled. */
INLINE void FN(block)(const product *p, size_t r, size_t t, size_t n, const size_t T, const int int8) {
    const size_t words = p->cols >> int8, step = LLM_GROUP >> int8, groups = p->cols / LLM_GROUP;
    const uint16_t *w[V], *scale[V];
    const any_float *x[T_MAX];
    VEC sum[T_MAX * V], wide[V];
    size_t at[T_MAX];
    for (size_t i = 0; i < T * V; i++)
        sum[i] = (VEC){0};
    for (size_t v = 0; v < V; v++) { /* beyond the last row, the first one again */
        const size_t row = r + v * VL < p->rows ? r + v * VL : r;
        w[v] = p->w + row / LLM_TILE * p->tile + row % LLM_TILE;
        scale[v] = int8 ? p->scale + in_tile(row, 0, groups) : NULL;
    }
    for (size_t i = 0; i < T; i++)
        at[i] = i < n ? t + i : t; /* beyond the last token, the first one again */
    for (size_t i = 0; i < T; i++)
        x[i] =
            int8 ? (const any_float *)(p->q + at[i] * p->ldq) : p->x + token(p->s, p->index, at[i]) * p->ldx;
    for (size_t k0 = 0, g = 0; k0 < words; k0 += step, g++) {
        const size_t end = int8 || words - k0 > step ? k0 + step : words;
        VEC dot[T_MAX * V];
        for (size_t i = 0; i < T * V; i++)
            dot[i] = (VEC){0};
#pragma GCC unroll 4
        for (size_t k = k0; k < end; k++) {
            for (size_t v = 0; v < V; v++) {
                __builtin_prefetch(w[v] + k * LLM_TILE + 1024);
                wide[v] = int8 ? (VEC)FN(WIDEN)(w[v] + k * LLM_TILE) : (VEC)FN(HALF)(w[v] + k * LLM_TILE);
            }
            for (size_t i = 0; i < T * V; i++) {
                const FN(ints) two = (FN(ints)){0} + (int32_t)((const any_uint *)x[i / V])[k];
                dot[i] = int8 ? (VEC)FN(MADD)((FN(ints))dot[i], (FN(shorts))wide[i % V], (FN(shorts))two)
                              : (VEC)(dot[i] + wide[i % V] * x[i / V][k]);
            }
        }
        for (size_t i = 0; i < T * V; i++) {
            const VEC by = int8 ? (VEC)(FN(HALF)(scale[i % V] + g * LLM_TILE) * p->by[at[i / V] * groups + g])
                                : (VEC){0};
            sum[i] += int8 ? (VEC)(__builtin_convertvector((FN(ints))dot[i], VEC) * by) : dot[i];
        }
    }
    for (size_t i = 0; i < T && i < n; i++)
        put(p, r, t + i, (const float *)&sum[i * V], PASS);
}

/* All n tokens of a product, from row r on */
static TARGET void FN(multiply)(const product *p, size_t r, size_t n) {
#define TIMES(T) (p->int8 ? FN(block)(p, r, t, n - t, T, 1) : FN(block)(p, r, t, n - t, T, 0))
    for (size_t t = 0; t < n; t += n - t == 1 ? 1 : n - t <= 4 ? 4 : T_MAX)
        n - t == 1 ? TIMES(1) : n - t <= 4 ? TIMES(4) : TIMES(T_MAX);
}

/* One group of 64 activations: q = round(x / scale), scale = max|x| / 32767; what is not finite makes the
 * scale NaN. */
static TARGET void FN(quantize)(int16_t *q, float *scale, const float *x) {
    uint32_t most = 0;
    for (size_t i = 0; i < LLM_GROUP; i++) /* compares bits, which are ordered as |x| is, NaN last */
        most = (bits_of(x[i]) & 0x7fffffff) > most ? bits_of(x[i]) & 0x7fffffff : most;
    const float max = float_of(most), by = max > 1e-30f && max < INFINITY ? 32767 / max : 0;
    *scale = max < INFINITY ? max / 32767 : NAN;
    for (size_t i = 0; i < LLM_GROUP; i++) /* 1.5 * 2^23 rounds: the low bits are then the integer */
        q[i] = (int16_t)bits_of(by == 0 ? 12582912.0f : x[i] * by + 12582912.0f);
}

/* y = W x for n tokens, those in `index` if there is one (see product): x (., stride of W), y (., ldy). What
 * goes to s->out is added to it. */
static TARGET void FN(matmul)(llm_session *s, uint32_t id, size_t layer, size_t expert, size_t n,
    const uint32_t *index, const float *x, float *y, size_t ldy) {
    const llm_tensor *t = &s->m->tensor[id];
    n = n < s->o.batch ? n : s->o.batch; /* what the buffers have rows for, whoever calls */
    const size_t groups = t->stride / LLM_GROUP, int8 = t->dtype == LLM_INT8,
                 bf16 = s->isa->tiles && n >= MANY && id != LLM_ROUTER;
    const uint16_t *w = weights(s->m, id, layer, expert),
                   *scale = w + align(t->rows, LLM_TILE) * t->stride / 2;
    const product p = {w, t->stride * LLM_TILE >> int8, t->rows, t->stride, x, t->stride, y, ldy, y == s->out,
        s, index, int8 || bf16 ? s->quants : NULL, t->stride + 32, int8, scale, s->scales};
    EACH(i, (p.q ? n * groups : 0)) {
        const float *from = x + (token(s, index, i / groups) * groups + i % groups) * LLM_GROUP;
        int16_t *q = s->quants + i / groups * p.ldq + i % groups * LLM_GROUP;
        if (!bf16)
            FN(quantize)(q, s->scales + i, from);
        for (size_t c = 0; bf16 && c < LLM_GROUP; c++) /* to nearest even */
            q[c] = (int16_t)((bits_of(from[c]) + 0x7fff + (bits_of(from[c]) >> 16 & 1)) >> 16);
    }
    if (p.q)
        meet(&s->meeting);
    EACH(u, (t->rows + PASS - 1) / PASS)
        bf16 ? s->isa->tiles(&p, u * PASS, n) : FN(multiply)(&p, u * PASS, n);
    meet(&s->meeting);
}

/* out (n,) = x / rms(x) * w (Zhang and Sennrich 2019) */
INLINE void FN(norm)(const llm_session *s, float *out, const float *x, const float *w, size_t n) {
    VEC squares = {0};
    float rest = 0;
    for (size_t c = 0; c + VL <= n; c += VL)
        squares += LOAD(vec, x + c) * LOAD(vec, x + c);
    for (size_t c = n / VL * VL; c < n; c++)
        rest += x[c] * x[c];
    const float by = 1 / sqrtf((FN(SUM)(squares) + rest) / (float)n + s->m->h.norm_eps);
    for (size_t c = 0; c < n; c++)
        out[c] = x[c] * by * w[c];
}

/* xb = the norm `id` of the residual stream, of n tokens, those in `rows` if there are rows */
static TARGET void FN(norm_all)(llm_session *s, uint32_t id, size_t layer, size_t n, const uint32_t *rows) {
    EACH(i, n) {
        const float *x = s->x + (rows ? rows[i] : i) * s->dim;
        s->m->tensor[id].size ? FN(norm)(s, s->xb + i * s->dim, x, weights(s->m, id, layer, 0), s->m->h.dim)
                              : (void)memcpy(s->xb + i * s->dim, x, s->dim * sizeof *x);
    }
    meet(&s->meeting);
}

/* Adds a block's output, through the norm `id` if there is one, to the residual stream. Does not meet:
 * norm_all() gives each thread the same tokens. */
static TARGET void FN(add_all)(llm_session *s, uint32_t id, size_t layer, size_t n) {
    EACH(i, n) {
        float *out = s->out + i * s->dim;
        if (s->m->tensor[id].size)
            FN(norm)(s, out, out, weights(s->m, id, layer, 0), s->m->h.dim);
        for (size_t c = 0; c < s->dim; c++) {
            s->x[i * s->dim + c] += out[c] * s->m->h.residual_scale;
            out[c] = 0;
        }
    }
}

/* From the projections of token i: bias, norm and rotation (Su et al. 2021, in GPT-NeoX's half-split order);
 * then its query, scaled, to s->q, and its key and value into the cache. */
static TARGET void FN(place_qkv)(llm_session *s, size_t layer, size_t i) {
    const llm_header *h = &s->m->h;
    const size_t hd = h->head_dim, half = hd / 2, n_qk = h->n_heads + h->n_kv_heads;
    const float *r = s->rotation + (s->m->layers[layer].rope * (size_t)s->o.batch + i) * hd;
    const float *bias = weights(s->m, LLM_BIAS, layer, 0);
    float *x = s->qkv + i * s->qkv_dim, head[MAX_HEAD] = {0};
    for (size_t c = 0; h->flags & LLM_QKV_BIAS && c < (n_qk + h->n_kv_heads) * hd; c++)
        x[c] += bias[c];
    for (size_t a = 0, id; a < n_qk && h->flags & LLM_QK_NORM; a += s->m->tensor[id].cols / hd) {
        id = a < h->n_heads ? LLM_Q_NORM : LLM_K_NORM;
        FN(norm)(s, x + a * hd, x + a * hd, weights(s->m, (uint32_t)id, layer, 0), s->m->tensor[id].cols);
    }
    for (size_t a = 0; a < n_qk + h->n_kv_heads; a++, x += hd) {
        memcpy(head, x, hd * sizeof *x);
        for (size_t c = 0; a < n_qk && c < half; c++) {
            head[c] = x[c] * r[c] - x[c + half] * r[c + half];
            head[c + half] = x[c + half] * r[c] + x[c] * r[c + half];
        }
        float *q = s->q + ((a / s->group * s->o.batch + i) * s->group + a % s->group) * s->width;
        for (size_t c = 0; a < h->n_heads && c < hd; c++)
            q[c] = head[c] * h->attn_scale;
        uint16_t halves[MAX_HEAD],
            *kv = cache(s, s->seqs[i], layer, a >= n_qk, (a - h->n_heads) % h->n_kv_heads);
        for (size_t c = 0; a >= h->n_heads && c < s->width; c += VL)
            FN(TO_HALF)(halves + c, LOAD(vec, head + c));
        for (size_t c = 0; a >= h->n_heads && c < s->width; c++) {
            const int infinite = (halves[c] & 0x7fff) == 0x7c00; /* beyond fp16: its largest number */
            kv[place(s, a >= n_qk, s->pos[i], c)] = (uint16_t)(halves[c] - infinite);
        }
    }
}

/* The smaller of each lane */
INLINE VEC FN(least)(VEC a, VEC b) { return (VEC)(((FN(ints))a & (a < b)) | ((FN(ints))b & ~(a < b))); }

/* exp(x) of each lane, as in Cephes' expf: 2^n p(x - n log 2). 0 below -87 and for NaN; x above 88 is taken
 * as 88. */
INLINE VEC FN(exp)(VEC x) {
    const FN(ints) some = x > -87;
    x = FN(least)(x, (VEC){0} + 88);
    VEC n = x * 1.44269504f + 12582912.0f; /* rounds: the low bits are now the integer */
    const FN(words) exponent = (FN(words))n << 23;
    n -= 12582912.0f;
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    VEC p = ((x * 1.9875691500e-4f + 1.3981999507e-3f) * x + 8.3334519073e-3f) * x + 4.1665795894e-2f;
    p = ((p * x + 1.6666665459e-1f) * x + 5.0000001201e-1f) * x * x + x + 1;
    return (VEC)(((FN(words))p + exponent) & (FN(words))some);
}

/* A row of scores (SPAN) to exp(score - the largest so far), whose sum is added to that of `out`, after what
 * there is of it was brought to a new largest */
INLINE void FN(soften)(float *score, float *out, size_t size) {
    VEC most = LOAD(vec, score), all = {0};
    for (size_t c = VL; c < SPAN; c += VL)
        most = -FN(least)(-most, -LOAD(vec, score + c));
    float max = out[size - 2];
    for (size_t l = 0; l < VL; l++)
        max = most[l] > max ? most[l] : max;
    const float old = expf(out[size - 2] - max);
    for (size_t c = 0; old < 1 && c < size; c++)
        out[c] *= old;
    out[size - 2] = max;
    for (size_t c = 0; c < SPAN; c += VL)
        all += LOAD(vec, score + c) = FN(exp)(LOAD(vec, score + c) - max);
    out[size - 1] += FN(SUM)(all);
}

/* Softmax attention (Vaswani et al. 2017) of a run of tokens, of the query heads that share kv head `head`
 * (Ainslie et al. 2023), over a part of their sequence so far, SPAN positions at a time (Dao et al. 2022) */
static TARGET void FN(attend)(llm_session *s, size_t layer, size_t i) {
    const size_t head = i % s->m->h.n_kv_heads, run = i / s->m->h.n_kv_heads % s->n_runs;
    const size_t part = i / s->m->h.n_kv_heads / s->n_runs;
    const size_t first = s->runs[run], rows = (s->runs[run + 1] - first) * s->group, width = s->width;
    const size_t size = width + 2, start = s->pos[first], end = start + rows / s->group;
    const size_t window = s->m->layers[layer].window ? s->m->layers[layer].window : end;
    const size_t seen = start < window ? 0 : (start + 1 - window) / SPAN * SPAN, begin = part * s->part;
    const float cap = s->m->h.attn_cap;
    const size_t at = (head * s->o.batch + first) * s->group;
    const uint16_t *k = cache(s, s->seqs[first], layer, 0, head),
                   *v = cache(s, s->seqs[first], layer, 1, head);
    float *scores = s->scores + THREAD * s->run * s->group * SPAN,
          *out = s->parts + part * s->part_size + at * size;
    for (size_t m = 0; m < rows && begin < end; m++) {
        memset(out + m * size, 0, size * sizeof *out);
        out[m * size + width] = -0x1p127f;
    }
    for (size_t p = begin > seen ? begin : seen; p < end && p < begin + s->part; p += SPAN) {
        const size_t n = end - p < SPAN ? end - p : SPAN, m0 = p > start ? (p - start) * s->group : 0;
        const float *q = s->q + (at + m0) * width;
        const product keys = {k + p * width, LLM_TILE * width, n, width, q, width, scores, .ldy = SPAN};
        const product values = {
            v + p * width, LLM_TILE * SPAN, width, n, scores, SPAN, out + m0 * size, size, .add = 1};
        for (size_t r = 0; r < n; r += PASS)
            FN(multiply)(&keys, r, rows - m0);
        for (size_t m = m0; m < rows; m++) {
            float *score = scores + (m - m0) * SPAN;
            for (size_t c = 0; cap > 0 && c < SPAN; c += VL)
                LOAD(vec, score + c) = cap - 2 * cap / (1 + FN(exp)(LOAD(vec, score + c) * (2 / cap)));
            for (size_t c = SPAN; p + c > start + m / s->group + 1; c--)
                score[c - 1] = -INFINITY;
            for (size_t c = 0; c < SPAN && p + c + window <= start + m / s->group; c++)
                score[c] = -INFINITY;
            FN(soften)(score, out + m * size, size);
        }
        for (size_t r = 0; r < width; r += PASS)
            FN(multiply)(&values, r, rows - m0);
    }
}

/* Head i % n_heads of token i / n_heads: its parts, each with its largest score and sum of probabilities,
 * become softmax over all positions (Milakov and Gimelshein 2018) in s->att */
static TARGET void FN(gather)(llm_session *s, size_t i) {
    const size_t hd = s->m->h.head_dim, size = s->width + 2, a = i % s->m->h.n_heads, t = i / s->m->h.n_heads;
    float *out = s->parts + ((a / s->group * s->o.batch + t) * s->group + a % s->group) * size;
    for (size_t k = 1; k * s->part <= s->pos[t]; k++) {
        const float *more = out + k * s->part_size, max = fmaxf(out[size - 2], more[size - 2]);
        const float by = expf(out[size - 2] - max), more_by = expf(more[size - 2] - max);
        for (size_t c = 0; c < size; c++)
            out[c] = out[c] * by + more[c] * more_by;
        out[size - 2] = max;
    }
    for (size_t c = 0; c < hd; c++)
        s->att[t * s->q_dim + a * hd + c] = out[c] / out[size - 1];
}

/* Adds to s->out the gated feed-forward block (SwiGLU or GEGLU, Shazeer 2020) of n tokens, those in `index`
 * if there is one (see product) */
static TARGET void FN(ffn)(llm_session *s, size_t layer, size_t expert, size_t n, const uint32_t *index) {
    const int shared = index && expert == s->m->h.n_experts, gelu = !!(s->m->h.flags & LLM_GELU);
    const size_t ffn = shared ? s->m->h.shared_dim : s->m->h.ffn_dim, stride = align(ffn, LLM_GROUP);
    const size_t groups = stride / LLM_GROUP, e = shared ? 0 : expert;
    FN(matmul)(s, shared ? LLM_SHARED_GATE_UP : LLM_GATE_UP, layer, e, n, index, s->xb, s->gate, 2 * stride);
    EACH(i, n * groups) {
        const size_t t = token(s, index, i / groups), c0 = i % groups * LLM_GROUP;
        const float *up = s->gate + t * 2 * stride + ffn, gain = index ? s->gains[index[i / groups]] : 1;
        float *hidden = s->hidden + t * stride;
        for (size_t c = c0; c < c0 + LLM_GROUP; c += VL) {
            const VEC x = LOAD(vec, up - ffn + c); /* x / (1 + exp(-x)); 2 sqrt(2 / pi) (x + 0.044715 x^3) */
            const VEC y = gelu ? (VEC)(x * (x * x * 0.0713548163f + 1.5957691216f)) : x;
            LOAD(vec, hidden + c) = gain * LOAD(vec, up + c) * x / (1 + FN(exp)(-y));
        }
        for (size_t c = ffn; c < c0 + LLM_GROUP; c++)
            hidden[c] = 0; /* padding */
    }
    meet(&s->meeting);
    FN(matmul)(s, shared ? LLM_SHARED_DOWN : LLM_DOWN, layer, e, n, index, s->hidden, s->out, s->dim);
}

/* Adds to s->out the experts' blocks (Jiang et al. 2024, "Mixtral of Experts"), expert by expert, each for
 * all of its tokens */
static TARGET void FN(mixture)(llm_session *s, size_t layer, size_t n) {
    const llm_header *h = &s->m->h;
    FN(matmul)(s, LLM_ROUTER, layer, 0, n, NULL, s->xb, s->router, h->n_experts + 1);
    EACH(i, n)
        choose_experts(s, layer, i);
    meet(&s->meeting);
    for (uint32_t e = 0, m = 0; THREAD == 0 && e <= h->n_experts; s->starts[++e] = m)
        for (uint32_t i = 0; i < n * s->picks; i++)
            if (s->chosen[i] == e)
                s->members[m++] = i;
    meet(&s->meeting);
    for (size_t e = 0; e <= h->n_experts; e++)
        if (s->starts[e] < s->starts[e + 1])
            FN(ffn)(s, layer, e, s->starts[e + 1] - s->starts[e], s->members + s->starts[e]);
}

/* n <= batch tokens, whose sequences and positions are in s->seqs and s->pos; logits (n_rows, vocab_size) of
 * those in s->rows */
static TARGET void FN(forward)(llm_session *s, size_t n, const uint32_t *ids, size_t n_rows, float *logits) {
    const llm_header *h = &s->m->h;
    EACH(i, n)
        embed(s, i, ids[i]);
    meet(&s->meeting);
    for (size_t layer = 0; layer < h->n_layers; layer++) {
        FN(norm_all)(s, LLM_ATTN_NORM, layer, n, NULL);
        FN(matmul)(s, LLM_QKV, layer, 0, n, NULL, s->xb, s->qkv, s->qkv_dim);
        EACH(i, n)
            FN(place_qkv)(s, layer, i);
        meet(&s->meeting);
        DEAL(i, s->n_parts * s->n_runs * h->n_kv_heads)
            FN(attend)(s, layer, i);
        meet(&s->meeting);
        EACH(i, n * h->n_heads)
            FN(gather)(s, i);
        meet(&s->meeting);
        FN(matmul)(s, LLM_ATTN_OUT, layer, 0, n, NULL, s->att, s->out, s->dim);
        FN(add_all)(s, LLM_ATTN_POST_NORM, layer, n);
        FN(norm_all)(s, LLM_FFN_NORM, layer, n, NULL);
        h->n_experts ? FN(mixture)(s, layer, n) : FN(ffn)(s, layer, 0, n, NULL);
        FN(add_all)(s, LLM_FFN_POST_NORM, layer, n);
    }
    meet(&s->meeting);
    FN(norm_all)(s, LLM_OUT_NORM, 0, n_rows, s->rows);
    FN(matmul)(
        s, h->flags & LLM_TIED ? LLM_EMBED : LLM_OUTPUT, 0, 0, n_rows, NULL, s->xb, logits, h->vocab_size);
    EACH(i, (h->logit_cap > 0 ? n_rows * h->vocab_size : 0))
        logits[i] = h->logit_cap * tanhf(logits[i] / h->logit_cap);
}

#undef ISA
#undef TARGET
#undef VL
#endif
