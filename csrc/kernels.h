/* kernels.h - what an instruction set provides to the forward pass. Not part of the interface.
 *
 * isa_plain.c has them in portable C, the reference of all others. The others make it faster: each is a file
 * isa_NAME.c, which ends in a table, and an entry in VECTOR_KERNELS below.
 *
 * A kernel computes a row of numbers, or one group of them, the same way whatever stands beside it: no sum's
 * order depends on how many tokens there are. So results do not depend on the batch. */
#ifndef KERNELS_H
#define KERNELS_H
#include "file.h"

#define SPAN LLM_PAGE     /* positions of a page of keys or values */
#define SCORES (4 * SPAN) /* positions that a softmax takes at a time */
#define MAX_BATCH 8192    /* tokens that go through the layers together */
#define MANY_HALVES \
    48 /* tokens from which on fp16 is rounded to integers: half as fast with 16, as fast with 40 */
#define BEYOND 32    /* vectors behind the last one that a product may read, and makes nothing of */
#define SUM_LANES 16 /* partial sums of a sum over a vector, whatever the instruction set */

typedef uint32_t any_uint __attribute__((may_alias));
typedef float any_float __attribute__((may_alias));

static inline uint32_t bits_of(float f) { return *(any_uint *)&f; }

static inline float float_of(uint32_t u) { return *(any_float *)&u; }

/* Vectors of floats, `stride` from one to the next */
typedef struct vectors {
    float *data;
    size_t stride;
} vectors;

static inline size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static inline float *row_of(vectors v, size_t i) { return v.data + i * v.stride; }

/* A matrix (rows, cols) in tiles of 16 rows, as llm.h describes them: weights, or a page of keys or values */
typedef struct matrix {
    const uint8_t *tiles;
    size_t tile_size;       /* bytes from a tile to the next */
    const int8_t *codebook; /* (16,), of int4 */
    const uint16_t *scales; /* (rows / 16, n_groups, 16) fp16; NULL: all are 1, or the dtype has none */
    size_t group;           /* columns that share a scale; the last ones of a row may be fewer */
    size_t rows;
    size_t cols; /* stored ones: of weights a multiple of 64, of keys and values one of 16 */
    size_t
        filled; /* columns before this one hold numbers, others anything, and count as 0; of weights all do */
    uint32_t dtype;
} matrix;

static inline size_t groups_of(const matrix *w) { return (w->cols + w->group - 1) / w->group; }

/* Where a row and a column of a matrix in tiles lie, if a column of a row is one number, see llm.h; and in tiles of
 * int8 */
static inline size_t in_tile(size_t row, size_t col, size_t cols) {
    return (row / LLM_TILE * cols + col) * LLM_TILE + row % LLM_TILE;
}

static inline size_t in_byte_tile(size_t row, size_t col, size_t cols) {
    return in_tile(row, col / 4, cols / 4) * 4 + col % 4;
}

/* The vectors that a matrix is multiplied with: n tokens */
typedef struct activations {
    size_t n;
    vectors x;  /* (n, cols) */
    uint8_t *q; /* (n, ldq) bytes, as the product's round() makes them of x, group by group */
    size_t ldq;
    float *scales;    /* (n, n_groups), as well */
    int32_t *offsets; /* (n, n_groups), as well */
    size_t n_groups;  /* of the matrix */
} activations;

/* Kinds of products: a dtype's matrices; int8 keys times queries as int13, both rotated; and int8 values, whose scales are
 * in the numbers that multiply them, which are not negative */
enum { QUERIED_KEYS = LLM_N_DTYPES, WEIGHTED_VALUES, N_PRODUCTS };

/* How a kind of matrices is multiplied. Products of integers are exact, up to the end of a group; a sum over
 * groups then is fma(sum of integers, scale of the weights * scale of the activations, sum so far), from the first
 * group to the last, with every instruction set. */
typedef struct product {
    /* rounds a group of n numbers x, a multiple of 16 and at most 64, to integers q = round(x / scale), and says with
     * which integer their sums begin; NULL: rows() takes x as it is */
    void (*round)(uint8_t *q, float *scale, int32_t *offset, const float *x, size_t n);
    size_t bytes; /* of such an integer */
    int rotated;  /* hadamard() comes before round() */
    /* y (n, rows of W) = x (n, cols) W^T, or += with `add`, in columns row, row + 1, ... of y: as many as the
     * table says, as far as W has so many */
    void (*rows)(const matrix *w, size_t row, const activations *a, vectors y, int add);
    size_t
        from; /* tokens from which on it is faster than the one for fewer; of fp16 not asked, see MANY_HALVES */
} product;

typedef struct kernels {
    const char *name;
    int (*has)(void); /* whether the processor, the hypervisor and the system have it */
    size_t rows;      /* of a matrix that a product does at once */
    product few[N_PRODUCTS];
    product many[N_PRODUCTS]; /* for more tokens; without rows(): the same */
    /* Lets go of what this thread's products keep of the processor's from one to the next; NULL: nothing. Comes after
     * products, before anyone else's code is run. */
    void (*done)(void);

    /* x (n,) = H x, where H is Hadamard's matrix (Sylvester 1867) over its square root, its own inverse, of each 64
     * numbers and then of each 16 that are left; n is a multiple of 16 */
    void (*hadamard)(float *x, size_t n);
    /* out (n,) = x / rms(x) * w (Zhang and Sennrich 2019). out may be x. */
    void (*rmsnorm)(float *out, const float *x, const float *w, size_t n, float eps);
    /* out (n,) = (x - mean) / sqrt(variance + eps) * w + bias (Ba et al. 2016); bias may be NULL. out may be x. */
    void (*layernorm)(float *out, const float *x, const float *w, const float *bias, size_t n, float eps);
    /* x (n,) += y * scale */
    void (*add_scaled)(float *x, const float *y, float scale, size_t n);
    /* out (2 * half,) = x with elements i and i + half turned by the angle whose cos and sin (half,) are given
     * (Su et al. 2021, in GPT-NeoX's half-split order) */
    void (*rope)(float *out, const float *x, const float *cos, const float *sin, size_t half);
    /* out (n,) = x as fp16, to nearest even; n is a multiple of 16 */
    void (*to_half)(uint16_t *out, const float *x, size_t n);
    /* out (64,) = gain * up * activation(gate): the gated unit (Shazeer 2020), SwiGLU or GEGLU, by groups */
    void (*glu)(float *out, const float *gate, const float *up, float gain, uint32_t activation);
    /* x (64,) = activation(x), with the numbers a and b if it is LLM_XIELU */
    void (*activate)(float *x, uint32_t activation, const float *numbers);
    /* scores (n,) = cap * tanh(scores / cap); n is a multiple of SPAN */
    void (*softcap)(float *scores, size_t n, float cap);
    /* One step of softmax over n more scores (Milakov and Gimelshein 2018), n a multiple of SPAN. out (width + 2,) is
     * a sum of values weighted by exp(score - max), then max, then the sum of these weights. Brings it to the new max
     * and turns the scores into their weights; adding the values is the caller's. */
    void (*online_softmax)(float *scores, size_t n, float *out, size_t width);
    /* Two such sums over different positions become one, in out. */
    void (*merge)(float *out, const float *more, size_t width);
    /* One step of the gated delta rule (Yang et al. 2024) in 64 columns: state S (n, 64) = decay * from (n, 64); S +=
     * key (n,) of strength * (value (64,) - S^T key); out (64,) = S^T query (n,). state may be from. Sums run over the
     * n rows from the first one on. */
    void (*delta_rule)(float *state, const float *from, const float *key, const float *query,
        const float *value, float decay, float strength, float *out, size_t n);
} kernels;

/* The tables of this build, the best first. LLM_PLAIN leaves the plain kernels alone. */
extern const kernels kernels_plain;
#if defined(LLM_PLAIN)
#define VECTOR_KERNELS
#elif defined(__x86_64__)
extern const kernels kernels_amx, kernels_avx512, kernels_avxvnni, kernels_avx2;
#define VECTOR_KERNELS &kernels_amx, &kernels_avx512, &kernels_avxvnni, &kernels_avx2,
#elif defined(__aarch64__)
extern const kernels kernels_i8mm, kernels_dotprod, kernels_neon;
#define VECTOR_KERNELS &kernels_i8mm, &kernels_dotprod, &kernels_neon,
#else
#define VECTOR_KERNELS
#endif

/* The sum of 16 lanes: halves added until one is left */
static inline float sum_lanes(const float *lanes) {
    float sum[SUM_LANES / 2];
    for (size_t i = 0; i < SUM_LANES / 2; i++)
        sum[i] = lanes[i] + lanes[i + SUM_LANES / 2];
    for (size_t half = SUM_LANES / 4; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            sum[i] += sum[i + half];
    return sum[0];
}

/* n columns of a row of y from `row` on, as far as W has so many: = sums, or += */
static inline void store_rows(const matrix *w, size_t row, const float *sums, size_t n, float *y, int add) {
    if (n > w->rows - row)
        n = w->rows - row;
    for (size_t i = 0; i < n; i++)
        y[row + i] = sums[i] + (add ? y[row + i] : 0);
}

#endif
