/* attend.c - softmax attention over the cache: keys and values into its pages, and what queries make of them. How
 * queries come to be, and what becomes of the sum, is llm.c's. */
#include "forward.h"
#include "numbers.h"
#include <math.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------------
 * Keys and values into the cache's pages, see session.h */

/* A head's key or value (width,) into the cache; what is beyond fp16 as its largest number */
static void store_head_fp16(
    llm_session *s, size_t width, int kind, uint8_t *page, size_t row, const float *head) {
    uint16_t halves[MAX_HEAD], *kv = (uint16_t *)page;
    s->k->to_half(halves, head, width);
    for (size_t c = 0; c < width; c++) {
        const int infinite = (halves[c] & 0x7fff) == 0x7c00;
        kv[kind == KEYS ? in_tile(row, c, width) : in_tile(c, row, SPAN)] = (uint16_t)(halves[c] - infinite);
    }
}

/* ... as int8: a key rotated, with scales as a matrix has them */
static void store_key_int8(llm_session *s, size_t width, uint8_t *page, size_t row, float *key) {
    uint16_t *scales = (uint16_t *)(page + SPAN * width);
    const size_t n_groups = align(width, LLM_GROUP) / LLM_GROUP;
    int8_t q[LLM_GROUP];
    s->k->hadamard(key, width);
    for (size_t c = 0; c < width; c += LLM_GROUP) {
        const size_t n = width - c < LLM_GROUP ? width - c : LLM_GROUP;
        uint16_t *scale = &scales[in_tile(row, c / LLM_GROUP, n_groups)];
        *scale = float_to_half(scale_to(127, key + c, n));
        round_by(half_to_float(*scale), q, key + c, n);
        for (size_t k = 0; k < n; k++)
            page[in_byte_tile(row, c + k, width)] = (uint8_t)q[k];
    }
}

static void store_value_int8(size_t width, uint8_t *page, size_t row, const float *value) {
    float *scales = (float *)(page + SPAN * width);
    int8_t q[MAX_HEAD];
    scales[row] = scale_to(127, value, width);
    round_by(scales[row], q, value, width);
    for (size_t c = 0; c < width; c++)
        page[in_byte_tile(c, row, SPAN)] = (uint8_t)q[c];
}

/* The weights of what is behind the last value of a sequence are 0, and are multiplied with its scale: it must be a
 * number, and may be of tokens that were forgotten. */
static void clear_behind(uint8_t *page, size_t width, size_t row) {
    float *scales = (float *)(page + SPAN * width);
    memset(scales + row + 1, 0, (SPAN - row - 1) * sizeof *scales);
}

void store_head(llm_session *s, size_t layer, int kind, size_t a, size_t i, float *head) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t width = kind == KEYS ? key_width(l) : value_width(l);
    const size_t row = s->pos[i] % SPAN;
    uint8_t *page = cache(s, s->seqs[i], layer, kind, a, s->pos[i]);
    if (s->o.kv == LLM_KV_FP16)
        store_head_fp16(s, width, kind, page, row, head);
    else if (kind == KEYS)
        store_key_int8(s, width, page, row, head);
    else
        store_value_int8(width, page, row, head);
    if (s->o.kv == LLM_KV_INT8 && kind == VALUES && s->pos[i] + 1 == s->length[s->seqs[i]])
        clear_behind(page, width, row);
}

/* ------------------------------------------------------------------------------------------------------
 * Attention: softmax over pages of positions */

/* A page of the cache as a matrix: keys (n, width), or values (width, n), of n <= SPAN positions */
static matrix page_matrix(const llm_session *s, size_t width, int kind, const uint8_t *page, size_t n) {
    const int bytes = s->o.kv == LLM_KV_INT8;
    matrix w = {
        .tiles = page,
        .tile_size = LLM_TILE * width * (bytes ? 1 : sizeof(uint16_t)),
        .scales = bytes ? (const uint16_t *)(page + SPAN * width) : NULL,
        .group = LLM_GROUP,
        .rows = n,
        .cols = width,
        .filled = width,
        .dtype = bytes ? LLM_INT8_ROTATED : LLM_FP16,
    };
    if (kind == KEYS)
        return w;
    w.tile_size = w.tile_size / width * SPAN;
    w.scales = NULL; /* they multiply the weights */
    w.rows = width;
    w.cols = SPAN;
    w.filled = n;
    return w;
}

/* How n queries are multiplied with a page of keys, or their weights with its values. Where these are halves, the tokens
 * of the batch decide too, so that fewer than MANY_HALVES of them round nothing. */
static const product *page_product(const llm_session *s, int kind, size_t n) {
    const size_t tokens = s->runs[s->n_runs];
    if (s->o.kv == LLM_KV_FP16)
        return product_of(s, LLM_FP16, tokens < n ? tokens : n);
    return product_of(s, kind == KEYS ? QUERIED_KEYS : WEIGHTED_VALUES, n);
}

/* Room of this thread for what a product of attention wants: of queries, or of their weights */
static activations unit_room(const llm_session *s, int weights, size_t n, vectors x) {
    const size_t which = THREAD * 2 + (size_t)weights;
    return (activations){
        .n = n,
        .x = x,
        .q = s->unit_q + which * (s->unit_rows + BEYOND) * s->unit_ldq,
        .ldq = s->unit_ldq,
        .scales = s->unit_scales + which * (s->unit_rows + BEYOND) * s->unit_groups,
        .offsets = s->unit_offsets + which * (s->unit_rows + BEYOND) * s->unit_groups,
        .n_groups = s->unit_groups,
    };
}

/* As if the first m rows, and the first c columns, of groups of 64, were not there; `bytes` is a number's in q */
static activations without_first(activations a, size_t m, size_t c, size_t bytes) {
    a.n -= m;
    a.x.data += m * a.x.stride + c;
    a.q += m * a.ldq + c * bytes;
    a.scales += m * a.n_groups + c / LLM_GROUP;
    a.offsets += m * a.n_groups + c / LLM_GROUP;
    return a;
}

/* y (n, rows) = x (n, cols) W^T of a page by one thread, or += with `add` */
static void page_matmul(
    const llm_session *s, const product *p, const matrix *w, const activations *a, vectors y, int add) {
    for (size_t row = 0; row < w->rows; row += s->k->rows)
        p->rows(w, row, a, y, add);
}

/* weights (SPAN,) *= the scales of their values */
static void scale_weights(float *weights, const float *scales) {
    for (size_t c = 0; c < SPAN; c++)
        weights[c] *= scales[c];
}

/* The first position that a token at position `pos` attends to */
static size_t first_seen(const llm_layer *l, size_t pos) {
    if (l->flags & LLM_CHUNKED)
        return pos - pos % l->window;
    return l->window && pos >= l->window ? pos + 1 - l->window : 0;
}

/* Hides what it does not attend to among n scores of the positions from p on. */
static void mask(const llm_layer *l, float *scores, size_t n, size_t p, size_t pos) {
    const size_t first = first_seen(l, pos);
    for (size_t c = n; p + c > pos + 1; c--)
        scores[c - 1] = -INFINITY;
    for (size_t c = 0; c < n && p + c < first; c++)
        scores[c] = -INFINITY;
}

/* What a unit of attention is: the tokens of a run, a group of query heads that share a kv head, and a part of their
 * sequence so far. Units number groups, then runs, then parts. */
typedef struct attention_unit {
    size_t group, kv_head;
    size_t first, n_tokens, part; /* first: the run's first token, in the batch */
} attention_unit;

static attention_unit unit_of(const llm_session *s, const llm_layer *l, size_t unit) {
    const size_t n_groups = head_groups_of(l), run = unit / n_groups % s->n_runs;
    attention_unit u = {.group = unit % n_groups, .first = s->runs[run]};
    u.kv_head = u.group * l->n_kv_heads / n_groups;
    u.n_tokens = s->runs[run + 1] - u.first;
    u.part = unit / n_groups / s->n_runs;
    return u;
}

/* Queries that come before position p, and so see nothing from there on */
static size_t queries_before(const llm_session *s, const llm_layer *l, const attention_unit *u, size_t p) {
    const size_t start = s->pos[u->first];
    return p > start ? (p - start) * group_of(l) : 0;
}

/* scores (n, n_keys) = q (n, width) @ K (n_keys, width)^T of the page at position p, for those who see it */
static void score_page(llm_session *s, size_t layer, const attention_unit *u, const activations *queries,
    size_t p, vectors scores) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t end = s->pos[u->first] + u->n_tokens, n_keys = end - p < SPAN ? end - p : SPAN;
    const uint8_t *keys = cache(s, s->seqs[u->first], layer, KEYS, u->kv_head, p);
    const matrix k = page_matrix(s, key_width(l), KEYS, keys, n_keys);
    const size_t m0 = queries_before(s, l, u, p);
    const activations q = without_first(*queries, m0, 0, 0);
    scores.data += m0 * scores.stride;
    page_matmul(s, page_product(s, KEYS, queries->n), &k, &q, scores, 0);
}

/* Scores of the n positions of a block become their weights, which nobody wants of the first ones before `from`; `out`
 * holds the queries' sums so far. */
static void weigh_block(llm_session *s, size_t layer, const attention_unit *u, size_t block, size_t from,
    size_t n, const activations *weights, vectors out) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t start = s->pos[u->first];
    const size_t width = value_width(l);
    const product *p_values = page_product(s, VALUES, weights->n);
    const float *scales[SCORES / SPAN]; /* of each page's values */
    for (size_t c = from; c < n; c += SPAN) {
        const uint8_t *values = cache(s, s->seqs[u->first], layer, VALUES, u->kv_head, block + c);
        scales[c / SPAN] = (const float *)(values + SPAN * width);
    }
    for (size_t m = queries_before(s, l, u, block); m < weights->n; m++) {
        float *scores = row_of(weights->x, m);
        if (l->attn_cap > 0)
            s->k->softcap(scores, n, l->attn_cap);
        mask(l, scores, n, block, start + m / group_of(l));
        s->k->online_softmax(scores, n, row_of(out, m), width);
        for (size_t c = from; c < n && s->o.kv == LLM_KV_INT8; c += SPAN)
            scale_weights(scores + c, scales[c / SPAN]);
        prepare(s, p_values, LLM_GROUP, weights, m, from, n);
    }
}

/* out (n, width) += weights (n, n_keys) @ V (width, n_keys)^T of the page at position p, which is c positions into
 * its block */
static void add_values(llm_session *s, size_t layer, const attention_unit *u, const activations *weights,
    size_t p, size_t c, vectors out) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t end = s->pos[u->first] + u->n_tokens, n_keys = end - p < SPAN ? end - p : SPAN;
    const uint8_t *values = cache(s, s->seqs[u->first], layer, VALUES, u->kv_head, p);
    const matrix v = page_matrix(s, value_width(l), VALUES, values, n_keys);
    const size_t m0 = queries_before(s, l, u, p);
    const product *p_values = page_product(s, VALUES, weights->n);
    const activations some = without_first(*weights, m0, c, p_values->bytes);
    out.data += m0 * out.stride;
    page_matmul(s, p_values, &v, &some, out, 1);
}

/* A unit's queries, and n positions of a block, of which nobody sees those before `from`:
 * out (n, width + 2) += softmax(q K^T) V, see kernels.h */
static void attend_block(llm_session *s, size_t layer, const attention_unit *u, const activations *queries,
    size_t block, size_t from, size_t n, vectors out) {
    const vectors scores = {s->scores + THREAD * s->unit_rows * SCORES, SCORES};
    const activations weights = unit_room(s, 1, queries->n, scores);
    for (size_t c = from; c < n; c += SPAN)
        score_page(s, layer, u, queries, block + c, (vectors){scores.data + c, SCORES});
    weigh_block(s, layer, u, block, from, n, &weights, out);
    for (size_t c = from; c < n; c += SPAN)
        add_values(s, layer, u, &weights, block + c, c, out);
}

void attend(llm_session *s, size_t layer, size_t unit) {
    const llm_layer *l = &s->m->layers[layer];
    const attention_unit u = unit_of(s, l, unit);
    const size_t group = group_of(l), width = key_width(l), out_width = value_width(l) + 2;
    const size_t n = u.n_tokens * group; /* queries */
    const size_t start = s->pos[u.first], end = start + u.n_tokens;
    const size_t first = first_seen(l, start) / SPAN * SPAN; /* the first page that anyone attends to */
    const size_t row = query_row(s, group, u.group * group, u.first);
    const vectors out = {s->parts + u.part * s->part_size + row * out_width, out_width};
    const activations queries = unit_room(s, 0, n, (vectors){s->q + row * width, width});
    size_t p = u.part * s->part; /* a position */
    const size_t part_end = p + s->part < end ? p + s->part : end;
    if (p >= end)
        return;
    memset(out.data, 0, n * out.stride * sizeof *out.data);
    for (size_t m = 0; m < n; m++) {
        row_of(out, m)[out_width - 2] = -0x1p127f;
        prepare(s, page_product(s, KEYS, n), LLM_GROUP, &queries, m, 0, width);
    }
    if (p < first)
        p = first;
    while (p < part_end) {
        const size_t block = p / SCORES * SCORES;
        const size_t n_positions = part_end - block < SCORES ? align(part_end - block, SPAN) : SCORES;
        attend_block(s, layer, &u, &queries, block, p - block, n_positions, out);
        p = block + SCORES;
    }
}

void merge_parts(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *sinks = tensor(s->m, layer, LLM_SINKS);
    const size_t width = value_width(l), value_dim = kept_value_dim(l);
    const size_t step = l->latent_dim ? latent_width(l) : value_dim;
    const size_t padding = tensor(s->m, layer, LLM_ATTN_OUT)->stride - att_dim_of(l);
    float *att = row_of(l->latent_dim ? s->latents : s->att, i);
    for (size_t a = 0; a < l->n_heads; a++) {
        float *out = s->parts + query_row(s, group_of(l), a, i) * (width + 2);
        for (size_t part = 1; part * s->part <= s->pos[i]; part++)
            s->k->merge(out, out + part * s->part_size, width);
        const float sink = sinks->size ? expf(floats(s, sinks)[a] - out[width]) : 0;
        for (size_t c = 0; c < step; c++)
            att[a * step + c] = c < value_dim ? out[c] / (out[width + 1] + sink) : 0;
    }
    memset(row_of(s->att, i) + att_dim_of(l), 0, padding * sizeof *att);
}
