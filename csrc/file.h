/* file.h - a model as file.c opens it and the engine reads it. Not part of the interface. */
#ifndef FILE_H
#define FILE_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* for mmap and madvise; before any system header, so this one comes first */
#endif
#include "llm.h"

#define MAX_HEAD 1024 /* head_dim at most */

struct llm_model {
    const uint8_t *data;             /* the whole file, size bytes; if mapped, it is ours to unmap */
    size_t size, mapped, layer_size; /* layer_size: bytes from a layer to the next */
    llm_header h;
    const llm_layer *layers;
    const float *rope;                /* (n_rope, head_dim / 2) */
    llm_tensor tensor[LLM_N_TENSORS]; /* of layer 0, expert 0 */
};

static inline uint64_t align(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

/* The weights of a tensor that the model has */
static inline const void *weights(const llm_model *m, uint32_t id, size_t layer, size_t expert) {
    const llm_tensor *t = &m->tensor[id];
    return m->data + t->offset + layer * m->layer_size + expert * align(t->size, LLM_GROUP);
}

/* Where a row and a column of a matrix in tiles lie, see llm.h */
static inline size_t in_tile(size_t row, size_t col, size_t cols) {
    return (row / LLM_TILE * cols + col) * LLM_TILE + row % LLM_TILE;
}

#endif
