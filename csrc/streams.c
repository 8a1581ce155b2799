/* streams.c - what goes beside the blocks: several residual streams, a way past attention, and embeddings of each
 * layer's own. */
#include "forward.h"
#include <math.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------------
 * Several residual streams (Baykal et al. 2023, "Alternating Updates"), of which blocks know the first alone, s->x;
 * llm.h has the formulas */

/* Stream k (n, dim); of k = 0 what the layer's blocks began with */
static vectors stream(const llm_session *s, size_t k) {
    return (vectors){s->streams + k * s->o.batch * s->x.stride, s->x.stride};
}

/* What multiplies y (n,), so that it is as large as x (n,): its root mean square, which of y is 0.00316 at least */
static float as_large_as(const float *x, const float *y, size_t n) {
    double xx = 0, yy = 0;
    for (size_t c = 0; c < n; c++) {
        xx += (double)x[c] * x[c];
        yy += (double)y[c] * y[c];
    }
    return (float)sqrt(xx / (double)n / fmax(yy / (double)n, 1e-5));
}

/* All streams begin as products of the first. */
void open_streams(llm_session *s, size_t n) {
    const llm_header *h = &s->m->h;
    for (size_t k = 1; k < h->n_streams; k++) {
        const vectors others = stream(s, k);
        /* stream (n, dim) = x (n, dim) @ W (dim, dim)^T */
        matmul(s, tensor(s->m, 0, LLM_STREAM_IN), k - 1, n, s->x, others);
        EACH(i, n) {
            float *other = row_of(others, i);
            const float by = as_large_as(row_of(s->x, i), other, h->dim);
            for (size_t c = 0; c < h->dim; c++)
                other[c] *= by;
        }
    }
}

/* modes (n, n_streams), without their tanh, of the first stream */
static void find_modes(llm_session *s, size_t layer, size_t n) {
    const vectors x = block_input(s, layer, LLM_STREAM_NORM, n);
    matmul_exact(s, tensor(s->m, layer, LLM_STREAM_ROUTER), n, x, s->modes);
}

/* weights (size,) = W (size, n_streams) @ the modes of token i; tanh(x) = 2 sigmoid(2 x) - 1 */
static void mix_modes(const llm_session *s, const llm_tensor *w, size_t size, size_t i, float *weights) {
    const size_t n_streams = s->m->h.n_streams;
    const float *modes = row_of(s->modes, i), *rows = floats(s, w);
    memset(weights, 0, size * sizeof *weights);
    for (size_t m = 0; m < n_streams; m++) {
        const float mode = 2 * sigmoid(2 * modes[m]) - 1;
        for (size_t r = 0; r < size; r++)
            weights[r] += rows[r * n_streams + m] * mode;
    }
}

/* Each stream of token i gets some of all, and the first is remembered. */
static void predict_token(llm_session *s, size_t layer, size_t i) {
    const size_t n = s->m->h.n_streams;
    float weights[MAX_STREAMS * MAX_STREAMS], *rows[MAX_STREAMS], old[MAX_STREAMS];
    mix_modes(s, tensor(s->m, layer, LLM_STREAM_PREDICT), n * n, i, weights);
    rows[0] = row_of(s->x, i);
    for (size_t k = 1; k < n; k++)
        rows[k] = row_of(stream(s, k), i);
    for (size_t c = 0; c < s->m->h.dim; c++) {
        for (size_t k = 0; k < n; k++)
            old[k] = rows[k][c];
        for (size_t k = 0; k < n; k++)
            for (size_t j = 0; j < n; j++)
                rows[k][c] += weights[k * n + j] * old[j];
    }
    memcpy(row_of(stream(s, 0), i), rows[0], s->m->h.dim * sizeof(float));
}

void predict_streams(llm_session *s, size_t layer, size_t n) {
    find_modes(s, layer, n);
    EACH(i, n)
        predict_token(s, layer, i);
}

/* Each stream of token i gets some of what the layer's blocks have added to the first. */
static void correct_token(llm_session *s, size_t layer, size_t i) {
    const llm_header *h = &s->m->h;
    float weights[MAX_STREAMS], *x = row_of(s->x, i), *before = row_of(stream(s, 0), i);
    mix_modes(s, tensor(s->m, layer, LLM_STREAM_CORRECT), h->n_streams, i, weights);
    for (size_t c = 0; c < h->dim; c++)
        x[c] -= before[c];
    for (size_t k = 0; k < h->n_streams; k++)
        s->k->add_scaled(row_of(stream(s, k), i), x, 1 + weights[k], h->dim);
    memcpy(x, before, h->dim * sizeof *x);
}

void correct_streams(llm_session *s, size_t layer, size_t n) {
    find_modes(s, layer, n);
    EACH(i, n)
        correct_token(s, layer, i);
}

/* All streams but the first += out, through the norm `id` */
static void add_to_others(llm_session *s, size_t layer, uint32_t id, size_t n) {
    const llm_header *h = &s->m->h;
    EACH(i, n) {
        float *out = row_of(s->out, i);
        rmsnorm(s, tensor(s->m, layer, id), out, out);
        for (size_t k = 1; k < h->n_streams; k++)
            s->k->add_scaled(row_of(stream(s, k), i), out, h->residual_scale, h->dim);
    }
}

/* x = the mean of all streams, the others' products */
void close_streams(llm_session *s, size_t n) {
    const llm_header *h = &s->m->h;
    EACH(i, n)
        memcpy(row_of(s->xb, i), row_of(s->x, i), h->dim * sizeof(float));
    for (size_t k = 1; k < h->n_streams; k++) {
        barrier(&s->barrier);
        /* out (n, dim) = stream (n, dim) @ W (dim, dim)^T */
        matmul(s, tensor(s->m, 0, LLM_STREAM_OUT), k - 1, n, stream(s, k), s->out);
        EACH(i, n) {
            const float *x = row_of(s->x, i), *out = row_of(s->out, i);
            s->k->add_scaled(row_of(s->xb, i), out, as_large_as(x, out, h->dim), h->dim);
        }
    }
    EACH(i, n)
        for (size_t c = 0; c < h->dim; c++)
            row_of(s->x, i)[c] = row_of(s->xb, i)[c] / (float)h->n_streams;
}

/* ------------------------------------------------------------------------------------------------------
 * Past attention, by a matrix of low rank (Menghani et al. 2024, "LAuReL") */

/* laurel (n, dim) = x (n, dim) plus a norm of its product with a matrix of low rank */
void pass_by(llm_session *s, size_t layer, size_t n, vectors x) {
    const llm_tensor *w_left = tensor(s->m, layer, LLM_LAUREL_LEFT);
    const llm_tensor *w_right = tensor(s->m, layer, LLM_LAUREL_RIGHT);
    const llm_tensor *norm = tensor(s->m, layer, LLM_LAUREL_NORM);
    const size_t rank = w_right->cols;
    /* hidden (n, low_rank) = x (n, dim) @ W (low_rank, dim)^T */
    matmul(s, w_left, 0, n, x, s->hidden);
    EACH(i, n)
        memset(row_of(s->hidden, i) + rank, 0, (w_right->stride - rank) * sizeof(float));
    barrier(&s->barrier);
    /* laurel (n, dim) = hidden (n, low_rank) @ W (dim, low_rank)^T */
    matmul(s, w_right, 0, n, s->hidden, s->laurel);
    EACH(i, n) {
        float *laurel = row_of(s->laurel, i);
        rmsnorm(s, norm, laurel, laurel);
        s->k->add_scaled(laurel, row_of(x, i), 1, s->m->h.dim);
    }
}

/* x = (x + laurel) / sqrt(2) */
void add_what_passed(llm_session *s, size_t n) {
    EACH(i, n) {
        float *x = row_of(s->x, i);
        s->k->add_scaled(x, row_of(s->laurel, i), 1, s->m->h.dim);
        for (size_t c = 0; c < s->m->h.dim; c++)
            x[c] *= 0.70710678f;
    }
}

/* ------------------------------------------------------------------------------------------------------
 * Embeddings of each layer's own (Gemma 3n), see llm.h */

/* ple (n, n_layers * ple_dim) = norms of a projection of the embedding, which is in xb, plus a row of a
 * table */
void embed_ple(llm_session *s, size_t n, const uint32_t *tokens) {
    const llm_tensor *table = tensor(s->m, 0, LLM_PLE_EMBED);
    const llm_tensor *w_proj = tensor(s->m, 0, LLM_PLE_PROJ);
    const llm_tensor *norm = tensor(s->m, 0, LLM_PLE_NORM);
    /* ple (n, n_layers * ple_dim) = xb (n, dim) @ W (n_layers * ple_dim, dim)^T */
    matmul(s, w_proj, 0, n, s->xb, s->ple);
    EACH(i, n) {
        float *own = row_of(s->ple, i);
        norm_heads(s, 0, norm, own, table->cols);
        add_row(s, table, tokens[i], s->m->h.ple_scale, own);
    }
}

/* x += what the layer makes of its own embedding of each token */
void ple_block(llm_session *s, size_t layer, size_t n) {
    const llm_tensor *w_gate = tensor(s->m, layer, LLM_PLE_GATE);
    const llm_tensor *w_out = tensor(s->m, layer, LLM_PLE_OUT);
    const llm_tensor *scale = tensor(s->m, layer, LLM_STREAM_SCALE);
    const size_t groups = w_out->stride / LLM_GROUP;
    if (scale->size)
        EACH(i, n)
            for (size_t c = 0; c < s->m->h.dim; c++)
                row_of(s->xb, i)[c] = row_of(s->x, i)[c] * floats(s, scale)[c];
    barrier(&s->barrier);
    /* gate (n, ple_dim) = x (n, dim) @ W (ple_dim, dim)^T */
    matmul(s, w_gate, 0, n, scale->size ? s->xb : s->x, s->gate);
    EACH(unit, n * groups) {
        const size_t i = unit / groups, c = unit % groups * LLM_GROUP;
        glu(s, layer, w_out->cols, i, c, row_of(s->ple, i) + layer * w_out->cols, 1);
    }
    barrier(&s->barrier);
    /* out (n, dim) = hidden (n, ple_dim) @ W (dim, ple_dim)^T */
    matmul(s, w_out, 0, n, s->hidden, s->out);
    if (s->m->h.n_streams > 1)
        add_to_others(s, layer, LLM_PLE_POST_NORM, n);
    else
        add_block(s, layer, LLM_PLE_POST_NORM, n);
}
