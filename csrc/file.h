/* file.h - a model as file.c opens it and the engine reads it. Not part of the interface. */
#ifndef FILE_H
#define FILE_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* for mmap and madvise; before any system header, so this one comes first */
#endif
#include "llm.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "pyllm needs a little-endian machine: model files are mapped as they are"
#endif
_Static_assert(sizeof(size_t) == 8, "pyllm needs 64-bit sizes: model files are mapped whole");

#define MAX_HEAD LLM_MAX_HEAD
#define MAX_EXPERTS 1024 /* n_experts at most */
#define MAX_STREAMS 8    /* n_streams at most */
#define MAX_KERNEL 16    /* conv_kernel at most */

typedef struct dtype_info {
    const char *name;
    size_t bits;  /* of a number */
    size_t group; /* columns that share a scale; 0: there are no scales */
    size_t head;  /* bytes before the first tile */
    int rotated;
} dtype_info;

extern const dtype_info dtypes[LLM_N_DTYPES];

struct llm_model {
    const uint8_t *data; /* the whole file, size bytes; if mapped, it is ours to unmap */
    size_t size;
    int mapped;
    llm_header h;
    const llm_layer *layers; /* (n_layers,) */
    const llm_angle *rope;   /* (n_rope, rope_dim / 2) */
    llm_tensor *tensors; /* (n_layers, LLM_N_TENSORS), expert 0 of each; those that occur once in layer 0 */
};

/* Numbers of a value head */
static inline size_t value_dim_of(const llm_layer *l) { return l->value_dim ? l->value_dim : l->head_dim; }

/* Attention's numbers, and the gates that multiply them */
static inline size_t att_dim_of(const llm_layer *l) { return l->n_heads * value_dim_of(l); }

static inline size_t gate_dim_of(const llm_layer *l) {
    const size_t gates = l->flags & LLM_OUT_GATE_HEAD ? l->n_heads : att_dim_of(l);
    return l->flags & LLM_OUT_GATE ? gates : 0;
}

/* Numbers of a query head that turn: all; or of one that scores latents the last ones */
static inline size_t turning_of(const llm_layer *l) { return l->latent_dim ? l->turn_dim : l->head_dim; }

/* What LLM_QKV makes of a token there: low-rank queries or all of them, then the latent and what turns */
static inline size_t latent_at(const llm_layer *l) {
    return l->q_rank ? l->q_rank : (size_t)l->n_heads * l->head_dim;
}

static inline size_t latent_rows_of(const llm_layer *l) { return latent_at(l) + l->latent_dim + l->turn_dim; }

/* Numbers of a key and of a value as they are kept */
static inline size_t kept_key_dim(const llm_layer *l) {
    return l->latent_dim ? (size_t)l->latent_dim + l->turn_dim : l->head_dim;
}

static inline size_t kept_value_dim(const llm_layer *l) {
    return l->latent_dim ? l->latent_dim : value_dim_of(l);
}

/* The bytes that a position's key, or value, of one head takes */
size_t kv_head_bytes(const llm_layer *l, uint32_t kv, int is_value);

/* How many of a layer's own keys and values the next token needs: the widest window of the layers that use them; 0:
 * all */
uint32_t kv_window(const llm_header *h, const llm_layer *layers, size_t layer);

/* The channels of a layer's convolution; 0: it has none */
static inline uint64_t channels_of(const llm_header *h, const llm_layer *l) {
    const uint64_t keys = (uint64_t)l->delta_key_heads * l->delta_key_dim;
    const uint64_t values = (uint64_t)l->delta_heads * l->delta_value_dim;
    return l->mixer == LLM_SHORT_CONV ? h->dim : 2 * keys + values;
}

/* Numbers of a layer's state: what its convolution has yet to see again, and of one head of the delta rule, whose
 * columns are padded to groups of LLM_GROUP */
size_t window_numbers(const llm_header *h, const llm_layer *l);
size_t head_numbers(const llm_layer *l);

/* The bytes of a layer's state, and of all layers' */
uint64_t state_bytes(const llm_header *h, const llm_layer *l);
uint64_t state_bytes_of(const llm_header *h, const llm_layer *layers);

/* The first of the pages of LLM_PAGE positions that they need of sequences of `length` positions and more */
static inline size_t first_page(uint32_t window, size_t length) {
    return window && length + 1 > window ? (length + 1 - window) / LLM_PAGE : 0;
}

static inline uint64_t align(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

/* Tensor `id` of a layer; its size is 0 if there is none. */
static inline const llm_tensor *tensor(const llm_model *m, size_t layer, uint32_t id) {
    return &m->tensors[layer * LLM_N_TENSORS + id];
}

/* Its first byte, of expert `expert` */
static inline const uint8_t *weights(const llm_model *m, const llm_tensor *t, size_t expert) {
    return m->data + t->offset + expert * align(t->size, LLM_GROUP);
}

#endif
