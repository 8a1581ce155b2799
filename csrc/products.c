/* products.c - the tensors of a file as matrices: products with them on all threads, by the kernels of kernels.h, and
 * rows of them. */
#include "forward.h"
#include "numbers.h"
#include <string.h>

/* ------------------------------------------------------------------------------------------------------
 * Rows of a tensor */

static matrix matrix_of(const llm_model *m, const llm_tensor *t, size_t expert) {
    const dtype_info *d = &dtypes[t->dtype];
    const uint8_t *data = weights(m, t, expert);
    matrix w = {
        .tiles = data + d->head,
        .tile_size = LLM_TILE * t->stride * d->bits / 8,
        .codebook = (const int8_t *)data,
        .group = d->group ? d->group : LLM_GROUP,
        .rows = t->rows,
        .cols = t->stride,
        .filled = t->stride,
        .dtype = t->dtype,
    };
    w.scales = (const uint16_t *)(w.tiles + align(t->rows, LLM_TILE) / LLM_TILE * w.tile_size);
    return w;
}

/* numbers (64,) = columns c0 to c0 + 64 of a row */
static void read_group(const llm_session *s, const matrix *w, size_t row, size_t c0, float *numbers) {
    float tile[LLM_GROUP][LLM_TILE];
    read_tile(w, row, c0, LLM_GROUP, tile);
    for (size_t c = 0; c < LLM_GROUP; c++)
        numbers[c] = tile[c][row % LLM_TILE];
    if (dtypes[w->dtype].rotated)
        s->k->hadamard(numbers, LLM_GROUP);
}

void read_row(const llm_session *s, const llm_tensor *t, size_t row, float *x) {
    const matrix w = matrix_of(s->m, t, 0);
    float numbers[LLM_GROUP];
    for (size_t c0 = 0; c0 < t->cols; c0 += LLM_GROUP) {
        read_group(s, &w, row, c0, numbers);
        for (size_t c = 0; c < LLM_GROUP && c0 + c < t->cols; c++)
            x[c0 + c] = numbers[c];
    }
}

void add_row(const llm_session *s, const llm_tensor *t, size_t row, float scale, float *x) {
    const matrix w = matrix_of(s->m, t, 0);
    float numbers[LLM_GROUP];
    for (size_t c0 = 0; c0 < t->cols; c0 += LLM_GROUP) {
        read_group(s, &w, row, c0, numbers);
        const size_t n = t->cols - c0 < LLM_GROUP ? t->cols - c0 : LLM_GROUP;
        s->k->add_scaled(x + c0, numbers, scale, n);
    }
}

/* ------------------------------------------------------------------------------------------------------
 * y = x W^T */

void prepare(
    llm_session *s, const product *p, size_t group, const activations *a, size_t i, size_t from, size_t to) {
    float room[LLM_GROUP];
    for (size_t c0 = from; p->round && c0 < to; c0 += LLM_GROUP) {
        const size_t n = to - c0 < LLM_GROUP ? to - c0 : LLM_GROUP;
        const float *x = row_of(a->x, i) + c0;
        if (p->rotated) {
            memcpy(room, x, n * sizeof *x);
            s->k->hadamard(room, n);
            x = room;
        }
        for (size_t c = 0; c < n; c += group) {
            const size_t g = i * a->n_groups + (c0 + c) / group;
            const size_t size = n - c < group ? n - c : group;
            p->round(a->q + i * a->ldq + (c0 + c) * p->bytes, &a->scales[g], &a->offsets[g], x + c, size);
        }
    }
}

const product *product_of(const llm_session *s, uint32_t kind, size_t n) {
    const product *few = &s->k->few[kind], *many = &s->k->many[kind];
    const int exact = kind == LLM_FP16 && s->o.exact;
    const size_t from = kind == LLM_FP16 ? MANY_HALVES : many->from;
    return n >= from && many->rows && !exact ? many : few;
}

/* All threads: x (n, cols) as the product wants it, in groups as W has them */
static activations prepare_all(
    llm_session *s, const product *p, const matrix *w, size_t cols, size_t n, vectors x) {
    const size_t blocks = cols / LLM_GROUP;
    activations a = {
        .n = n,
        .x = x,
        .q = s->quants,
        .ldq =
            cols * p->bytes + 64, /* a power of two apart, tokens would be in each other's place in a cache */
        .scales = s->scales,
        .offsets = s->offsets,
        .n_groups = cols / w->group,
    };
    if (n > s->o.batch)
        a.n = s->o.batch; /* what the buffers have rows for, whoever calls */
    if (p->round) {
        EACH(unit, a.n * blocks) {
            const size_t c = unit % blocks * LLM_GROUP;
            prepare(s, p, w->group, &a, unit / blocks, c, c + LLM_GROUP);
        }
        barrier(&s->barrier);
    }
    return a;
}

/* All threads: first the activations, then rows of W */
static void multiply(llm_session *s, const product *p, const matrix *w, size_t n, vectors x, vectors y) {
    const size_t step = s->k->rows;
    const size_t units = (w->rows + step - 1) / step;
    const activations a = prepare_all(s, p, w, w->cols, n, x);
    EACH(unit, units)
        if (!stopped(s))
            p->rows(w, unit * step, &a, y, 0);
    barrier(&s->barrier);
}

/* Shows the input of a product, of expert e of tensor t, to who wants to see it. */
static void show(llm_session *s, const llm_tensor *t, size_t e, size_t n, vectors x) {
    const size_t number = (size_t)(t - s->m->tensors);
    if (!s->observer || THREAD || stopped(s))
        return;
    done(s);
    s->observer(s->observer_context, (uint32_t)(number % LLM_N_TENSORS), (uint32_t)(number / LLM_N_TENSORS),
        (uint32_t)e, n, t->cols, x.data, x.stride);
}

void matmul_exact(llm_session *s, const llm_tensor *t, size_t n, vectors x, vectors y) {
    const matrix w = matrix_of(s->m, t, 0);
    show(s, t, 0, n, x);
    multiply(s, &s->k->few[t->dtype], &w, n, x, y);
}

void matmul(llm_session *s, const llm_tensor *t, size_t e, size_t n, vectors x, vectors y) {
    const matrix w = matrix_of(s->m, t, e);
    show(s, t, e, n, x);
    multiply(s, product_of(s, t->dtype, n), &w, n, x, y);
}

/* What a head of a product by heads multiplies */
static activations of_head(activations a, const product *p, const matrix *w, size_t head) {
    const size_t column = head * w->cols;
    a.x.data += column;
    a.q += column * p->bytes;
    a.scales += column / w->group;
    a.offsets += column / w->group;
    return a;
}

void matmul_heads(llm_session *s, const llm_tensor *t, size_t n, vectors x, size_t width, vectors y) {
    const product *p = product_of(s, t->dtype, n);
    const matrix first = matrix_of(s->m, t, 0);
    const size_t step = s->k->rows, units = (first.rows + step - 1) / step;
    for (size_t head = 0; head < t->experts; head++)
        show(s, t, head, n, (vectors){x.data + head * first.cols, x.stride});
    const activations all = prepare_all(s, p, &first, t->experts * first.cols, n, x);
    EACH(unit, t->experts * units) {
        const matrix w = matrix_of(s->m, t, unit / units);
        const activations a = of_head(all, p, &w, unit / units);
        const vectors out = {y.data + unit / units * width, y.stride};
        if (!stopped(s))
            p->rows(&w, unit % units * step, &a, out, 0);
    }
    barrier(&s->barrier);
}
