/* llm.c - the engine: maps and checks a flat model file and runs the forward pass over it.
 *
 * It owns the file's layout, the kernels, the keys and values, and nothing else: no text, no files but the
 * model, no model families (what differs between them is in the header's numbers and flags). It trusts no
 * byte of a file before check() has seen it, allocates nothing once a session is open, and never prints or
 * exits.
 *
 * Read it in this order: errors, header and layout, models, instruction sets, sessions, and the forward pass
 * with its kernels, which stands at the end because the file includes itself to compile that part for each
 * instruction set. */
#ifndef ISA
#define _GNU_SOURCE /* MAP_ANONYMOUS, MADV_DONTNEED */
#include "fail.h"
#include "llm.h"
#include "threads.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TILE 4       /* tokens that share one pass over a row of weights */
#define ROW_BLOCK 16 /* rows that a thread takes at a time: one cache line of every output */
#define MAX_HEAD 1024

/* ------------------------------------------------------------------------------------------------------
 * Header and layout */

static uint64_t align(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

/* The range of each 32-bit field from `flags` on. No product that the layout forms of numbers in these ranges
 * reaches 2^63: the largest is n_layers * n_experts * 2 * ffn_dim * dim * 2 bytes = 2^62. */
static const struct {
    const char *name;
    uint32_t min, max;
} fields[] = {{"flags", 0, 2 * LLM_ROUTER_NORMALIZE - 1}, {"dim", 1, 1 << 20}, {"ffn_dim", 1, 1 << 20},
    {"n_layers", 1, 1 << 10}, {"n_heads", 1, 1 << 12}, {"n_kv_heads", 1, 1 << 12}, {"head_dim", 2, MAX_HEAD},
    {"vocab_size", 1, 1 << 24}, {"context", 1, 1 << 28}, {"n_rope", 1, 1 << 10}, {"n_experts", 0, 1 << 10},
    {"n_active", 0, 1 << 10}};

static int check_header(const llm_header *h, char *err, size_t errlen) {
    uint32_t values[sizeof fields / sizeof *fields];
    memcpy(values, (const char *)h + offsetof(llm_header, flags), sizeof values);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const uint32_t v = values[i], min = fields[i].min, max = fields[i].max;
        REQUIRE(v >= min && v <= max, "header: %s is %u, not %u to %u", fields[i].name, v, min, max);
    }
    REQUIRE(h->dtype <= LLM_INT8, "header: there is no dtype %u for weights", h->dtype);
    REQUIRE(h->n_heads % h->n_kv_heads == 0, "header: %u heads on %u kv heads", h->n_heads, h->n_kv_heads);
    REQUIRE(h->head_dim % 2 == 0, "header: head_dim %u is odd", h->head_dim);
    const int some = h->n_active <= h->n_experts && !h->n_active == !h->n_experts;
    REQUIRE(some, "header: %u of %u experts are active", h->n_active, h->n_experts);
    REQUIRE(h->text_size % 64 == 0 && h->text_size >> 40 == 0, "header: text_size is wrong");
    const int sane = h->norm_eps >= 0 && h->norm_eps < 1 && fabsf(h->attn_scale) < 1e6f;
    REQUIRE(sane, "header: norm_eps is %g and attn_scale %g", h->norm_eps, h->attn_scale);
    for (size_t i = 0; i < sizeof h->reserved; i++)
        REQUIRE(!h->reserved[i], "header: a reserved byte is set, as a newer version may do");
    return 0;
}

/* Rows, columns and dtype of tensor `id`; returns how many a layer (or the model) has. 0 rows: the model has
 * none. */
static uint64_t shape(const llm_header *h, uint32_t id, llm_tensor *t) {
    const uint64_t q = (uint64_t)h->n_heads * h->head_dim, kv = (uint64_t)h->n_kv_heads * h->head_dim;
    const uint64_t output = h->flags & LLM_TIED ? 0 : h->vocab_size, bias = !!(h->flags & LLM_QKV_BIAS);
    const uint64_t qk_norm = !!(h->flags & LLM_QK_NORM), dim = h->dim, hd = h->head_dim, ffn = h->ffn_dim;
    const uint64_t shapes[LLM_N_TENSORS][3] = {
        /* rows, columns and dtype, in the order of enum llm_tensor_id */
        {h->vocab_size, dim, h->dtype}, {1, dim, LLM_FP32}, {output, dim, h->dtype}, {1, dim, LLM_FP32},
        {q + 2 * kv, dim, h->dtype}, {bias, q + 2 * kv, LLM_FP32}, {qk_norm, hd, LLM_FP32},
        {qk_norm, hd, LLM_FP32}, {dim, q, h->dtype}, {1, dim, LLM_FP32}, {h->n_experts, dim, LLM_FP16},
        {2 * ffn, dim, h->dtype}, {dim, ffn, h->dtype}};
    static const uint64_t bytes[] = {128, 66, 256}; /* of a group of 64 in fp16, int8, fp32 */
    *t = (llm_tensor){.rows = shapes[id][0], .cols = shapes[id][1], .dtype = (uint32_t)shapes[id][2]};
    t->stride = align(t->cols, LLM_GROUP);
    t->size = t->rows * (t->stride / LLM_GROUP) * bytes[t->dtype];
    return h->n_experts && (id == LLM_GATE_UP || id == LLM_DOWN) ? h->n_experts : 1;
}

/* The bytes that the tensors from `first` up to `last` take, once or in one layer. */
static uint64_t span(const llm_header *h, uint32_t first, uint32_t last) {
    uint64_t sum = 0;
    for (llm_tensor t; first < last; first++) {
        const uint64_t count = shape(h, first, &t);
        sum += count * align(t.size, LLM_GROUP);
    }
    return sum;
}

int llm_layout(const llm_header *h, uint32_t id, uint32_t layer, uint32_t expert, llm_tensor *t, char *err,
    size_t errlen) {
    const uint32_t layers = id < LLM_ATTN_NORM ? 1 : h->n_layers;
    TRY(check_header(h, err, errlen));
    const int known = id < LLM_N_TENSORS && layer < layers && expert < shape(h, id, t);
    REQUIRE(known, "no tensor %u in layer %u, expert %u", id, layer, expert);
    t->offset = LLM_HEADER_SIZE + h->text_size + h->n_layers * sizeof(llm_layer);
    t->offset = align(t->offset + (uint64_t)h->n_rope * h->head_dim / 2 * sizeof(float), LLM_GROUP);
    t->offset += span(h, 0, id < LLM_ATTN_NORM ? id : LLM_ATTN_NORM) + expert * align(t->size, LLM_GROUP);
    if (id >= LLM_ATTN_NORM)
        t->offset += layer * span(h, LLM_ATTN_NORM, LLM_N_TENSORS) + span(h, LLM_ATTN_NORM, id);
    return 0;
}

uint64_t llm_file_size(const llm_header *h, char *err, size_t errlen) {
    llm_tensor first;
    const int bad = llm_layout(h, LLM_ATTN_NORM, 0, 0, &first, err, errlen);
    return bad ? 0 : first.offset + h->n_layers * span(h, LLM_ATTN_NORM, LLM_N_TENSORS) + LLM_GROUP;
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

struct llm_model {
    const uint8_t *data;             /* the whole file, size bytes; if mapped, it is ours to unmap */
    size_t size, mapped, layer_size; /* layer_size: bytes from a layer to the next */
    llm_header h;
    const llm_layer *layers;
    const float *rope;                /* (n_rope, head_dim / 2) */
    llm_tensor tensor[LLM_N_TENSORS]; /* of layer 0, expert 0 */
};

/* Everything in the file that the engine relies on. Whatever passes may hold wrong numbers, never a wrong
 * size or offset. */
static int check(llm_model *m, char *err, size_t errlen) {
    REQUIRE(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "model files need a little-endian machine");
    REQUIRE(m->size >= sizeof m->h && !memcmp(m->data, "PYLLM\r\n\032", 8), "not a pyllm model file");
    memcpy(&m->h, m->data, sizeof m->h);
    REQUIRE(m->h.version == LLM_VERSION, "format version %u, not %d", m->h.version, LLM_VERSION);
    REQUIRE(m->h.checksum == llm_checksum(&m->h), "header: the checksum is wrong: the file is damaged");
    const uint64_t size = llm_file_size(&m->h, err, errlen), end = LLM_HEADER_SIZE + m->h.text_size;
    TRY(size == 0);
    REQUIRE(size == m->size && size == m->h.file_size, "it has %zu bytes, not %zu", m->size, (size_t)size);
    for (uint32_t id = 0; id < LLM_N_TENSORS; id++)
        llm_layout(&m->h, id, 0, 0, &m->tensor[id], NULL, 0);
    m->layer_size = span(&m->h, LLM_ATTN_NORM, LLM_N_TENSORS);
    m->layers = (const llm_layer *)(m->data + end);
    m->rope = (const float *)(m->layers + m->h.n_layers);
    for (uint32_t i = 0; i < m->h.n_layers; i++)
        REQUIRE(m->layers[i].rope < m->h.n_rope, "layer %u: no rotary table %u", i, m->layers[i].rope);
    size_t bad = 0;
    REQUIRE(llm_section(m, 0, &bad) || !bad, "the section at byte %zu does not fit into the file", bad);
    return 0;
}

llm_model *llm_open_memory(const void *data, size_t size, char *err, size_t errlen) {
    REQUIRE_OR_NULL((uintptr_t)data % 64 == 0, "a model in memory must be aligned to 64 bytes");
    llm_model *m = calloc(1, sizeof *m);
    REQUIRE_OR_NULL(m, "out of memory");
    m->data = data;
    m->size = size;
    if (!check(m, err, errlen))
        return m;
    free(m);
    return NULL;
}

llm_model *llm_open(const char *path, char *err, size_t errlen) {
    char why[256];
    struct stat st = {0};
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(why, sizeof why, "%s", fd < 0 ? strerror(errno) : "not a pyllm model file");
    const size_t size = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? (size_t)st.st_size : 0;
    void *data = size ? mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    close(fd);
    llm_model *m = data == MAP_FAILED ? NULL : llm_open_memory(data, size, why, sizeof why);
    if (!m && data != MAP_FAILED)
        munmap(data, size);
    REQUIRE_OR_NULL(m, "%s: %s", path, why);
    m->mapped = 1;
    return m;
}

void llm_close(llm_model *m) {
    if (m && m->mapped)
        munmap((void *)m->data, m->size);
    free(m);
}

const llm_header *llm_model_header(const llm_model *m) { return &m->h; }

/* Tag 0, which no section has, finds nothing; *size is then where a section does not fit, or 0. check() asks
 * so. */
const void *llm_section(const llm_model *m, uint32_t tag, size_t *size) {
    llm_section_head head = {.tag = 1}; /* always whole, because `at` and `end` are multiples of 16 */
    const uint64_t end = LLM_HEADER_SIZE + m->h.text_size;
    for (uint64_t at = LLM_HEADER_SIZE; at < end && head.tag; at += align(sizeof head + head.size, 16)) {
        memcpy(&head, m->data + at, sizeof head);
        const int fits = head.size <= end - at - sizeof head;
        *size = (size_t)(fits ? head.size : at);
        if (!fits || (tag && head.tag == tag))
            return fits ? m->data + at + sizeof head : NULL;
    }
    *size = 0;
    return NULL;
}

size_t llm_kv_bytes(const llm_model *m) {
    return (size_t)m->h.n_layers * 2 * m->h.n_kv_heads * align(m->h.head_dim, 16) * sizeof(uint16_t);
}

/* ------------------------------------------------------------------------------------------------------
 * Sessions: their memory */

/* An instruction set: its name, and the kernels compiled for it. */
typedef struct isa {
    const char *name;
    void (*matmul)(llm_session *s, uint32_t id, size_t layer, size_t expert, size_t n, const uint32_t *index,
        const float *x, float *y, size_t ldy);
    void (*norm_all)(llm_session *s, uint32_t id, size_t layer, size_t n, const uint32_t *rows);
    void (*place_qkv)(llm_session *s, size_t layer, size_t i);
    void (*attend)(llm_session *s, size_t layer, size_t i, size_t a);
} isa;

/* The buffers, with B tokens in a batch; rows are padded to 64 columns and heads to `width`, and the padding
 * stays 0:
 *   kv                (n_seqs) of (n_layers, k and v, n_kv_heads, context, width) fp16
 *   length            (2, n_seqs) positions of each sequence; and as many to count ahead in
 *   x, xb             (B, dim) residual stream, and its norm
 *   qkv, q, att       (B, q_dim + 2 kv_dim), (B, n_heads, width) queries rotated and scaled, (B, q_dim)
 *   gate, hidden      (B, 2 ffn_dim), (B, ffn_dim)
 *   quants, scales    (B, columns), (B, columns / 64) activations as int16 by 64
 *   rotation          (n_rope, B, head_dim) cosines, then sines
 *   router, chosen, gains  (B, n_experts) probabilities, (B, n_active) experts of a token and their weights
 *   members, starts   (B * n_active) places in `chosen` of expert 0, then of 1, ...; (n_experts + 1) where
 *                     they begin
 *   pos, seqs, rows   (B) position and sequence of each token; tokens whose logits are wanted */
struct llm_session {
    const llm_model *m;
    const isa *isa;
    llm_options o;
    meeting meeting;
    size_t dim, ffn, q_dim, qkv_dim, width; /* padded; width: of a head in the cache */
    size_t seq_size, arena_size; /* of a sequence in the cache, in numbers: whole pages; in bytes */
    uint8_t *arena;              /* one mapping that holds all of these: */
    uint16_t *kv;
    size_t *length;
    float *x, *xb, *qkv, *q, *att, *gate, *hidden, *scales, *rotation, *router, *gains;
    int16_t *quants;
    uint32_t *chosen, *members, *starts, *pos, *seqs, *rows;
};

/* The keys (part 0) or values (part 1) of one head of one layer of a sequence: (context, width) fp16. */
static uint16_t *cache(const llm_session *s, size_t seq, size_t layer, size_t part, size_t head) {
    const size_t rows = (layer * 2 + part) * s->m->h.n_kv_heads + head;
    return s->kv + seq * s->seq_size + rows * s->o.context * s->width;
}

/* ------------------------------------------------------------------------------------------------------
 * Instruction sets */

typedef uint32_t any_uint __attribute__((may_alias));
typedef float any_float __attribute__((may_alias));

static inline uint32_t bits_of(float f) { return *(any_uint *)&f; }

static inline float float_of(uint32_t u) { return *(any_float *)&u; }

/* fp16 to float and back (to nearest even) without hardware for it, after Giesen's "float->half variants". */
static inline float half_to_float(uint16_t half) {
    const float f = float_of((uint32_t)(half & 0x7fff) << 13) * 0x1p112f; /* moves the exponent's bias */
    return float_of(bits_of(f) | (f >= 65536.0f ? 0x7f800000 : 0) | (uint32_t)(half & 0x8000) << 16);
}

static inline uint16_t float_to_half(float f) {
    const uint32_t u = bits_of(f) & 0x7fffffff, sign = bits_of(f) >> 16 & 0x8000;
    const uint32_t subnormal = bits_of(float_of(u) + 0.5f) - 0x3f000000; /* + 0.5 rounds there */
    const uint32_t normal = (u - 0x38000000 + 0xfff + (u >> 13 & 1)) >> 13;
    const uint32_t huge = u > 0x7f800000 ? 0x7e00 : 0x7c00;
    return (uint16_t)(sign | (u < 0x38800000 ? subnormal : u < 0x47800000 ? normal : huge));
}

/* The row of x and y that token t of a product has: t, or with an index of places in s->chosen the token of
 * place index[t]. */
static size_t token(const llm_session *s, const uint32_t *index, size_t t) {
    return index ? index[t] / s->m->h.n_active : t;
}

/* One product y = W x, or y += W x, of tokens whose rows of x and y token() tells. */
typedef struct job {
    const llm_session *s;
    const void *w; /* (rows, stride) fp16 or int8, see llm.h */
    size_t rows, stride, ldy, add;
    const uint32_t *index;
    const float *x, *scale; /* (., stride); for int8 x = q * scale: (., stride), (., stride / 64) */
    const int16_t *q;
    float *y; /* (., ldy) */
} job;

static const void *weights(const llm_model *m, uint32_t id, size_t layer, size_t expert) {
    const llm_tensor *t = &m->tensor[id];
    return m->data + t->offset + layer * m->layer_size + expert * align(t->size, LLM_GROUP);
}

/* The words that the kernels need beside plain vectors of VL floats:
 *   HALF(p)        VL fp16 numbers as floats; TO_HALF(p, v) the other way
 *   MADD(i, w, x)  i + the products of 2 * VL pairs of int16, added up in pairs: VL int32. Exact, as 127 *
 *                  32767 * 64 < 2^31.
 *   SUM(v)         the sum of VL floats */
#define STRING2(s) #s
#define STRING(s) STRING2(s)
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
#include "llm.c"

#if defined(__x86_64__)
#include <immintrin.h>
#define ISA avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define VL 8
#define HALF_avx2(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define TO_HALF_avx2(p, v) _mm_storeu_si128((__m128i *)(p), _mm256_cvtps_ph(v, 0))
#define MADD_avx2(i, w, x) ((i) + (FN(ints))_mm256_madd_epi16((__m256i)(w), (__m256i)(x)))
#define SUM_avx2(v) sum4(_mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1))
#define sum4(v) _mm_cvtss_f32(_mm_dp_ps(v, _mm_set1_ps(1), 0xff))
#include "llm.c"

#define ISA avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")))
#define VL 16
#define HALF_avx512(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define TO_HALF_avx512(p, v) _mm256_storeu_si256((__m256i *)(p), _mm512_cvtps_ph(v, 0))
#define MADD_avx512(i, w, x) ((i) + (FN(ints))_mm512_madd_epi16((__m512i)(w), (__m512i)(x)))
#define SUM_avx512(v) _mm512_reduce_add_ps(v)
#include "llm.c"

#define ISA avx512vnni
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")))
#define VL 16
#define HALF_avx512vnni HALF_avx512
#define TO_HALF_avx512vnni TO_HALF_avx512
#define SUM_avx512vnni SUM_avx512
#define MADD_avx512vnni(i, w, x) (FN(ints)) _mm512_dpwssd_epi32((__m512i)(i), (__m512i)(w), (__m512i)(x))
#include "llm.c"
#elif defined(__aarch64__)
#include <arm_neon.h>
#define ISA neon
#define TARGET
#define VL 4
#define HALF_neon(p) vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))
#define TO_HALF_neon(p, v) vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)))
#define MADD_neon(i, w, x) vmlal_high_s16(vmlal_s16(i, vget_low_s16(w), vget_low_s16(x)), w, x)
#define SUM_neon(v) vaddvq_f32(v)
#include "llm.c"
#endif

/* The best instruction set that the processor has, or the one that PYLLM_ISA names. F16C is older than AVX2,
 * so not asked for. */
static const isa *pick_isa(char *err, size_t errlen) {
#if defined(__x86_64__)
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int dq = __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const int bw = avx2 && dq && __builtin_cpu_supports("avx512bw");
    const isa *const have[] = {bw && __builtin_cpu_supports("avx512vnni") ? &isa_avx512vnni : NULL,
        bw ? &isa_avx512 : NULL, avx2 ? &isa_avx2 : NULL, &isa_scalar};
#elif defined(__aarch64__)
    const isa *const have[] = {&isa_neon, &isa_scalar};
#else
    const isa *const have[] = {&isa_scalar};
#endif
    const char *want = getenv("PYLLM_ISA");
    for (size_t i = 0; i < sizeof have / sizeof *have; i++)
        if (have[i] && (!want || !*want || !strcmp(want, have[i]->name)))
            return have[i];
    return FAIL_NULL("PYLLM_ISA: this processor or build has no \"%.32s\"", want);
}

/* ------------------------------------------------------------------------------------------------------
 * Sessions: their functions */

/* Reserves the buffers; memory is taken as they are first written. */
static int open_buffers(llm_session *s, char *err, size_t errlen) {
    const llm_header *h = &s->m->h;
    const size_t b = s->o.batch, n_seqs = s->o.n_seqs, context = s->o.context;
    s->dim = align(h->dim, 64);
    s->ffn = align(h->ffn_dim, 64);
    s->q_dim = align((uint64_t)h->n_heads * h->head_dim, 64);
    s->qkv_dim = align(((uint64_t)h->n_heads + 2 * h->n_kv_heads) * h->head_dim, 64);
    s->width = align(h->head_dim, 16);
    s->seq_size = align((uint64_t)h->n_layers * 2 * h->n_kv_heads * s->width * context, 1 << 15);
    const size_t columns = b * (s->dim + s->q_dim + s->ffn), active = b * h->n_active, f = sizeof(float);
    const struct {
        void *slot;
        size_t size;
    } buffers[] = {{&s->kv, n_seqs * s->seq_size * 2}, {&s->length, 2 * n_seqs * sizeof(size_t)},
        {&s->x, b * s->dim * f}, {&s->xb, b * s->dim * f}, {&s->qkv, b * s->qkv_dim * f},
        {&s->q, b * h->n_heads * s->width * f}, {&s->att, b * s->q_dim * f}, {&s->gate, 2 * b * s->ffn * f},
        {&s->hidden, b * s->ffn * f}, {&s->quants, columns * 2}, {&s->scales, columns / 64 * f},
        {&s->rotation, b * h->n_rope * h->head_dim * f}, {&s->router, b * h->n_experts * f},
        {&s->gains, active * f}, {&s->chosen, active * f}, {&s->members, active * f},
        {&s->starts, (h->n_experts + 1) * f}, {&s->pos, b * f}, {&s->seqs, b * f}, {&s->rows, b * f}};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        s->arena_size += align(buffers[i].size, 64);
    const int map = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if ((double)s->seq_size * (double)n_seqs < 0x1p60)
        s->arena = mmap(NULL, s->arena_size, PROT_READ | PROT_WRITE, map, -1, 0);
    REQUIRE(s->arena && s->arena != MAP_FAILED, "no memory for %zu sequences of %zu", n_seqs, context);
    uint8_t *at = s->arena;
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; at += align(buffers[i++].size, 64))
        memcpy(buffers[i].slot, &at, sizeof at);
    return 0;
}

llm_session *llm_session_open(const llm_model *m, const llm_options *options, char *err, size_t errlen) {
    llm_session *s = calloc(1, sizeof *s);
    REQUIRE_OR_NULL(s, "out of memory");
    const llm_options o = options ? *options : (llm_options){0};
    *s = (llm_session){.m = m, .isa = pick_isa(err, errlen)};
    s->o.context = o.context ? o.context : m->h.context;
    s->o.n_seqs = o.n_seqs ? o.n_seqs : 1;
    s->o.threads = o.threads ? o.threads : llm_default_threads();
    s->o.batch = o.batch ? o.batch : 256;
    if (o.context > 1 << 28 || o.n_seqs > 1 << 16 || o.threads > 1024 || o.batch > 1 << 14)
        FAIL("over 2^28 positions, 65536 sequences, 1024 threads or batches of 16384");
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
    const size_t heads = (size_t)s->m->h.n_layers * 2 * s->m->h.n_kv_heads;
    TRY(check_sequence(s, from, length, err, errlen) || check_sequence(s, to, 0, err, errlen));
    if (from != to)
        llm_truncate(s, to, 0, err, errlen);
    for (size_t i = 0; i < heads && from != to; i++)
        memcpy(cache(s, to, 0, 0, i), cache(s, from, 0, 0, i), length * s->width * sizeof *s->kv);
    s->length[to] = length;
    return 0;
}

int llm_state(llm_session *s, uint32_t seq, size_t length, void *state, int set, char *err, size_t errlen) {
    const size_t size = length * s->width * sizeof *s->kv;
    TRY(check_sequence(s, seq, set ? 0 : length, err, errlen));
    REQUIRE(length <= s->o.context, "%zu positions do not fit into a context of %u", length, s->o.context);
    if (set)
        llm_truncate(s, seq, 0, err, errlen);
    for (size_t i = 0; i < (size_t)s->m->h.n_layers * 2 * s->m->h.n_kv_heads; i++) {
        void *kv = cache(s, seq, 0, 0, i), *at = (uint8_t *)state + i * size;
        memcpy(set ? kv : at, set ? at : kv, size);
    }
    s->length[seq] = set ? length : s->length[seq];
    return 0;
}

/* ------------------------------------------------------------------------------------------------------
 * The forward pass.
 *
 * Every function below that has EACH, DEAL or meet() is run by all threads of one parallel region together:
 * EACH shares its numbers out between them, meet() waits for all of them, and everything else is done by each
 * of them alike. No sum is split, and the order of a sum does not depend on what else is computed: so results
 * depend neither on the number of threads nor on the batch. */

/* x of token i = row `id` of the embedding; and its angles' cosines and sines in every rotary table */
static void embed(llm_session *s, size_t i, uint32_t id) {
    const llm_tensor *t = &s->m->tensor[LLM_EMBED];
    const int8_t *w8 = weights(s->m, LLM_EMBED, 0, 0);
    const uint16_t *w = (const uint16_t *)w8 + id * t->stride;
    const uint16_t *scale = (const uint16_t *)(w8 + t->rows * t->stride) + id * (t->stride / LLM_GROUP);
    float *x = s->x + i * s->dim;
    for (size_t c = 0; c < t->cols; c++)
        x[c] = t->dtype == LLM_FP16 ? half_to_float(w[c])
                                    : w8[id * t->stride + c] * half_to_float(scale[c / LLM_GROUP]);
    const size_t half = s->m->h.head_dim / 2;
    for (size_t k = 0; k < s->m->h.n_rope * half; k++) {
        float *r = s->rotation + (k / half * s->o.batch + i) * 2 * half + k % half;
        r[0] = cosf((float)s->pos[i] * s->m->rope[k]);
        r[half] = sinf((float)s->pos[i] * s->m->rope[k]);
    }
}

/* x += the gated feed-forward block (SwiGLU, Shazeer 2020) of n tokens, those in `index` if there is one (see
 * job) */
static void feed_forward(llm_session *s, size_t layer, size_t expert, size_t n, const uint32_t *index) {
    const size_t ffn = s->m->h.ffn_dim, groups = s->ffn / LLM_GROUP;
    s->isa->matmul(s, LLM_GATE_UP, layer, expert, n, index, s->xb, s->gate, 2 * s->ffn);
    EACH(i, n * groups) {
        const size_t t = token(s, index, i / groups), c0 = i % groups * LLM_GROUP;
        const float *gate = s->gate + t * 2 * s->ffn, *up = gate + ffn;
        const float gain = index ? s->gains[index[i / groups]] : 1;
        for (size_t c = c0; c < ffn && c < c0 + LLM_GROUP; c++)
            s->hidden[t * s->ffn + c] = gain * up[c] * gate[c] / (1 + expf(-gate[c]));
    }
    meet(&s->meeting);
    s->isa->matmul(s, LLM_DOWN, layer, expert, n, index, s->hidden, s->x, s->dim);
}

/* The n_active most likely experts of token i (the lower number among equals) and their weights */
static void choose_experts(llm_session *s, size_t i) {
    const llm_header *h = &s->m->h;
    float *p = s->router + i * h->n_experts, *gains = s->gains + i * h->n_active;
    float max = p[0], all = 0, picked = 0;
    for (size_t e = 1; e < h->n_experts; e++)
        max = p[e] > max ? p[e] : max;
    for (size_t e = 0; e < h->n_experts; e++)
        all += p[e] = fmaxf(expf(p[e] - max), 0); /* 0 for NaN */
    for (size_t k = 0; k < h->n_active; k++) {
        size_t best = 0;
        for (size_t e = 1; e < h->n_experts; e++)
            best = p[e] > p[best] ? e : best;
        s->chosen[i * h->n_active + k] = (uint32_t)best;
        picked += gains[k] = p[best];
        p[best] = -1; /* taken: below every probability */
    }
    for (size_t k = 0; k < h->n_active; k++)
        gains[k] /= h->flags & LLM_ROUTER_NORMALIZE ? picked : all;
}

/* x += the experts' blocks (Jiang et al. 2024, "Mixtral of Experts"), expert by expert, each for all of its
 * tokens */
static void mixture(llm_session *s, size_t layer, size_t n) {
    const llm_header *h = &s->m->h;
    s->isa->matmul(s, LLM_ROUTER, layer, 0, n, NULL, s->xb, s->router, h->n_experts);
    EACH(i, n)
        choose_experts(s, i);
    meet(&s->meeting);
    for (uint32_t e = 0, m = 0; THREAD == 0 && e < h->n_experts; s->starts[++e] = m)
        for (uint32_t i = 0; i < n * h->n_active; i++)
            if (s->chosen[i] == e)
                s->members[m++] = i;
    meet(&s->meeting);
    for (size_t e = 0; e < h->n_experts; e++)
        if (s->starts[e] < s->starts[e + 1])
            feed_forward(s, layer, e, s->starts[e + 1] - s->starts[e], s->members + s->starts[e]);
}

/* n <= batch tokens, whose sequences and positions are in s->seqs and s->pos; logits (n_rows, vocab_size) of
 * those in s->rows */
static void forward(llm_session *s, size_t n, const uint32_t *tokens, size_t n_rows, float *logits) {
    const llm_header *h = &s->m->h;
    EACH(i, n)
        embed(s, i, tokens[i]);
    meet(&s->meeting);
    for (size_t layer = 0; layer < h->n_layers; layer++) {
        s->isa->norm_all(s, LLM_ATTN_NORM, layer, n, NULL);
        s->isa->matmul(s, LLM_QKV, layer, 0, n, NULL, s->xb, s->qkv, s->qkv_dim);
        EACH(i, n)
            s->isa->place_qkv(s, layer, i);
        meet(&s->meeting);
        DEAL(i, n * h->n_heads)
            s->isa->attend(s, layer, i / h->n_heads, i % h->n_heads);
        meet(&s->meeting);
        s->isa->matmul(s, LLM_ATTN_OUT, layer, 0, n, NULL, s->att, s->x, s->dim);
        s->isa->norm_all(s, LLM_FFN_NORM, layer, n, NULL);
        if (h->n_experts)
            mixture(s, layer, n);
        else
            feed_forward(s, layer, 0, n, NULL);
    }
    s->isa->norm_all(s, LLM_OUT_NORM, 0, n_rows, s->rows);
    const uint32_t output = h->flags & LLM_TIED ? LLM_EMBED : LLM_OUTPUT;
    s->isa->matmul(s, output, 0, 0, n_rows, NULL, s->xb, logits, h->vocab_size);
}

int llm_forward(llm_session *s, size_t n, const uint32_t *tokens, const uint32_t *seqs, const uint8_t *want,
    float *logits, char *err, size_t errlen) {
    size_t *length = s->length + s->o.n_seqs;
    memcpy(length, s->length, s->o.n_seqs * sizeof *length);
    for (size_t i = 0; i < n; i++) {
        const uint32_t seq = seqs ? seqs[i] : 0;
        REQUIRE(tokens[i] < s->m->h.vocab_size, "token %zu is %u, beyond the vocabulary", i, tokens[i]);
        REQUIRE(seq < s->o.n_seqs, "there is no sequence %u: the session has %u", seq, s->o.n_seqs);
        length[seq]++;
    }
    for (uint32_t q = 0; q < s->o.n_seqs; q++)
        REQUIRE(length[q] <= s->o.context, "%zu positions, and the context has %u", length[q], s->o.context);
    for (size_t at = 0; at < n; at += s->o.batch) {
        const size_t count = n - at < s->o.batch ? n - at : s->o.batch;
        size_t n_rows = 0;
        for (size_t i = 0; i < count; i++) {
            s->seqs[i] = seqs ? seqs[at + i] : 0;
            s->pos[i] = (uint32_t)s->length[s->seqs[i]]++;
            if (logits && (want ? want[at + i] : at + i + 1 == n))
                s->rows[n_rows++] = (uint32_t)i;
        }
#pragma omp parallel num_threads(s->o.threads)
        forward(s, count, tokens + at, n_rows, logits);
        logits += logits ? n_rows * s->m->h.vocab_size : 0;
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------------
 * The kernels, compiled once for each instruction set. matmul and norm_all are run by all threads together,
 * as above. */
#else
typedef float VEC __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int32_t FN(ints) __attribute__((vector_size(4 * VL)));
typedef int16_t FN(shorts) __attribute__((vector_size(4 * VL), aligned(2), may_alias));
typedef int8_t FN(bytes) __attribute__((vector_size(2 * VL), aligned(1), may_alias));

/* One row of weights against tokens t0 to t0 + T: fp16 weights with float activations, or int8 weights by 64
 * with int16 activations by 64, whose sum over a group is exact and then scaled. */
INLINE void FN(row)(const job *j, size_t r, size_t t0, const size_t T, const int int8) {
    const size_t groups = j->stride / LLM_GROUP;
    const uint16_t *w = (const uint16_t *)j->w + r * j->stride;
    const int8_t *w8 = (const int8_t *)j->w + r * j->stride;
    const uint16_t *scale = (const uint16_t *)((const int8_t *)j->w + j->rows * j->stride) + r * groups;
    size_t at[TILE]; /* the tokens' rows of x and y */
    VEC sum[TILE];
    for (size_t t = 0; t < T; t++) {
        at[t] = token(j->s, j->index, t0 + t);
        sum[t] = (VEC){0};
    }
    for (size_t g = 0; int8 && g < groups; g++) {
        FN(ints) dot[TILE] = {{0}};
        if (T == 1)
            __builtin_prefetch(w8 + (g + 16) * LLM_GROUP);
        for (size_t c = g * LLM_GROUP; c < (g + 1) * LLM_GROUP; c += 2 * VL) {
            const FN(shorts) pairs = __builtin_convertvector(LOAD(bytes, w8 + c), FN(shorts));
            for (size_t t = 0; t < T; t++)
                dot[t] = FN(MADD)(dot[t], pairs, LOAD(shorts, j->q + at[t] * j->stride + c));
        }
        for (size_t t = 0; t < T; t++) {
            const float by = FN(HALF)(scale + g)[0] * j->scale[at[t] * groups + g];
            sum[t] += __builtin_convertvector(dot[t], VEC) * by;
        }
    }
    for (size_t c = 0; !int8 && c < j->stride; c += VL) {
        const VEC half = FN(HALF)(w + c);
        if (T == 1)
            __builtin_prefetch(w + c + 512);
        for (size_t t = 0; t < T; t++)
            sum[t] += half * LOAD(vec, j->x + at[t] * j->stride + c);
    }
    for (size_t t = 0; t < T; t++) {
        float *y = j->y + at[t] * j->ldy + r;
        *y = (j->add ? *y : 0) + FN(SUM)(sum[t]);
    }
}

/* One group of 64 activations: q = round(x / scale), scale = max|x| / 32767; what is not finite makes the
 * scale NaN. */
static TARGET void FN(quantize)(int16_t *q, float *scale, const float *x) {
    uint32_t most = 0;
    for (size_t i = 0; i < LLM_GROUP; i++) /* compares bits, which are ordered as |x| is, NaN last */
        most = (bits_of(x[i]) & 0x7fffffff) > most ? bits_of(x[i]) & 0x7fffffff : most;
    const float max = float_of(most), by = max > 1e-30f && max < INFINITY ? 32767 / max : 0;
    *scale = max < INFINITY ? max / 32767 : NAN;
    for (size_t i = 0; i < LLM_GROUP; i++) {
        const float v = by == 0 ? 0 : x[i] * by;
        q[i] = (int16_t)(v < 0 ? v - 0.5f : v + 0.5f);
    }
}

/* y = W x for n tokens, those in `index` if there is one (see job): x (., stride of W), y (., ldy). What goes
 * back into the residual stream, LLM_ATTN_OUT and LLM_DOWN, is added to y. Many tokens with AMX will branch
 * off here. */
static TARGET void FN(matmul)(llm_session *s, uint32_t id, size_t layer, size_t expert, size_t n,
    const uint32_t *index, const float *x, float *y, size_t ldy) {
    const llm_tensor *t = &s->m->tensor[id];
    const size_t groups = t->stride / LLM_GROUP;
    const size_t int8 = t->dtype == LLM_INT8, add = id == LLM_ATTN_OUT || id == LLM_DOWN;
    const job j = {
        s, weights(s->m, id, layer, expert), t->rows, t->stride, ldy, add, index, x, s->scales, s->quants, y};
    EACH(i, (int8 ? n * groups : 0)) {
        const size_t at = token(s, index, i / groups) * groups + i % groups;
        FN(quantize)(s->quants + at * LLM_GROUP, s->scales + at, x + at * LLM_GROUP);
    }
    if (int8)
        meet(&s->meeting);
    EACH(block, (t->rows + ROW_BLOCK - 1) / ROW_BLOCK)
        for (size_t i = 0; i < n; i += n - i < TILE ? 1 : TILE)
            for (size_t r = block * ROW_BLOCK; r < t->rows && r < (block + 1) * ROW_BLOCK; r++)
                if (n - i < TILE)
                    int8 ? FN(row)(&j, r, i, 1, 1) : FN(row)(&j, r, i, 1, 0);
                else
                    int8 ? FN(row)(&j, r, i, TILE, 1) : FN(row)(&j, r, i, TILE, 0);
    meet(&s->meeting);
}

/* out (n,) = x / rms(x) * w (Zhang and Sennrich 2019); x is padded with zeros */
INLINE void FN(norm)(const llm_session *s, float *out, const float *x, const float *w, size_t n) {
    VEC squares = {0};
    for (size_t c = 0; c < n; c += VL)
        squares += LOAD(vec, x + c) * LOAD(vec, x + c);
    const float by = 1 / sqrtf(FN(SUM)(squares) / (float)n + s->m->h.norm_eps);
    for (size_t c = 0; c < n; c++)
        out[c] = x[c] * by * w[c];
}

/* xb = the norm `id` of the residual stream, of n tokens, those in `rows` if there are rows */
static TARGET void FN(norm_all)(llm_session *s, uint32_t id, size_t layer, size_t n, const uint32_t *rows) {
    EACH(i, n) {
        const float *x = s->x + (rows ? rows[i] : i) * s->dim;
        FN(norm)(s, s->xb + i * s->dim, x, weights(s->m, id, layer, 0), s->m->h.dim);
    }
    meet(&s->meeting);
}

/* From the projections of token i: bias, norm and rotation (Su et al. 2021, in GPT-NeoX's half-split order);
 * then its query, scaled, to s->q, and its key and value into the cache. */
static TARGET void FN(place_qkv)(llm_session *s, size_t layer, size_t i) {
    const llm_header *h = &s->m->h;
    const size_t hd = h->head_dim, half = hd / 2, n_qk = h->n_heads + h->n_kv_heads;
    const float *r = s->rotation + (s->m->layers[layer].rope * (size_t)s->o.batch + i) * hd;
    const float *bias = weights(s->m, LLM_BIAS, layer, 0);
    for (size_t a = 0; a < n_qk + h->n_kv_heads; a++) {
        float head[MAX_HEAD] = {0};
        for (size_t c = 0; c < hd; c++)
            head[c] = s->qkv[i * s->qkv_dim + a * hd + c] + (h->flags & LLM_QKV_BIAS ? bias[a * hd + c] : 0);
        if (a < n_qk && h->flags & LLM_QK_NORM)
            FN(norm)(s, head, head, weights(s->m, a < h->n_heads ? LLM_Q_NORM : LLM_K_NORM, layer, 0), hd);
        for (size_t c = 0; a < n_qk && c < half; c++) {
            const float u = head[c], v = head[c + half];
            head[c] = u * r[c] - v * r[c + half];
            head[c + half] = v * r[c] + u * r[c + half];
        }
        float *q = s->q + (i * h->n_heads + a) * s->width;
        for (size_t c = 0; a < h->n_heads && c < hd; c++)
            q[c] = head[c] * h->attn_scale;
        uint16_t *kv = cache(s, s->seqs[i], layer, a >= n_qk, (a - h->n_heads) % h->n_kv_heads);
        for (size_t c = 0; a >= h->n_heads && c < s->width; c += VL)
            FN(TO_HALF)(kv + s->pos[i] * s->width + c, LOAD(vec, head + c));
    }
}

/* Softmax attention (Vaswani et al. 2017) of head `a` of token i over its sequence so far, with grouped keys
 * (Ainslie et al. 2023), in one pass that rescales when a new largest score comes (Milakov and Gimelshein
 * 2018) */
static TARGET void FN(attend)(llm_session *s, size_t layer, size_t i, size_t a) {
    const llm_header *h = &s->m->h;
    const size_t width = s->width, kv = a / (h->n_heads / h->n_kv_heads);
    const float *q = s->q + (i * h->n_heads + a) * width;
    const uint16_t *k = cache(s, s->seqs[i], layer, 0, kv), *v = cache(s, s->seqs[i], layer, 1, kv);
    float out[MAX_HEAD] = {0}, max = -INFINITY, sum = 0;
    for (size_t t = 0; t <= s->pos[i]; t++, k += width, v += width) {
        VEC dots = {0};
        for (size_t c = 0; c < width; c += VL)
            dots += LOAD(vec, q + c) * FN(HALF)(k + c);
        const float dot = FN(SUM)(dots), old = dot > max ? expf(max - dot) : 1;
        max = dot > max ? dot : max;
        const float p = expf(dot - max);
        sum = sum * old + p;
        for (size_t c = 0; c < width; c += VL)
            LOAD(vec, out + c) = LOAD(vec, out + c) * old + p * FN(HALF)(v + c);
    }
    for (size_t c = 0; c < h->head_dim; c++)
        s->att[i * s->q_dim + a * h->head_dim + c] = out[c] / sum;
}

static const isa FN(isa) = {STRING(ISA), FN(matmul), FN(norm_all), FN(place_qkv), FN(attend)};

#undef ISA
#undef TARGET
#undef VL
#endif
