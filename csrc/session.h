/* session.h - what a session owns: keys and values of its sequences, and the buffers of one pass. session.c makes
 * it, the forward pass works with it. Not part of the interface. */
#ifndef SESSION_H
#define SESSION_H
#include "file.h"
#include "kernels.h"
#include "threads.h"

/* The buffers, with B tokens in a batch. Rows are padded to a multiple of 64 columns, and the padding is 0. Where
 * layers differ, a buffer has room for the largest; q_dim, n_kv_heads and the like are then those of the layer
 * at work. */
struct llm_session {
    const llm_model *m;
    const kernels *k;
    llm_options o;
    team_barrier barrier;
    llm_observer observer; /* NULL: nobody looks */
    void *observer_context;
    atomic_int stopped; /* whether llm_stop() was called */
    uint8_t *arena;     /* one mapping that holds all buffers */
    size_t arena_size;

    /* keys and values: of each sequence, of each layer that makes its own, keys, then values, of each kv head, pages
     * of SPAN positions. Keys (SPAN, width) or transposed values (width, SPAN) are a matrix in tiles, as weights are,
     * so that both are multiplied as they are:
     *     fp16   as a matrix of fp16
     *     int8   keys as one of int8r, with their scales; values as one of int8, but their scales are float32 (SPAN,),
     *            a position's each, and multiply its weight */
    uint8_t *kv;        /* (n_seqs, seq_size) bytes */
    size_t *layer_kv;   /* (n_layers,) where a layer's keys begin in a sequence, */
    size_t *layer_span; /* (n_layers,) and how many positions there is room for, in whole pages. With a window
                           they may be fewer than the context: a page takes the place of one so far before */
    size_t *length;     /* (n_seqs,) positions of each sequence */
    size_t *oldest;     /* (n_seqs,) the least length besides 0 whose windows are whole */
    size_t *new_length; /* (n_seqs,) to count ahead in */
    size_t seq_size;    /* bytes of a sequence: its pages, and then its states */

    /* states: behind the pages of each sequence, LLM_STATES slots; in a slot of each layer that has a state, float32:
     *     (conv_kernel - 1, channels)  what the convolution has yet to see, position p in row p % (conv_kernel - 1)
     *     (delta_heads, delta_value_dim / 64 rounded up, delta_key_dim, 64)  S of each head, 64 columns at a time: columns
     *                                  do not depend on each other, and so many stay in a cache
     * A call of llm_forward() reads the state that its sequence is at and writes another slot, so that a call that
     * fails, or guesses that were wrong, are taken back; see llm_cut(). Which one is given up for it: pick_slot(). */
    size_t slots_at;     /* where its slots begin in a sequence */
    size_t slot_size;    /* bytes of a slot; 0: no layer has a state */
    size_t *layer_state; /* (n_layers,) where a layer's state begins in a slot */
    size_t *marks;       /* (n_seqs, LLM_STATES) the length whose state a slot has; 0: none */
    /* of this call, (n_seqs,): slots that are read from and written to, and the one that takes the state of length
     * keep_at on the way; NONE: none does. A batch later, what was written is read. */
    uint32_t *slot_in, *slot_out, *slot_keep;
    size_t *keep_at;
    size_t span; /* positions that a sequence may have: the context in whole pages */
    size_t back; /* how far before the end of its last page a sequence can be cut back */

    /* the batch */
    uint32_t *seqs, *pos; /* (B,) sequence and position of each token */
    uint32_t *rows;       /* (n_rows,) tokens whose logits are wanted, */
    uint32_t *state_rows; /* (n_states,) and those whose states are */
    uint32_t *before;     /* (B,) the token before in the same sequence and batch, or NONE; */
    uint32_t *latest;     /* (n_seqs,) the last one of a sequence that has any */
    uint32_t *runs; /* (n_runs + 1,) tokens at which runs begin: neighbours in a sequence, at most `run` */
    size_t n_runs, run;

    vectors x;       /* (B, dim) the residual stream, */
    vectors xb;      /* (B, dim) its norm, */
    vectors out;     /* (B, dim) and what a block adds to it */
    float *rotation; /* (n_rope, B, 2, rope_dim / 2) cosines and sines of each token's position */

    float *streams; /* (n_streams, B, dim) the others; the first is what the layer's blocks began with */
    vectors modes;  /* (B, n_streams) how they are mixed */
    vectors laurel; /* (B, dim) what goes past attention */
    vectors ple;    /* (B, n_layers * ple_dim + 64) each layer's own embeddings, then anything */

    /* attention */
    vectors
        qkv; /* (B, rows of LLM_QKV) projections: queries, keys, values, gates; behind them what LLM_Q_UP makes */
    float
        *q; /* (n_kv_heads, B, group, width) queries, rotated and scaled; width: a key head's, padded to 16 */
    float *scores;    /* (threads, run * group, SCORES); group: query heads that share a kv head */
    size_t unit_rows; /* queries of a unit of attention at most: run * group */
    size_t unit_ldq;  /* bytes of a query, or of its weights, as a product wants them, and its groups: */
    size_t unit_groups;
    uint8_t *unit_q;       /* (threads, 2, unit_rows + BEYOND, unit_ldq) queries, weights */
    float *unit_scales;    /* (threads, 2, unit_rows + BEYOND, unit_groups) */
    int32_t *unit_offsets; /* (threads, 2, unit_rows + BEYOND, unit_groups) */
    float *parts; /* (n_parts, n_kv_heads, B, group, width + 2) attention over a part of the positions each: a
                      weighted sum of values (width: a value head's, padded to 16), the largest score, the sum of weights */
    vectors att;  /* (B, att_dim) attention over all of them; or what a layer with a state makes */
    vectors low;  /* (B, q_rank) what queries are made of there, normalised */
    vectors plain;        /* (B, n_heads, plain_width) what does not turn of them */
    vectors latents;      /* (B, n_heads, latent_width) queries for latents, then what they sum of these */
    size_t part_size;     /* numbers of a part */
    size_t part, n_parts; /* positions in a part, and how many parts there are at most */

    /* the delta rule */
    vectors mixed; /* (B, channels) queries, keys, values behind their convolution */
    vectors gates; /* (B, 2 * delta_heads) strengths of the values, then by how much the state decays */

    /* feed-forward */
    vectors gate;   /* (B, 2 * ffn_dim) gates, then ups */
    vectors hidden; /* (B, ffn_dim) */

    /* mixtures; of the experts that a token goes through the shared one is the last */
    vectors router;     /* (B, n_experts + 1) logits, then probabilities; the last one is the shared gate */
    uint32_t *chosen;   /* (B, experts_per_token) experts of a token, the shared one is number n_experts */
    float *gains;       /* (B, experts_per_token) their weights */
    uint32_t *members;  /* (B * experts_per_token,) places in `chosen` of expert 0, then of expert 1, ... */
    uint32_t *starts;   /* (n_experts + 3,) where in `members` they begin */
    vectors expert_x;   /* (B, dim) the tokens of one expert, side by side, */
    float *expert_gain; /* (B,) their weights, */
    vectors expert_out; /* (B, dim) and what it makes of them */

    /* activations as a product wants them, see kernels.h */
    uint8_t *quants;  /* (B, 2 * columns + 64) bytes */
    float *scales;    /* (B, columns / 32) */
    int32_t *offsets; /* (B, columns / 32) */
};

/* A key's and a value's numbers in the cache */
static inline size_t key_width(const llm_layer *l) { return align(kept_key_dim(l), LLM_TILE); }

static inline size_t value_width(const llm_layer *l) { return align(kept_value_dim(l), LLM_TILE); }

/* Query heads that are attended with together, which share a key and value; and how many times so many there are */
static inline size_t group_of(const llm_layer *l) {
    size_t most = 8;    /* of those that share a latent, which are all: so that several threads have some */
    if (!l->latent_dim) /* 1 without attention */
        return l->n_kv_heads ? l->n_heads / l->n_kv_heads : 1;
    while (l->n_heads % most)
        most--;
    return most;
}

static inline size_t head_groups_of(const llm_layer *l) { return l->n_heads / group_of(l); }

/* What a head of LLM_K_UP multiplies, and what one of LLM_V_UP does, padded to whole groups */
static inline size_t plain_width(const llm_layer *l) { return align(l->head_dim - turning_of(l), LLM_GROUP); }

static inline size_t latent_width(const llm_layer *l) { return align(l->latent_dim, LLM_GROUP); }

static inline size_t q_dim_of(const llm_layer *l) { return (size_t)l->n_heads * l->head_dim; }

static inline size_t k_dim_of(const llm_layer *l) { return (size_t)l->n_kv_heads * l->head_dim; }

static inline size_t v_dim_of(const llm_layer *l) { return l->n_kv_heads * value_dim_of(l); }

/* Experts that a token goes through, the shared one included unless it has norms of its own */
static inline size_t experts_per_token(const llm_layer *l) {
    return l->n_active + (l->shared_dim && !(l->flags & LLM_SHARED_NORMS));
}

static inline size_t delta_keys_of(const llm_layer *l) {
    return (size_t)l->delta_key_heads * l->delta_key_dim;
}

static inline size_t delta_values_of(const llm_layer *l) {
    return (size_t)l->delta_heads * l->delta_value_dim;
}

#define NONE UINT32_MAX

/* A layer's state in a slot of a sequence: the window of its convolution, and the heads' matrices */
static inline float *window_of(const llm_session *s, size_t seq, size_t slot, size_t layer) {
    return (float *)(s->kv + seq * s->seq_size + s->slots_at + slot * s->slot_size + s->layer_state[layer]);
}

static inline float *heads_of(const llm_session *s, size_t seq, size_t slot, size_t layer) {
    return window_of(s, seq, slot, layer) + window_numbers(&s->m->h, &s->m->layers[layer]);
}

/* Decides where the states of all sequences go that have tokens in this call, from length to new_length; and once the
 * call is done, that they are there. */
void plan_states(llm_session *s);
void mark_states(llm_session *s);

enum { KEYS, VALUES };

static inline size_t page_size(const llm_session *s, const llm_layer *l, int kind) {
    return SPAN * kv_head_bytes(l, s->o.kv, kind);
}

/* The page of keys or values of one head of one layer of a sequence that `pos` is in */
static inline uint8_t *cache(
    const llm_session *s, size_t seq, size_t layer, int kind, size_t head, size_t pos) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t n_pages = s->layer_span[layer] / SPAN;
    uint8_t *kv = s->kv + seq * s->seq_size + s->layer_kv[layer];
    if (kind == VALUES)
        kv += l->n_kv_heads * n_pages * page_size(s, l, KEYS);
    return kv + (head * n_pages + pos / SPAN % n_pages) * page_size(s, l, kind);
}

/* Sequence seq has grown: the places of its oldest pages may be taken now. */
static inline void forget(llm_session *s, size_t seq) {
    const size_t end = align(s->length[seq], SPAN);
    if (end > s->back)
        s->oldest[seq] = larger(s->oldest[seq], end - s->back);
}

#endif
