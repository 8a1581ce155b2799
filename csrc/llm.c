/* llm.c - the engine: runs the forward pass over a model that file.c has mapped and checked.
 *
 * It owns the mathematics: no text, no files, and no model families; what differs between them is in the header's
 * and the layers' numbers and flags. It allocates nothing, and never prints or exits.
 *
 * Read session.h first, what a session owns; then this from top to bottom: llm_forward(); and a token's way through a
 * Llama in the order of the paper: embed, attention, feed-forward, logits. Its steps in files of their own:
 *
 *     products.c   y = x W^T, for every matrix of the file
 *     attend.c     softmax attention over the cache of keys and values
 *     experts.c    a mixture in place of one feed-forward
 *     latent.c     attention over latents in place of keys and values
 *     states.c     convolutions and the delta rule in place of attention
 *     streams.c    what goes beside the blocks: more residual streams, embeddings of each layer's own
 *
 * A Llama's token enters the first two alone. What the numbers of a file mean is in numbers.c; the kernels are in
 * isa_plain.c, and those for one instruction set in the other isa_*.c, which only make it faster. */
#include "forward.h"
#include "fail.h"
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
 * Every function, here and in the files above, that has EACH, DEAL or barrier() is run by all threads of the team
 * together: EACH shares its numbers out between them, barrier() waits for all of them, and everything else is done by
 * each of them alike. No sum is split between threads, and the order of a sum does not depend on what else is
 * computed: so results depend neither on the number of threads nor on the batch; but for fp16 without o.exact, which
 * is rounded to integers where there are MANY_HALVES tokens.
 *
 * In the comments, W (rows, cols) is a tensor of llm.h, and n the tokens of the batch. */

static void embed(llm_session *s, size_t n, const uint32_t *tokens);
static void attention(llm_session *s, size_t layer, size_t n);
static void feed_forward(llm_session *s, size_t layer, size_t n);
static void scale_layer(llm_session *s, size_t layer, size_t n);
static void unembed(llm_session *s, size_t n_rows, float *logits);
static void show_states(llm_session *s, size_t n_states, float *states);

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

/* out = the norm of x (cols,) that a layer's flags, or the header's, say, with row `row` of the tensor's weights.
 * out may be x. */
void norm_by(
    const llm_session *s, uint64_t flags, const llm_tensor *t, size_t row, const float *x, float *out) {
    const float *w = floats(s, t) + row * t->stride;
    const float *bias = flags & LLM_NORM_BIAS ? w + t->rows / 2 * t->stride : NULL;
    if (flags & LLM_LAYER_NORM)
        s->k->layernorm(out, x, w, bias, t->cols, s->m->h.norm_eps);
    else
        s->k->rmsnorm(out, x, w, t->cols, s->m->h.norm_eps);
}

/* out = RMSNorm(x), whatever the others are */
void rmsnorm(const llm_session *s, const llm_tensor *t, const float *x, float *out) {
    norm_by(s, 0, t, 0, x, out);
}

/* ... one of those that occur once */
static void norm_once(const llm_session *s, uint32_t id, const float *x, float *out) {
    norm_by(s, s->m->h.required, tensor(s->m, 0, id), 0, x, out);
}

/* ------------------------------------------------------------------------------------------------------
 * Embedding, and how blocks read and write the residual stream */

/* Where the cosines and then the sines of token i lie, for a rotary table */
static float *rotation_of(const llm_session *s, size_t table, size_t i) {
    return s->rotation + (table * s->o.batch + i) * s->m->h.rope_dim;
}

/* The cosines and sines of position `pos`, times its magnitude, for each angle of a rotary table */
static void find_angles(const llm_angle *table, size_t half, uint32_t pos, float *cosines, float *sines) {
    for (size_t c = 0; c < half; c++) {
        const float turn = (float)pos * table[c].frequency;
        cosines[c] = table[c].magnitude * cosf(turn);
        sines[c] = table[c].magnitude * sinf(turn);
    }
}

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

/* x += the bias that tensor t is, of expert e, times scale; nothing if there is none */
void add_bias(const llm_session *s, const llm_tensor *t, size_t e, float scale, float *x) {
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
vectors block_input(llm_session *s, size_t layer, uint32_t id, size_t n) {
    const llm_tensor *norm = tensor(s->m, layer, id);
    const int made = id == LLM_FFN_NORM && s->m->layers[layer].flags & LLM_PARALLEL;
    if (norm->size && !made)
        norm_stream(s, layer, id, n);
    barrier(&s->barrier);
    return norm->size || made ? s->xb : s->x;
}

/* x += out, through the norm `id` if there is one. Has no barrier: block_input() gives each thread the same
 * tokens. */
void add_block(llm_session *s, size_t layer, uint32_t id, size_t n) {
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

static void bias_and_norm(llm_session *s, size_t layer, size_t i);
static void store_queries(llm_session *s, size_t layer, size_t i);
static void store_keys_and_values(llm_session *s, size_t layer, size_t i);
static void gate_heads(llm_session *s, size_t layer, size_t i);
static void store_heads(llm_session *s, size_t layer, size_t n);

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
void norm_heads(llm_session *s, uint64_t flags, const llm_tensor *norm, float *x, size_t size) {
    const int each = (flags & LLM_QK_NORM_EACH) != 0;
    for (size_t k = 0; k < size / norm->cols; k++) {
        float *piece = x + k * norm->cols;
        norm_by(s, flags, norm, each ? k : 0, piece, piece);
    }
}

const float ones[MAX_HEAD] = {[0 ... MAX_HEAD - 1] = 1};

/* Each head of the values of a token, through a norm without weights */
static void norm_values(llm_session *s, const llm_layer *l, float *values) {
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
void rotate(llm_session *s, const llm_layer *l, const llm_tensor *norm, size_t a, size_t i, const float *head,
    float *out) {
    const float *cosines = rotation_of(s, l->rope, i);
    const float *sines = cosines + s->m->h.rope_dim / 2;
    s->k->rope(out, head, cosines, sines, turning_of(l) / 2);
    if (l->flags & LLM_QK_NORM_LATE)
        norm_by(s, l->flags, norm, l->flags & LLM_QK_NORM_EACH ? a : 0, out, out);
}

/* What multiplies the queries of a position: more and more, so that attention over long texts stays sharp (Nakanishi 2025,
 * "Scalable-Softmax"; Llama 4) */
float query_scale(const llm_layer *l, size_t pos) {
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
 * Feed-forward: a gated unit (Shazeer 2020) */

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
        gate[c] = gate[c] < least ? 0 : gate[c] - least; /* what is no number stays */
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
    clip(up, ffn_dim, limit);
    for (size_t c = 0; c < ffn_dim; c++) {
        gate[c] = slope * (gate[c] > limit ? limit : gate[c]);
        up[c] = (up[c] + l->up_shift) / slope;
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
void glu(llm_session *s, size_t layer, size_t ffn_dim, size_t i, size_t c, const float *up, float gain) {
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

/* out (n, dim) = the gated unit of x (n, dim); gains (n,) multiply it, NULL: all 1 */
void gated_unit(
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
unit_weights weights_of(const llm_session *s, size_t layer, size_t expert) {
    return (unit_weights){
        .gate_up = tensor(s->m, layer, LLM_GATE_UP),
        .down = tensor(s->m, layer, LLM_DOWN),
        .gate_up_bias = tensor(s->m, layer, LLM_GATE_UP_BIAS),
        .down_bias = tensor(s->m, layer, LLM_DOWN_BIAS),
        .expert = expert,
    };
}

static void feed_forward(llm_session *s, size_t layer, size_t n) {
    const unit_weights w = weights_of(s, layer, 0);
    const vectors x = block_input(s, layer, LLM_FFN_NORM, n);
    gated_unit(s, layer, w, n, x, NULL, s->out);
    add_block(s, layer, LLM_FFN_POST_NORM, n);
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
