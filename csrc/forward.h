/* forward.h - what the files of the forward pass have from each other: llm.c's way through a layer, and the steps that
 * have a file of their own. Not part of the interface.
 *
 * Functions that say "all threads" are run by all threads of the team together, see llm.c; the others by whoever calls.
 * In the comments, W (rows, cols) is a tensor of llm.h, and n the tokens of the batch. */
#ifndef FORWARD_H
#define FORWARD_H
#include "session.h"
#include <math.h>

/* Once it is, a pass leaves out what takes long, and its result is nobody's. */
static inline int stopped(const llm_session *s) {
    return atomic_load_explicit(&s->stopped, memory_order_relaxed);
}

/* Products are over, for now. */
static inline void done(const llm_session *s) {
    if (s->k->done)
        s->k->done();
}

/* A vector of the file */
static inline const float *floats(const llm_session *s, const llm_tensor *t) {
    return (const float *)weights(s->m, t, 0);
}

static inline float sigmoid(float x) { return 1 / (1 + expf(-x)); }

/* ln(1 + exp(x)), in double: log1pf() is not the same in every C library */
static inline float softplus(float x) { return (float)(fmax(x, 0) + log1p(exp(-fabs((double)x)))); }

extern const float ones[MAX_HEAD]; /* the weights of a norm without any */

/* ------------------------------------------------------------------------------------------------------
 * products.c */

/* All threads: y (n, rows) = x (n, cols) @ W (rows, cols)^T; W is tensor t, of expert e */
void matmul(llm_session *s, const llm_tensor *t, size_t e, size_t n, vectors x, vectors y);
/* ... the same however many tokens there are, so that which experts they go to never depends on the batch */
void matmul_exact(llm_session *s, const llm_tensor *t, size_t n, vectors x, vectors y);
/* ... y (n, heads, width), of which it makes the first numbers of each = x (n, heads, stride) @ W (rows, cols)^T, W
 * being tensor t of each head */
void matmul_heads(llm_session *s, const llm_tensor *t, size_t n, vectors x, size_t width, vectors y);

/* x (cols,) = a row of a tensor; or x += scale * it */
void read_row(const llm_session *s, const llm_tensor *t, size_t row, float *x);
void add_row(const llm_session *s, const llm_tensor *t, size_t row, float scale, float *x);

/* How n tokens are multiplied with a matrix of this kind */
const product *product_of(const llm_session *s, uint32_t kind, size_t n);
/* Columns `from` to `to` of row i as the product wants them, 64 at a time; of all of a group */
void prepare(
    llm_session *s, const product *p, size_t group, const activations *a, size_t i, size_t from, size_t to);

/* ------------------------------------------------------------------------------------------------------
 * llm.c: norms, how blocks read and write the residual stream, heads, and gated units; what they do is said there */

void norm_by(
    const llm_session *s, uint64_t flags, const llm_tensor *t, size_t row, const float *x, float *out);
void rmsnorm(const llm_session *s, const llm_tensor *t, const float *x, float *out);
void norm_heads(llm_session *s, uint64_t flags, const llm_tensor *norm, float *x, size_t size);
void add_bias(const llm_session *s, const llm_tensor *t, size_t e, float scale, float *x);

vectors block_input(llm_session *s, size_t layer, uint32_t id, size_t n);
void add_block(llm_session *s, size_t layer, uint32_t id, size_t n);

void rotate(llm_session *s, const llm_layer *l, const llm_tensor *norm, size_t a, size_t i, const float *head,
    float *out);
float query_scale(const llm_layer *l, size_t pos);

/* The two matrices of a gated unit */
typedef struct unit_weights {
    const llm_tensor *gate_up;      /* (2 ffn_dim, dim) */
    const llm_tensor *down;         /* (dim, ffn_dim) */
    const llm_tensor *gate_up_bias; /* (1, 2 ffn_dim); its size is 0 if there is none */
    const llm_tensor *down_bias;    /* (1, dim), as well */
    size_t expert;
} unit_weights;

unit_weights weights_of(const llm_session *s, size_t layer, size_t expert);
void gated_unit(
    llm_session *s, size_t layer, unit_weights w, size_t n, vectors x, const float *gains, vectors out);
void glu(llm_session *s, size_t layer, size_t ffn_dim, size_t i, size_t c, const float *up, float gain);

/* ------------------------------------------------------------------------------------------------------
 * attend.c, and latent.c: attention over the cache, and over latents */

/* Which row of s->q, and of a part, query head a of token i is: those that share a kv head follow each other */
static inline size_t query_row(const llm_session *s, size_t group, size_t a, size_t i) {
    return (a / group * s->o.batch + i) * group + a % group;
}

/* A key or value (kind) of kv head a of token i into the cache; head (MAX_HEAD,) is zeros behind its numbers, and is
 * rotated by it */
void store_head(llm_session *s, size_t layer, int kind, size_t a, size_t i, float *head);
/* Softmax attention of one unit, a block of positions at a time (Dao et al. 2022), to s->parts. Where blocks begin does
 * not depend on the batch. Units number head_groups_of(l), then runs, then parts. */
void attend(llm_session *s, size_t layer, size_t unit);
/* att (n_heads, value_dim), or latents (n_heads, latent_width), of token i: the parts of each head become one, divided
 * by its sum of weights, to which a sink adds its own. */
void merge_parts(llm_session *s, size_t layer, size_t i);

/* All threads: queries, keys and values of n tokens, made of and for latents, from what W_QKV made of them */
void store_latents(llm_session *s, size_t layer, size_t n);

/* ------------------------------------------------------------------------------------------------------
 * states.c: what stands for attention. experts.c: what stands for one gated unit. All threads */

void short_convolution(llm_session *s, size_t layer, size_t n);
void delta_rule(llm_session *s, size_t layer, size_t n);
void moe(llm_session *s, size_t layer, size_t n);

/* ------------------------------------------------------------------------------------------------------
 * streams.c: what goes beside the blocks. All threads */

/* Several residual streams: made of the first; before a layer; behind its blocks; and made one again */
void open_streams(llm_session *s, size_t n);
void predict_streams(llm_session *s, size_t layer, size_t n);
void correct_streams(llm_session *s, size_t layer, size_t n);
void close_streams(llm_session *s, size_t n);

/* A way of low rank past attention: what goes it, of attention's input x (n, dim); and once attention has added its
 * own, that too */
void pass_by(llm_session *s, size_t layer, size_t n, vectors x);
void add_what_passed(llm_session *s, size_t n);

/* Each layer's own embeddings of the tokens: found, and added at the end of a layer */
void embed_ple(llm_session *s, size_t n, const uint32_t *tokens);
void ple_block(llm_session *s, size_t layer, size_t n);

#endif
