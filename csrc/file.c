/* file.c - the flat file: where its parts lie, whether all of it is sound, and the model that is mapped from
 * it.
 *
 * It trusts no byte before check() has seen it. What the numbers mean is llm.c's business. */
#include "file.h"
#include "fail.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ------------------------------------------------------------------------------------------------------
 * Header and layout */

/* The range of each 32-bit field from `flags` on. No product that the layout forms of numbers in these ranges
 * reaches 2^63: the largest is n_layers * n_experts * 2 * ffn_dim * dim * 2 bytes = 2^62. */
static const struct {
    const char *name;
    uint32_t min, max;
} fields[] = {{"flags", 0, 2 * LLM_SHARED_GATE - 1}, {"dim", 1, 1 << 20}, {"ffn_dim", 1, 1 << 20},
    {"n_layers", 1, 1 << 10}, {"n_heads", 1, 1 << 12}, {"n_kv_heads", 1, 1 << 12}, {"head_dim", 2, MAX_HEAD},
    {"vocab_size", 1, 1 << 24}, {"context", 1, 1 << 28}, {"n_rope", 1, 1 << 10},
    {"n_experts", 0, MAX_EXPERTS}, {"n_active", 0, MAX_EXPERTS}, {"shared_dim", 0, 1 << 20}};

static int check_header(const llm_header *h, char *err, size_t errlen) {
    uint32_t values[sizeof fields / sizeof *fields];
    memcpy(values, (const char *)h + offsetof(llm_header, flags), sizeof values);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const uint32_t v = values[i], min = fields[i].min, max = fields[i].max;
        REQUIRE(v >= min && v <= max, "header: %s is %u, not %u to %u", fields[i].name, v, min, max);
    }
    REQUIRE(h->dtype <= LLM_INT8, "header: there is no dtype %u for weights", h->dtype);
    REQUIRE(h->n_heads % h->n_kv_heads == 0, "header: %u heads on %u kv heads", h->n_heads, h->n_kv_heads);
    REQUIRE(h->head_dim % 2 == 0, "header: head_dim %u is odd", h->head_dim);
    const int some = h->n_active <= h->n_experts && !h->n_active == !h->n_experts;
    REQUIRE(some, "header: %u of %u experts are active", h->n_active, h->n_experts);
    const uint32_t routed = LLM_ROUTER_NORMALIZE | LLM_ROUTER_SIGMOID | LLM_ROUTER_BIAS | LLM_SHARED_GATE;
    REQUIRE(h->n_experts || !(h->flags & routed || h->shared_dim), "header: a router without experts");
    REQUIRE(h->shared_dim || !(h->flags & LLM_SHARED_GATE), "header: a gate without a shared expert");
    REQUIRE(h->flags & LLM_QK_NORM || !(h->flags & LLM_QK_NORM_WHOLE), "header: no q and k norm to be whole");
    REQUIRE(h->text_size % 64 == 0 && h->text_size >> 40 == 0, "header: text_size is wrong");
    REQUIRE(h->norm_eps >= 0 && h->norm_eps < 1, "header: norm_eps is %g", h->norm_eps);
    const float scales[] = {
        h->attn_scale, h->attn_cap, h->logit_cap, h->embed_scale, h->residual_scale, h->expert_scale};
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
        REQUIRE(fabsf(scales[i]) < 1e6f, "header: the scale number %zu is %g", i, scales[i]);
    for (size_t i = 0; i < sizeof h->reserved; i++)
        REQUIRE(!h->reserved[i], "header: a reserved byte is set, as a newer version may do");
    return 0;
}

/* Rows, columns and dtype of tensor `id`; returns how many a layer (or the model) has. 0 rows: the model has
 * none. */
static uint64_t shape(const llm_header *h, uint32_t id, llm_tensor *t) {
    const uint64_t q = (uint64_t)h->n_heads * h->head_dim, kv = (uint64_t)h->n_kv_heads * h->head_dim;
    const uint64_t output = h->flags & LLM_TIED ? 0 : h->vocab_size, bias = !!(h->flags & LLM_QKV_BIAS);
    const uint64_t pre = !(h->flags & LLM_NO_PRE_NORM), post = !!(h->flags & LLM_POST_NORM);
    const uint64_t qk_norm = !!(h->flags & LLM_QK_NORM), whole = !!(h->flags & LLM_QK_NORM_WHOLE);
    const uint64_t router = h->n_experts + (uint64_t)!!(h->flags & LLM_SHARED_GATE), dim = h->dim;
    const uint64_t hd = h->head_dim, ffn = h->ffn_dim, shared = h->shared_dim, type = h->dtype;
    const uint64_t shapes[LLM_N_TENSORS][3] = {
        /* rows, columns and dtype */
        [LLM_EMBED] = {h->vocab_size, dim, type},
        [LLM_OUT_NORM] = {1, dim, LLM_FP32},
        [LLM_OUTPUT] = {output, dim, type},
        [LLM_ATTN_NORM] = {pre, dim, LLM_FP32},
        [LLM_QKV] = {q + 2 * kv, dim, type},
        [LLM_BIAS] = {bias, q + 2 * kv, LLM_FP32},
        [LLM_Q_NORM] = {qk_norm, whole ? q : hd, LLM_FP32},
        [LLM_K_NORM] = {qk_norm, whole ? kv : hd, LLM_FP32},
        [LLM_ATTN_OUT] = {dim, q, type},
        [LLM_ATTN_POST_NORM] = {post, dim, LLM_FP32},
        [LLM_FFN_NORM] = {pre, dim, LLM_FP32},
        [LLM_ROUTER] = {h->n_experts ? router : 0, dim, LLM_FP16},
        [LLM_ROUTER_ADD] = {!!(h->flags & LLM_ROUTER_BIAS), h->n_experts, LLM_FP32},
        [LLM_GATE_UP] = {2 * ffn, dim, type},
        [LLM_DOWN] = {dim, ffn, type},
        [LLM_SHARED_GATE_UP] = {2 * shared, dim, type},
        [LLM_SHARED_DOWN] = {shared ? dim : 0, shared, type},
        [LLM_FFN_POST_NORM] = {post, dim, LLM_FP32},
    };
    static const uint64_t bytes[] = {128, 66, 256}; /* of a group of 64 in fp16, int8, fp32 */
    *t = (llm_tensor){.rows = shapes[id][0], .cols = shapes[id][1], .dtype = (uint32_t)shapes[id][2]};
    t->stride = align(t->cols, LLM_GROUP);
    t->size = align(t->rows, t->dtype == LLM_FP32 ? 1 : LLM_TILE) * (t->stride / LLM_GROUP) * bytes[t->dtype];
    return h->n_experts && (id == LLM_GATE_UP || id == LLM_DOWN) ? h->n_experts : 1;
}

/* The bytes that the tensors from `first` up to `last` take, once or in one layer. */
static uint64_t span(const llm_header *h, uint32_t first, uint32_t last) {
    uint64_t sum = 0;
    for (llm_tensor t; first < last; first++) {
        const uint64_t count = shape(h, first, &t);
        sum += count * align(t.size, LLM_GROUP);
    }
    return sum;
}

int llm_layout(const llm_header *h, uint32_t id, uint32_t layer, uint32_t expert, llm_tensor *t, char *err,
    size_t errlen) {
    const uint32_t layers = id < LLM_ATTN_NORM ? 1 : h->n_layers;
    TRY(check_header(h, err, errlen));
    const int known = id < LLM_N_TENSORS && layer < layers && expert < shape(h, id, t);
    REQUIRE(known, "no tensor %u in layer %u, expert %u", id, layer, expert);
    t->offset = LLM_HEADER_SIZE + h->text_size + h->n_layers * sizeof(llm_layer);
    t->offset = align(t->offset + (uint64_t)h->n_rope * h->head_dim / 2 * sizeof(llm_angle), LLM_GROUP);
    t->offset += span(h, 0, id < LLM_ATTN_NORM ? id : LLM_ATTN_NORM) + expert * align(t->size, LLM_GROUP);
    if (id >= LLM_ATTN_NORM)
        t->offset += layer * span(h, LLM_ATTN_NORM, LLM_N_TENSORS) + span(h, LLM_ATTN_NORM, id);
    return 0;
}

uint64_t llm_file_size(const llm_header *h, char *err, size_t errlen) {
    llm_tensor first;
    const int bad = llm_layout(h, LLM_ATTN_NORM, 0, 0, &first, err, errlen);
    return bad ? 0 : first.offset + h->n_layers * span(h, LLM_ATTN_NORM, LLM_N_TENSORS) + LLM_GROUP;
}

static uint64_t kv_bytes(const llm_header *h) {
    return (uint64_t)h->n_layers * 2 * h->n_kv_heads * align(h->head_dim, 16) * sizeof(uint16_t);
}

int llm_count(const llm_header *h, llm_counts *counts, char *err, size_t errlen) {
    TRY(check_header(h, err, errlen));
    *counts = (llm_counts){.kv = kv_bytes(h)};
    for (uint32_t id = 0; id < LLM_N_TENSORS; id++) {
        llm_tensor t;
        const uint64_t experts = shape(h, id, &t), all = experts * (id < LLM_ATTN_NORM ? 1 : h->n_layers);
        const uint64_t active = experts > 1 ? all / experts * h->n_active : all;
        counts->parameters += all * t.rows * t.cols;
        counts->active += active * t.rows * t.cols;
        counts->read += active * t.size / (id == LLM_EMBED && !(h->flags & LLM_TIED) ? t.rows : 1);
    }
    return 0;
}

uint64_t llm_kv_read(const llm_header *h, const llm_layer *layers, uint64_t context) {
    uint64_t positions = 0;
    for (uint32_t i = 0; i < h->n_layers; i++)
        positions += layers[i].window && layers[i].window < context ? layers[i].window : context;
    return kv_bytes(h) / h->n_layers * positions;
}

/* FNV-1a over the header's bytes before this field. */
uint64_t llm_checksum(const llm_header *h) {
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < offsetof(llm_header, checksum); i++)
        hash = (hash ^ ((const uint8_t *)h)[i]) * 0x100000001b3;
    return hash;
}

/* ------------------------------------------------------------------------------------------------------
 * Models */

/* Reads the head of the section that begins at *at or at the next multiple of 16, and moves *at behind it; 0
 * at the end of the sections. */
static int next_section(const llm_model *m, uint64_t *at, llm_section_head *head) {
    *at = align(*at, 16);
    if (*at >= LLM_HEADER_SIZE + m->h.text_size)
        return 0;
    memcpy(head, m->data + *at, sizeof *head); /* always whole: where the sections end is a multiple of 16 */
    *at += sizeof *head;
    return head->tag != 0;
}

/* What a file that does not begin as a model does is, for those who took one for the other. */
static const char *other_kind(const uint8_t *data, size_t size) {
    static const char lfs[] = "version https://git-lfs";
    if (size >= 4 && !memcmp(data, "GGUF", 4))
        return "a GGUF file, of which pyllm-convert makes a pyllm model file";
    if (size >= sizeof lfs - 1 && !memcmp(data, lfs, sizeof lfs - 1))
        return "a git-lfs pointer, not the file itself: git lfs pull fetches it";
    return "not a pyllm model file";
}

/* Everything in the file that the engine relies on. Whatever passes may hold wrong numbers, never a wrong
 * size or offset. */
static int check(llm_model *m, char *err, size_t errlen) {
    const int ours = m->size >= 8 && !memcmp(m->data, "PYLLM\r\n\032", 8);
    REQUIRE(ours, "%s", other_kind(m->data, m->size));
    REQUIRE(m->size >= sizeof m->h, "the file is cut short: it has %zu bytes", m->size);
    memcpy(&m->h, m->data, sizeof m->h);
    REQUIRE(m->h.version == LLM_VERSION, "format version %u, not %d", m->h.version, LLM_VERSION);
    REQUIRE(m->h.checksum == llm_checksum(&m->h), "header: the checksum is wrong: the file is damaged");
    const uint64_t size = llm_file_size(&m->h, err, errlen), end = LLM_HEADER_SIZE + m->h.text_size;
    TRY(size == 0);
    REQUIRE(size == m->size && size == m->h.file_size, "it has %zu bytes, not %zu", m->size, (size_t)size);
    for (uint32_t id = 0; id < LLM_N_TENSORS; id++)
        llm_layout(&m->h, id, 0, 0, &m->tensor[id], NULL, 0);
    m->layer_size = span(&m->h, LLM_ATTN_NORM, LLM_N_TENSORS);
    m->layers = (const llm_layer *)(m->data + end);
    m->rope = (const llm_angle *)(m->layers + m->h.n_layers);
    for (uint32_t i = 0; i < m->h.n_layers; i++) {
        const llm_layer *l = &m->layers[i];
        REQUIRE(l->rope < m->h.n_rope, "layer %u: no rotary table %u", i, l->rope);
        REQUIRE(!l->reserved[0] && !l->reserved[1],
            "layer %u: a reserved field is set, as a newer version may do", i);
    }
    llm_section_head head;
    for (uint64_t at = LLM_HEADER_SIZE; next_section(m, &at, &head); at += head.size) {
        REQUIRE(head.size <= end - at, "section %u does not fit into the file", head.tag);
        REQUIRE(!head.reserved, "section %u: a reserved field is set, as a newer version may do", head.tag);
    }
    return 0;
}

llm_model *llm_open_memory(const void *data, size_t size, char *err, size_t errlen) {
    REQUIRE_OR_NULL((uintptr_t)data % 64 == 0, "a model in memory must be aligned to 64 bytes");
    llm_model *m = calloc(1, sizeof *m);
    REQUIRE_OR_NULL(m, "out of memory");
    m->data = data;
    m->size = size;
    if (!check(m, err, errlen))
        return m;
    free(m);
    return NULL;
}

/* Maps a regular file; NULL: err says why not. */
static void *map_file(int fd, size_t *size, char *err, size_t errlen) {
    struct stat st;
    REQUIRE_OR_NULL(fd >= 0 && !fstat(fd, &st), "%s", strerror(errno));
    REQUIRE_OR_NULL(!S_ISDIR(st.st_mode), "it is a directory, not a model file");
    REQUIRE_OR_NULL(S_ISREG(st.st_mode), "it is not a regular file, and cannot be mapped");
    REQUIRE_OR_NULL(st.st_size > 0, "the file is empty");
    *size = (size_t)st.st_size;
    void *data = mmap(NULL, *size, PROT_READ, MAP_SHARED, fd, 0);
    REQUIRE_OR_NULL(data != MAP_FAILED, "its %zu bytes cannot be mapped: %s", *size, strerror(errno));
    return data;
}

llm_model *llm_open(const char *path, char *err, size_t errlen) {
    char why[256];
    size_t size;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO without a writer: do not wait */
    void *data = map_file(fd, &size, why, sizeof why);
    if (fd >= 0)
        close(fd);
    llm_model *m = data ? llm_open_memory(data, size, why, sizeof why) : NULL;
    if (!m && data)
        munmap(data, size);
    REQUIRE_OR_NULL(m, "%s: %s", path, why);
    m->mapped = 1;
    return m;
}

void llm_close(llm_model *m) {
    if (m && m->mapped)
        munmap((void *)m->data, m->size);
    free(m);
}

const llm_header *llm_model_header(const llm_model *m) { return &m->h; }

const llm_layer *llm_model_layers(const llm_model *m) { return m->layers; }

const void *llm_section(const llm_model *m, uint32_t tag, size_t *size) {
    llm_section_head head;
    for (uint64_t at = LLM_HEADER_SIZE; next_section(m, &at, &head); at += head.size)
        if (head.tag == tag) {
            *size = (size_t)head.size;
            return m->data + at;
        }
    *size = 0;
    return NULL;
}

void read_row(const llm_model *m, uint32_t id, size_t row, float scale, float *x) {
    const llm_tensor *t = &m->tensor[id];
    const uint16_t *w = weights(m, id, 0, 0), *by = w + align(t->rows, LLM_TILE) * t->stride / 2;
    for (size_t c = 0; c < t->cols; c++)
        x[c] = scale * (t->dtype == LLM_FP16
                               ? half_to_float(w[in_tile(row, c, t->stride)])
                               : ((const int8_t *)w)[in_tile(row, c / 2, t->stride / 2) * 2 + c % 2] *
                                     half_to_float(by[in_tile(row, c / LLM_GROUP, t->stride / LLM_GROUP)]));
}

size_t llm_kv_bytes(const llm_model *m) { return (size_t)kv_bytes(&m->h); }
