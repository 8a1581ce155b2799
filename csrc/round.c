/* round.c - rounding of weights to a grid, as round.h describes it.
 *
 * A group's scale is one of a few that are tried, each by rounding the group in turn with it. With y = lower @ values,
 * q = the weights and what the errors of earlier groups add to them, times lower as well, the group's error is
 * sum weight (q - s y)^2 = Q - 2 s A + s^2 B, A = sum weight q y, B = sum weight y^2: of a scale that is tried only the
 * values count, whose best scale is A / B, and leaves Q - A^2 / B. */
#include "round.h"
#include <string.h>

#define LANES 32  /* rows that are rounded side by side */
#define TILES 8   /* as many of these go over a group before the next one: they read `lower` once */
#define DEPTH 128 /* columns whose errors are multiplied at a time, so that they stay in the first cache */

#define FP16_MAX 65504.0f
#define FP16_TINY 0x1p-24f /* the smallest scale that is not 0 */
#define NOTHING 0x1p-30f   /* a group whose largest weight is below this is one of zeros */

/* Of the best scale that was tried: what is tried then */
static const float CLOSE[] = {0.97f, 1.03f};

#define EACH_LANE for (size_t r = 0; r < LANES; r++)

typedef float lanes[LANES]; /* a number of each row */

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

static inline float inverse_of(float x) { return x == 0 ? 0 : 1 / x; }

/* A scale as fp16 has it (Dekker 1971), and not 0 */
static inline float to_half(float x) {
    x = x > FP16_MAX ? FP16_MAX : x < -FP16_MAX ? -FP16_MAX : x;
    const float times = x * 0x2001p0f, subnormal = (x + 0.75f) - 0.75f;
    const float half = x < 0x1p-14f && x > -0x1p-14f ? subnormal : times - (times - x);
    return half == 0 ? FP16_TINY : half;
}

#define ISA plain
#define TARGET
#define VL 4
#include "round.inc"

#if defined(__x86_64__)
#define ISA avx2
#define TARGET __attribute__((target("avx2")))
#define VL 8
#include "round.inc"
#endif

size_t round_room(size_t n) { return TILES * LANES * (n + 2 * ROUND_GROUP); }

void round_rows(const round_grid *grid, size_t rows, size_t width, const float *weights, size_t n,
    const uint32_t *columns, const float *lower, const float *weight, uint8_t *index, float *scale,
    float *room) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        rows_avx2(grid, rows, width, weights, n, columns, lower, weight, index, scale, room);
        return;
    }
#endif
    rows_plain(grid, rows, width, weights, n, columns, lower, weight, index, scale, room);
}
