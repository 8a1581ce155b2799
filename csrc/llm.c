/* llm.c - the engine: runs the forward pass over a model that file.c has mapped and checked.
 *
 * It owns the mathematics: no text, no files, and no model families; what differs between them is in the header's
 * and the layers' numbers and flags. It allocates nothing, and never prints or exits.
 *
 * Read session.h first, what a session owns; then this from top to bottom: llm_forward(); the forward pass in the
 * order of the papers - embed, attention or what stands for it, feed-forward or experts, logits; and products. What
 * the numbers of a file mean is in numbers.c; the kernels are in isa_plain.c, and those for one instruction set in the
 * other isa_*.c, which only make it faster. */
#include "session.h"
#include "fail.h"
#include "numbers.h"
#include <math.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------------
 * llm_forward: tokens, batch by batch, through the forward pass */

/* One batch on its way through the layers; logits are of the tokens in s->rows, states of those in s->state_rows */
typedef struct batch {
    llm_session *s;
    size_t n;
    const uint32_t *tokens; /* (n,) */
    size_t n_rows;
    float *logits; /* (n_rows, vocab_size) */
    size_t n_states;
    float *states; /* (n_states, dim) */
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
    forget(s, seq);
    s->before[i] = s->latest[seq];
    s->latest[seq] = (uint32_t)i;
    const int follows = i > 0 && seq == s->seqs[i - 1];
    if (!follows || i == s->runs[s->n_runs - 1] + s->run) {
        s->runs[s->n_runs] = (uint32_t)i;
        s->n_runs++;
    }
}

/* The first of the rows x (n, width) with a number that is not finite; n: none */
static size_t first_bad_row(const float *x, size_t n, size_t width) {
    for (size_t r = 0; r < n; r++) {
        uint32_t bad = 0;
        for (size_t i = 0; i < width; i++)
            bad |= (bits_of(x[r * width + i]) & 0x7f800000) == 0x7f800000;
        if (bad)
            return r;
    }
    return n;
}

/* As many of the n tokens that are left as a batch has room for: their places, and what is wanted of each */
static batch next_batch(llm_session *s, size_t n, const uint32_t *tokens, const uint32_t *seqs,
    const uint8_t *want, float *logits, float *states) {
    batch b = {
        .s = s, .n = n < s->o.batch ? n : s->o.batch, .tokens = tokens, .logits = logits, .states = states};
    s->n_runs = 0;
    for (size_t i = 0; i < b.n; i++)
        s->latest[seqs ? seqs[i] : 0] = NONE;
    for (size_t i = 0; i < b.n; i++) {
        place_token(s, i, seqs ? seqs[i] : 0);
        const int wanted = want ? want[i] : i + 1 == n ? LLM_WANT_LOGITS : 0;
        if (logits && wanted & LLM_WANT_LOGITS) {
            s->rows[b.n_rows] = (uint32_t)i;
            b.n_rows++;
        }
        if (states && wanted & LLM_WANT_STATE) {
            s->state_rows[b.n_states] = (uint32_t)i;
            b.n_states++;
        }
    }
    s->runs[s->n_runs] = (uint32_t)b.n;
    return b;
}

/* A token of the batch of which something that is not finite came out; b->n: none */
static size_t first_bad_token(const batch *b) {
    const llm_session *s = b->s;
    const size_t row = first_bad_row(b->logits, b->n_rows, s->m->h.vocab_size);
    if (row < b->n_rows)
        return s->rows[row];
    const size_t state = first_bad_row(b->states, b->n_states, s->m->h.dim);
    return state < b->n_states ? s->state_rows[state] : b->n;
}

/* Once it is, a pass leaves out what takes long, and its result is nobody's. */
static int stopped(const llm_session *s) { return atomic_load_explicit(&s->stopped, memory_order_relaxed); }

/* The states of n tokens' sequences are read where they were written, from now on. */
static void go_on_with_states(llm_session *s, size_t n) {
    if (!s->slot_size)
        return;
    for (size_t i = 0; i < n; i++)
        s->slot_in[s->seqs[i]] = s->slot_out[s->seqs[i]];
}

/* Takes n tokens back; sequences that they took too far for that are dropped. */
static void take_back(llm_session *s, size_t n, const uint32_t *seqs) {
    for (size_t i = 0; i < n; i++)
        s->length[seqs ? seqs[i] : 0]--;
    for (uint32_t seq = 0; seq < s->o.n_seqs; seq++)
        if (s->length[seq] < s->oldest[seq])
            llm_truncate(s, seq, 0, NULL, 0);
}

int llm_forward_states(llm_session *s, size_t n, const uint32_t *tokens, const uint32_t *seqs,
    const uint8_t *want, float *logits, float *states, char *err, size_t errlen) {
    TRY(check_tokens(s, n, tokens, seqs, err, errlen));
    plan_states(s);
    for (size_t at = 0; at < n; at += s->o.batch) {
        const uint32_t *next_seqs = seqs ? seqs + at : NULL;
        const uint8_t *next_want = want ? want + at : NULL;
        const batch b = next_batch(s, n - at, tokens + at, next_seqs, next_want, logits, states);
        team(s->o.threads, forward, (void *)&b);
        const size_t bad = first_bad_token(&b);
        if (bad < b.n || stopped(s)) {
            take_back(s, at + b.n, seqs);
            REQUIRE(!stopped(s), "the session was stopped");
            return FAIL("the logits after token %zu are not finite: a number in the model or in what its "
                        "sequence keeps is not, or grew too large",
                at + bad);
        }
        if (logits)
            logits += b.n_rows * s->m->h.vocab_size;
        if (states)
            states += b.n_states * s->m->h.dim;
        go_on_with_states(s, b.n);
    }
    mark_states(s);
    return 0;
}

int llm_forward(llm_session *s, size_t n, const uint32_t *tokens, const uint32_t *seqs, const uint8_t *want,
    float *logits, char *err, size_t errlen) {
    return llm_forward_states(s, n, tokens, seqs, want, logits, NULL, err, errlen);
}

/* ------------------------------------------------------------------------------------------------------
 * The forward pass (Vaswani et al. 2017; Touvron et al. 2023, "LLaMA").
 *
 * Every function below that has EACH, DEAL or barrier() is run by all threads of the team together: EACH shares its
 * numbers out between them, barrier() waits for all of them, and everything else is done by each of them alike. No
 * sum is split between threads, and the order of a sum does not depend on what else is computed: so results depend
 * neither on the number of threads nor on the batch; but for fp16 without o.exact, which is rounded to integers where
 * there are MANY_HALVES tokens.
 *
 * In the comments, W (rows, cols) is a tensor of llm.h, and n the tokens of the batch. */

static void embed(llm_session *s, size_t n, const uint32_t *tokens);
static void attention(llm_session *s, size_t layer, size_t n);
static void short_convolution(llm_session *s, size_t layer, size_t n);
static void delta_rule(llm_session *s, size_t layer, size_t n);
static void feed_forward(llm_session *s, size_t layer, size_t n);
static void moe(llm_session *s, size_t layer, size_t n);
static void ple_block(llm_session *s, size_t layer, size_t n);
static void open_streams(llm_session *s, size_t n);
static void predict_streams(llm_session *s, size_t layer, size_t n);
static void correct_streams(llm_session *s, size_t layer, size_t n);
static void close_streams(llm_session *s, size_t n);
static void scale_layer(llm_session *s, size_t layer, size_t n);
static void unembed(llm_session *s, size_t n_rows, float *logits);
static void show_states(llm_session *s, size_t n_states, float *states);

/* Products are over, for now. */
static void done(const llm_session *s) {
    if (s->k->done)
        s->k->done();
}

static void forward(void *context) {
    const batch *b = context;
    llm_session *s = b->s;
    const int several = s->m->h.n_streams > 1;
    embed(s, b->n, b->tokens);
    if (several)
        open_streams(s, b->n);
    for (size_t layer = 0; layer < s->m->h.n_layers; layer++) {
        if (several)
            predict_streams(s, layer, b->n);
        if (s->m->layers[layer].mixer == LLM_ATTENTION)
            attention(s, layer, b->n);
        else if (s->m->layers[layer].mixer == LLM_SHORT_CONV)
            short_convolution(s, layer, b->n);
        else
            delta_rule(s, layer, b->n);
        if (s->m->layers[layer].ffn == LLM_EXPERTS)
            moe(s, layer, b->n);
        else
            feed_forward(s, layer, b->n);
        if (several)
            correct_streams(s, layer, b->n);
        if (s->m->h.ple_dim)
            ple_block(s, layer, b->n);
        scale_layer(s, layer, b->n);
    }
    if (several)
        close_streams(s, b->n);
    unembed(s, b->n_rows, b->logits);
    show_states(s, b->n_states, b->states);
    done(s);
}

/* y (n, rows) = x (n, cols) @ W (rows, cols)^T; W is tensor t, of expert e. See "Products". */
static void matmul(llm_session *s, const llm_tensor *t, size_t e, size_t n, vectors x, vectors y);
static void matmul_exact(llm_session *s, const llm_tensor *t, size_t n, vectors x, vectors y);

/* x (cols,) = a row of a tensor; or x += scale * it. See "Products". */
static void read_row(const llm_session *s, const llm_tensor *t, size_t row, float *x);
static void add_row(const llm_session *s, const llm_tensor *t, size_t row, float scale, float *x);

/* A vector of the file */
static const float *floats(const llm_session *s, const llm_tensor *t) {
    return (const float *)weights(s->m, t, 0);
}

/* out = the norm of x (cols,) that a layer's flags, or the header's, say, with row `row` of the tensor's weights.
 * out may be x. */
static void norm_by(
    const llm_session *s, uint64_t flags, const llm_tensor *t, size_t row, const float *x, float *out) {
    const float *w = floats(s, t) + row * t->stride;
    const float *bias = flags & LLM_NORM_BIAS ? w + t->rows / 2 * t->stride : NULL;
    if (flags & LLM_LAYER_NORM)
        s->k->layernorm(out, x, w, bias, t->cols, s->m->h.norm_eps);
    else
        s->k->rmsnorm(out, x, w, t->cols, s->m->h.norm_eps);
}

/* out = RMSNorm(x), whatever the others are */
static void rmsnorm(const llm_session *s, const llm_tensor *t, const float *x, float *out) {
    norm_by(s, 0, t, 0, x, out);
}

/* ... one of those that occur once */
static void norm_once(const llm_session *s, uint32_t id, const float *x, float *out) {
    norm_by(s, s->m->h.required, tensor(s->m, 0, id), 0, x, out);
}

/* ------------------------------------------------------------------------------------------------------
 * Embedding, and how blocks read and write the residual stream */

/* The cosines and sines of position `pos`, times its magnitude, for each angle of a rotary table */
static void find_angles(const llm_angle *table, size_t half, uint32_t pos, float *cosines, float *sines) {
    for (size_t c = 0; c < half; c++) {
        const float turn = (float)pos * table[c].frequency;
        cosines[c] = table[c].magnitude * cosf(turn);
        sines[c] = table[c].magnitude * sinf(turn);
    }
}

/* Where the cosines and then the sines of token i lie, for a rotary table */
static float *rotation_of(const llm_session *s, size_t table, size_t i) {
    return s->rotation + (table * s->o.batch + i) * s->m->h.rope_dim;
}

static void embed_ple(llm_session *s, size_t n, const uint32_t *tokens);
static void norm_heads(llm_session *s, uint64_t flags, const llm_tensor *norm, float *x, size_t size);

/* x (n, dim) = rows of the embedding; the angles by which each position turns; and embeddings of each layer's own */
static void embed(llm_session *s, size_t n, const uint32_t *tokens) {
    const llm_header *h = &s->m->h;
    const llm_tensor *w = tensor(s->m, 0, LLM_EMBED);
    const size_t half = h->rope_dim / 2;
    EACH(i, n) {
        float *x = row_of(s->x, i), *row = row_of(s->xb, i);
        read_row(s, w, tokens[i], row);
        for (size_t c = 0; c < h->dim; c++)
            x[c] = row[c] * h->embed_scale;
        if (h->required & LLM_POSITION_TABLE)
            add_row(s, tensor(s->m, 0, LLM_POSITIONS), s->pos[i], 1, x);
        if (h->required & LLM_INPUT_NORM)
            norm_once(s, LLM_EMBED_NORM, x, x);
        for (size_t table = 0; table < h->n_rope; table++) {
            float *cosines = rotation_of(s, table, i);
            find_angles(s->m->rope + table * half, half, s->pos[i], cosines, cosines + half);
        }
    }
    barrier(&s->barrier);
    if (h->ple_dim)
        embed_ple(s, n, tokens);
}

/* ple (n, n_layers * ple_dim) = norms of a projection of the embedding, which is in xb, plus a row of a
 * table */
static void embed_ple(llm_session *s, size_t n, const uint32_t *tokens) {
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

/* x += the bias that tensor t is, of expert e, times scale; nothing if there is none */
static void add_bias(const llm_session *s, const llm_tensor *t, size_t e, float scale, float *x) {
    if (t->size)
        s->k->add_scaled(x, (const float *)weights(s->m, t, e), scale, t->cols);
}

/* xb (n, dim) = the norm `id` of the residual stream. Has no barrier. */
static void norm_stream(llm_session *s, size_t layer, uint32_t id, size_t n) {
    const uint64_t flags = s->m->layers[layer].flags;
    EACH(i, n)
        norm_by(s, flags, tensor(s->m, layer, id), 0, row_of(s->x, i), row_of(s->xb, i));
}

/* What a block reads (n, dim): the norm `id` of the residual stream, or without one the stream itself. What the second
 * of two blocks side by side reads is there already. */
static vectors block_input(llm_session *s, size_t layer, uint32_t id, size_t n) {
    const llm_tensor *norm = tensor(s->m, layer, id);
    const int made = id == LLM_FFN_NORM && s->m->layers[layer].flags & LLM_PARALLEL;
    if (norm->size && !made)
        norm_stream(s, layer, id, n);
    barrier(&s->barrier);
    return norm->size || made ? s->xb : s->x;
}

/* x += out, through the norm `id` if there is one. Has no barrier: block_input() gives each thread the same
 * tokens. */
static void add_block(llm_session *s, size_t layer, uint32_t id, size_t n) {
    const llm_tensor *norm = tensor(s->m, layer, id);
    const llm_header *h = &s->m->h;
    EACH(i, n) {
        float *out = row_of(s->out, i);
        if (norm->size)
            norm_by(s, s->m->layers[layer].flags, norm, 0, out, out);
        s->k->add_scaled(row_of(s->x, i), out, h->residual_scale, h->dim);
    }
}

/* ------------------------------------------------------------------------------------------------------
 * Attention: query heads share keys and values in groups (Ainslie et al. 2023), over all positions or a window */

static const product *product_of(const llm_session *s, uint32_t kind, size_t n);
static const product *page_product(const llm_session *s, int kind, size_t n);
static void prepare(
    llm_session *s, const product *p, size_t group, const activations *a, size_t i, size_t from, size_t to);

static void bias_and_norm(llm_session *s, size_t layer, size_t i);
static void store_queries(llm_session *s, size_t layer, size_t i);
static void store_keys_and_values(llm_session *s, size_t layer, size_t i);
static void attend(llm_session *s, size_t layer, size_t unit);
static void merge_parts(llm_session *s, size_t layer, size_t i);
static void gate_heads(llm_session *s, size_t layer, size_t i);
static void pass_by(llm_session *s, size_t layer, size_t n, vectors x);
static void add_what_passed(llm_session *s, size_t n);
static void store_heads(llm_session *s, size_t layer, size_t n);
static void store_latents(llm_session *s, size_t layer, size_t n);
static void matmul_heads(llm_session *s, const llm_tensor *t, size_t n, vectors x, size_t width, vectors y);

static void attention(llm_session *s, size_t layer, size_t n) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *w_qkv = tensor(s->m, layer, LLM_QKV);
    const llm_tensor *w_out = tensor(s->m, layer, LLM_ATTN_OUT);
    const llm_tensor *out_bias = tensor(s->m, layer, LLM_OUT_BIAS);
    const vectors x = block_input(s, layer, LLM_ATTN_NORM, n);
    if (l->low_rank)
        pass_by(s, layer, n, x);
    /* qkv (n, q_dim + k_dim + v_dim + gate_dim) = x (n, dim) @ W (the same, dim)^T */
    matmul(s, w_qkv, 0, n, x, s->qkv);
    if (l->latent_dim)
        store_latents(s, layer, n);
    else
        store_heads(s, layer, n);
    barrier(&s->barrier);
    DEAL(unit, s->n_parts * s->n_runs * head_groups_of(l))
        if (!stopped(s))
            attend(s, layer, unit);
    barrier(&s->barrier);
    EACH(i, n) {
        merge_parts(s, layer, i);
        gate_heads(s, layer, i);
    }
    barrier(&s->barrier);
    if (l->latent_dim)
        /* att (n, n_heads, value_dim) = latents (n, n_heads, latent_dim) @ W (value_dim, latent_dim)^T of each head */
        matmul_heads(s, tensor(s->m, layer, LLM_V_UP), n, s->latents, value_dim_of(l), s->att);
    /* out (n, dim) = att (n, att_dim) @ W (dim, att_dim)^T */
    matmul(s, w_out, 0, n, s->att, s->out);
    EACH(i, n)
        add_bias(s, out_bias, 0, 1, row_of(s->out, i));
    if (l->flags & LLM_PARALLEL && !(l->flags & LLM_ONE_NORM))
        norm_stream(s, layer, LLM_FFN_NORM, n);
    add_block(s, layer, LLM_ATTN_POST_NORM, n);
    if (l->low_rank)
        add_what_passed(s, n);
}

/* laurel (n, dim) = x (n, dim) plus a norm of its product with a matrix of low rank (Menghani et al. 2024, "LAuReL") */
static void pass_by(llm_session *s, size_t layer, size_t n, vectors x) {
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
static void add_what_passed(llm_session *s, size_t n) {
    EACH(i, n) {
        float *x = row_of(s->x, i);
        s->k->add_scaled(x, row_of(s->laurel, i), 1, s->m->h.dim);
        for (size_t c = 0; c < s->m->h.dim; c++)
            x[c] *= 0.70710678f;
    }
}

/* Queries, keys and values of n tokens, from what W_QKV made of them */
static void store_heads(llm_session *s, size_t layer, size_t n) {
    EACH(i, n) {
        bias_and_norm(s, layer, i);
        store_queries(s, layer, i);
        if (s->m->layers[layer].kv_layer == layer)
            store_keys_and_values(s, layer, i);
    }
}

/* x (size,) in pieces as wide as the norm: heads, or all of them together */
static void norm_heads(llm_session *s, uint64_t flags, const llm_tensor *norm, float *x, size_t size) {
    const int each = (flags & LLM_QK_NORM_EACH) != 0;
    for (size_t k = 0; k < size / norm->cols; k++) {
        float *piece = x + k * norm->cols;
        norm_by(s, flags, norm, each ? k : 0, piece, piece);
    }
}

/* Each head of the values of a token, through a norm without weights */
static void norm_values(llm_session *s, const llm_layer *l, float *values) {
    static const float ones[MAX_HEAD] = {[0 ... MAX_HEAD - 1] = 1};
    for (size_t c = 0; c < v_dim_of(l); c += value_dim_of(l))
        s->k->rmsnorm(values + c, values + c, ones, value_dim_of(l), s->m->h.norm_eps);
}

/* x (n,) to -clip to clip; what is no number stays */
static void clip(float *x, size_t n, float most) {
    for (size_t c = 0; c < n; c++) {
        x[c] = x[c] > most ? most : x[c];
        x[c] = x[c] < -most ? -most : x[c];
    }
}

/* The projections of token i get their bias and are cut, values get their norm, and queries and keys theirs, if it comes
 * before the rotation. */
static void bias_and_norm(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *bias = tensor(s->m, layer, LLM_BIAS);
    const llm_tensor *q_norm = tensor(s->m, layer, LLM_Q_NORM);
    const llm_tensor *k_norm = tensor(s->m, layer, LLM_K_NORM);
    float *qkv = row_of(s->qkv, i), *keys = qkv + q_dim_of(l), *values = keys + k_dim_of(l);
    add_bias(s, bias, 0, 1, qkv);
    if (l->qkv_clip > 0)
        clip(qkv, tensor(s->m, layer, LLM_QKV)->rows - gate_dim_of(l), l->qkv_clip);
    if (l->flags & LLM_V_IS_K)
        memcpy(values, keys, k_dim_of(l) * sizeof *values);
    if (l->flags & LLM_V_NORM)
        norm_values(s, l, values);
    if (l->flags & LLM_QK_NORM_LATE)
        return;
    if (q_norm->size)
        norm_heads(s, l->flags, q_norm, qkv, q_dim_of(l));
    if (k_norm->size)
        norm_heads(s, l->flags, k_norm, keys, k_dim_of(l));
}

/* Head a of token i, turned by its position's angles (Su et al. 2021), and what its norm makes of it, if it comes late */
static void rotate(llm_session *s, const llm_layer *l, const llm_tensor *norm, size_t a, size_t i,
    const float *head, float *out) {
    const float *cosines = rotation_of(s, l->rope, i);
    const float *sines = cosines + s->m->h.rope_dim / 2;
    s->k->rope(out, head, cosines, sines, turning_of(l) / 2);
    if (l->flags & LLM_QK_NORM_LATE)
        norm_by(s, l->flags, norm, l->flags & LLM_QK_NORM_EACH ? a : 0, out, out);
}

/* Which row of s->q, and of a part, query head a of token i is: those that share a kv head follow each other */
static size_t query_row(const llm_session *s, size_t group, size_t a, size_t i) {
    return (a / group * s->o.batch + i) * group + a % group;
}

/* What multiplies the queries of a position: more and more, so that attention over long texts stays sharp (Nakanishi 2025,
 * "Scalable-Softmax"; Llama 4) */
static float query_scale(const llm_layer *l, size_t pos) {
    if (!l->query_span)
        return l->attn_scale;
    const float spans = floorf((float)(pos + l->query_shift) / (float)l->query_span);
    return l->attn_scale * (1 + l->query_growth * logf(1 + spans));
}

/* Token i's queries, turned and scaled */
static void store_queries(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *norm = tensor(s->m, layer, LLM_Q_NORM);
    const size_t width = key_width(l);
    const float scale = query_scale(l, s->pos[i]);
    const float *queries = row_of(s->qkv, i);
    float head[MAX_HEAD] = {0};
    for (size_t a = 0; a < l->n_heads; a++) {
        float *q = s->q + query_row(s, group_of(l), a, i) * width;
        rotate(s, l, norm, a, i, queries + a * l->head_dim, head);
        for (size_t c = 0; c < width; c++)
            q[c] = head[c] * scale;
    }
}

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

static void store_head(llm_session *s, size_t layer, int kind, size_t a, size_t i, float *head) {
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

static void store_keys_and_values(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *norm = tensor(s->m, layer, LLM_K_NORM);
    const float *keys = row_of(s->qkv, i) + q_dim_of(l);
    const float *values = keys + k_dim_of(l);
    const size_t value_dim = value_dim_of(l);
    float head[MAX_HEAD];
    for (size_t a = 0; a < l->n_kv_heads; a++) {
        memset(head, 0, sizeof head);
        rotate(s, l, norm, a, i, keys + a * l->head_dim, head);
        store_head(s, layer, KEYS, a, i, head);
        memset(head, 0, sizeof head);
        memcpy(head, values + a * value_dim, value_dim * sizeof *head);
        store_head(s, layer, VALUES, a, i, head);
    }
}

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

/* Softmax attention of one unit, a block of positions at a time (Dao et al. 2022), to s->parts. Where blocks begin does
 * not depend on the batch. */
static void attend(llm_session *s, size_t layer, size_t unit) {
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

/* att (n_heads, value_dim), or latents (n_heads, latent_width), of token i: the parts of each head become one, divided by
 * its sum of weights, to which a sink adds its own. */
static void merge_parts(llm_session *s, size_t layer, size_t i) {
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

static float sigmoid(float x) { return 1 / (1 + expf(-x)); }

/* ln(1 + exp(x)), in double: log1pf() is not the same in every C library */
static float softplus(float x) { return (float)(fmax(x, 0) + log1p(exp(-fabs((double)x)))); }

/* att of token i times its gates: of each number, or of each head */
static void gate_heads(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const float *gates = row_of(s->qkv, i) + tensor(s->m, layer, LLM_QKV)->rows - gate_dim_of(l);
    const size_t per_gate = gate_dim_of(l) ? att_dim_of(l) / gate_dim_of(l) : 0;
    float *att = row_of(s->att, i);
    for (size_t g = 0; g < gate_dim_of(l); g++) {
        const float gate = l->flags & LLM_OUT_GATE_SOFTPLUS ? softplus(gates[g]) : sigmoid(gates[g]);
        for (size_t c = 0; c < per_gate; c++)
            att[g * per_gate + c] *= gate;
    }
}

/* ------------------------------------------------------------------------------------------------------
 * Latent attention (DeepSeek-AI 2024, "DeepSeek-V2"): keys and values of all heads are made of one latent, so that the
 * latent itself can be attended to, by queries which what makes keys of it has gone into */

/* What queries and keys of token i are made of, normalised: the low rank to s->low, if there is one; the latent stays
 * where it is */
static void norm_latent(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *q_norm = tensor(s->m, layer, LLM_Q_NORM);
    const llm_tensor *norm = tensor(s->m, layer, LLM_K_NORM);
    float *qkv = row_of(s->qkv, i), *latent = qkv + latent_at(l), *low = row_of(s->low, i);
    add_bias(s, tensor(s->m, layer, LLM_BIAS), 0, 1, qkv);
    s->k->rmsnorm(latent, latent, floats(s, norm), l->latent_dim, l->latent_eps);
    if (q_norm->size) {
        s->k->rmsnorm(low, qkv, floats(s, q_norm), l->q_rank, l->latent_eps);
        memset(low + l->q_rank, 0, (align(l->q_rank, LLM_GROUP) - l->q_rank) * sizeof *low);
    }
}

/* Queries (n, n_heads, head_dim), each what does not turn and then what does */
static vectors latent_queries(const llm_session *s, const llm_layer *l) {
    return (vectors){s->qkv.data + (l->q_rank ? latent_rows_of(l) : 0), s->qkv.stride};
}

/* plain (n_heads, plain_width) of token i: what does not turn of its queries */
static void gather_plain(llm_session *s, const llm_layer *l, size_t i) {
    const size_t plain_dim = l->head_dim - l->turn_dim, width = plain_width(l);
    const float *queries = row_of(latent_queries(s, l), i);
    float *plain = row_of(s->plain, i);
    memset(plain, 0, l->n_heads * width * sizeof *plain);
    for (size_t a = 0; a < l->n_heads; a++)
        memcpy(plain + a * width, queries + a * l->head_dim, plain_dim * sizeof *plain);
}

/* Token i's queries, of latents and of what turns beside them */
static void store_latent_queries(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t width = key_width(l);
    const float scale = query_scale(l, s->pos[i]);
    const float *turning = row_of(latent_queries(s, l), i) + l->head_dim - l->turn_dim;
    const float *latents = row_of(s->latents, i);
    float head[MAX_HEAD] = {0};
    for (size_t a = 0; a < l->n_heads; a++) {
        float *q = s->q + query_row(s, group_of(l), a, i) * width;
        memcpy(head, latents + a * latent_width(l), l->latent_dim * sizeof *head);
        rotate(s, l, NULL, 0, i, turning + a * l->head_dim, head + l->latent_dim);
        for (size_t c = 0; c < width; c++)
            q[c] = head[c] * scale;
    }
}

/* Token i's latent and what turns beside it is its key, the latent alone its value. */
static void store_latent(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const float *latent = row_of(s->qkv, i) + latent_at(l);
    float head[MAX_HEAD] = {0};
    memcpy(head, latent, l->latent_dim * sizeof *head);
    rotate(s, l, NULL, 0, i, latent + l->latent_dim, head + l->latent_dim);
    store_head(s, layer, KEYS, 0, i, head);
    memset(head, 0, sizeof head);
    memcpy(head, latent, l->latent_dim * sizeof *head);
    store_head(s, layer, VALUES, 0, i, head);
}

/* Queries, keys and values of n tokens, from what W_QKV made of them */
static void store_latents(llm_session *s, size_t layer, size_t n) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *q_up = tensor(s->m, layer, LLM_Q_UP);
    EACH(i, n)
        norm_latent(s, layer, i);
    barrier(&s->barrier);
    if (q_up->size)
        /* queries (n, q_dim) = low (n, q_rank) @ W (q_dim, q_rank)^T */
        matmul(s, q_up, 0, n, s->low, latent_queries(s, l));
    EACH(i, n)
        gather_plain(s, l, i);
    barrier(&s->barrier);
    /* latents (n, n_heads, latent_dim) = plain (n, n_heads, plain_dim) @ W (latent_dim, plain_dim)^T of each head */
    matmul_heads(s, tensor(s->m, layer, LLM_K_UP), n, s->plain, latent_width(l), s->latents);
    EACH(i, n) {
        store_latent_queries(s, layer, i);
        store_latent(s, layer, i);
    }
}

/* ------------------------------------------------------------------------------------------------------
 * States: a gated short convolution ("LFM2"), or the gated delta rule (Yang et al. 2024), in its recurrent form: token
 * by token, in the one order that does not depend on how they came. What is parallel is heads, and columns of theirs. */

/* What a convolution sees of `back` positions before token i: x (n, channels) of this batch, or what is kept; NULL: it
 * is before the first position */
static const float *conv_input(const llm_session *s, size_t layer, size_t i, size_t back, vectors x) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t seq = s->seqs[i];
    if (back > s->pos[i])
        return NULL;
    const size_t row = (s->pos[i] - back) % (l->conv_kernel - 1);
    while (back && s->before[i] != NONE) {
        i = s->before[i];
        back--;
    }
    return back ? window_of(s, seq, s->slot_in[seq], layer) + row * channels_of(&s->m->h, l) : row_of(x, i);
}

/* out (n,) += w * x */
static void add_product(float *out, const float *w, const float *x, size_t n) {
    for (size_t c = 0; c < n; c++)
        out[c] += w[c] * x[c];
}

/* out (channels,) = the convolution of x at token i */
static void convolve(const llm_session *s, size_t layer, size_t i, vectors x, float *out) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t channels = channels_of(&s->m->h, l);
    const float *w = floats(s, tensor(s->m, layer, LLM_CONV)); /* (conv_kernel, channels) */
    memset(out, 0, channels * sizeof *out);
    for (size_t back = l->conv_kernel; back > 0; back--) {
        const float *input = conv_input(s, layer, i, back - 1, x);
        if (input)
            add_product(out, w, input, channels);
        w += channels;
    }
}

/* What the convolution has to see again once token i was the last one, to a slot */
static void keep_window(const llm_session *s, size_t layer, size_t i, size_t slot, vectors x) {
    const size_t rows = s->m->layers[layer].conv_kernel - 1, pos = s->pos[i];
    const size_t channels = channels_of(&s->m->h, &s->m->layers[layer]);
    float *window = window_of(s, s->seqs[i], slot, layer);
    for (size_t back = 0; back < rows; back++) {
        const float *input = conv_input(s, layer, i, back, x);
        float *row = window + (pos + rows - back) % rows * channels;
        if (!input)
            memset(row, 0, channels * sizeof *row);
        else if (input != row)
            memcpy(row, input, channels * sizeof *row);
    }
}

/* Whether a sequence's state is to be kept as it is behind token i */
static int keeps(const llm_session *s, size_t i) {
    const size_t seq = s->seqs[i];
    return s->slot_keep[seq] != NONE && s->pos[i] + 1 == s->keep_at[seq];
}

/* The windows behind this batch; one thread does all of a sequence. */
static void keep_windows(const llm_session *s, size_t layer, size_t n, vectors x) {
    EACH(i, n) {
        const size_t seq = s->seqs[i];
        if (s->latest[seq] != i)
            continue;
        for (uint32_t at = (uint32_t)i; at != NONE; at = s->before[at])
            if (keeps(s, at))
                keep_window(s, layer, at, s->slot_keep[seq], x);
        keep_window(s, layer, i, s->slot_out[seq], x);
    }
}

static void short_convolution(llm_session *s, size_t layer, size_t n) {
    const size_t dim = s->m->h.dim;
    const llm_tensor *w_out = tensor(s->m, layer, LLM_ATTN_OUT);
    const vectors x = block_input(s, layer, LLM_ATTN_NORM, n);
    const vectors input = {s->qkv.data + 2 * dim, s->qkv.stride};
    /* b, c, x (n, 3 dim) = x (n, dim) @ W (3 dim, dim)^T */
    matmul(s, tensor(s->m, layer, LLM_QKV), 0, n, x, s->qkv);
    EACH(i, n)
        for (size_t c = 0; c < dim; c++)
            row_of(input, i)[c] *= row_of(s->qkv, i)[c];
    barrier(&s->barrier);
    EACH(i, n) {
        float *att = row_of(s->att, i);
        convolve(s, layer, i, input, att);
        for (size_t c = 0; c < dim; c++)
            att[c] *= row_of(s->qkv, i)[dim + c];
        memset(att + dim, 0, (w_out->stride - dim) * sizeof *att);
    }
    barrier(&s->barrier);
    keep_windows(s, layer, n, input);
    /* out (n, dim) = att (n, dim) @ W (dim, dim)^T */
    matmul(s, w_out, 0, n, s->att, s->out);
    add_block(s, layer, LLM_ATTN_POST_NORM, n);
}

static void mix_delta(llm_session *s, size_t layer, size_t i);
static void recur(llm_session *s, size_t layer, size_t unit, size_t n);
static void gate_delta(llm_session *s, size_t layer, size_t i);

/* Groups of columns of a head's state */
static size_t blocks_of(const llm_layer *l) { return align(l->delta_value_dim, LLM_GROUP) / LLM_GROUP; }

static void delta_rule(llm_session *s, size_t layer, size_t n) {
    const llm_layer *l = &s->m->layers[layer];
    const vectors x = block_input(s, layer, LLM_ATTN_NORM, n);
    /* qkv (n, channels + v_dim) = x (n, dim) @ W (channels + v_dim, dim)^T: q, k, v, z */
    matmul(s, tensor(s->m, layer, LLM_QKV), 0, n, x, s->qkv);
    /* gates (n, 2 delta_heads) = x (n, dim) @ W (2 delta_heads, dim)^T: b, a */
    matmul_exact(s, tensor(s->m, layer, LLM_STATE_GATES), n, x, s->gates);
    EACH(i, n)
        mix_delta(s, layer, i);
    barrier(&s->barrier);
    keep_windows(s, layer, n, s->qkv);
    DEAL(unit, l->delta_heads * blocks_of(l))
        if (!stopped(s))
            recur(s, layer, unit, n);
    barrier(&s->barrier);
    EACH(i, n)
        gate_delta(s, layer, i);
    barrier(&s->barrier);
    /* out (n, dim) = att (n, v_dim) @ W (dim, v_dim)^T */
    matmul(s, tensor(s->m, layer, LLM_ATTN_OUT), 0, n, s->att, s->out);
    add_block(s, layer, LLM_ATTN_POST_NORM, n);
}

static const float ones[MAX_HEAD] = {[0 ... MAX_HEAD - 1] = 1};

/* Heads (size,) of queries or keys, each times `scale` over its length (Yang et al. 2024) */
static void to_length(llm_session *s, const llm_layer *l, float *x, size_t size, float scale) {
    const float by = scale / sqrtf((float)l->delta_key_dim);
    for (size_t c = 0; c < size; c += l->delta_key_dim)
        s->k->rmsnorm(x + c, x + c, ones, l->delta_key_dim, 1e-6f / (float)l->delta_key_dim);
    for (size_t c = 0; c < size; c++)
        x[c] *= by;
}

/* mixed = q, k, v of token i behind their convolution, and its gates as the state takes them */
static void mix_delta(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t channels = channels_of(&s->m->h, l), k_dim = delta_keys_of(l), heads = l->delta_heads;
    const float *biases = floats(s, tensor(s->m, layer, LLM_DECAY)), *rates = biases + heads;
    float *mixed = row_of(s->mixed, i), *gates = row_of(s->gates, i);
    convolve(s, layer, i, s->qkv, mixed);
    for (size_t c = 0; c < channels; c += LLM_GROUP)
        s->k->glu(mixed + c, mixed + c, ones, 1, LLM_SILU);
    to_length(s, l, mixed, k_dim, l->attn_scale);
    to_length(s, l, mixed + k_dim, k_dim, 1);
    for (size_t h = 0; h < heads; h++) {
        gates[h] = sigmoid(gates[h]);
        gates[heads + h] = expf(rates[h] * softplus(gates[heads + h] + biases[h]));
    }
}

/* A group of columns of one head, through all tokens of the batch: their states, and what these answer */
static void recur(llm_session *s, size_t layer, size_t unit, size_t n) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t head = unit / blocks_of(l), c = unit % blocks_of(l) * LLM_GROUP;
    const size_t key = head / (l->delta_heads / l->delta_key_heads) * l->delta_key_dim;
    const size_t width = l->delta_value_dim - c < LLM_GROUP ? l->delta_value_dim - c : LLM_GROUP;
    const size_t size = l->delta_key_dim * LLM_GROUP; /* numbers of the state */
    float value[LLM_GROUP] = {0}, out[LLM_GROUP];
    for (size_t i = 0; i < n; i++) {
        const size_t seq = s->seqs[i];
        const float *queries = row_of(s->mixed, i), *keys = queries + delta_keys_of(l);
        const float *gates = row_of(s->gates, i);
        float *state = heads_of(s, seq, s->slot_out[seq], layer) + unit * size;
        const float *from = state;
        if (!s->pos[i])
            memset(state, 0, size * sizeof *state);
        else if (s->before[i] == NONE)
            from = heads_of(s, seq, s->slot_in[seq], layer) + unit * size;
        memcpy(value, keys + delta_keys_of(l) + head * l->delta_value_dim + c, width * sizeof *value);
        s->k->delta_rule(state, from, keys + key, queries + key, value, gates[l->delta_heads + head],
            gates[head], out, l->delta_key_dim);
        memcpy(row_of(s->att, i) + head * l->delta_value_dim + c, out, width * sizeof *out);
        if (keeps(s, i))
            memcpy(heads_of(s, seq, s->slot_keep[seq], layer) + unit * size, state, size * sizeof *state);
    }
}

/* att (delta_heads, delta_value_dim) of token i: normalised by head, and times its gate */
static void gate_delta(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t v_dim = delta_values_of(l), padding = tensor(s->m, layer, LLM_ATTN_OUT)->stride - v_dim;
    const float *z = row_of(s->qkv, i) + channels_of(&s->m->h, l);
    float *att = row_of(s->att, i);
    norm_heads(s, 0, tensor(s->m, layer, LLM_STATE_NORM), att, v_dim);
    for (size_t c = 0; c < v_dim; c += LLM_GROUP)
        s->k->glu(att + c, z + c, att + c, 1, LLM_SILU);
    memset(att + v_dim, 0, padding * sizeof *att);
}

/* ------------------------------------------------------------------------------------------------------
 * Feed-forward: a gated unit (Shazeer 2020), or a mixture of them (Jiang et al. 2024, "Mixtral of Experts") */

/* The two matrices of a gated unit */
typedef struct unit_weights {
    const llm_tensor *gate_up; /* (2 ffn_dim, dim) */
    const llm_tensor *down;    /* (dim, ffn_dim) */
    const llm_tensor *gate_up_bias,
        *down_bias; /* (1, 2 ffn_dim), (1, dim); their size is 0 if there are none */
    size_t expert;
} unit_weights;

/* Gates (n,) lose so much that only those more than `cut` standard deviations above their mean are left. */
static void cut_gates(float *gate, size_t n, float cut) {
    double mean = 0, variance = 0;
    for (size_t c = 0; c < n; c++)
        mean += gate[c];
    mean /= (double)n;
    for (size_t c = 0; c < n; c++)
        variance += (gate[c] - mean) * (gate[c] - mean);
    const float least = (float)(mean + cut * sqrt(variance / (double)n));
    for (size_t c = 0; c < n; c++)
        gate[c] = fmaxf(gate[c] - least, 0);
}

/* Gates and ups of token i get their bias, and are clamped; and since SiLU's unit is up * gate * sigmoid(gate), they become
 * what makes it (up + shift) * gate * sigmoid(slope * gate). */
static void bend_gates(llm_session *s, const llm_layer *l, const unit_weights *w, size_t i) {
    const size_t ffn_dim = w->down->cols;
    const float limit = l->gate_limit > 0 ? l->gate_limit : INFINITY;
    const float slope = l->gate_slope ? l->gate_slope : 1;
    float *gate = row_of(s->gate, i), *up = gate + ffn_dim;
    add_bias(s, w->gate_up_bias, w->expert, 1, gate);
    if (l->flags & LLM_NO_GATE)
        return;
    for (size_t c = 0; c < ffn_dim; c++) {
        gate[c] = slope * fminf(gate[c], limit);
        up[c] = (fmaxf(fminf(up[c], limit), -limit) + l->up_shift) / slope;
    }
    if (l->gate_cut)
        cut_gates(gate, ffn_dim, l->gate_cut);
}

/* hidden (64,) = gain * up * activation(gate), or without a gate gain * activation(up); up is where the gate would be */
static void activate(
    llm_session *s, size_t layer, const float *gate, const float *up, float gain, float *hidden) {
    const llm_layer *l = &s->m->layers[layer];
    const int gated = !(l->flags & LLM_NO_GATE);
    memcpy(hidden, gate, LLM_GROUP * sizeof *gate);
    s->k->activate(hidden, l->activation, floats(s, tensor(s->m, layer, LLM_XIELU_NUMBERS)));
    for (size_t c = 0; c < LLM_GROUP; c++)
        hidden[c] *= gated ? gain * up[c] : gain;
}

/* hidden of token i: columns c to c + 64, zeros behind the last one, of ffn_dim */
static void glu(
    llm_session *s, size_t layer, size_t ffn_dim, size_t i, size_t c, const float *up, float gain) {
    const llm_layer *l = &s->m->layers[layer];
    const float *gate = row_of(s->gate, i) + c;
    float *hidden = row_of(s->hidden, i) + c;
    if (l->flags & LLM_NO_GATE || l->activation > LLM_GELU)
        activate(s, layer, gate, up + c, gain, hidden);
    else
        s->k->glu(hidden, gate, up + c, gain, l->activation);
    for (size_t k = c < ffn_dim ? ffn_dim - c : 0; k < LLM_GROUP; k++)
        hidden[k] = 0;
}

/* out (n, dim) of x (n, dim); gains (n,) multiply it, NULL: all 1 */
static void gated_unit(
    llm_session *s, size_t layer, unit_weights w, size_t n, vectors x, const float *gains, vectors out) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t ffn_dim = w.down->cols;
    const size_t groups = w.down->stride / LLM_GROUP;
    /* gate and up (n, 2 ffn_dim) = x (n, dim) @ W (2 ffn_dim, dim)^T; without a gate up (n, ffn_dim) */
    matmul(s, w.gate_up, w.expert, n, x, s->gate);
    if (w.gate_up_bias->size || l->gate_limit > 0 || l->gate_slope || l->up_shift || l->gate_cut) {
        EACH(i, n)
            bend_gates(s, l, &w, i);
        barrier(&s->barrier);
    }
    EACH(unit, n * groups) {
        const size_t i = unit / groups, c = unit % groups * LLM_GROUP;
        glu(s, layer, ffn_dim, i, c, row_of(s->gate, i) + ffn_dim, gains ? gains[i] : 1);
    }
    barrier(&s->barrier);
    /* out (n, dim) = hidden (n, ffn_dim) @ W (dim, ffn_dim)^T */
    matmul(s, w.down, w.expert, n, s->hidden, out);
    if (w.down_bias->size) {
        EACH(i, n)
            add_bias(s, w.down_bias, w.expert, gains ? gains[i] : 1, row_of(out, i));
        barrier(&s->barrier);
    }
}

/* Those of a layer, and of one of its experts */
static unit_weights weights_of(const llm_session *s, size_t layer, size_t expert) {
    return (unit_weights){
        .gate_up = tensor(s->m, layer, LLM_GATE_UP),
        .down = tensor(s->m, layer, LLM_DOWN),
        .gate_up_bias = tensor(s->m, layer, LLM_GATE_UP_BIAS),
        .down_bias = tensor(s->m, layer, LLM_DOWN_BIAS),
        .expert = expert,
    };
}

/* ... and of the shared one */
static unit_weights shared_weights(const llm_session *s, size_t layer) {
    static const llm_tensor none = {0};
    return (unit_weights){
        .gate_up = tensor(s->m, layer, LLM_SHARED_GATE_UP),
        .down = tensor(s->m, layer, LLM_SHARED_DOWN),
        .gate_up_bias = &none,
        .down_bias = &none,
    };
}

static void feed_forward(llm_session *s, size_t layer, size_t n) {
    const unit_weights w = weights_of(s, layer, 0);
    const vectors x = block_input(s, layer, LLM_FFN_NORM, n);
    gated_unit(s, layer, w, n, x, NULL, s->out);
    add_block(s, layer, LLM_FFN_POST_NORM, n);
}

static void route(llm_session *s, size_t layer, size_t i);
static void sort_by_expert(llm_session *s, const llm_layer *l, size_t n);
static void expert(llm_session *s, size_t layer, size_t e, vectors x);
static void shared_apart(llm_session *s, size_t layer, size_t n);

static void moe(llm_session *s, size_t layer, size_t n) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *w_router = tensor(s->m, layer, LLM_ROUTER);
    const int apart = (l->flags & LLM_SHARED_NORMS) != 0;
    vectors x = block_input(s, layer, apart ? LLM_ROUTER_NORM : LLM_FFN_NORM, n);
    /* router (n, n_experts) = x (n, dim) @ W (n_experts, dim)^T */
    matmul_exact(s, w_router, n, x, s->router);
    if (apart)
        x = block_input(s, layer, LLM_FFN_NORM, n);
    EACH(i, n) {
        route(s, layer, i);
        memset(row_of(s->out, i), 0, s->out.stride * sizeof(float));
    }
    barrier(&s->barrier);
    if (THREAD == 0)
        sort_by_expert(s, l, n);
    barrier(&s->barrier);
    for (size_t e = 0; e <= l->n_experts; e++)
        if (s->starts[e] < s->starts[e + 1])
            expert(s, layer, e, x);
    barrier(&s->barrier);
    if (apart)
        shared_apart(s, layer, n);
    add_block(s, layer, LLM_FFN_POST_NORM, n);
}

/* out = a norm of it plus a norm of what the shared expert makes of a norm of its own of the residual stream */
static void shared_apart(llm_session *s, size_t layer, size_t n) {
    const llm_tensor *experts_norm = tensor(s->m, layer, LLM_EXPERTS_POST);
    const llm_tensor *shared_norm = tensor(s->m, layer, LLM_SHARED_POST);
    const unit_weights w = shared_weights(s, layer);
    const vectors x = block_input(s, layer, LLM_SHARED_NORM, n);
    gated_unit(s, layer, w, n, x, NULL, s->expert_out);
    EACH(i, n) {
        float *out = row_of(s->out, i), *shared = row_of(s->expert_out, i);
        rmsnorm(s, experts_norm, out, out);
        rmsnorm(s, shared_norm, shared, shared);
        s->k->add_scaled(out, shared, 1, s->m->h.dim);
    }
}

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

/* How good a group of n experts is: the sum of p + bias of the best ones, one or two */
static float group_score(const float *p, const float *bias, size_t n, size_t n_best) {
    uint8_t taken[MAX_EXPERTS] = {0};
    float score = 0;
    for (size_t k = 0; k < n_best && k < n; k++) {
        const size_t best = best_expert(p, bias, taken, n);
        taken[best] = 1;
        score += p[best] + (bias ? bias[best] : 0);
    }
    return score;
}

/* Takes the experts of all groups but the n_active_groups best ones (DeepSeek-AI 2024, "DeepSeek-V2", "DeepSeek-V3") */
static void take_other_groups(const llm_layer *l, const float *p, const float *bias, uint8_t *taken) {
    const size_t size = l->n_experts / l->n_groups;
    float scores[MAX_EXPERTS];
    uint8_t chosen[MAX_EXPERTS] = {0};
    for (size_t g = 0; g < l->n_groups; g++) {
        const float *group_bias = bias ? bias + g * size : NULL;
        scores[g] = group_score(p + g * size, group_bias, size, l->flags & LLM_ROUTER_BEST ? 1 : 2);
    }
    for (size_t k = 0; k < l->n_active_groups; k++)
        chosen[best_expert(scores, NULL, chosen, l->n_groups)] = 1;
    for (size_t e = 0; e < l->n_experts; e++)
        taken[e] = !chosen[e / size];
}

/* The experts of token i and their weights. No expert is chosen twice: the buffers of a product have room for
 * each token once. */
static void route(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *add = tensor(s->m, layer, LLM_ROUTER_ADD);
    const float *bias = add->size ? floats(s, add) : NULL;
    const llm_tensor *by_expert = tensor(s->m, layer, LLM_ROUTER_SCALE);
    const size_t n = l->n_experts;
    float *p = row_of(s->router, i), sum = 0;
    float *gains = s->gains + i * experts_per_token(l);
    uint32_t *chosen = s->chosen + i * experts_per_token(l);
    uint8_t taken[MAX_EXPERTS] = {0};
    add_bias(s, tensor(s->m, layer, LLM_ROUTER_LOGITS), 0, 1, p);
    if (l->flags & LLM_ROUTER_SIGMOID) {
        for (size_t e = 0; e < n; e++)
            p[e] = sigmoid(p[e]);
    } else {
        softmax(p, n);
    }
    if (l->n_groups)
        take_other_groups(l, p, bias, taken);
    for (size_t k = 0; k < l->n_active; k++) {
        const size_t best = best_expert(p, bias, taken, n);
        taken[best] = 1;
        chosen[k] = (uint32_t)best;
        gains[k] = p[best];
        sum += p[best];
    }
    const float scale = l->flags & LLM_ROUTER_NORMALIZE ? l->expert_scale / sum : l->expert_scale;
    for (size_t k = 0; k < l->n_active; k++)
        gains[k] *= l->flags & LLM_ROUTER_SCALED ? scale * floats(s, by_expert)[chosen[k]] : scale;
    if (experts_per_token(l) > l->n_active) {
        chosen[l->n_active] = (uint32_t)n;
        gains[l->n_active] = l->flags & LLM_SHARED_GATE ? sigmoid(p[n]) : 1;
    }
}

/* members and starts of n tokens' choices, in the order of their places. By one thread. */
static void sort_by_expert(llm_session *s, const llm_layer *l, size_t n) {
    const size_t n_places = n * experts_per_token(l);
    uint32_t *ends = s->starts + 1; /* where expert e's members begin, and once they are all there, end */
    memset(s->starts, 0, (l->n_experts + 3) * sizeof *s->starts);
    for (size_t place = 0; place < n_places; place++)
        ends[s->chosen[place] + 1]++;
    for (size_t e = 0; e <= l->n_experts; e++)
        ends[e + 1] += ends[e];
    for (size_t place = 0; place < n_places; place++) {
        uint32_t *end = &ends[s->chosen[place]];
        s->members[*end] = (uint32_t)place;
        ++*end;
    }
}

/* out (n,) = x * scale */
static void gather(float *out, const float *x, float scale, size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] * scale;
}

/* out += expert e of its tokens, which are brought together, and then added where they belong. The shared one is
 * number n_experts. */
static void expert(llm_session *s, size_t layer, size_t e, vectors x) {
    const llm_layer *l = &s->m->layers[layer];
    const uint32_t *members = s->members + s->starts[e];
    const size_t n = s->starts[e + 1] - s->starts[e];
    const size_t per_token = experts_per_token(l);
    const unit_weights w = e < l->n_experts ? weights_of(s, layer, e) : shared_weights(s, layer);
    EACH(i, n) {
        const float gain = s->gains[members[i]];
        const int of_input = e < l->n_experts && l->flags & LLM_EXPERT_INPUT;
        gather(row_of(s->expert_x, i), row_of(x, members[i] / per_token), of_input ? gain : 1, x.stride);
        s->expert_gain[i] = of_input ? 1 : gain;
    }
    barrier(&s->barrier);
    gated_unit(s, layer, w, n, s->expert_x, s->expert_gain, s->expert_out);
    EACH(i, n) {
        float *out = row_of(s->out, members[i] / per_token);
        s->k->add_scaled(out, row_of(s->expert_out, i), 1, s->m->h.dim);
    }
}

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
static void open_streams(llm_session *s, size_t n) {
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

static void predict_streams(llm_session *s, size_t layer, size_t n) {
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

static void correct_streams(llm_session *s, size_t layer, size_t n) {
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
static void close_streams(llm_session *s, size_t n) {
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
 * The end of a layer: its own embeddings of the tokens, and a scale */

/* x += what the layer makes of its own embedding of each token, see llm.h */
static void ple_block(llm_session *s, size_t layer, size_t n) {
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

/* x *= a number. Has no barrier, as add_block(). */
static void scale_layer(llm_session *s, size_t layer, size_t n) {
    const llm_tensor *scale = tensor(s->m, layer, LLM_LAYER_SCALE);
    if (scale->size)
        EACH(i, n)
            for (size_t c = 0; c < s->m->h.dim; c++)
                row_of(s->x, i)[c] *= floats(s, scale)[0];
}

/* ------------------------------------------------------------------------------------------------------
 * Logits */

static void unembed(llm_session *s, size_t n_rows, float *logits) {
    const llm_header *h = &s->m->h;
    const llm_tensor *bias = tensor(s->m, 0, LLM_OUTPUT_ADD);
    const llm_tensor *w = tensor(s->m, 0, h->required & LLM_TIED ? LLM_EMBED : LLM_OUTPUT);
    const vectors y = {logits, h->vocab_size};
    barrier(&s->barrier);
    EACH(r, n_rows)
        norm_once(s, LLM_OUT_NORM, row_of(s->x, s->rows[r]), row_of(s->xb, r));
    barrier(&s->barrier);
    /* logits (n_rows, vocab_size) = xb (n_rows, dim) @ W (vocab_size, dim)^T, of the tokens in s->rows */
    matmul(s, w, 0, n_rows, s->xb, y);
    if (bias->size)
        EACH(i, n_rows * h->vocab_size)
            logits[i] += floats(s, bias)[i % h->vocab_size];
    if (h->logit_cap > 0)
        EACH(i, n_rows * h->vocab_size)
            logits[i] = h->logit_cap * tanhf(logits[i] / h->logit_cap);
}

/* states (n_states, dim) = what logits would be made of, of the tokens in s->state_rows */
static void show_states(llm_session *s, size_t n_states, float *states) {
    EACH(r, n_states)
        norm_once(s, LLM_OUT_NORM, row_of(s->x, s->state_rows[r]), states + r * s->m->h.dim);
}

/* ------------------------------------------------------------------------------------------------------
 * Products */

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

/* x (cols,) = a row of a tensor */
static void read_row(const llm_session *s, const llm_tensor *t, size_t row, float *x) {
    const matrix w = matrix_of(s->m, t, 0);
    float numbers[LLM_GROUP];
    for (size_t c0 = 0; c0 < t->cols; c0 += LLM_GROUP) {
        read_group(s, &w, row, c0, numbers);
        for (size_t c = 0; c < LLM_GROUP && c0 + c < t->cols; c++)
            x[c0 + c] = numbers[c];
    }
}

/* x (cols,) += scale * a row of a tensor */
static void add_row(const llm_session *s, const llm_tensor *t, size_t row, float scale, float *x) {
    const matrix w = matrix_of(s->m, t, 0);
    float numbers[LLM_GROUP];
    for (size_t c0 = 0; c0 < t->cols; c0 += LLM_GROUP) {
        read_group(s, &w, row, c0, numbers);
        const size_t n = t->cols - c0 < LLM_GROUP ? t->cols - c0 : LLM_GROUP;
        s->k->add_scaled(x + c0, numbers, scale, n);
    }
}

/* Columns `from` to `to` of row i as the product wants them, 64 at a time; of all of a group */
static void prepare(
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

/* How n tokens are multiplied with a matrix of this kind */
static const product *product_of(const llm_session *s, uint32_t kind, size_t n) {
    const product *few = &s->k->few[kind], *many = &s->k->many[kind];
    const int exact = kind == LLM_FP16 && s->o.exact;
    const size_t from = kind == LLM_FP16 ? MANY_HALVES : many->from;
    return n >= from && many->rows && !exact ? many : few;
}

/* How n queries are multiplied with a page of keys, or their weights with its values. Where these are halves, the tokens
 * of the batch decide too, so that fewer than MANY_HALVES of them round nothing. */
static const product *page_product(const llm_session *s, int kind, size_t n) {
    const size_t tokens = s->runs[s->n_runs];
    if (s->o.kv == LLM_KV_FP16)
        return product_of(s, LLM_FP16, tokens < n ? tokens : n);
    return product_of(s, kind == KEYS ? QUERIED_KEYS : WEIGHTED_VALUES, n);
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

/* The same however many tokens there are, so that which experts they go to never depends on the batch */
static void matmul_exact(llm_session *s, const llm_tensor *t, size_t n, vectors x, vectors y) {
    const matrix w = matrix_of(s->m, t, 0);
    show(s, t, 0, n, x);
    multiply(s, &s->k->few[t->dtype], &w, n, x, y);
}

static void matmul(llm_session *s, const llm_tensor *t, size_t e, size_t n, vectors x, vectors y) {
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

/* y (n, heads, width), of which it makes the first numbers of each = x (n, heads, stride) @ W (rows, cols)^T, W being
 * tensor t of each head */
static void matmul_heads(llm_session *s, const llm_tensor *t, size_t n, vectors x, size_t width, vectors y) {
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
