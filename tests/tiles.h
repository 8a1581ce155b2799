/* tiles.h - AMX in software, to run csrc/amx.inc where the processor has none: given to the compiler with
 * -include, it stands in for the tile intrinsics. After the pseudocode of Intel's manual. */
#define SOFT_TILES 1
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* before the first system header, for the files that need it */
#endif
#ifdef __x86_64__
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

static _Thread_local uint8_t soft_tile[8][16][64];
static _Thread_local uint8_t
    soft_config[64]; /* byte 0: palette; 16-bit bytes a row from 16 on; rows from 48 on */

static inline int soft_rows(int tile) { return soft_config[48 + tile]; }
static inline int soft_width(int tile) { return soft_config[16 + 2 * tile]; } /* at most 64: one byte */

static inline void soft_configure(const void *config) {
    memcpy(soft_config, config, 64);
    memset(soft_tile, 0, sizeof soft_tile);
}

/* What is behind the rows and bytes of the shape is zeroed */
static inline void soft_load(int tile, const void *from, long stride) {
    memset(soft_tile[tile], 0, sizeof soft_tile[tile]);
    for (int row = 0; row < soft_rows(tile); row++)
        memcpy(soft_tile[tile][row], (const char *)from + row * stride, (size_t)soft_width(tile));
}

static inline void soft_store(int tile, void *to, long stride) {
    for (int row = 0; row < soft_rows(tile); row++)
        memcpy((char *)to + row * stride, soft_tile[tile][row], (size_t)soft_width(tile));
}

/* c (m, n) int32 += a (m, 4 k) b (k, 4 n), signed bytes, or a's unsigned; a's width is four times b's rows, else the processor traps */
static inline void soft_multiply(int c, int a, int b, int positive) {
    int32_t sums[16][16];
    if (soft_width(a) != 4 * soft_rows(b) || soft_width(b) != soft_width(c) || soft_rows(a) != soft_rows(c))
        __builtin_trap();
    memcpy(sums, soft_tile[c], sizeof sums);
    for (int m = 0; m < soft_rows(c); m++)
        for (int k = 0; k < soft_rows(b); k++)
            for (int n = 0; n < soft_width(c) / 4; n++)
                for (int i = 0; i < 4; i++) {
                    const uint8_t x = soft_tile[a][m][4 * k + i];
                    sums[m][n] += (positive ? x : (int8_t)x) * (int8_t)soft_tile[b][k][4 * n + i];
                }
    memcpy(soft_tile[c], sums, sizeof sums);
}

#undef _tile_loadconfig
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_dpbusd
#undef _tile_release
#define _tile_loadconfig(config) soft_configure(config)
#define _tile_loadd(tile, from, stride) soft_load(tile, from, (long)(stride))
#define _tile_stored(tile, to, stride) soft_store(tile, to, (long)(stride))
#define _tile_zero(tile) memset(soft_tile[tile], 0, sizeof soft_tile[tile])
#define _tile_dpbssd(c, a, b) soft_multiply(c, a, b, 0)
#define _tile_dpbusd(c, a, b) soft_multiply(c, a, b, 1)
#define _tile_release() ((void)0)
#endif
