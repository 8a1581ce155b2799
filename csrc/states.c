/* states.c - layers that have a state in place of keys and values: a gated short convolution ("LFM2"), or the
 * gated delta rule (Yang et al. 2024), in its recurrent form: token by token, in the one order that does not
 * depend on how they came. What is parallel is heads, and columns of theirs. Which states a sequence keeps is
 * session.c's. */
#include "forward.h"
#include <math.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------------
 * Short convolutions */

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

void short_convolution(llm_session *s, size_t layer, size_t n) {
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

/* ------------------------------------------------------------------------------------------------------
 * The gated delta rule */

static void mix_delta(llm_session *s, size_t layer, size_t i);
static void recur(llm_session *s, size_t layer, size_t unit, size_t n);
static void gate_delta(llm_session *s, size_t layer, size_t i);

/* Groups of columns of a head's state */
static size_t blocks_of(const llm_layer *l) { return align(l->delta_value_dim, LLM_GROUP) / LLM_GROUP; }

void delta_rule(llm_session *s, size_t layer, size_t n) {
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
