/* numbers.c - what the numbers of a file and of a cache mean, in portable C. */
#include "numbers.h"

/* fp16 to float and back (to nearest even) without hardware for it, after Giesen's "float->half variants". */
float half_to_float(uint16_t half) {
    const float f = float_of((uint32_t)(half & 0x7fff) << 13) * 0x1p112f; /* moves the exponent's bias */
    const uint32_t infinite = f >= 65536.0f ? 0x7f800000 : 0;
    return float_of(bits_of(f) | infinite | (uint32_t)(half & 0x8000) << 16);
}

uint16_t float_to_half(float f) {
    const uint32_t u = bits_of(f) & 0x7fffffff, sign = bits_of(f) >> 16 & 0x8000;
    const uint32_t subnormal = bits_of(float_of(u) + 0.5f) - 0x3f000000; /* + 0.5 rounds there */
    const uint32_t normal = (u - 0x38000000 + 0xfff + (u >> 13 & 1)) >> 13;
    const uint32_t huge = u > 0x7f800000 ? 0x7e00 : 0x7c00;
    if (u < 0x38800000)
        return (uint16_t)(sign | subnormal);
    return (uint16_t)(sign | (u < 0x47800000 ? normal : huge));
}

/* The scale with which n numbers fit into integers up to `most`; NaN if one of them is */
float scale_to(float most, const float *x, size_t n) {
    uint32_t max = 0;
    for (size_t c = 0; c < n; c++) /* compares bits, which are ordered as |x| is, NaN last */
        max = (bits_of(x[c]) & 0x7fffffff) > max ? bits_of(x[c]) & 0x7fffffff : max;
    const float scale = float_of(max) / most;
    return scale > 65504 ? 65504 : scale;
}

/* q = round(x / scale), within int8 */
void round_by(float scale, int8_t *q, const float *x, size_t n) {
    const float by = scale > 1e-30f ? 1 / scale : 0;
    for (size_t c = 0; c < n; c++) {
        float most = x[c] * by;
        most = most > 127 ? 127 : most;
        most = most < -127 ? -127 : most;
        q[c] = (int8_t)bits_of(most + 12582912.0f); /* rounds: the low bits are then the integer */
    }
}

/* A tile's columns from c0 to c0 + n, n and c0 multiples of 8: halves as floats, (n, 16 rows) */
void read_halves(const matrix *w, size_t row, size_t c0, size_t n, float out[][LLM_TILE]) {
    const uint16_t *tile = (const uint16_t *)(w->tiles + row / LLM_TILE * w->tile_size) + c0 * LLM_TILE;
    for (size_t c = 0; c < n; c++)
        for (size_t r = 0; r < LLM_TILE; r++)
            out[c][r] = half_to_float(tile[c * LLM_TILE + r]);
}

/* ... int8 or int4 as integers, */
void read_integers(const matrix *w, size_t row, size_t c0, size_t n, int8_t out[][LLM_TILE]) {
    const uint8_t *tile = w->tiles + row / LLM_TILE * w->tile_size;
    for (size_t c = 0; c < n; c++)
        for (size_t r = 0; r < LLM_TILE; r++) {
            const size_t k = c0 + c;
            if (w->dtype == LLM_INT4) {
                const uint8_t two = tile[(k / 8 * LLM_TILE + r) * 4 + k % 4];
                out[c][r] = w->codebook[k % 8 < 4 ? two & 15 : two >> 4];
            } else {
                out[c][r] = (int8_t)tile[(k / 4 * LLM_TILE + r) * 4 + k % 4];
            }
        }
}

/* ... and the scales (16,) of the group that c0 is in */
void read_scales(const matrix *w, size_t row, size_t c0, float scales[LLM_TILE]) {
    for (size_t r = 0; r < LLM_TILE; r++) {
        const size_t at = in_tile(row / LLM_TILE * LLM_TILE + r, c0 / w->group, groups_of(w));
        scales[r] = w->scales ? half_to_float(w->scales[at]) : 1;
    }
}

/* The same numbers as floats, n <= 64 of them */
void read_tile(const matrix *w, size_t row, size_t c0, size_t n, float out[][LLM_TILE]) {
    int8_t q[LLM_GROUP][LLM_TILE];
    float scales[LLM_TILE];
    if (w->dtype == LLM_FP16) {
        read_halves(w, row, c0, n, out);
        return;
    }
    read_integers(w, row, c0, n, q);
    for (size_t c = 0; c < n; c++) {
        if (c % w->group == 0)
            read_scales(w, row, c0 + c, scales);
        for (size_t r = 0; r < LLM_TILE; r++)
            out[c][r] = q[c][r] * scales[r];
    }
}
