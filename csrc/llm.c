/* llm.c - the engine: runs the forward pass over a model that file.c has mapped and checked.
 *
 * It owns the mathematics: no text, no files, and no model families; what differs between them is in the header's
 * and the layers' numbers and flags. It allocates nothing, and never prints or exits.
 *
 * Read session.h first, what a session owns; then this from top to bottom: llm_forward(); the forward pass in the
 * order of the papers - embed, attention, feed-forward or experts, logits; products; what the numbers of a file
 * mean; and the plain kernels. These are the reference of the vector kernels in isa_*.c: with file.c, session.c and
 * threads.c this file is a whole engine, and what else there is only makes it faster. */
#include "session.h"
#include "fail.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------------
 * llm_forward: tokens, batch by batch, through the forward pass */

/* One batch on its way through the layers; logits are of the tokens in s->rows */
typedef struct batch {
    llm_session *s;
    size_t n;
    const uint32_t *tokens; /* (n,) */
    size_t n_rows;
    float *logits; /* (n_rows, vocab_size) */
} batch;

static void forward(void *batch);

/* What llm_forward was called with is sound, and fits. */
static int check_tokens(
    llm_session *s, size_t n, const uint32_t *tokens, const uint32_t *seqs, char *err, size_t errlen) {
    size_t *length = s->new_length;
    memcpy(length, s->length, s->o.n_seqs * sizeof *length);
    for (size_t i = 0; i < n; i++) {
        const uint32_t seq = seqs ? seqs[i] : 0;
        REQUIRE(tokens[i] < s->m->h.vocab_size, "token %zu is %u, beyond the vocabulary", i, tokens[i]);
        REQUIRE(seq < s->o.n_seqs, "there is no sequence %u: the session has %u", seq, s->o.n_seqs);
        length[seq]++;
        REQUIRE(
            length[seq] <= s->o.context, "%zu positions, and the context has %u", length[seq], s->o.context);
    }
    return 0;
}

/* Gives token i of the batch its sequence and position, which a new run begins with or not. */
static void place_token(llm_session *s, size_t i, uint32_t seq) {
    s->seqs[i] = seq;
    s->pos[i] = (uint32_t)s->length[seq]++;
    const int follows = i > 0 && seq == s->seqs[i - 1];
    if (!follows || i == s->runs[s->n_runs - 1] + s->run) {
        s->runs[s->n_runs] = (uint32_t)i;
        s->n_runs++;
    }
}

static int all_finite(const float *x, size_t n) {
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++)
        bad |= (bits_of(x[i]) & 0x7f800000) == 0x7f800000;
    return !bad;
}

int llm_forward(llm_session *s, size_t n, const uint32_t *tokens, const uint32_t *seqs, const uint8_t *want,
    float *logits, char *err, size_t errlen) {
    const size_t vocab = s->m->h.vocab_size;
    TRY(check_tokens(s, n, tokens, seqs, err, errlen));
    for (size_t at = 0; at < n; at += s->o.batch) {
        batch b = {.s = s, .tokens = tokens + at, .logits = logits};
        b.n = n - at < s->o.batch ? n - at : s->o.batch;
        s->n_runs = 0;
        for (size_t i = 0; i < b.n; i++) {
            place_token(s, i, seqs ? seqs[at + i] : 0);
            const int wanted = want ? want[at + i] : at + i + 1 == n;
            if (logits && wanted) {
                s->rows[b.n_rows] = (uint32_t)i;
                b.n_rows++;
            }
        }
        s->runs[s->n_runs] = (uint32_t)b.n;
        team(s->o.threads, forward, &b);
        for (size_t r = 0; r < b.n_rows; r++, logits += vocab) {
            if (all_finite(logits, vocab))
                continue;
            for (size_t i = 0; i < at + b.n; i++)
                s->length[seqs ? seqs[i] : 0]--;
            return FAIL("the logits after token %zu are not finite: a number in the model or in what its "
                        "sequence keeps is not, or grew too large",
                at + s->rows[r]);
        }
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------------
 * The forward pass (Vaswani et al. 2017; Touvron et al. 2023, "LLaMA").
 *
 * Every function below that has EACH, DEAL or barrier() is run by all threads of the team together: EACH shares its
 * numbers out between them, barrier() waits for all of them, and everything else is done by each of them alike. No
 * sum is split between threads, and the order of a sum does not depend on what else is computed: so results depend
 * neither on the number of threads nor on the batch; but for AMX, which MANY tokens or more go through, and which
 * rounds differently.
 *
 * In the comments, W (rows, cols) is a tensor of llm.h, and n the tokens of the batch. */

static void embed(llm_session *s, size_t n, const uint32_t *tokens);
static void attention(llm_session *s, size_t layer, size_t n);
static void feed_forward(llm_session *s, size_t layer, size_t n);
static void moe(llm_session *s, size_t layer, size_t n);
static void unembed(llm_session *s, size_t n_rows, float *logits);

static void forward(void *context) {
    const batch *b = context;
    llm_session *s = b->s;
    embed(s, b->n, b->tokens);
    for (size_t layer = 0; layer < s->m->h.n_layers; layer++) {
        attention(s, layer, b->n);
        if (s->m->layers[layer].ffn == LLM_EXPERTS)
            moe(s, layer, b->n);
        else
            feed_forward(s, layer, b->n);
    }
    unembed(s, b->n_rows, b->logits);
}

/* Products, see below. y (n, ldy) = x (n, ldx) W^T; W is tensor t, of expert `expert`. */
static void matmul(llm_session *s, const llm_tensor *t, size_t expert, size_t n, const float *x, size_t ldx,
    float *y, size_t ldy);
static void matmul_exact(llm_session *s, const llm_tensor *t, size_t n, const float *x, float *y, size_t ldy);
static void read_row(const llm_model *m, const llm_tensor *t, size_t row, float *x);

static const float *floats(const llm_model *m, const llm_tensor *t) {
    return (const float *)weights(m, t, 0);
}

/* ------------------------------------------------------------------------------------------------------
 * Embedding, and how blocks read and write the residual stream */

/* x (n, dim) = rows of the embedding; and the angles by which each position turns */
static void embed(llm_session *s, size_t n, const uint32_t *tokens) {
    const llm_header *h = &s->m->h;
    const size_t half = h->rope_dim / 2;
    EACH(i, n) {
        float *x = s->x + i * s->dim;
        read_row(s->m, tensor(s->m, 0, LLM_EMBED), tokens[i], x);
        for (size_t c = 0; c < h->dim; c++)
            x[c] *= h->embed_scale;
        for (size_t table = 0; table < h->n_rope; table++) {
            const llm_angle *angle = s->m->rope + table * half;
            float *cosines = s->rotation + (table * s->o.batch + i) * 2 * half, *sines = cosines + half;
            for (size_t c = 0; c < half; c++) {
                const float turn = (float)s->pos[i] * angle[c].frequency;
                cosines[c] = angle[c].magnitude * cosf(turn);
                sines[c] = angle[c].magnitude * sinf(turn);
            }
        }
    }
    barrier(&s->barrier);
}

/* What a block reads, (n, dim): the norm `id` of the residual stream, or without one the stream itself */
static const float *block_input(llm_session *s, size_t layer, uint32_t id, size_t n) {
    const llm_tensor *norm = tensor(s->m, layer, id);
    const llm_header *h = &s->m->h;
    if (norm->size)
        EACH(i, n) {
            const float *x = s->x + i * s->dim;
            s->k->rmsnorm(s->xb + i * s->dim, x, floats(s->m, norm), h->dim, h->norm_eps);
        }
    barrier(&s->barrier);
    return norm->size ? s->xb : s->x;
}

/* x += out, through the norm `id` if there is one. Has no barrier: block_input() gives each thread the same
 * tokens. */
static void add_block(llm_session *s, size_t layer, uint32_t id, size_t n) {
    const llm_tensor *norm = tensor(s->m, layer, id);
    const llm_header *h = &s->m->h;
    EACH(i, n) {
        float *out = s->out + i * s->dim;
        if (norm->size)
            s->k->rmsnorm(out, out, floats(s->m, norm), h->dim, h->norm_eps);
        s->k->add_scaled(s->x + i * s->dim, out, h->residual_scale, h->dim);
    }
}

/* ------------------------------------------------------------------------------------------------------
 * Attention: with query heads that share keys and values (Ainslie et al. 2023), over the positions of a window or
 * all of them */

static void bias_and_norm(llm_session *s, size_t layer, size_t i);
static void store_queries(llm_session *s, size_t layer, size_t i);
static void store_keys_and_values(llm_session *s, size_t layer, size_t i);
static void attend(llm_session *s, size_t layer, size_t unit);
static void merge_parts(llm_session *s, size_t layer, size_t i);

static void attention(llm_session *s, size_t layer, size_t n) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *w_qkv = tensor(s->m, layer, LLM_QKV), *w_out = tensor(s->m, layer, LLM_ATTN_OUT);
    const float *x = block_input(s, layer, LLM_ATTN_NORM, n);
    /* qkv (n, q_dim + 2 kv_dim) = x (n, dim) @ W (q_dim + 2 kv_dim, dim)^T */
    matmul(s, w_qkv, 0, n, x, s->dim, s->qkv, s->qkv_dim);
    EACH(i, n) {
        bias_and_norm(s, layer, i);
        store_queries(s, layer, i);
        if (l->kv_layer == layer)
            store_keys_and_values(s, layer, i);
    }
    barrier(&s->barrier);
    DEAL(unit, s->n_parts * s->n_runs * l->n_kv_heads)
        attend(s, layer, unit);
    barrier(&s->barrier);
    EACH(i, n)
        merge_parts(s, layer, i);
    barrier(&s->barrier);
    /* out (n, dim) = att (n, q_dim) @ W (dim, q_dim)^T */
    matmul(s, w_out, 0, n, s->att, w_out->stride, s->out, s->dim);
    add_block(s, layer, LLM_ATTN_POST_NORM, n);
}

/* RMSNorm of x (size,) in pieces as wide as the norm: heads, or all of them together */
static void norm_heads(llm_session *s, const llm_tensor *norm, float *x, size_t size) {
    for (size_t c = 0; c < size; c += norm->cols)
        s->k->rmsnorm(x + c, x + c, floats(s->m, norm), norm->cols, s->m->h.norm_eps);
}

/* The projections of token i get their bias, and queries and keys their norm. */
static void bias_and_norm(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *bias = tensor(s->m, layer, LLM_BIAS);
    const llm_tensor *q_norm = tensor(s->m, layer, LLM_Q_NORM), *k_norm = tensor(s->m, layer, LLM_K_NORM);
    const size_t q_dim = (size_t)l->n_heads * l->head_dim, kv_dim = (size_t)l->n_kv_heads * l->head_dim;
    float *qkv = s->qkv + i * s->qkv_dim;
    for (size_t c = 0; c < bias->cols; c++)
        qkv[c] += floats(s->m, bias)[c];
    if (q_norm->size)
        norm_heads(s, q_norm, qkv, q_dim);
    if (k_norm->size)
        norm_heads(s, k_norm, qkv + q_dim, kv_dim);
}

/* A head of token i, turned by its position's angles (Su et al. 2021) */
static void rotate(llm_session *s, const llm_layer *l, size_t i, const float *head, float *out) {
    const size_t half = s->m->h.rope_dim / 2;
    const float *cosines = s->rotation + (l->rope * (size_t)s->o.batch + i) * 2 * half;
    s->k->rope(out, head, cosines, cosines + half, l->head_dim / 2);
}

/* Token i's queries, turned and scaled, to where attend() finds those that share a kv head side by side */
static void store_queries(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t group = group_of(l), width = width_of(l);
    float head[MAX_HEAD] = {0};
    for (size_t a = 0; a < l->n_heads; a++) {
        float *q = s->q + ((a / group * s->o.batch + i) * group + a % group) * width;
        rotate(s, l, i, s->qkv + i * s->qkv_dim + a * l->head_dim, head);
        for (size_t c = 0; c < width; c++)
            q[c] = head[c] * l->attn_scale;
    }
}

/* A head's key or value (width,) into the cache; beyond fp16 its largest number */
static void store_head(llm_session *s, size_t layer, size_t kind, size_t a, size_t i, const float *head) {
    const size_t width = width_of(&s->m->layers[layer]);
    uint16_t *kv = cache(s, s->seqs[i], layer, kind, a), halves[MAX_HEAD];
    s->k->to_half(halves, head, width);
    for (size_t c = 0; c < width; c++) {
        const int infinite = (halves[c] & 0x7fff) == 0x7c00;
        kv[kv_offset(kind, width, s->pos[i], c)] = (uint16_t)(halves[c] - infinite);
    }
}

static void store_keys_and_values(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t q_dim = (size_t)l->n_heads * l->head_dim, kv_dim = (size_t)l->n_kv_heads * l->head_dim;
    const float *keys = s->qkv + i * s->qkv_dim + q_dim, *values = keys + kv_dim;
    float head[MAX_HEAD] = {0};
    for (size_t a = 0; a < l->n_kv_heads; a++) {
        rotate(s, l, i, keys + a * l->head_dim, head);
        store_head(s, layer, KEYS, a, i, head);
        memcpy(head, values + a * l->head_dim, l->head_dim * sizeof *head);
        store_head(s, layer, VALUES, a, i, head);
    }
}

/* y (n, ldy) = x W^T of a small matrix by one thread, or += with `add` */
static void small_matmul(
    const kernels *k, const matrix *w, const activations *a, float *y, size_t ldy, int add) {
    for (size_t row = 0; row < w->rows; row += k->rows)
        k->few[LLM_FP16].rows(w, row, a, y, ldy, add);
}

/* Hides what a token at position `pos` does not attend to among SPAN scores of the positions from p on. */
static void mask(float *scores, size_t p, size_t pos, size_t window) {
    for (size_t c = SPAN; p + c > pos + 1; c--)
        scores[c - 1] = -INFINITY;
    for (size_t c = 0; c < SPAN && p + c + window <= pos; c++)
        scores[c] = -INFINITY;
}

/* Softmax attention of one run of tokens, of the query heads that share one kv head, over one part of their
 * sequence so far; SPAN positions at a time (Dao et al. 2022). `unit` numbers parts, then runs, then kv heads. */
static void attend(llm_session *s, size_t layer, size_t unit) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t a = unit % l->n_kv_heads, run = unit / l->n_kv_heads % s->n_runs;
    const size_t part = unit / l->n_kv_heads / s->n_runs;
    const size_t group = group_of(l), width = width_of(l), size = width + 2;
    const size_t first = s->runs[run], rows = (s->runs[run + 1] - first) * group; /* query heads */
    const size_t start = s->pos[first], end = start + rows / group;
    const size_t window = l->window ? l->window : end;
    const size_t seen = start < window ? 0 : (start + 1 - window) / SPAN * SPAN; /* the first page of use */
    const size_t part_begin = part * s->part, part_end = part_begin + s->part;
    const size_t row = (a * s->o.batch + first) * group; /* the first query head, in s->q and in a part */
    const uint16_t *keys = cache(s, s->seqs[first], layer, KEYS, a);
    const uint16_t *values = cache(s, s->seqs[first], layer, VALUES, a);
    float *scores = s->scores + THREAD * s->run * group * SPAN;
    float *out = s->parts + part * s->part_size + row * size;
    if (part_begin >= end)
        return;
    memset(out, 0, rows * size * sizeof *out);
    for (size_t m = 0; m < rows; m++)
        out[m * size + width] = -0x1p127f;
    for (size_t p = part_begin > seen ? part_begin : seen; p < end && p < part_end; p += SPAN) {
        const size_t n = end - p < SPAN ? end - p : SPAN;
        const size_t m0 = p > start ? (p - start) * group : 0; /* query heads before it see none of them */
        const matrix k = {.tiles = (const uint8_t *)(keys + p * width),
            .tile_size = LLM_TILE * width * sizeof *keys,
            .rows = n,
            .cols = width,
            .dtype = LLM_FP16};
        const matrix v = {.tiles = (const uint8_t *)(values + p * width),
            .tile_size = LLM_TILE * SPAN * sizeof *values,
            .rows = width,
            .cols = n,
            .dtype = LLM_FP16};
        const activations q = {.n = rows - m0, .x = s->q + (row + m0) * width, .ldx = width};
        const activations weight = {.n = rows - m0, .x = scores, .ldx = SPAN};
        small_matmul(s->k, &k, &q, scores, SPAN, 0); /* scores (rows, n) = q (rows, width) @ K (n, width)^T */
        for (size_t m = m0; m < rows; m++) {
            float *score = scores + (m - m0) * SPAN;
            if (l->attn_cap > 0)
                s->k->softcap(score, l->attn_cap);
            mask(score, p, start + m / group, window);
            s->k->online_softmax(score, out + m * size, width);
        }
        /* out (rows, width) += weights (rows, n) @ V^T (width, n)^T */
        small_matmul(s->k, &v, &weight, out + m0 * size, size, 1);
    }
}

/* att (n_heads, head_dim) of token i: the parts of each head become one, divided by its sum of weights. */
static void merge_parts(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t group = group_of(l), width = width_of(l), hd = l->head_dim, q_dim = l->n_heads * hd;
    const size_t stride = tensor(s->m, layer, LLM_ATTN_OUT)->stride;
    float *att = s->att + i * stride;
    for (size_t a = 0; a < l->n_heads; a++) {
        const size_t row = (a / group * s->o.batch + i) * group + a % group;
        float *out = s->parts + row * (width + 2);
        for (size_t part = 1; part * s->part <= s->pos[i]; part++)
            s->k->merge(out, out + part * s->part_size, width);
        for (size_t c = 0; c < hd; c++)
            att[a * hd + c] = out[c] / out[width + 1];
    }
    memset(att + q_dim, 0, (stride - q_dim) * sizeof *att);
}

/* ------------------------------------------------------------------------------------------------------
 * Feed-forward: a gated unit (Shazeer 2020), or a mixture of them (Jiang et al. 2024, "Mixtral of Experts") */

/* out (n, dim) = (gains * up * activation(gate)) @ W_down (dim, ffn)^T, where gate and up (n, ffn each) = x (n, dim) @
 * W_gate_up (2 ffn, dim)^T; gains (n,), NULL: all 1 */
static void gated_unit(llm_session *s, const llm_layer *l, const llm_tensor *gate_up, const llm_tensor *down,
    size_t expert, size_t n, const float *x, const float *gains, float *out) {
    const size_t ffn = down->cols, stride = down->stride, groups = stride / LLM_GROUP;
    matmul(s, gate_up, expert, n, x, s->dim, s->gate, 2 * stride);
    EACH(unit, n * groups) {
        const size_t i = unit / groups, c = unit % groups * LLM_GROUP;
        const float *gate = s->gate + i * 2 * stride + c;
        float *hidden = s->hidden + i * stride + c;
        s->k->glu(hidden, gate, gate + ffn, gains ? gains[i] : 1, l->activation);
        if (c + LLM_GROUP > ffn)
            memset(hidden + (ffn - c), 0, (c + LLM_GROUP - ffn) * sizeof *hidden);
    }
    barrier(&s->barrier);
    matmul(s, down, expert, n, s->hidden, stride, out, s->dim);
}

static void feed_forward(llm_session *s, size_t layer, size_t n) {
    const llm_tensor *gate_up = tensor(s->m, layer, LLM_GATE_UP), *down = tensor(s->m, layer, LLM_DOWN);
    const float *x = block_input(s, layer, LLM_FFN_NORM, n);
    gated_unit(s, &s->m->layers[layer], gate_up, down, 0, n, x, NULL, s->out);
    add_block(s, layer, LLM_FFN_POST_NORM, n);
}

static void route(llm_session *s, size_t layer, size_t i);
static void sort_by_expert(llm_session *s, const llm_layer *l, size_t n);
static void expert(llm_session *s, size_t layer, size_t e, const float *x);

static void moe(llm_session *s, size_t layer, size_t n) {
    const llm_layer *l = &s->m->layers[layer];
    const float *x = block_input(s, layer, LLM_FFN_NORM, n);
    /* router (n, n_experts) = x (n, dim) @ W (n_experts, dim)^T */
    matmul_exact(s, tensor(s->m, layer, LLM_ROUTER), n, x, s->router, l->n_experts + 1);
    EACH(i, n) {
        route(s, layer, i);
        memset(s->out + i * s->dim, 0, s->dim * sizeof *s->out);
    }
    barrier(&s->barrier);
    if (THREAD == 0)
        sort_by_expert(s, l, n);
    barrier(&s->barrier);
    for (size_t e = 0; e <= l->n_experts; e++)
        if (s->starts[e] < s->starts[e + 1])
            expert(s, layer, e, x);
    barrier(&s->barrier);
    add_block(s, layer, LLM_FFN_POST_NORM, n);
}

static float sigmoid(float x) { return 1 / (1 + expf(-x)); }

/* x (n,) to exp(x) / the sum of all of them */
static void softmax(float *x, size_t n) {
    float max = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        max = fmaxf(max, x[i]);
    for (size_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        sum += x[i];
    }
    for (size_t i = 0; i < n; i++)
        x[i] /= sum;
}

/* The expert that is not taken and whose p + bias is largest, the lowest number among equals. There always is
 * one, whatever the numbers are: NaN is larger than nothing. */
static size_t best_expert(const float *p, const float *bias, const uint8_t *taken, size_t n) {
    size_t best = n;
    float most = 0;
    for (size_t e = 0; e < n; e++) {
        const float score = p[e] + (bias ? bias[e] : 0);
        if (!taken[e] && (best == n || score > most)) {
            best = e;
            most = score;
        }
    }
    return best;
}

/* The experts of token i and their weights. No expert is chosen twice: the buffers of a product have room for
 * each token once. */
static void route(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *add = tensor(s->m, layer, LLM_ROUTER_ADD);
    const float *bias = add->size ? floats(s->m, add) : NULL;
    const size_t n = l->n_experts, picks = picks_of(l);
    float *p = s->router + i * (n + 1), *gains = s->gains + i * picks, sum = 0;
    uint32_t *chosen = s->chosen + i * picks;
    uint8_t taken[MAX_EXPERTS] = {0};
    if (l->flags & LLM_ROUTER_SIGMOID) {
        for (size_t e = 0; e < n; e++)
            p[e] = sigmoid(p[e]);
    } else {
        softmax(p, n);
    }
    for (size_t k = 0; k < l->n_active; k++) {
        const size_t best = best_expert(p, bias, taken, n);
        taken[best] = 1;
        chosen[k] = (uint32_t)best;
        gains[k] = p[best];
        sum += p[best];
    }
    const float scale = l->flags & LLM_ROUTER_NORMALIZE ? l->expert_scale / sum : l->expert_scale;
    for (size_t k = 0; k < l->n_active; k++)
        gains[k] *= scale;
    if (l->shared_dim) {
        chosen[l->n_active] = (uint32_t)n;
        gains[l->n_active] = l->flags & LLM_SHARED_GATE ? sigmoid(p[n]) : 1;
    }
}

/* members and starts of n tokens' choices. By one thread. */
static void sort_by_expert(llm_session *s, const llm_layer *l, size_t n) {
    uint32_t m = 0;
    for (uint32_t e = 0; e <= l->n_experts; e++) {
        s->starts[e] = m;
        for (uint32_t place = 0; place < n * picks_of(l); place++)
            if (s->chosen[place] == e) {
                s->members[m] = place;
                m++;
            }
    }
    s->starts[l->n_experts + 1] = m;
}

/* out += expert e of its tokens, which are brought together, and then added where they belong */
static void expert(llm_session *s, size_t layer, size_t e, const float *x) {
    const llm_layer *l = &s->m->layers[layer];
    const int shared = e == l->n_experts;
    const llm_tensor *gate_up = tensor(s->m, layer, shared ? LLM_SHARED_GATE_UP : LLM_GATE_UP);
    const llm_tensor *down = tensor(s->m, layer, shared ? LLM_SHARED_DOWN : LLM_DOWN);
    const uint32_t *members = s->members + s->starts[e];
    const size_t n = s->starts[e + 1] - s->starts[e], picks = picks_of(l), row = s->dim * sizeof *x;
    EACH(i, n) {
        memcpy(s->expert_x + i * s->dim, x + members[i] / picks * s->dim, row);
        s->expert_gains[i] = s->gains[members[i]];
    }
    barrier(&s->barrier);
    gated_unit(s, l, gate_up, down, shared ? 0 : e, n, s->expert_x, s->expert_gains, s->expert_out);
    EACH(i, n)
        s->k->add_scaled(s->out + members[i] / picks * s->dim, s->expert_out + i * s->dim, 1, s->dim);
}

/* ------------------------------------------------------------------------------------------------------
 * Logits */

/* logits (n_rows, vocab_size) = norm(x) (n_rows, dim) @ W (vocab_size, dim)^T, of the tokens in s->rows */
static void unembed(llm_session *s, size_t n_rows, float *logits) {
    const llm_header *h = &s->m->h;
    const llm_tensor *norm = tensor(s->m, 0, LLM_OUT_NORM);
    const llm_tensor *w = tensor(s->m, 0, h->required & LLM_TIED ? LLM_EMBED : LLM_OUTPUT);
    barrier(&s->barrier);
    EACH(r, n_rows) {
        const float *x = s->x + s->rows[r] * s->dim;
        s->k->rmsnorm(s->xb + r * s->dim, x, floats(s->m, norm), h->dim, h->norm_eps);
    }
    barrier(&s->barrier);
    matmul(s, w, 0, n_rows, s->xb, s->dim, logits, h->vocab_size);
    if (h->logit_cap > 0)
        EACH(i, n_rows * h->vocab_size)
            logits[i] = h->logit_cap * tanhf(logits[i] / h->logit_cap);
}

/* ------------------------------------------------------------------------------------------------------
 * Products */

static matrix matrix_of(const llm_model *m, const llm_tensor *t, size_t expert) {
    const size_t padded = align(t->rows, LLM_TILE), groups = t->stride / LLM_GROUP;
    const size_t scales = t->dtype == LLM_INT8 ? padded * groups * sizeof(uint16_t) : 0;
    const uint8_t *w = weights(m, t, expert);
    return (matrix){.tiles = w,
        .tile_size = (t->size - scales) / (padded / LLM_TILE),
        .scales = (const uint16_t *)(w + t->size - scales),
        .rows = t->rows,
        .cols = t->stride,
        .dtype = t->dtype};
}

/* All threads: first the activations as the product wants them, then rows of W */
static void multiply(llm_session *s, const product *p, const matrix *w, size_t n, const float *x, size_t ldx,
    float *y, size_t ldy) {
    const size_t groups = w->cols / LLM_GROUP, units = (w->rows + s->k->rows - 1) / s->k->rows;
    activations a = {.x = x, .ldx = ldx, .q = s->quants, .ldq = w->cols + 32, .scales = s->scales};
    a.n = n < s->o.batch ? n : s->o.batch; /* what the buffers have rows for, whoever calls */
    if (p->prepare) {
        EACH(unit, a.n * groups) {
            const size_t i = unit / groups, g = unit % groups;
            int16_t *q = s->quants + i * a.ldq + g * LLM_GROUP;
            p->prepare(q, s->scales + unit, x + i * ldx + g * LLM_GROUP);
        }
        barrier(&s->barrier);
    }
    EACH(unit, units)
        p->rows(w, unit * s->k->rows, &a, y, ldy, 0);
    barrier(&s->barrier);
}

static void matmul(llm_session *s, const llm_tensor *t, size_t expert, size_t n, const float *x, size_t ldx,
    float *y, size_t ldy) {
    const matrix w = matrix_of(s->m, t, expert);
    const product *products = n < MANY ? s->k->few : s->k->many;
    multiply(s, &products[t->dtype], &w, n, x, ldx, y, ldy);
}

/* The same however many tokens there are, so that which experts they go to never depends on the batch */
static void matmul_exact(
    llm_session *s, const llm_tensor *t, size_t n, const float *x, float *y, size_t ldy) {
    const matrix w = matrix_of(s->m, t, 0);
    multiply(s, &s->k->few[t->dtype], &w, n, x, s->dim, y, ldy);
}

/* ------------------------------------------------------------------------------------------------------
 * What the numbers of a file mean */

/* fp16 to float and back (to nearest even) without hardware for it, after Giesen's "float->half variants". */
static float half_to_float(uint16_t half) {
    const float f = float_of((uint32_t)(half & 0x7fff) << 13) * 0x1p112f; /* moves the exponent's bias */
    const uint32_t infinite = f >= 65536.0f ? 0x7f800000 : 0;
    return float_of(bits_of(f) | infinite | (uint32_t)(half & 0x8000) << 16);
}

static uint16_t float_to_half(float f) {
    const uint32_t u = bits_of(f) & 0x7fffffff, sign = bits_of(f) >> 16 & 0x8000;
    const uint32_t subnormal = bits_of(float_of(u) + 0.5f) - 0x3f000000; /* + 0.5 rounds there */
    const uint32_t normal = (u - 0x38000000 + 0xfff + (u >> 13 & 1)) >> 13;
    const uint32_t huge = u > 0x7f800000 ? 0x7e00 : 0x7c00;
    if (u < 0x38800000)
        return (uint16_t)(sign | subnormal);
    return (uint16_t)(sign | (u < 0x47800000 ? normal : huge));
}

/* n columns from c0 on, of the tile that `row` is in, as floats (n, 16 rows). n and c0 are multiples of 4. */
static void unpack_fp16(const matrix *w, size_t row, size_t c0, size_t n, float out[][LLM_TILE]) {
    const uint16_t *tile = (const uint16_t *)(w->tiles + row / LLM_TILE * w->tile_size) + c0 * LLM_TILE;
    for (size_t c = 0; c < n; c++)
        for (size_t r = 0; r < LLM_TILE; r++)
            out[c][r] = half_to_float(tile[c * LLM_TILE + r]);
}

static void unpack_int8(const matrix *w, size_t row, size_t c0, size_t n, float out[][LLM_TILE]) {
    const int8_t *tile = (const int8_t *)(w->tiles + row / LLM_TILE * w->tile_size) + c0 * LLM_TILE;
    for (size_t r = 0; r < LLM_TILE; r++) {
        const size_t scale = in_tile(row / LLM_TILE * LLM_TILE + r, c0 / LLM_GROUP, w->cols / LLM_GROUP);
        const float by = half_to_float(w->scales[scale]);
        for (size_t c = 0; c < n; c++)
            out[c][r] = tile[(c / 4 * LLM_TILE + r) * 4 + c % 4] * by;
    }
}

static void (*const unpack[LLM_N_DTYPES])(const matrix *, size_t, size_t, size_t, float out[][LLM_TILE]) = {
    [LLM_FP16] = unpack_fp16,
    [LLM_INT8] = unpack_int8,
};

/* x (cols,) = a row of a tensor */
static void read_row(const llm_model *m, const llm_tensor *t, size_t row, float *x) {
    const matrix w = matrix_of(m, t, 0);
    float tile[LLM_GROUP][LLM_TILE];
    for (size_t c0 = 0; c0 < t->cols; c0 += LLM_GROUP) {
        unpack[w.dtype](&w, row, c0, LLM_GROUP, tile);
        for (size_t c = 0; c < LLM_GROUP && c0 + c < t->cols; c++)
            x[c0 + c] = tile[c][row % LLM_TILE];
    }
}

/* ------------------------------------------------------------------------------------------------------
 * The plain kernels: kernels.h says what they compute */

#define PLAIN_TOKENS 64 /* that a product takes at a time */

/* sums (n, 16) += x (n, cols) @ W (16, cols)^T */
static void plain_tile(
    const matrix *w, size_t row, size_t n, const float *x, size_t ldx, float sums[][LLM_TILE]) {
    float tile[LLM_GROUP][LLM_TILE];
    for (size_t c0 = 0; c0 < w->cols; c0 += LLM_GROUP) {
        const size_t cols = w->cols - c0 < LLM_GROUP ? w->cols - c0 : LLM_GROUP;
        unpack[w->dtype](w, row, c0, cols, tile);
        for (size_t t = 0; t < n; t++)
            for (size_t c = 0; c < cols; c++)
                for (size_t r = 0; r < LLM_TILE; r++)
                    sums[t][r] += tile[c][r] * x[t * ldx + c0 + c];
    }
}

static void plain_rows(const matrix *w, size_t row, const activations *a, float *y, size_t ldy, int add) {
    for (size_t t0 = 0; t0 < a->n; t0 += PLAIN_TOKENS) {
        const size_t n = a->n - t0 < PLAIN_TOKENS ? a->n - t0 : PLAIN_TOKENS;
        float sums[PLAIN_TOKENS][LLM_TILE] = {{0}};
        plain_tile(w, row, n, a->x + t0 * a->ldx, a->ldx, sums);
        for (size_t t = 0; t < n; t++)
            store_rows(w, row, sums[t], LLM_TILE, y + (t0 + t) * ldy, add);
    }
}

static void plain_rmsnorm(float *out, const float *x, const float *w, size_t n, float eps) {
    float squares = 0;
    for (size_t c = 0; c < n; c++)
        squares += x[c] * x[c];
    const float by = 1 / sqrtf(squares / (float)n + eps);
    for (size_t c = 0; c < n; c++)
        out[c] = x[c] * by * w[c];
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

/* SiLU (Elfwing et al. 2018), or GELU in its tanh form (Hendrycks and Gimpel 2016) */
static float activate(float x, uint32_t activation) {
    if (activation == LLM_GELU)
        return 0.5f * x * (1 + tanhf(0.797884561f * (x + 0.044715f * x * x * x)));
    return x * sigmoid(x);
}

static void plain_glu(float *out, const float *gate, const float *up, float gain, uint32_t activation) {
    for (size_t c = 0; c < LLM_GROUP; c++)
        out[c] = gain * up[c] * activate(gate[c], activation);
}

static void plain_softcap(float *scores, float cap) {
    for (size_t c = 0; c < SPAN; c++)
        scores[c] = cap * tanhf(scores[c] / cap);
}

static void plain_online_softmax(float *scores, float *out, size_t width) {
    const float old_max = out[width];
    float max = old_max, sum = 0;
    for (size_t c = 0; c < SPAN; c++)
        max = fmaxf(max, scores[c]);
    for (size_t c = 0; c < width + 2; c++)
        out[c] *= expf(old_max - max);
    for (size_t c = 0; c < SPAN; c++) {
        scores[c] = expf(scores[c] - max);
        sum += scores[c];
    }
    out[width] = max;
    out[width + 1] += sum;
}

static void plain_merge(float *out, const float *more, size_t width) {
    const float max = fmaxf(out[width], more[width]);
    const float by = expf(out[width] - max), more_by = expf(more[width] - max);
    for (size_t c = 0; c < width + 2; c++)
        out[c] = out[c] * by + more[c] * more_by;
    out[width] = max;
}

static int always(void) { return 1; }

static const kernels kernels_plain = {
    .name = "scalar",
    .has = always,
    .rows = LLM_TILE,
    .few = {[LLM_FP16] = {NULL, plain_rows}, [LLM_INT8] = {NULL, plain_rows}},
    .many = {[LLM_FP16] = {NULL, plain_rows}, [LLM_INT8] = {NULL, plain_rows}},
    .rmsnorm = plain_rmsnorm,
    .add_scaled = plain_add_scaled,
    .rope = plain_rope,
    .to_half = plain_to_half,
    .glu = plain_glu,
    .softcap = plain_softcap,
    .online_softmax = plain_online_softmax,
    .merge = plain_merge,
};

const kernels *pick_kernels(char *err, size_t errlen) {
    static const kernels *const all[] = {VECTOR_KERNELS & kernels_plain};
    const char *want = getenv("PYLLM_ISA");
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const int wanted = !want || !*want || !strcmp(want, all[i]->name);
        if (wanted && all[i]->has())
            return all[i];
    }
    return FAIL_NULL("PYLLM_ISA: this processor or build has no \"%.32s\"", want);
}
