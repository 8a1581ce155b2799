/* isa_amx.c - AVX-512's kernels, and products of many tokens by AMX (Intel from 2023) in bf16. These round
 * weights and activations to 8 bits: their results differ from all others'. */
#if defined(__x86_64__)
#include "kernels.h"
#include <immintrin.h>
#include <string.h>
#if defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define ISA amx
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")))
#include "words_avx512.inc"
#include "kernels.inc"

#define AMX __attribute__((target("avx512f,avx512bw,avx512bf16,f16c,amx-tile,amx-bf16")))
#define COLUMNS 512 /* that are taken at a time */
#define ROWS_AMX 32 /* two tiles of the processor's */

/* 16 rows of two columns, as the processor wants pairs of them: a column's numbers beside the next one's */
static inline AMX __m512i pair_bf16(__m512 even, __m512 odd) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
    return low | _mm512_slli_epi32(high, 16);
}

static AMX void expand_fp16(const matrix *w, size_t row, size_t c0, size_t n, __m512i *out) {
    const uint8_t *p = w->tiles + row / LLM_TILE * w->tile_size + c0 * LLM_TILE * 2;
    for (size_t k = 0; k < n / 2; k++) {
        __builtin_prefetch(p + 2048);
        const __m512 even = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
        const __m512 odd = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p + 32)));
        out[k] = pair_bf16(even, odd);
        p += 64;
    }
}

/* Column `c` of four, scaled */
#define COLUMN(four, c, scale) \
    _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(four, 24 - 8 * (c)), 24)))

static AMX void expand_int8(const matrix *w, size_t row, size_t c0, size_t n, __m512i *out) {
    const uint8_t *p = w->tiles + row / LLM_TILE * w->tile_size + c0 * LLM_TILE;
    const uint16_t *scales = w->scales + row / LLM_TILE * (w->cols / LLM_GROUP) * LLM_TILE;
    for (size_t c = 0; c < n; c += 4) {
        const uint16_t *scale = scales + (c0 + c) / LLM_GROUP * LLM_TILE;
        const __m512 by = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scale));
        const __m512i four = _mm512_loadu_si512(p);
        __builtin_prefetch(p + 2048);
        out[c / 2] = pair_bf16(COLUMN(four, 0, by), COLUMN(four, 1, by));
        out[c / 2 + 1] = pair_bf16(COLUMN(four, 2, by), COLUMN(four, 3, by));
        p += 64;
    }
}

#define FOUR_TILES(move)              \
    move(0, sums[t], 128);            \
    move(1, sums[t] + LLM_TILE, 128); \
    move(2, sums[t + LLM_TILE], 128); \
    move(3, sums[t + LLM_TILE] + LLM_TILE, 128)

/* 32 rows of all tokens (Intel's optimization manual, chapter 20): 32 tokens at a time, four tiles of sums */
static AMX void rows_bf16(const matrix *w, size_t row, const activations *a, vectors y, int add) {
    /* palette 1, 8 tiles of 16 rows of 64 bytes */
    static const uint16_t config[32] = {[0] = 1, [8 ... 15] = 64, [24 ... 27] = 0x1010};
    void (*const expand)(const matrix *, size_t, size_t, size_t, __m512i *) =
        w->dtype == LLM_INT8 ? expand_int8 : expand_fp16;
    const size_t second = row + LLM_TILE < w->rows ? row + LLM_TILE : row;
    __m512i pairs[2][COLUMNS / 2];
    float sums[MAX_BATCH][ROWS_AMX];
    _tile_loadconfig(config);
    memset(sums, 0, align(a->n, 32) * sizeof *sums);
    for (size_t c0 = 0; c0 < w->cols; c0 += COLUMNS) {
        const size_t n = w->cols - c0 < COLUMNS ? w->cols - c0 : COLUMNS;
        expand(w, row, c0, n, pairs[0]);
        expand(w, second, c0, n, pairs[1]);
        for (size_t t = 0; t < a->n; t += 32) {
            const int16_t *x = a->q + t * a->ldq + c0, *x2 = x + LLM_TILE * a->ldq;
            FOUR_TILES(_tile_loadd);
            for (size_t k = 0; k < n / 2; k += 16) {
                for (size_t i = 0; i < 32; i++) /* what comes next, into the first cache */
                    __builtin_prefetch(x + 2 * k + 32 + i * a->ldq);
                _tile_loadd(4, x + 2 * k, a->ldq * 2);
                _tile_loadd(6, pairs[0] + k, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, pairs[1] + k, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, x2 + 2 * k, a->ldq * 2);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            FOUR_TILES(_tile_stored);
        }
    }
    for (size_t t = 0; t < a->n; t++)
        store_rows(w, row, sums[t], ROWS_AMX, row_of(y, t), add);
    _tile_release();
}

/* To nearest even */
static void round_bf16(int16_t *q, float *scale, const float *x) {
    (void)scale;
    for (size_t c = 0; c < LLM_GROUP; c++)
        q[c] = (int16_t)((bits_of(x[c]) + 0x7fff + (bits_of(x[c]) >> 16 & 1)) >> 16);
}

#if defined(SOFT_TILES) /* tests/tiles.h */
static int have_tiles(void) { return 1; }
#elif defined(__linux__)
/* Shown by the hypervisor; and the kernel must be asked for the tiles' state once a process. */
static int have_tiles(void) {
    unsigned a, b, c, d = 0;
    const int shown = __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 22 & 1 && d >> 24 & 1;
    return shown && !syscall(SYS_arch_prctl, 0x1023, 18);
}
#else
static int have_tiles(void) { return 0; }
#endif

static int has_amx(void) {
    return kernels_avx512.has() && __builtin_cpu_supports("avx512bf16") && have_tiles();
}

const kernels kernels_amx = {
    .name = "amx",
    .has = has_amx,
    .rows = ROWS_AMX,
    .few = PRODUCTS(amx),
    .many = {[LLM_FP16] = {round_bf16, rows_bf16}, [LLM_INT8] = {round_bf16, rows_bf16}},
    KERNELS(amx),
};
#else
typedef int nothing_amx; /* C wants something in a file */
#endif
