/* round.c - rounding of weights to a grid, as round.h describes it.
 *
 * A group's scale is one of a few that are tried, each by rounding the group in turn with it. With y = lower @ values,
 * q = the weights and what the errors of earlier groups add to them, times lower as well, the group's error is
 * sum weight (q - s y)^2 = Q - 2 s A + s^2 B, A = sum weight q y, B = sum weight y^2: of a scale that is tried only the
 * values count, whose best scale is A / B, and leaves Q - A^2 / B. */
#include "round.h"
#include <stdlib.h>
#include <string.h>

#define LANES 32 /* rows that are rounded side by side */
#define TILES 8  /* as many of these go over a group before the next one: they read `lower` once */
#define ROWS 64  /* of a matrix that are added to at a time */

#define FP16_MAX 65504.0f
#define FP16_TINY 0x1p-24f /* the smallest scale that is not 0 */
#define NOTHING 0x1p-30f   /* a group whose largest weight is below this is one of zeros */

/* Of the best scale that was tried: what is tried then */
static const float CLOSE[] = {0.97f, 1.03f};

#define EACH_LANE for (size_t r = 0; r < LANES; r++)

typedef float lanes[LANES] __attribute__((aligned(64))); /* a number of each row */

/* A grid's values */
typedef struct table {
    float first, last, top; /* top: the largest magnitude */
    int consecutive;
    size_t steps;
    float middle[255], step[255]; /* between values */
    uint8_t index[256];           /* of a value, as a byte */
} table;

/* A group of columns of some rows */
typedef struct group {
    size_t n;
    const float *lower; /* (n, n), `stride` from one row to the next; NULL: zeros */
    size_t stride;
    const lanes *weights; /* (n,) */
    lanes *target;        /* (n,): q */
    float weight[ROUND_GROUP];
    lanes value[ROUND_GROUP], chosen[ROUND_GROUP];
} group;

/* The best of the scales that were tried */
typedef struct trial {
    lanes gain, scale, inverse, with_weights, alone;
} trial;

static table table_of(const round_grid *grid) {
    const int8_t *values = grid->values;
    const size_t steps = grid->n_values - 1;
    table t = {.first = values[0], .last = values[steps], .steps = steps};
    t.top = -t.first > t.last ? -t.first : t.last;
    t.consecutive = 1;
    for (size_t k = 0; k <= steps; k++)
        t.index[(uint8_t)values[k]] = (uint8_t)k;
    for (size_t k = 0; k < steps; k++) {
        t.step[k] = (float)(values[k + 1] - values[k]);
        t.middle[k] = (float)(values[k + 1] + values[k]) / 2;
        t.consecutive &= t.step[k] == 1;
    }
    return t;
}

/* to (n,) = weight / its largest; ones if all are 0 */
static void relative(float *to, const float *weight, size_t n) {
    float most = 0;
    for (size_t j = 0; j < n; j++)
        most = weight[j] > most ? weight[j] : most;
    for (size_t j = 0; j < n; j++)
        to[j] = most > 0 ? weight[j] / most : 1;
}

/* to (n, lanes) = columns of weights (rows, ...), and zeros after the last row */
static void gather(
    lanes *to, const float *weights, size_t rows, size_t stride, const uint32_t *columns, size_t n) {
    memset(to, 0, n * sizeof *to);
    for (size_t r = 0; r < LANES && r < rows; r++)
        for (size_t j = 0; j < n; j++)
            to[j][r] = weights[r * stride + columns[j]];
}

/* Writes down what some of a tile's rows have become. */
static void store(const group *g, const table *t, const float *scales, const uint32_t *columns, size_t rows,
    uint8_t *index, size_t width, float *scale, size_t n_groups) {
    for (size_t r = 0; r < LANES && r < rows; r++) {
        for (size_t j = 0; j < g->n; j++)
            index[r * width + columns[j]] = t->index[(uint8_t)(int8_t)g->chosen[j][r]];
        scale[r * n_groups] = scales[r];
    }
}

/* From the next multiple of 64 bytes on */
static lanes *aligned(float *room) { return (lanes *)(room + (-(uintptr_t)room & 63) / sizeof *room); }

static inline float inverse_of(float x) { return x == 0 ? 0 : 1 / x; }

/* A scale as fp16 has it (Dekker 1971), and not 0 */
static inline float to_half(float x) {
    x = x > FP16_MAX ? FP16_MAX : x < -FP16_MAX ? -FP16_MAX : x;
    const float times = x * 0x2001p0f, subnormal = (x + 0.75f) - 0.75f;
    const float half = x < 0x1p-14f && x > -0x1p-14f ? subnormal : times - (times - x);
    return half == 0 ? FP16_TINY : half;
}

/* to (cols, ROUND_DEPTH) = x (rows, cols)^T, each row times its weight, if there are any */
static void transpose(
    float *to, const float *x, size_t rows, size_t cols, size_t stride, const float *weight) {
    for (size_t row = 0; row < rows; row += 8)
        for (size_t i = 0; i < cols; i++)
            for (size_t k = row; k < rows && k < row + 8; k++)
                to[i * ROUND_DEPTH + k] = weight ? weight[k] * x[k * stride + i] : x[k * stride + i];
}

/* Copies up to LANES numbers. Nearly always it is all of them, which are a few instructions. */
static inline void copy_lanes(float *to, const float *from, size_t width) {
    if (width == LANES)
        memcpy(to, from, sizeof(lanes));
    else
        memcpy(to, from, width * sizeof *to);
}

/* Some columns of a matrix, and zeros to fill up */
static void copy_in(lanes *to, const float *from, size_t rows, size_t stride, size_t width) {
    for (size_t row = 0; row < rows; row++) {
        if (width < LANES)
            memset(to[row], 0, sizeof(lanes));
        copy_lanes(to[row], from + row * stride, width);
    }
}

static void copy_out(float *to, const lanes *from, size_t rows, size_t stride, size_t width) {
    for (size_t row = 0; row < rows; row++)
        copy_lanes(to + row * stride, from[row], width);
}

#define ISA plain
#define TARGET
#define VL 4
#include "round.inc"

/* Calls name_ISA() with the best instruction set, unless the plain kernels are wanted */
#if defined(__x86_64__)
#define ISA avx2
#define TARGET __attribute__((target("avx2")))
#define VL 8
#include "round.inc"

static int has_avx2(void) {
    const char *want = getenv("PYLLM_ISA");
    return __builtin_cpu_supports("avx2") && !(want && !strcmp(want, "scalar"));
}

#define BEST(name, ...) (has_avx2() ? name##_avx2(__VA_ARGS__) : name##_plain(__VA_ARGS__))
#else
#define BEST(name, ...) name##_plain(__VA_ARGS__)
#endif

size_t round_room(size_t n) { return TILES * LANES * (n + 2 * ROUND_GROUP) + LANES; }

void round_rows(const round_grid *grid, size_t rows, size_t width, const float *weights, size_t n,
    const uint32_t *columns, const float *lower, const float *weight, uint8_t *index, float *scale,
    float *room) {
    BEST(rows, grid, rows, width, weights, n, columns, lower, weight, index, scale, room);
}

void round_add_squares(float *h, size_t n, size_t ldh, size_t from, size_t to, const float *x, size_t vectors,
    size_t stride, const float *weight, float *room) {
    BEST(add_squares, h, n, ldh, from, to, x, vectors, stride, weight, room);
}

int round_factor_block(float *h, size_t n, size_t a, size_t b, float *weight) {
    for (size_t k = b; k-- > a;) {
        float *row = h + k * n;
        weight[k] = row[k];
        if (!(weight[k] > 0))
            return -1;
        row[k] = 1;
        for (size_t i = a; i < k; i++)
            row[i] /= weight[k];
        for (size_t i = a; i < k; i++)
            for (size_t c = a; c <= i; c++)
                h[i * n + c] -= weight[k] * row[i] * row[c];
    }
    return 0;
}

void round_factor_columns(
    float *h, size_t n, size_t a, size_t b, const float *weight, size_t from, size_t to) {
    BEST(factor_columns, h, n, a, b, weight, from, to);
}
