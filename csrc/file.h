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

#define MAX_HEAD 1024    /* head_dim at most */
#define MAX_EXPERTS 1024 /* n_experts at most */

struct llm_model {
    const uint8_t *data;             /* the whole file, size bytes; if mapped, it is ours to unmap */
    size_t size, mapped, layer_size; /* layer_size: bytes from a layer to the next */
    llm_header h;
    const llm_layer *layers;
    const llm_angle *rope;            /* (n_rope, head_dim / 2) */
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

typedef uint32_t any_uint __attribute__((may_alias));
typedef float any_float __attribute__((may_alias));

static inline uint32_t bits_of(float f) { return *(any_uint *)&f; }

static inline float float_of(uint32_t u) { return *(any_float *)&u; }

/* fp16 to float and back (to nearest even) without hardware for it, after Giesen's "float->half variants". */
static inline float half_to_float(uint16_t half) {
    const float f = float_of((uint32_t)(half & 0x7fff) << 13) * 0x1p112f; /* moves the exponent's bias */
    return float_of(bits_of(f) | (f >= 65536.0f ? 0x7f800000 : 0) | (uint32_t)(half & 0x8000) << 16);
}

static inline uint16_t float_to_half(float f) {
    const uint32_t u = bits_of(f) & 0x7fffffff, sign = bits_of(f) >> 16 & 0x8000;
    const uint32_t subnormal = bits_of(float_of(u) + 0.5f) - 0x3f000000; /* + 0.5 rounds there */
    const uint32_t normal = (u - 0x38000000 + 0xfff + (u >> 13 & 1)) >> 13;
    const uint32_t huge = u > 0x7f800000 ? 0x7e00 : 0x7c00;
    return (uint16_t)(sign | (u < 0x38800000 ? subnormal : u < 0x47800000 ? normal : huge));
}

/* x (cols,) = scale * a row of the first matrix `id` */
void read_row(const llm_model *m, uint32_t id, size_t row, float scale, float *x);

#endif
