/* isa_plain.c - the kernels in portable C, the reference of the others; kernels.h says what they compute. */
#include "kernels.h"
#include "numbers.h"
#include <math.h>
#include <string.h>

#define PLAIN_TOKENS 64 /* that a product takes at a time */

/* sums (16,) += x (cols,) @ W (16, cols)^T of some columns */
static void plain_dot(const float tile[][LLM_TILE], size_t cols, const float *x, float *sums) {
    for (size_t c = 0; c < cols; c++)
        for (size_t r = 0; r < LLM_TILE; r++)
            sums[r] += tile[c][r] * x[c];
}

static void plain_rows_fp16(const matrix *w, size_t row, const activations *a, vectors y, int add) {
    float tile[LLM_GROUP][LLM_TILE];
    for (size_t t0 = 0; t0 < a->n; t0 += PLAIN_TOKENS) {
        const size_t n = a->n - t0 < PLAIN_TOKENS ? a->n - t0 : PLAIN_TOKENS;
        float sums[PLAIN_TOKENS][LLM_TILE] = {{0}};
        for (size_t c = 0; c < w->filled; c += LLM_GROUP) {
            const size_t cols = w->filled - c < LLM_GROUP ? w->filled - c : LLM_GROUP;
            read_halves(w, row, c, cols, tile);
            for (size_t t = 0; t < n; t++)
                plain_dot(tile, cols, row_of(a->x, t0 + t) + c, sums[t]);
        }
        for (size_t t = 0; t < n; t++)
            store_rows(w, row, sums[t], LLM_TILE, row_of(y, t0 + t), add);
    }
}

/* sums (16,) += the integers of a group times those of a token, scaled */
static void plain_dot_integers(const int8_t tile[][LLM_TILE], const float *scales, size_t cols,
    const int16_t *q, float scale, float *sums) {
    int32_t dot[LLM_TILE] = {0};
    for (size_t c = 0; c < cols; c++)
        for (size_t r = 0; r < LLM_TILE; r++)
            dot[r] += tile[c][r] * q[c];
    for (size_t r = 0; r < LLM_TILE; r++)
        sums[r] = fmaf((float)dot[r], scales[r] * scale, sums[r]);
}

static void plain_rows_integers(const matrix *w, size_t row, const activations *a, vectors y, int add) {
    int8_t tile[LLM_GROUP][LLM_TILE];
    float scales[LLM_TILE];
    for (size_t t0 = 0; t0 < a->n; t0 += PLAIN_TOKENS) {
        const size_t n = a->n - t0 < PLAIN_TOKENS ? a->n - t0 : PLAIN_TOKENS;
        float sums[PLAIN_TOKENS][LLM_TILE] = {{0}};
        for (size_t c = 0, g = 0; c < w->cols; c += w->group, g++) {
            const size_t cols = w->cols - c < w->group ? w->cols - c : w->group;
            read_integers(w, row, c, cols, tile);
            read_scales(w, row, c, scales);
            for (size_t t = t0; t < t0 + n; t++) {
                const int16_t *q = (const int16_t *)(a->q + t * a->ldq) + c;
                plain_dot_integers(tile, scales, cols, q, a->scales[t * a->n_groups + g], sums[t - t0]);
            }
        }
        for (size_t t = 0; t < n; t++)
            store_rows(w, row, sums[t], LLM_TILE, row_of(y, t0 + t), add);
    }
}

static void plain_round(uint8_t *q, float *scale, const float *x, size_t n, float limit) {
    float max = 0;
    for (size_t c = 0; c < n; c++)
        max = fabsf(x[c]) <= max ? max : fabsf(x[c]); /* NaN stays */
    const int sound = max > 1e-30f && max < INFINITY;
    *scale = max < INFINITY ? max / limit : NAN;
    for (size_t c = 0; c < n; c++)
        ((int16_t *)q)[c] = (int16_t)(sound ? x[c] * (limit / max) + 12582912.0f - 12582912.0f : 0);
}

static void plain_round_words(uint8_t *q, float *scale, int32_t *offset, const float *x, size_t n) {
    plain_round(q, scale, x, n, 32767);
    *offset = 0;
}

static void plain_round_int13(uint8_t *q, float *scale, int32_t *offset, const float *x, size_t n) {
    plain_round(q, scale, x, n, 4095);
    *offset = 0;
}

static void plain_round_positive(uint8_t *q, float *scale, int32_t *offset, const float *x, size_t n) {
    plain_round(q, scale, x, n, 255);
    *offset = 0;
}

static void plain_round_bytes(uint8_t *q, float *scale, int32_t *offset, const float *x, size_t n) {
    plain_round(q, scale, x, n, 127);
    *offset = 0;
}

/* x (n,) = H x over sqrt(n), in log2(n) equal steps (Pease 1968); `by` is 1 / sqrt(n) */
static void plain_transform(float *x, size_t n, float by) {
    float out[LLM_GROUP];
    for (size_t steps = n; steps > 1; steps /= 2) {
        for (size_t i = 0; i < n / 2; i++) {
            out[2 * i] = x[i] + x[i + n / 2];
            out[2 * i + 1] = x[i] - x[i + n / 2];
        }
        memcpy(x, out, n * sizeof *x);
    }
    for (size_t i = 0; i < n; i++)
        x[i] *= by;
}

static void plain_hadamard(float *x, size_t n) {
    size_t c = 0;
    for (; c + 64 <= n; c += 64)
        plain_transform(x + c, 64, 0.125f);
    for (; c < n; c += 16)
        plain_transform(x + c, 16, 0.25f);
}

static void plain_rmsnorm(float *out, const float *x, const float *w, size_t n, float eps) {
    float squares[SUM_LANES] = {0}, rest = 0;
    for (size_t c = 0; c < n / SUM_LANES * SUM_LANES; c++)
        squares[c % SUM_LANES] = fmaf(x[c], x[c], squares[c % SUM_LANES]);
    for (size_t c = n / SUM_LANES * SUM_LANES; c < n; c++)
        rest += x[c] * x[c];
    const float by = 1 / sqrtf((sum_lanes(squares) + rest) / (float)n + eps);
    for (size_t c = 0; c < n; c++)
        out[c] = x[c] * by * w[c];
}

static void plain_layernorm(
    float *out, const float *x, const float *w, const float *bias, size_t n, float eps) {
    const size_t whole = n / SUM_LANES * SUM_LANES;
    float sums[SUM_LANES] = {0}, squares[SUM_LANES] = {0}, rest = 0, square_rest = 0;
    for (size_t c = 0; c < whole; c++)
        sums[c % SUM_LANES] += x[c];
    for (size_t c = whole; c < n; c++)
        rest += x[c];
    const float mean = (sum_lanes(sums) + rest) / (float)n;
    for (size_t c = 0; c < whole; c++)
        squares[c % SUM_LANES] = fmaf(x[c] - mean, x[c] - mean, squares[c % SUM_LANES]);
    for (size_t c = whole; c < n; c++)
        square_rest += (x[c] - mean) * (x[c] - mean);
    const float by = 1 / sqrtf((sum_lanes(squares) + square_rest) / (float)n + eps);
    for (size_t c = 0; c < n; c++)
        out[c] = (x[c] - mean) * by * w[c] + (bias ? bias[c] : 0);
}

static void plain_add_scaled(float *x, const float *y, float scale, size_t n) {
    for (size_t c = 0; c < n; c++)
        x[c] += y[c] * scale;
}

static void plain_rope(float *out, const float *x, const float *cos, const float *sin, size_t half) {
    for (size_t c = 0; c < half; c++) {
        out[c] = x[c] * cos[c] - x[c + half] * sin[c];
        out[c + half] = x[c + half] * cos[c] + x[c] * sin[c];
    }
}

static void plain_to_half(uint16_t *out, const float *x, size_t n) {
    for (size_t c = 0; c < n; c++)
        out[c] = float_to_half(x[c]);
}

/* exp(x) as in Cephes' expf: 2^n p(x - n log 2). 0 below -87 and for NaN; x above 88 is taken as 88. */
static float plain_exp(float x) {
    if (!(x > -87))
        return 0;
    x = fminf(x, 88);
    float n = fmaf(x, 1.44269504f, 12582912.0f); /* rounds: the low bits are now the integer */
    const uint32_t exponent = bits_of(n) << 23;
    n -= 12582912.0f;
    x = fmaf(n, -0.693359375f, x);
    x = fmaf(n, 2.12194440e-4f, x);
    float p = fmaf(1.9875691500e-4f, x, 1.3981999507e-3f);
    p = fmaf(p, x, 8.3334519073e-3f);
    p = fmaf(p, x, 4.1665795894e-2f);
    p = fmaf(p, x, 1.6666665459e-1f);
    p = fmaf(p, x, 5.0000001201e-1f);
    p = fmaf(p, x * x, x + 1);
    return float_of(bits_of(p) + exponent);
}

/* SiLU (Elfwing et al. 2018), x / (1 + exp(-x)); or GELU in its tanh form (Hendrycks and Gimpel 2016), which is
 * x / (1 + exp(-2 sqrt(2 / pi) (x + 0.044715 x^3))) */
static void plain_glu(float *out, const float *gate, const float *up, float gain, uint32_t activation) {
    for (size_t c = 0; c < LLM_GROUP; c++) {
        const float x = gate[c];
        const float y = activation == LLM_GELU ? x * fmaf(x * x, 0.0713548163f, 1.5957691216f) : x;
        out[c] = gain * up[c] * x / (1 + plain_exp(-y));
    }
}

/* GELU with erf (Hendrycks and Gimpel 2016): erfc(z) = exp(-z^2) p(1 / (1 + 0.3275911 z)) of z >= 0, to 1.5e-7
 * (Abramowitz and Stegun 1964, 7.1.26). `over` is max(x, 0). */
static float plain_gelu_erf(float x, float over) {
    const float size = fabsf(x), t = 1 / fmaf(size, 0.23164189f, 1);
    float p = fmaf(t, 1.061405429f, -1.453152027f);
    p = fmaf(p, t, 1.421413741f);
    p = fmaf(p, t, -0.284496736f);
    p = fmaf(p, t, 0.254829592f);
    return over - 0.5f * size * (p * t * plain_exp(-0.5f * x * x));
}

static float plain_activation(float x, uint32_t activation, const float *numbers) {
    const float over = 0.5f * x + 0.5f * fabsf(x), under = x - over;
    switch (activation) {
    case LLM_SILU:
        return x / (1 + plain_exp(-x));
    case LLM_GELU:
        return x / (1 + plain_exp(-(x * fmaf(x * x, 0.0713548163f, 1.5957691216f))));
    case LLM_GELU_ERF:
        return plain_gelu_erf(x, over);
    case LLM_RELU2:
        return over * over;
    default:
        return 0.5f * x + numbers[0] * over * over + numbers[1] * (plain_exp(under) - 1 - under);
    }
}

static void plain_activate(float *x, uint32_t activation, const float *numbers) {
    for (size_t c = 0; c < LLM_GROUP; c++)
        x[c] = plain_activation(x[c], activation, numbers);
}

/* c tanh(x / c) = c - 2 c / (1 + exp(2 x / c)) */
static void plain_softcap(float *scores, size_t n, float cap) {
    for (size_t c = 0; c < n; c++)
        scores[c] = cap - 2 * cap / (1 + plain_exp(scores[c] * (2 / cap)));
}

static void plain_online_softmax(float *scores, size_t n, float *out, size_t width) {
    float max = out[width], sums[SUM_LANES] = {0};
    for (size_t c = 0; c < n; c++)
        max = scores[c] > max ? scores[c] : max;
    if (max > out[width]) {
        const float old = plain_exp(out[width] - max);
        for (size_t c = 0; c < width + 2; c++)
            out[c] *= old;
    }
    out[width] = max;
    for (size_t c = 0; c < n; c++) {
        scores[c] = plain_exp(scores[c] - max);
        sums[c % SUM_LANES] += scores[c];
    }
    out[width + 1] += sum_lanes(sums);
}

static void plain_merge(float *out, const float *more, size_t width) {
    const float max = fmaxf(out[width], more[width]);
    const float by = plain_exp(out[width] - max), more_by = plain_exp(more[width] - max);
    for (size_t c = 0; c < width + 2; c++)
        out[c] = out[c] * by + more[c] * more_by;
    out[width] = max;
}

static void plain_delta_rule(float *state, const float *from, const float *key, const float *query,
    const float *value, float decay, float strength, float *out, size_t n) {
    float known[LLM_GROUP] = {0}, change[LLM_GROUP];
    for (size_t r = 0; r < n; r++)
        for (size_t c = 0; c < LLM_GROUP; c++)
            known[c] = fmaf(from[r * LLM_GROUP + c] * decay, key[r], known[c]);
    for (size_t c = 0; c < LLM_GROUP; c++) {
        change[c] = (value[c] - known[c]) * strength;
        out[c] = 0;
    }
    for (size_t r = 0; r < n; r++)
        for (size_t c = 0; c < LLM_GROUP; c++) {
            const float number = fmaf(key[r], change[c], from[r * LLM_GROUP + c] * decay);
            state[r * LLM_GROUP + c] = number;
            out[c] = fmaf(number, query[r], out[c]);
        }
}

static int always(void) { return 1; }

const kernels kernels_plain = {
    .name = "scalar",
    .has = always,
    .rows = LLM_TILE,
    .few =
        {
            [LLM_FP16] = {NULL, 4, 0, plain_rows_fp16, 0},
            [LLM_INT8] = {plain_round_words, 2, 0, plain_rows_integers, 0},
            [LLM_INT8_ROTATED] = {plain_round_bytes, 2, 1, plain_rows_integers, 0},
            [LLM_INT4] = {plain_round_bytes, 2, 0, plain_rows_integers, 0},
            [QUERIED_KEYS] = {plain_round_int13, 2, 1, plain_rows_integers, 0},
            [WEIGHTED_VALUES] = {plain_round_positive, 2, 0, plain_rows_integers, 0},
        },
    .hadamard = plain_hadamard,
    .rmsnorm = plain_rmsnorm,
    .layernorm = plain_layernorm,
    .add_scaled = plain_add_scaled,
    .rope = plain_rope,
    .to_half = plain_to_half,
    .glu = plain_glu,
    .activate = plain_activate,
    .softcap = plain_softcap,
    .online_softmax = plain_online_softmax,
    .merge = plain_merge,
    .delta_rule = plain_delta_rule,
};
