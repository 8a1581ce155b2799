/* session.c - sessions: their memory, one mapping that is reserved once, and their sequences' keys and values, which
 * are cut, copied, moved out and moved in. */
#include "session.h"
#include "fail.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ------------------------------------------------------------------------------------------------------
 * Opening and closing */

/* The bytes that a buffer takes of the arena. With LLM_GUARD, which tests define, each ends where pages begin
 * that nothing may touch: a number written behind it ends the process at once. */
#ifdef LLM_GUARD
#define GUARD ((size_t)1 << 16) /* a multiple of every page size */
#define ROOM(size) (align(size, GUARD) + GUARD)
#else
#define GUARD ((size_t)0)
#define ROOM(size) align(size, 64)
#endif

/* The most that any layer needs: numbers of a row of each buffer */
typedef struct widths {
    size_t qkv, q, att, parts, ffn, per_token, experts, group, width, low_rank, low, plain, latents, mixed,
        gates;
} widths;

/* ... of those with a state */
static void measure_state(const llm_header *h, const llm_layer *l, widths *w) {
    const size_t channels = channels_of(h, l), v_dim = delta_values_of(l);
    if (l->mixer == LLM_SHORT_CONV) {
        w->qkv = larger(w->qkv, align(3 * channels, LLM_GROUP));
        w->att = larger(w->att, align(channels, LLM_GROUP));
    } else {
        w->qkv = larger(w->qkv, align(channels, LLM_GROUP) + align(v_dim, LLM_GROUP));
        w->att = larger(w->att, align(v_dim, LLM_GROUP));
        w->mixed = larger(w->mixed, align(channels, LLM_GROUP));
        w->gates = larger(w->gates, 2 * (size_t)l->delta_heads);
    }
}

static widths measure(const llm_model *m) {
    widths w = {.group = 1};
    for (size_t i = 0; i < m->h.n_layers; i++) {
        const llm_layer *l = &m->layers[i];
        const size_t qkv = q_dim_of(l) + k_dim_of(l) + v_dim_of(l) + gate_dim_of(l);
        const size_t heads = l->latent_dim ? l->n_heads : 0;
        w.qkv = larger(w.qkv, align(qkv, LLM_GROUP));
        w.qkv = larger(w.qkv, heads ? align(latent_rows_of(l) + q_dim_of(l), LLM_GROUP) : 0);
        w.low = larger(w.low, align(l->q_rank, LLM_GROUP));
        w.plain = larger(w.plain, heads * plain_width(l));
        w.latents = larger(w.latents, heads * latent_width(l));
        w.att = larger(w.att, align(att_dim_of(l), LLM_GROUP));
        w.width = larger(w.width, larger(key_width(l), value_width(l)));
        w.q = larger(w.q, l->n_heads * key_width(l));
        w.parts = larger(w.parts, l->n_heads * (value_width(l) + 2));
        const size_t ffn_dim = larger(larger(l->ffn_dim, l->shared_dim), larger(m->h.ple_dim, l->low_rank));
        w.low_rank = larger(w.low_rank, l->low_rank);
        w.ffn = larger(w.ffn, align(ffn_dim, LLM_GROUP));
        w.per_token = larger(w.per_token, experts_per_token(l));
        w.experts = larger(w.experts, l->n_experts);
        w.group = larger(w.group, group_of(l));
        if (l->mixer != LLM_ATTENTION)
            measure_state(&m->h, l, &w);
    }
    return w;
}

/* Positions that a layer's keys and values have room for: all; or those that its window needs when the sequence is cut
 * `back` positions before the end of its last page. */
static size_t room_of(const llm_session *s, size_t layer) {
    const uint32_t window = kv_window(&s->m->h, s->m->layers, s->m->layers[layer].kv_layer);
    const size_t room = align(window + s->back, SPAN);
    return window && room < s->span ? room : s->span;
}

/* A whole batch can come, be taken back, and then the sequence be cut by `rewind`; or by all where no layer's room is
 * short of that. */
static void find_back(llm_session *s) {
    s->back = (size_t)s->o.rewind + s->o.batch + SPAN;
    for (size_t i = 0; i < s->m->h.n_layers; i++)
        if (room_of(s, i) < s->span)
            return;
    s->back = s->span;
}

/* Where each layer's keys begin, once there is memory to write it to; returns how many bytes all take. */
static size_t place_layers(llm_session *s) {
    size_t size = 0;
    for (size_t i = 0; i < s->m->h.n_layers; i++) {
        const llm_layer *l = &s->m->layers[i];
        const int own = l->kv_layer == i;
        const size_t page = l->n_kv_heads * (page_size(s, l, KEYS) + page_size(s, l, VALUES));
        if (s->layer_kv) {
            s->layer_kv[i] = own ? size : s->layer_kv[l->kv_layer];
            s->layer_span[i] = room_of(s, i);
        }
        size += own ? room_of(s, i) / SPAN * page : 0;
    }
    return size;
}

/* Where each layer's state begins in a slot, once there is memory to write it to; returns how many bytes all take. */
static size_t place_states(llm_session *s) {
    size_t size = 0;
    for (size_t i = 0; i < s->m->h.n_layers; i++) {
        if (s->layer_state)
            s->layer_state[i] = size;
        size += state_bytes(&s->m->h, &s->m->layers[i]);
    }
    return size;
}

/* Reserves the buffers; memory is taken as they are first written. */
static int open_buffers(llm_session *s, char *err, size_t errlen) {
    const llm_header *h = &s->m->h;
    const widths w = measure(s->m);
    const size_t b = s->o.batch, n_seqs = s->o.n_seqs, f = sizeof(float);
    const size_t dim = align(h->dim, LLM_GROUP);
    s->x.stride = s->xb.stride = s->out.stride = dim;
    s->expert_x.stride = s->expert_out.stride = dim;
    s->qkv.stride = w.qkv;
    s->att.stride = w.att;
    s->laurel.stride = dim;
    s->modes.stride = h->n_streams;
    s->ple.stride = align((size_t)h->n_layers * h->ple_dim, LLM_GROUP) + LLM_GROUP;
    s->low.stride = w.low;
    s->plain.stride = w.plain;
    s->latents.stride = w.latents;
    s->gate.stride = 2 * w.ffn;
    s->hidden.stride = w.ffn;
    s->router.stride = w.experts + 1;
    s->mixed.stride = w.mixed;
    s->gates.stride = w.gates;
    s->span = align(s->o.context, SPAN);
    find_back(s);
    s->slots_at = align(place_layers(s), 64);
    s->slot_size = place_states(s);
    s->seq_size = align(s->slots_at + LLM_STATES * s->slot_size, 1 << 16);
    s->run = align((48 + w.group - 1) / w.group, 8);
    s->unit_rows = s->run * w.group;
    s->unit_groups = larger(align(w.width, LLM_GROUP), SCORES) / LLM_GROUP;
    s->unit_ldq = 2 * s->unit_groups * LLM_GROUP + 64;
    s->part = s->span > 8 * 512 ? align(s->span / 8, SCORES) : 512;
    s->part_size = b * w.parts;
    s->n_parts = (s->span + s->part - 1) / s->part;
    const size_t latent = larger(w.low, larger(w.plain, w.latents));
    const size_t columns = larger(larger(dim, latent), larger(w.att, w.ffn));
    const size_t mixed = w.per_token ? b : 0; /* tokens of an expert */
    const size_t stateful = s->slot_size ? n_seqs : 0;
    const struct {
        void *slot;
        size_t size;
    } buffers[] = {
        {&s->kv, n_seqs * s->seq_size},
        {&s->layer_kv, h->n_layers * sizeof(size_t)},
        {&s->layer_span, h->n_layers * sizeof(size_t)},
        {&s->length, n_seqs * sizeof(size_t)},
        {&s->oldest, n_seqs * sizeof(size_t)},
        {&s->new_length, n_seqs * sizeof(size_t)},
        {&s->layer_state, h->n_layers * sizeof(size_t)},
        {&s->marks, stateful * LLM_STATES * sizeof(size_t)},
        {&s->slot_in, stateful * f},
        {&s->slot_out, stateful * f},
        {&s->slot_keep, stateful * f},
        {&s->keep_at, stateful * sizeof(size_t)},
        {&s->before, b * f},
        {&s->latest, n_seqs * f},
        {&s->seqs, b * f},
        {&s->pos, b * f},
        {&s->rows, b * f},
        {&s->state_rows, b * f},
        {&s->runs, (b + 1) * f},
        {&s->x.data, b * dim * f},
        {&s->xb.data, b * dim * f},
        {&s->out.data, b * dim * f},
        {&s->rotation, b * h->n_rope * h->rope_dim * f},
        {&s->streams, h->n_streams * b * dim * f},
        {&s->modes.data, h->n_streams * b * f},
        {&s->laurel.data, w.low_rank ? b * dim * f : 0},
        {&s->ple.data, h->ple_dim ? b * s->ple.stride * f : 0},
        {&s->qkv.data, b * w.qkv * f},
        {&s->q, b * w.q * f},
        {&s->scores, s->o.threads * s->unit_rows * SCORES * f},
        {&s->unit_q, s->o.threads * 2 * (s->unit_rows + BEYOND) * s->unit_ldq},
        {&s->unit_scales, s->o.threads * 2 * (s->unit_rows + BEYOND) * s->unit_groups * f},
        {&s->unit_offsets, s->o.threads * 2 * (s->unit_rows + BEYOND) * s->unit_groups * f},
        {&s->parts, s->n_parts * s->part_size * f},
        {&s->att.data, b * w.att * f},
        {&s->low.data, b * w.low * f},
        {&s->plain.data, b * w.plain * f},
        {&s->latents.data, b * w.latents * f},
        {&s->mixed.data, b * w.mixed * f},
        {&s->gates.data, b * w.gates * f},
        {&s->gate.data, b * 2 * w.ffn * f},
        {&s->hidden.data, b * w.ffn * f},
        {&s->router.data, b * (w.experts + 1) * f},
        {&s->chosen, b * w.per_token * f},
        {&s->gains, b * w.per_token * f},
        {&s->members, b * w.per_token * f},
        {&s->starts, (w.experts + 3) * f},
        {&s->expert_x.data, mixed * dim * f},
        {&s->expert_gain, mixed * f},
        {&s->expert_out.data, mixed * dim * f},
        {&s->quants, (b + BEYOND) * (2 * columns + 64)},
        {&s->scales, (b + BEYOND) * columns / 32 * f},
        {&s->offsets, (b + BEYOND) * columns / 32 * f},
    };
    const size_t n = sizeof buffers / sizeof *buffers;
    for (size_t i = 0; i < n; i++)
        s->arena_size += ROOM(buffers[i].size);
    const int map = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if ((double)s->seq_size * (double)n_seqs < 0x1p60)
        s->arena = mmap(NULL, s->arena_size, PROT_READ | PROT_WRITE, map, -1, 0);
    REQUIRE(s->arena && s->arena != MAP_FAILED, "no memory for %zu sequences of %u", n_seqs, s->o.context);
    uint8_t *at = s->arena;
    for (size_t i = 0; i < n; i++) {
        at += ROOM(buffers[i].size) - GUARD;
        const uint8_t *start = at - align(buffers[i].size, 64);
        memcpy(buffers[i].slot, &start, sizeof start);
        REQUIRE(!GUARD || !mprotect(at, GUARD, PROT_NONE), "no memory for guard pages");
        at += GUARD;
    }
    place_layers(s);
    place_states(s);
    return 0;
}

/* The best kernels that the processor has, or those that PYLLM_ISA names */
static const kernels *pick_kernels(char *err, size_t errlen) {
    static const kernels *const all[] = {VECTOR_KERNELS & kernels_plain};
    const char *want = getenv("PYLLM_ISA");
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const int wanted = !want || !*want || !strcmp(want, all[i]->name);
        if (wanted && all[i]->has())
            return all[i];
    }
    return FAIL_NULL("PYLLM_ISA: this processor or build has no \"%.32s\"", want);
}

static llm_options with_defaults(const llm_options *options, const llm_model *m) {
    llm_options o = {0};
    if (options)
        o = *options;
    if (!o.context)
        o.context = m->h.context;
    if (!o.n_seqs)
        o.n_seqs = 1;
    if (!o.threads)
        o.threads = llm_default_threads();
    if (!o.batch)
        o.batch = 256;
    if (!o.rewind)
        o.rewind = LLM_REWIND;
    o.kv = llm_kv_kind(m->layers, o.kv);
    if (m->layers[0].dtype[LLM_QKV - LLM_ATTN_NORM] != LLM_FP16 && !o.exact)
        o.exact = 1;
    return o;
}

static int open_session(
    llm_session *s, const llm_model *m, const llm_options *options, char *err, size_t errlen) {
    s->m = m;
    s->o = with_defaults(options, m);
    s->k = pick_kernels(err, errlen);
    TRY(!s->k);
    const llm_options *o = &s->o;
    const int fits = o->context <= 1 << 28 && o->n_seqs <= 1 << 16;
    REQUIRE(fits && o->threads <= MAX_THREADS && o->batch <= MAX_BATCH,
        "over 2^28 positions, 65536 sequences, %d threads or batches of %d", MAX_THREADS, MAX_BATCH);
    REQUIRE(
        o->kv <= LLM_KV_INT8 && o->exact <= 1, "there is no kv of kind %u, or exact is not 0 or 1", o->kv);
    const int placed = !(m->h.required & LLM_POSITION_TABLE) || o->context <= m->h.context;
    REQUIRE(placed, "a context of %u, and the model has a row for each of %u positions", o->context,
        m->h.context);
    return open_buffers(s, err, errlen);
}

llm_session *llm_session_open(const llm_model *m, const llm_options *options, char *err, size_t errlen) {
    llm_session *s = calloc(1, sizeof *s);
    REQUIRE_OR_NULL(s, "out of memory");
    if (!open_session(s, m, options, err, errlen))
        return s;
    llm_session_close(s);
    return NULL;
}

void llm_session_close(llm_session *s) {
    if (s && s->arena && s->arena != MAP_FAILED)
        munmap(s->arena, s->arena_size);
    free(s);
}

void llm_observe(llm_session *s, llm_observer observer, void *context) {
    s->observer = observer;
    s->observer_context = context;
}

void llm_stop(llm_session *s) { atomic_store(&s->stopped, 1); }

void llm_rotate(float *x, size_t n) {
    const kernels *k = pick_kernels(NULL, 0);
    if (!k)
        k = &kernels_plain;
    k->hadamard(x, n);
}

const llm_options *llm_session_options(const llm_session *s) { return &s->o; }

const char *llm_session_isa(const llm_session *s) { return s->k->name; }

/* ------------------------------------------------------------------------------------------------------
 * Sequences: cut, copied, moved out and in */

size_t llm_length(const llm_session *s, uint32_t seq) { return seq < s->o.n_seqs ? s->length[seq] : 0; }

/* The slot that has the state of a length; NONE */
static uint32_t slot_of(const llm_session *s, size_t seq, size_t length) {
    for (uint32_t slot = 0; slot < LLM_STATES; slot++)
        if (length && s->marks[seq * LLM_STATES + slot] == length)
            return slot;
    return NONE;
}

/* The greatest of a sequence's marks up to a length, and the least above it; 0, or `length`, where there is none */
static size_t mark_upto(const llm_session *s, size_t seq, size_t length) {
    size_t best = 0;
    for (size_t slot = 0; slot < LLM_STATES; slot++) {
        const size_t mark = s->marks[seq * LLM_STATES + slot];
        best = mark <= length ? larger(best, mark) : best;
    }
    return best;
}

static size_t mark_above(const llm_session *s, size_t seq, size_t length) {
    size_t best = 0;
    for (size_t slot = 0; slot < LLM_STATES; slot++) {
        const size_t mark = s->marks[seq * LLM_STATES + slot];
        best = mark > length && (!best || mark < best) ? mark : best;
    }
    return best ? best : length;
}

size_t llm_cut(const llm_session *s, uint32_t seq, size_t length) {
    if (seq >= s->o.n_seqs)
        return 0;
    length = length < s->length[seq] ? length : s->length[seq];
    if (s->slot_size)
        length = mark_upto(s, seq, length);
    return length >= s->oldest[seq] ? length : 0;
}

size_t llm_oldest(const llm_session *s, uint32_t seq) {
    if (seq >= s->o.n_seqs || !s->length[seq])
        return 0;
    const size_t least = larger(s->oldest[seq], 1);
    return s->slot_size ? mark_above(s, seq, least - 1) : s->oldest[seq];
}

static int check_sequence(const llm_session *s, uint32_t seq, size_t length, char *err, size_t errlen) {
    REQUIRE(seq < s->o.n_seqs, "there is no sequence %u: the session has %u", seq, s->o.n_seqs);
    REQUIRE(length <= s->length[seq], "sequence %u has %zu positions, not %zu", seq, s->length[seq], length);
    REQUIRE(!length || length >= s->oldest[seq],
        "sequence %u can be cut to 0 or to %zu positions and more, not to %zu: its windows have moved on",
        seq, s->oldest[seq], length);
    const size_t cut = llm_cut(s, seq, length);
    REQUIRE(cut == length,
        "sequence %u can be cut to 0 or to %zu positions, not to %zu: there is no state of those", seq, cut,
        length);
    return 0;
}

/* What it costs to lose the state of length `mark`, a page's end: the positions that more are computed again, by
 * everyone who cuts from here up to the next one; who does so a long way back is rarer. The last one is not lost. */
static double worth(const llm_session *s, size_t seq, size_t mark) {
    size_t below = 0, above = 0;
    for (size_t slot = 0; slot < LLM_STATES; slot++) {
        const size_t other = s->marks[seq * LLM_STATES + slot];
        if (other % LLM_PAGE == 0 && other < mark)
            below = larger(below, other);
        if (other % LLM_PAGE == 0 && other > mark && (!above || other < above))
            above = other;
    }
    if (!above)
        return INFINITY;
    return (double)(mark - below) * (double)(above - mark) / (double)(s->length[seq] - mark + LLM_PAGE);
}

/* A slot of a sequence, other than two, for another state: one that is not at a page's end, else an empty one, else
 * the one that is worth least */
static uint32_t pick_slot(const llm_session *s, size_t seq, uint32_t not, uint32_t nor) {
    uint32_t best = NONE;
    double least = 0;
    for (uint32_t slot = 0; slot < LLM_STATES; slot++) {
        const size_t mark = s->marks[seq * LLM_STATES + slot];
        if (slot == not || slot == nor)
            continue;
        double this = -2;
        if (mark % LLM_PAGE == 0)
            this = mark ? worth(s, seq, mark) : -1;
        if (best == NONE || this < least) {
            best = slot;
            least = this;
        }
    }
    return best;
}

void plan_states(llm_session *s) {
    if (!s->slot_size)
        return;
    for (size_t seq = 0; seq < s->o.n_seqs; seq++) {
        const size_t start = s->length[seq], end = s->new_length[seq];
        const size_t page_end = end ? (end - 1) / LLM_PAGE * LLM_PAGE : 0;
        s->slot_out[seq] = NONE;
        if (start == end)
            continue;
        s->slot_in[seq] = slot_of(s, seq, start);
        s->slot_out[seq] = pick_slot(s, seq, s->slot_in[seq], NONE);
        s->marks[seq * LLM_STATES + s->slot_out[seq]] = 0;
        s->slot_keep[seq] = NONE;
        s->keep_at[seq] = page_end;
        if (page_end > start) {
            s->slot_keep[seq] = pick_slot(s, seq, s->slot_in[seq], s->slot_out[seq]);
            s->marks[seq * LLM_STATES + s->slot_keep[seq]] = 0;
        }
    }
}

void mark_states(llm_session *s) {
    if (!s->slot_size)
        return;
    for (size_t seq = 0; seq < s->o.n_seqs; seq++) {
        if (s->slot_out[seq] == NONE)
            continue;
        s->marks[seq * LLM_STATES + s->slot_out[seq]] = s->length[seq];
        if (s->slot_keep[seq] != NONE)
            s->marks[seq * LLM_STATES + s->slot_keep[seq]] = s->keep_at[seq];
    }
}

/* Forgets the states of lengths beyond this one. */
static void drop_states(llm_session *s, size_t seq, size_t length) {
    if (!s->slot_size)
        return;
    for (size_t slot = 0; slot < LLM_STATES; slot++)
        if (s->marks[seq * LLM_STATES + slot] > length)
            s->marks[seq * LLM_STATES + slot] = 0;
}

int llm_truncate(llm_session *s, uint32_t seq, size_t length, char *err, size_t errlen) {
    TRY(check_sequence(s, seq, length, err, errlen));
    if (length == 0) {
        if (s->length[seq])
            madvise(s->kv + seq * s->seq_size, s->seq_size, MADV_DONTNEED);
        s->oldest[seq] = 0;
    }
    drop_states(s, seq, length);
    s->length[seq] = length;
    return 0;
}

int llm_copy(llm_session *s, uint32_t from, uint32_t to, size_t length, char *err, size_t errlen) {
    TRY(check_sequence(s, from, length, err, errlen) || check_sequence(s, to, 0, err, errlen));
    if (from == to || !length)
        return llm_truncate(s, to, length, err, errlen);
    llm_truncate(s, to, 0, err, errlen);
    for (size_t layer = 0; layer < s->m->h.n_layers; layer++) {
        const llm_layer *l = &s->m->layers[layer];
        const size_t span = s->layer_span[layer], used = align(length, SPAN);
        const size_t heads = l->kv_layer == layer ? 2 * (size_t)l->n_kv_heads : 0;
        for (size_t a = 0; a < heads; a++) {
            const int kind = a < l->n_kv_heads ? KEYS : VALUES;
            const size_t size = (used < span ? used : span) / SPAN * page_size(s, l, kind);
            memcpy(cache(s, to, layer, kind, a % l->n_kv_heads, 0),
                cache(s, from, layer, kind, a % l->n_kv_heads, 0), size);
        }
    }
    if (s->slot_size) {
        memcpy(window_of(s, to, 0, 0), window_of(s, from, slot_of(s, from, length), 0), s->slot_size);
        s->marks[to * LLM_STATES] = length;
    }
    s->length[to] = length;
    s->oldest[to] = s->oldest[from];
    return 0;
}

/* The pages of one head that lengths from `oldest` to `length` need, to or from `state`; returns where it goes on. */
static uint8_t *move_pages(const llm_session *s, uint32_t seq, size_t layer, int kind, size_t head,
    size_t length, size_t oldest, uint8_t *state, int set) {
    const size_t size = page_size(s, &s->m->layers[layer], kind);
    for (size_t i = first_page(kv_window(&s->m->h, s->m->layers, layer), oldest); i * SPAN < length; i++) {
        uint8_t *page = cache(s, seq, layer, kind, head, i * SPAN);
        memcpy(set ? page : state, set ? state : page, size);
        state += size;
    }
    return state;
}

int llm_state(llm_session *s, uint32_t seq, size_t length, size_t oldest, void *state, int set, char *err,
    size_t errlen) {
    uint8_t *at = state;
    TRY(check_sequence(s, seq, set ? 0 : length, err, errlen));
    REQUIRE(length <= s->o.context, "%zu positions do not fit into a context of %u", length, s->o.context);
    REQUIRE(oldest <= length, "%zu positions cannot be cut back to %zu", length, oldest);
    REQUIRE(set || !length || oldest >= s->oldest[seq], "sequence %u can be cut back to %zu, not to %zu", seq,
        s->oldest[seq], oldest);
    if (set)
        llm_truncate(s, seq, 0, err, errlen);
    for (size_t layer = 0; layer < s->m->h.n_layers; layer++) {
        const llm_layer *l = &s->m->layers[layer];
        const size_t heads = l->kv_layer == layer ? l->n_kv_heads : 0;
        for (size_t a = 0; a < 2 * heads; a++)
            at = move_pages(s, seq, layer, a < heads ? KEYS : VALUES, a % heads, length, oldest, at, set);
    }
    if (s->slot_size && length) {
        float *own = window_of(s, seq, set ? 0 : slot_of(s, seq, length), 0);
        memcpy(set ? (void *)own : at, set ? at : (void *)own, s->slot_size);
    }
    if (set) {
        if (s->slot_size && length)
            s->marks[seq * LLM_STATES] = length;
        s->length[seq] = length;
        s->oldest[seq] = oldest;
        forget(s, seq);
    }
    return 0;
}
