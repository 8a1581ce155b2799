/* verify.c - whether the bytes of a model are those that were written: checksums of its parts, XXH64 (Yann
 * Collet, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md), seed 0. */
#include "file.h"
#include "fail.h"
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PRIME1 0x9E3779B185EBCA87u
#define PRIME2 0xC2B2AE3D27D4EB4Fu
#define PRIME3 0x165667B19E3779F9u
#define PRIME4 0x85EBCA77C2B2AE63u
#define PRIME5 0x27D4EB2F165667C5u

#define PIECE ((size_t)1 << 24) /* bytes of the file that are looked at before pages are let go of */

static uint64_t rotate_left(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static uint64_t read64(const uint8_t *p) {
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static uint64_t read32(const uint8_t *p) {
    uint32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static uint64_t mix(uint64_t lane, uint64_t input) { return rotate_left(lane + input * PRIME2, 31) * PRIME1; }

static uint64_t merge_lane(uint64_t hash, uint64_t lane) { return (hash ^ mix(0, lane)) * PRIME1 + PRIME4; }

/* n stripes of 32 bytes, four lanes of 8 */
static void hash_stripes(uint64_t lane[4], const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        lane[0] = mix(lane[0], read64(p));
        lane[1] = mix(lane[1], read64(p + 8));
        lane[2] = mix(lane[2], read64(p + 16));
        lane[3] = mix(lane[3], read64(p + 24));
        p += 32;
    }
}

static uint64_t join_lanes(const uint64_t lane[4]) {
    uint64_t hash = rotate_left(lane[0], 1) + rotate_left(lane[1], 7) + rotate_left(lane[2], 12) +
                    rotate_left(lane[3], 18);
    for (size_t k = 0; k < 4; k++)
        hash = merge_lane(hash, lane[k]);
    return hash;
}

/* Lets go of pages of the mapped file, which then do not count as this process's memory. */
static void let_go(const uint8_t *data, size_t size) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t begin = ((uintptr_t)data + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)data + size) / page * page;
    if (begin < end)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
}

static uint64_t xxh64(const uint8_t *data, size_t size, int mapped) {
    const uint8_t *p = data, *end = data + size;
    uint64_t lane[4] = {PRIME1 + PRIME2, PRIME2, 0, 0 - PRIME1};
    while (end - p >= 32) {
        const size_t rest = (size_t)(end - p) / 32 * 32, n = rest < PIECE ? rest : PIECE;
        hash_stripes(lane, p, n / 32);
        if (mapped)
            let_go(p, n);
        p += n;
    }
    uint64_t hash = size >= 32 ? join_lanes(lane) : PRIME5;
    hash += size;
    for (; end - p >= 8; p += 8)
        hash = rotate_left(hash ^ mix(0, read64(p)), 27) * PRIME1 + PRIME4;
    if (end - p >= 4) {
        hash = rotate_left(hash ^ read32(p) * PRIME1, 23) * PRIME2 + PRIME3;
        p += 4;
    }
    for (; p < end; p++)
        hash = rotate_left(hash ^ *p * PRIME5, 11) * PRIME1;
    hash = (hash ^ hash >> 33) * PRIME2;
    hash = (hash ^ hash >> 29) * PRIME3;
    return hash ^ hash >> 32;
}

/* One part of the file that has a checksum; `what` is its name, for the sentence that says it is damaged. */
typedef struct part {
    const uint8_t *data;
    size_t size;
    char what[64];
} part;

static part text_part(const llm_model *m) {
    size_t size;
    const uint8_t *begin = m->data + LLM_HEADER_SIZE;
    const uint8_t *own = llm_section(m, LLM_CHECKSUMS, &size);
    const uint8_t *end = own ? own - sizeof(llm_section_head) : begin + m->h.text_size;
    return (part){begin, (size_t)(end - begin), "the sections"};
}

static part layers_part(const llm_model *m) {
    const size_t angles = (size_t)m->h.n_rope * (m->h.rope_dim / 2);
    const uint8_t *end = (const uint8_t *)(m->rope + angles), *begin = (const uint8_t *)m->layers;
    return (part){begin, (size_t)(end - begin), "the layers or rotary tables"};
}

static part tensor_part(const llm_model *m, size_t layer, uint32_t id, uint32_t expert) {
    const llm_tensor *t = tensor(m, layer, id);
    part p = {.data = weights(m, t, expert), .size = (size_t)t->size};
    const char *name = llm_tensor_name(id);
    if (id < LLM_ATTN_NORM)
        snprintf(p.what, sizeof p.what, "tensor %s", name);
    else if (t->experts == 1)
        snprintf(p.what, sizeof p.what, "tensor %s of layer %zu", name, layer);
    else
        snprintf(p.what, sizeof p.what, "tensor %s of layer %zu, expert %u", name, layer, expert);
    return p;
}

/* Calls see() for each part, in order; stops at the first one for which it returns other than 0. */
static int each_part(const llm_model *m, int (*see)(void *context, const part *p), void *context) {
    const part text = text_part(m), layers = layers_part(m);
    TRY(see(context, &text) || see(context, &layers));
    for (size_t layer = 0; layer < m->h.n_layers; layer++)
        for (uint32_t id = layer ? LLM_ATTN_NORM : 0; id < LLM_N_TENSORS; id++) {
            const llm_tensor *t = tensor(m, layer, id);
            for (uint32_t expert = 0; t->size && expert < t->experts; expert++) {
                const part p = tensor_part(m, layer, id, expert);
                TRY(see(context, &p));
            }
        }
    return 0;
}

typedef struct writing {
    uint64_t *sums;
    size_t n, capacity;
    int mapped;
} writing;

static int write_sum(void *context, const part *p) {
    writing *w = context;
    if (w->n < w->capacity)
        w->sums[w->n] = xxh64(p->data, p->size, w->mapped);
    w->n++;
    return 0;
}

size_t llm_checksums(const llm_model *m, uint64_t *sums, size_t capacity) {
    writing w = {.sums = sums, .capacity = capacity, .mapped = m->mapped};
    each_part(m, write_sum, &w);
    return w.n;
}

typedef struct comparing {
    const uint64_t *sums;
    size_t n;
    int mapped;
    char *err;
    size_t errlen;
} comparing;

static int compare_sum(void *context, const part *p) {
    comparing *c = context;
    char *err = c->err;
    const size_t errlen = c->errlen;
    REQUIRE(c->sums[c->n] == xxh64(p->data, p->size, c->mapped),
        "%s: the checksum is wrong: the file is damaged", p->what);
    c->n++;
    return 0;
}

int llm_verify(const llm_model *m, char *err, size_t errlen) {
    size_t size;
    const uint64_t *sums = llm_section(m, LLM_CHECKSUMS, &size);
    const int lost = !sums && m->h.optional & LLM_HAS_CHECKSUMS;
    REQUIRE(!lost, "the section of checksums is not there: the file is damaged");
    REQUIRE(sums, "the file has no checksums to verify it with");
    const size_t n = llm_checksums(m, NULL, 0);
    REQUIRE(size == n * sizeof *sums, "%zu bytes of checksums, not of %zu parts", size, n);
    comparing c = {.sums = sums, .mapped = m->mapped, .err = err, .errlen = errlen};
    return each_part(m, compare_sum, &c);
}
