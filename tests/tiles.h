/* tiles.h - AMX in software, to run csrc/llm.c's "amx" where the processor has none: given to the compiler
 * with -include, it stands in for the tile intrinsics. After the pseudocode of Intel's manual; every tile has
 * 16 rows of 64 bytes. */
#define SOFT_TILES 1
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* before the first system header, for the files that need it */
#endif
#ifdef __x86_64__
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

static _Thread_local uint8_t soft_tile[8][16][64];

static inline void soft_load(int tile, const void *from, long stride) {
    for (int row = 0; row < 16; row++)
        memcpy(soft_tile[tile][row], (const char *)from + row * stride, 64);
}

static inline void soft_store(int tile, void *to, long stride) {
    for (int row = 0; row < 16; row++)
        memcpy((char *)to + row * stride, soft_tile[tile][row], 64);
}

static inline float soft_bf16(const uint8_t *p) {
    const uint8_t bytes[4] = {0, 0, p[0], p[1]};
    float f;
    memcpy(&f, bytes, 4);
    return f;
}

/* c (16, 16) float += a (16, 16 pairs of bf16) b (16 pairs, 16) */
static inline void soft_multiply(int c, int a, int b) {
    float sums[16][16];
    memcpy(sums, soft_tile[c], sizeof sums);
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++)
                for (int i = 0; i < 4; i += 2)
                    sums[m][n] +=
                        soft_bf16(&soft_tile[a][m][4 * k + i]) * soft_bf16(&soft_tile[b][k][4 * n + i]);
    memcpy(soft_tile[c], sums, sizeof sums);
}

#undef _tile_loadconfig
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_release
#define _tile_loadconfig(config) ((void)(config))
#define _tile_loadd(tile, from, stride) soft_load(tile, from, (long)(stride))
#define _tile_stored(tile, to, stride) soft_store(tile, to, (long)(stride))
#define _tile_dpbf16ps(c, a, b) soft_multiply(c, a, b)
#define _tile_release() ((void)0)
#endif
