/* round.h - how the converter rounds weights to a grid. Part of the Python extension, not of the engine.
 *
 * A weight is values[index] * scale, with a scale for one row and `group` columns. The error of a row, of differences
 * e = w - w', is sum_j weight_j (e_j + sum_{i<j} lower_ji e_i)^2, over columns j and i in the order in which they are
 * rounded: with a matrix `lower`, each to the value nearest to w_j + sum_{i<j} lower_ji e_i, which makes up for the
 * errors before it (LDLQ, Chee et al. 2023); without, each to the value nearest to it.
 *
 * A row's result depends on nothing but the row, and is the same on every processor. Nothing is kept between calls:
 * threads may round different rows at once. */
#ifndef ROUND_H
#define ROUND_H
#include <stddef.h>
#include <stdint.h>

enum {
    ROUND_GROUP = 64, /* the most columns of a scale */
    ROUND_DEPTH = 128 /* vectors that are multiplied at a time, so that they stay in a core's first cache */
};

/* For a scale, candidates are tried: those with which the group's largest weight is the value that is farthest from 0,
 * divided by a span, and some close to the best of these. */
typedef struct round_grid {
    const int8_t *values; /* (n_values,), rising */
    size_t n_values;      /* 2 to 256; above 16 they should be consecutive integers, which are faster */
    size_t group;         /* 1 to ROUND_GROUP */
    const float *spans;   /* (n_spans,), positive or negative */
    size_t n_spans;
} round_grid;

/* Rounds n columns of weights (rows, width), finite, to index (rows, width) and scale (rows, ceil(width / group)), numbers
 * that fp16 has. Other columns' are left as they are.
 *   columns  (n,): their numbers in the order in which they are rounded, a group after the other
 *   lower    (n, n) in this order, of which only what is below the diagonal is read; NULL: zeros
 *   weight   (n,) in this order, not negative
 *   room     round_room(n) floats for its own use */
void round_rows(const round_grid *grid, size_t rows, size_t width, const float *weights, size_t n,
    const uint32_t *columns, const float *lower, const float *weight, uint8_t *index, float *scale,
    float *room);

size_t round_room(size_t n);

/* Where the matrix comes from: the inputs' second moments H (n, n), of which only the lower triangle is read and
 * written, factored as H = lower^T diag(weight) lower, lower with ones on its diagonal. Columns `from` to `to` of a step
 * are any share of them; shares may be done at once, and give the same bits whatever they are. */

/* h += sum_k weight_k x_k^T x_k, of vectors x_k (n,), `stride` floats from one to the next
 *   ldh     floats from one row of h to the next
 *   weight  (vectors,); NULL: ones
 *   room    ROUND_DEPTH * n floats for its own use */
void round_add_squares(float *h, size_t n, size_t ldh, size_t from, size_t to, const float *x, size_t vectors,
    size_t stride, const float *weight, float *room);

/* For rows a to b, at most ROUND_DEPTH, beginning with the last ones: first the block on the diagonal, then the columns
 * from 0 to a, after which round_add_squares() of these rows, with -weight, makes the rows before a ready. Returns -1 if
 * a weight would not be positive. */
int round_factor_block(float *h, size_t n, size_t a, size_t b, float *weight);
void round_factor_columns(
    float *h, size_t n, size_t a, size_t b, const float *weight, size_t from, size_t to);

#endif
