/* isa_amx.c - AVX-512's kernels, and products of many tokens by AMX (Intel from 2023). Its tiles add up integers of a
 * group, and what is made of these is what the other kernels make: the same bits. */
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

#define AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,amx-tile,amx-int8")))
#define ROWS_AMX 32   /* two tiles of the processor's */
#define BLOCK_AMX 256 /* tokens that a group's weights are loaded for */

/* A group of 32 rows as tiles: [row / 16][columns / 4][16 rows][4 columns] */
typedef int8_t group_tiles[2][LLM_GROUP * LLM_TILE];

/* Sums of 16 tokens and 16 rows over a group */
typedef int32_t tile_sums[LLM_TILE][LLM_TILE];

/* Tiles 0 to 3 are sums; 4 and 5 are 16 tokens of `cols` bytes, 6 and 7 are 16 rows of weights, by fours of columns. */
static AMX void shape_tiles(size_t cols) {
    uint8_t config[64] = {[0] = 1, [48 ... 55] = 16}; /* palette 1; rows of each tile */
    uint16_t *row_bytes = (uint16_t *)(config + 16);
    for (size_t tile = 0; tile < 8; tile++)
        row_bytes[tile] = 64;
    row_bytes[4] = row_bytes[5] = (uint16_t)cols;
    config[48 + 6] = config[48 + 7] = (uint8_t)(cols / 4);
    _tile_loadconfig(config);
}

/* sums (16, 16) += the sums of a group, scaled; of the tokens from t on, as many as there are */
static AMX void add_group(
    const tile_sums dots, __m512 scale, const activations *a, size_t t, size_t g, float (*sums)[LLM_TILE]) {
    for (size_t i = 0; i < LLM_TILE && t + i < a->n; i++) {
        const __m512 by = _mm512_mul_ps(scale, _mm512_set1_ps(a->scales[(t + i) * a->n_groups + g]));
        const __m512 dot = _mm512_cvtepi32_ps(_mm512_loadu_si512(dots[i]));
        _mm512_storeu_ps(sums[i], _mm512_fmadd_ps(dot, by, _mm512_loadu_ps(sums[i])));
    }
}

/* The scales of a group of 16 rows */
static AMX __m512 scales_of(const matrix *w, size_t row, size_t g) {
    if (!w->scales)
        return _mm512_set1_ps(1);
    const uint16_t *scales = w->scales + (row / LLM_TILE * groups_of(w) + g) * LLM_TILE;
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
}

/* A group's weights as tiles: int8 as they lie in the file, int4 by way of `room` */
static AMX const int8_t *tiles_of(const matrix *w, size_t row, size_t c0, size_t cols, int8_t *room) {
    const uint8_t *tile = w->tiles + row / LLM_TILE * w->tile_size;
    if (w->dtype != LLM_INT4)
        return (const int8_t *)tile + c0 * LLM_TILE;
    const __m512i codebook = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)w->codebook));
    const __m512i low = _mm512_set1_epi8(15);
    for (size_t c = 0; c < cols; c += 8) {
        const __m512i two = _mm512_loadu_si512(tile + (c0 + c) / 8 * 64);
        const __m512i second = _mm512_and_si512(_mm512_srli_epi16(two, 4), low);
        _mm512_storeu_si512(room + c * LLM_TILE, _mm512_shuffle_epi8(codebook, _mm512_and_si512(two, low)));
        _mm512_storeu_si512(room + (c + 4) * LLM_TILE, _mm512_shuffle_epi8(codebook, second));
    }
    return room;
}

#define MULTIPLY(sums, x, w)      \
    if (positive)                 \
        _tile_dpbusd(sums, x, w); \
    else                          \
        _tile_dpbssd(sums, x, w)

/* 32 rows of all tokens, 32 of them at a time: four tiles of sums (Intel's optimization manual, chapter 20) */
static inline __attribute__((always_inline)) AMX void rows_of_tiles(
    const matrix *w, size_t row, const activations *a, vectors y, int add, const int positive) {
    const size_t second = row + LLM_TILE < w->rows ? row + LLM_TILE : row;
    group_tiles room;
    tile_sums dots[4];
    float sums[2][BLOCK_AMX][LLM_TILE];
    for (size_t t0 = 0; t0 < a->n; t0 += BLOCK_AMX) {
        const size_t end = a->n - t0 < BLOCK_AMX ? a->n : t0 + BLOCK_AMX;
        memset(sums, 0, sizeof sums);
        size_t shaped = 0;
        for (size_t g = 0, c = 0; c < w->cols; c += w->group, g++) {
            const size_t cols = w->cols - c < w->group ? w->cols - c : w->group;
            const __m512 scale[2] = {scales_of(w, row, g), scales_of(w, second, g)};
            if (cols != shaped) /* the last group of keys may be narrower */
                shape_tiles(cols);
            shaped = cols;
            _tile_loadd(6, tiles_of(w, row, c, cols, room[0]), 64);
            _tile_loadd(7, tiles_of(w, second, c, cols, room[1]), 64);
            for (size_t t = t0; t < end; t += 32) {
                const uint8_t *x = a->q + t * a->ldq + c;
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
                _tile_loadd(4, x, a->ldq);
                MULTIPLY(0, 4, 6);
                MULTIPLY(1, 4, 7);
                _tile_loadd(5, x + LLM_TILE * a->ldq, a->ldq);
                MULTIPLY(2, 5, 6);
                MULTIPLY(3, 5, 7);
                _tile_stored(0, dots[0], 64);
                _tile_stored(1, dots[1], 64);
                _tile_stored(2, dots[2], 64);
                _tile_stored(3, dots[3], 64);
                for (size_t i = 0; i < 4; i++) {
                    const size_t first = t + i / 2 * LLM_TILE;
                    add_group(dots[i], scale[i % 2], a, first, g, &sums[i % 2][first - t0]);
                }
            }
        }
        for (size_t t = t0; t < end; t++) {
            store_rows(w, row, sums[0][t - t0], LLM_TILE, row_of(y, t), add);
            if (second > row)
                store_rows(w, second, sums[1][t - t0], LLM_TILE, row_of(y, t), add);
        }
    }
    _tile_release();
}

static AMX void rows_tiles(const matrix *w, size_t row, const activations *a, vectors y, int add) {
    rows_of_tiles(w, row, a, y, add, 0);
}

static AMX void rows_values_tiles(const matrix *w, size_t row, const activations *a, vectors y, int add) {
    rows_of_tiles(w, row, a, y, add, 1);
}

#if defined(SOFT_TILES) /* tests/tiles.h */
static int have_tiles(void) { return 1; }
#elif defined(__linux__)
/* Shown by the hypervisor; and the kernel must be asked for the tiles' state once a process. */
static int have_tiles(void) {
    unsigned a, b, c, d = 0;
    const int shown = __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 24 & 1 && d >> 25 & 1;
    return shown && !syscall(SYS_arch_prctl, 0x1023, 18);
}
#else
static int have_tiles(void) { return 0; }
#endif

static int has_amx(void) { return kernels_avx512.has() && have_tiles(); }

const kernels kernels_amx = {
    .name = "amx",
    .has = has_amx,
    .rows = ROWS_AMX,
    .few = PRODUCTS(amx, 1),
    .many =
        {
            [LLM_FP16] = {round_int13_amx, 2, 1, rows_int13_amx},
            [LLM_INT8_ROTATED] = {round_bytes_amx, 1, 1, rows_tiles},
            [LLM_INT4] = {round_bytes_amx, 1, 0, rows_tiles},
            [WEIGHTED_VALUES] = {round_positive_amx, 1, 0, rows_values_tiles},
        },
    KERNELS(amx),
};
#else
typedef int nothing_amx; /* C wants something in a file */
#endif
