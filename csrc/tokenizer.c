/* tokenizer.c - text to token ids and back.
 *
 * Knows no model family: it runs the steps that the converter wrote into the file's tokenizer sections (llm.h
 * says which steps and how they are laid out). Everything it allocates per call grows with the text; nothing
 * recurses by the text's length, only by the number of stages and instructions in the file, both of which are
 * bounded.
 *
 * The file is untrusted. llm_tokenizer_open proves every offset and id that is used without a check later;
 * what it leaves unproven (whether tables are sorted, whether merges make sense) can only make the ids
 * wrong. */
#include "llm.h"
#include "fail.h"

#include <stdlib.h>
#include <string.h>

#define NO_TOKEN UINT32_MAX
#define NO_PLACE SIZE_MAX

struct llm_tokenizer {
    const llm_vocabulary *info;
    const uint32_t *starts; // (n_tokens + 1,)
    const uint8_t *bytes;
    const uint8_t *types;         // (n_tokens,) enum llm_token_type
    const uint32_t *order;        // (n_order,)
    const uint32_t *merge_starts; // (n_tokens + 1,)
    const llm_merge *merges;
    const llm_added *added; // (n_added,) the raw ones first
    const uint8_t *added_bytes;
    const uint8_t *normalizer; // steps, walked by next_step
    const llm_stage *stages;
    const llm_instruction *code;
    const llm_class *classes;
    const llm_range *ranges;
    const llm_nfc_char *nfc_chars;
    const uint32_t *nfc_points;
    const llm_nfc_pair *nfc_pairs;
    const uint32_t *stops;
    const uint32_t *before, *after; // (n_before,), (n_after,): LLM_AROUND, else BOS and EOS
    size_t n_before, n_after;
    size_t n_order, n_added, n_raw, normalizer_size, n_classes, n_stages, n_code, n_stops, max_bytes;
    size_t n_nfc_chars, n_nfc_points, n_nfc_pairs;
    uint32_t ascii[128];         // the token of each ASCII character alone, or NO_TOKEN
    uint8_t added_first[2][256]; // whether an added token (raw, normal) begins with this byte
    // Bit b of joins[a]: some merge joins a text that ends in byte a with one that begins with byte b.
    uint8_t joins[256][32];
};

/* ------------------------------------------------------------------------------------------------------
 * Helpers: growing buffers, UTF-8 */

typedef struct buffer {
    uint8_t *data;
    size_t size, room;
} buffer;

// Makes room for n more items of `item` bytes each; 0 when memory runs out, and the buffer stays as it was.
static int reserve(buffer *b, size_t n, size_t item) {
    if (n <= b->room - b->size)
        return 1;
    if (n > SIZE_MAX / 4 / item - b->size)
        return 0;
    size_t room = b->size + n + b->room / 2 + 64;
    void *data = realloc(b->data, room * item);
    if (data) {
        b->data = data;
        b->room = room;
    }
    return data != NULL;
}

// The length of the character that begins with this byte; 0 if none does.
static size_t utf8_want(uint8_t first) {
    if (first < 0x80)
        return 1;
    if (first < 0xC2 || first > 0xF4)
        return 0;
    if (first < 0xE0)
        return 2;
    return first < 0xF0 ? 3 : 4;
}

// Whether this byte may be the second one behind `first`: no overlong forms, no surrogates, no codes too large.
static int is_second(uint8_t first, uint8_t byte) {
    uint8_t low = 0x80, high = 0xBF;
    if (first == 0xE0)
        low = 0xA0;
    if (first == 0xED)
        high = 0x9F;
    if (first == 0xF0)
        low = 0x90;
    if (first == 0xF4)
        high = 0x8F;
    return byte >= low && byte <= high;
}

static inline int is_continuation(uint8_t byte) { return (byte & 0xC0) == 0x80; }

// Looks at one character. Returns 1 when s begins with a whole one, 0 when it begins with bytes that cannot
// become one, -1 when all of it is the beginning of one. *n is its length; of broken ones the length that one
// U+FFFD stands for.
static int utf8_check(const uint8_t *s, size_t left, size_t *n) {
    size_t want = utf8_want(s[0]);
    *n = 1;
    if (want < 2)
        return want == 1;
    for (; *n < want; ++*n) {
        if (*n == left)
            return -1;
        if (!is_continuation(s[*n]) || (*n == 1 && !is_second(s[0], s[1])))
            return 0;
    }
    return 1;
}

// The length of the character at s, left > 0. Never more than `left`, also when a damaged file brought in
// text that is not UTF-8.
static inline size_t utf8_length(const uint8_t *s, size_t left) {
    size_t n = 4;
    if (s[0] < 0xC0)
        n = 1;
    else if (s[0] < 0xE0)
        n = 2;
    else if (s[0] < 0xF0)
        n = 3;
    return n < left ? n : left;
}

static inline uint32_t utf8_code(const uint8_t *s, size_t n) {
    uint32_t code = n == 1 ? s[0] : s[0] & (0x7Fu >> n);
    for (size_t i = 1; i < n; i++)
        code = code << 6 | (s[i] & 0x3F);
    return code;
}

/* ------------------------------------------------------------------------------------------------------
 * Look-ups in the vocabulary */

static const uint8_t *token_text(const llm_tokenizer *t, uint32_t id, size_t *n) {
    *n = t->starts[id + 1] - t->starts[id];
    return t->bytes + t->starts[id];
}

static uint32_t find_token(const llm_tokenizer *t, const uint8_t *text, size_t n) {
    size_t low = 0, high = t->n_order;
    while (low < high) {
        size_t middle = low + (high - low) / 2, n_token;
        const uint8_t *token = token_text(t, t->order[middle], &n_token);
        int order = memcmp(token, text, n_token < n ? n_token : n);
        if (order == 0 && n_token == n)
            return t->order[middle];
        if (order < 0 || (order == 0 && n_token < n))
            low = middle + 1;
        else
            high = middle;
    }
    return NO_TOKEN;
}

static const llm_merge *find_merge(const llm_tokenizer *t, uint32_t left, uint32_t right) {
    if (left >= t->info->n_tokens)
        return NULL;
    const llm_merge *low = t->merges + t->merge_starts[left], *end = t->merges + t->merge_starts[left + 1];
    const llm_merge *high = end;
    while (low < high) {
        const llm_merge *middle = low + (high - low) / 2;
        if (middle->right < right)
            low = middle + 1;
        else
            high = middle;
    }
    return low < end && low->right == right && low->result < t->info->n_tokens ? low : NULL;
}

/* ------------------------------------------------------------------------------------------------------
 * The state of one call of llm_encode */

// What is known of an LLM_OP_RUN without limit in the text at hand, so that a long run is not looked at again
// from each of its characters: [run, run_end) is of its class, and what follows the instruction does not
// match anywhere in [fail, fail_end]. Of an LLM_OP_LOOP: begun at `run` it ends at run_end.
typedef struct run_memory {
    uint64_t text; // the text that this is about
    size_t run, run_end, fail, fail_end;
} run_memory;

typedef struct symbol {
    size_t prev, next; // NO_PLACE at the ends
    uint32_t id;       // NO_TOKEN: merged into the one before
} symbol;

typedef struct candidate {
    uint32_t rank, result;
    size_t at; // of the left symbol
} candidate;

typedef struct encoder {
    const llm_tokenizer *t;
    uint32_t flags, *tokens;
    size_t capacity, n_tokens;
    int need_before;   // the first tokens have to be t->before; of those ...
    size_t n_own;      // ... the text itself has brought so many
    int after_unknown; // the symbol before in this piece was an unknown character
    buffer valid, normal[2], prefixed, symbols, heap, points;
    run_memory *memories; // (n_code,)
    uint64_t texts;       // texts searched so far
    uint64_t steps;       // of work left before the text is given up, see charge
    size_t room;          // bytes that normalisation may still make
    const char *error;    // set once; then everything winds up
} encoder;

static int need(encoder *e, buffer *b, size_t n, size_t item) {
    if (!reserve(b, n, item))
        e->error = "out of memory";
    return !e->error;
}

// Counts work that the file asks for against what a text of this length may cost, so that no file makes it
// take forever: characters compared, instructions of the pattern, parts of decompositions. 0 when it is used up.
static int charge(encoder *e, size_t n) {
    e->steps -= n < e->steps ? n : e->steps;
    if (e->steps == 0 && !e->error)
        e->error = "the file's tokenizer takes too long over it";
    return e->steps > 0;
}

static void append_bytes(encoder *e, buffer *b, const void *data, size_t n) {
    if (n > 0 && need(e, b, n, 1)) {
        memcpy(b->data + b->size, data, n);
        b->size += n;
    }
}

// The same to what normalisation makes, which must not grow out of all proportion to the text.
static void append_normal(encoder *e, buffer *b, const void *data, size_t n) {
    if (n > e->room || b->size > e->room - n)
        e->error = "the file's normalizer makes too much of it";
    else
        append_bytes(e, b, data, n);
}

// Appends a character, as UTF-8.
static void append_code(encoder *e, buffer *b, uint32_t code) {
    uint8_t s[4];
    size_t n = 0;
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
        code = 0xFFFD;
    if (code < 0x80) {
        s[n++] = (uint8_t)code;
    } else if (code < 0x800) {
        s[n++] = (uint8_t)(0xC0 | code >> 6);
        s[n++] = (uint8_t)(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        s[n++] = (uint8_t)(0xE0 | code >> 12);
        s[n++] = (uint8_t)(0x80 | (code >> 6 & 0x3F));
        s[n++] = (uint8_t)(0x80 | (code & 0x3F));
    } else {
        s[n++] = (uint8_t)(0xF0 | code >> 18);
        s[n++] = (uint8_t)(0x80 | (code >> 12 & 0x3F));
        s[n++] = (uint8_t)(0x80 | (code >> 6 & 0x3F));
        s[n++] = (uint8_t)(0x80 | (code & 0x3F));
    }
    append_normal(e, b, s, n);
}

static void put_ids(encoder *e, const uint32_t *ids, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (e->n_tokens < e->capacity)
            e->tokens[e->n_tokens] = ids[i];
        e->n_tokens++;
    }
}

// Ends the wait for what goes before the text: all of it, unless the text has brought it, then what it did.
static void put_before(encoder *e) {
    const llm_tokenizer *t = e->t;
    e->need_before = 0;
    put_ids(e, t->before, t->n_before);
    if (e->n_own < t->n_before)
        put_ids(e, t->before, e->n_own);
}

static void emit(encoder *e, uint32_t id) {
    if (!e->need_before) {
        put_ids(e, &id, 1);
    } else if (id != e->t->before[e->n_own]) {
        put_before(e);
        put_ids(e, &id, 1);
    } else {
        e->n_own++;
        if (e->n_own == e->t->n_before)
            put_before(e);
    }
}

/* ------------------------------------------------------------------------------------------------------
 * Byte-pair encoding of one piece: symbols in a linked list, the pairs that may merge in a heap */

static int merges_before(const candidate *a, const candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

// The heap has four children a node: they share a cache line.
enum { CHILDREN = 4 };

// Puts the pair of the symbol `at` and the next one on the heap, if it can merge.
static void push_pair(encoder *e, size_t at) {
    const symbol *symbols = (const symbol *)e->symbols.data;
    if (at == NO_PLACE || symbols[at].next == NO_PLACE)
        return;
    const llm_merge *merge = find_merge(e->t, symbols[at].id, symbols[symbols[at].next].id);
    if (!merge || !need(e, &e->heap, 1, sizeof(candidate)))
        return;
    candidate *heap = (candidate *)e->heap.data, item = {merge->rank, merge->result, at};
    size_t i = e->heap.size++;
    while (i > 0) {
        size_t parent = (i - 1) / CHILDREN;
        if (!merges_before(&item, &heap[parent]))
            break;
        heap[i] = heap[parent];
        i = parent;
    }
    heap[i] = item;
}

static candidate pop_pair(encoder *e) {
    candidate *heap = (candidate *)e->heap.data, top = heap[0];
    size_t n = --e->heap.size, i = 0;
    candidate item = heap[n];
    for (;;) {
        size_t child = CHILDREN * i + 1, end = child + CHILDREN < n ? child + CHILDREN : n;
        if (child >= n)
            break;
        for (size_t other = child + 1; other < end; other++)
            if (merges_before(&heap[other], &heap[child]))
                child = other;
        if (!merges_before(&heap[child], &item))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = item;
    return top;
}

static void add_symbol(encoder *e, uint32_t id) {
    symbol *symbols = (symbol *)e->symbols.data;
    size_t at = e->symbols.size++;
    symbols[at] = (symbol){NO_PLACE, NO_PLACE, id};
    if (at) {
        symbols[at].prev = at - 1;
        symbols[at - 1].next = at;
    }
    e->after_unknown = 0;
}

// What the vocabulary has for a character that is no token.
static void add_unknown(encoder *e, const uint8_t *character, size_t n) {
    const llm_vocabulary *info = e->t->info;
    if (info->flags & LLM_BYTE_FALLBACK) {
        for (size_t i = 0; i < n; i++)
            if (info->bytes[character[i]] != NO_TOKEN)
                add_symbol(e, info->bytes[character[i]]);
        return;
    }
    int fused = e->after_unknown && info->flags & LLM_FUSE_UNKNOWN;
    if (info->unknown != NO_TOKEN && !fused)
        add_symbol(e, info->unknown);
    e->after_unknown = 1;
}

// The symbols that text begins as: at most one a byte.
static void add_symbols(encoder *e, const uint8_t *text, size_t n) {
    const llm_tokenizer *t = e->t;
    int byte_level = (t->info->flags & LLM_BYTE_LEVEL) != 0;
    e->symbols.size = e->heap.size = 0;
    if (!need(e, &e->symbols, n, sizeof(symbol)))
        return;
    for (size_t i = 0, length; i < n; i += length) {
        uint32_t id;
        length = byte_level ? 1 : utf8_length(text + i, n - i);
        if (byte_level)
            id = t->info->bytes[text[i]];
        else if (text[i] < 0x80)
            id = t->ascii[text[i]];
        else
            id = find_token(t, text + i, length);
        if (id != NO_TOKEN)
            add_symbol(e, id);
        else
            add_unknown(e, text + i, length);
    }
}

static void merge_symbols(encoder *e, const uint8_t *text, size_t n) {
    add_symbols(e, text, n);
    symbol *symbols = (symbol *)e->symbols.data;
    for (size_t i = 0; i < e->symbols.size; i++)
        push_pair(e, i);
    while (e->heap.size > 0 && !e->error) {
        candidate best = pop_pair(e);
        symbol *left = &symbols[best.at];
        if (left->id == NO_TOKEN || left->next == NO_PLACE)
            continue;
        const llm_merge *merge = find_merge(e->t, left->id, symbols[left->next].id);
        if (!merge || merge->result != best.result) // one of the two has merged since
            continue;
        symbols[left->next].id = NO_TOKEN;
        left->id = merge->result;
        left->next = symbols[left->next].next;
        if (left->next != NO_PLACE)
            symbols[left->next].prev = best.at;
        push_pair(e, best.at);
        push_pair(e, left->prev);
    }
    if (e->symbols.size == 0)
        return;
    for (size_t i = 0; i != NO_PLACE; i = symbols[i].next)
        emit(e, symbols[i].id);
}

// Whether some merge joins a text that ends in byte a with one that begins with byte b.
static inline int may_join(const llm_tokenizer *t, uint8_t a, uint8_t b) {
    return t->joins[a][b >> 3] >> (b & 7) & 1;
}

// Most pieces can be cut further without changing the result, where no merge joins the byte before the cut
// with the one behind it: then every merge happens on one side of the cut. It makes of a text without stages
// (SentencePiece) one of words.
static void encode_piece(encoder *e, const uint8_t *text, size_t n) {
    const llm_tokenizer *t = e->t;
    int byte_level = (t->info->flags & LLM_BYTE_LEVEL) != 0;
    uint32_t whole = t->info->flags & LLM_WHOLE_WORDS ? find_token(t, text, n) : NO_TOKEN;
    size_t start = 0;
    if (whole != NO_TOKEN) {
        emit(e, whole);
        return;
    }
    e->after_unknown = 0;
    for (size_t i = 1; i < n && !e->error; i++) {
        int in_character = !byte_level && is_continuation(text[i]);
        if (in_character || may_join(t, text[i - 1], text[i]))
            continue;
        merge_symbols(e, text + start, i - start);
        start = i;
    }
    merge_symbols(e, text + start, n - start);
}

/* ------------------------------------------------------------------------------------------------------
 * Splitting: a backtracking matcher for the file's regular expressions */

// The length of the character at text[at] if it is of the class, else 0.
static inline size_t in_class(const llm_tokenizer *t, uint32_t number, const uint8_t *text, size_t n) {
    const llm_class *class = &t->classes[number];
    if (text[0] < 128)
        return class->ascii[text[0] >> 5] >> (text[0] & 31) & 1;
    size_t length = utf8_length(text, n);
    uint32_t code = utf8_code(text, length);
    const llm_range *ranges = t->ranges + class->start;
    size_t low = 0, high = class->length;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (ranges[middle].last < code)
            low = middle + 1;
        else
            high = middle;
    }
    return low < class->length && ranges[low].first <= code ? length : 0;
}

typedef struct subject {
    encoder *e;
    const uint8_t *text;
    size_t n;
    uint64_t number; // tells it from other texts in encoder.memories
} subject;

static size_t match(const subject *s, uint32_t at, size_t place);

// The length of the character of the class at this place, else 0.
static inline size_t class_length(const subject *s, uint32_t class, size_t place) {
    return place == s->n ? 0 : in_class(s->e->t, class, s->text + place, s->n - place);
}

// Moves *place over up to n characters of the class; returns over how many.
static inline uint32_t skip_class(const subject *s, uint32_t class, size_t *place, uint32_t n) {
    uint32_t count = 0;
    while (count < n) {
        size_t length = class_length(s, class, *place);
        if (length == 0)
            break;
        *place += length;
        count++;
    }
    charge(s->e, count);
    return count;
}

// What is known of the instruction `at` in this text.
static run_memory *remember(const subject *s, uint32_t at) {
    run_memory *known = &s->e->memories[at];
    if (known->text != s->number)
        *known = (run_memory){.text = s->number, .fail = 1, .fail_end = 0};
    return known;
}

// Adds to what is known that what follows the run does not match anywhere in [least, most].
static void remember_failure(run_memory *known, size_t least, size_t most) {
    int touch = known->fail <= most && least <= known->fail_end && known->fail <= known->fail_end;
    if (!touch || known->fail > least)
        known->fail = least;
    if (!touch || known->fail_end < most)
        known->fail_end = most;
}

// Goes back from the end of a run of characters, as far as it takes until the instructions from `at` on match.
static size_t match_backwards(const subject *s, uint32_t at, size_t least, size_t most, run_memory *known) {
    size_t place = most;
    for (;;) {
        if (place >= known->fail && place <= known->fail_end) {
            place = known->fail;
        } else {
            size_t end = match(s, at, place);
            if (end != NO_PLACE)
                return end;
        }
        if (place <= least)
            break;
        place--;
        while (place > least && is_continuation(s->text[place]))
            place--;
    }
    remember_failure(known, least, most);
    return NO_PLACE;
}

// Moves *place over the characters that an LLM_OP_RUN or LLM_OP_EAT takes: first what must be there, then as
// much as there is. Returns whether the former is; *least is where that ends.
static inline int take_run(const subject *s, uint32_t at, size_t *place, size_t *least) {
    const llm_instruction *in = &s->e->t->code[at];
    if (skip_class(s, in->a, place, in->b) < in->b)
        return 0;
    *least = *place;
    if (in->b == in->c)
        return 1;
    if (in->c != UINT32_MAX) {
        skip_class(s, in->a, place, in->c - in->b);
        return 1;
    }
    run_memory *known = remember(s, at);
    if (*place >= known->run && *place < known->run_end) {
        *place = known->run_end;
        return 1;
    }
    known->run = *place;
    skip_class(s, in->a, place, UINT32_MAX - in->b);
    known->run_end = *place;
    return 1;
}

// Moves *place over what an LLM_OP_LOOP takes; returns whether that is often enough. Where the last one that was
// looked at goes on behind its first time, the next one often begins.
static int take_loop(const subject *s, uint32_t at, size_t *place) {
    const llm_instruction *in = &s->e->t->code[at];
    run_memory *known = remember(s, at);
    const size_t start = *place;
    size_t first = start, end;
    uint32_t n = 0;
    while (n < in->c && (end = match(s, at + 1, *place)) != NO_PLACE && end > *place) {
        *place = end;
        n++;
        if (n == 1)
            first = end;
        if (n == 1 && in->c == UINT32_MAX && known->run == start && known->run_end > end) {
            *place = known->run_end;
            break;
        }
    }
    known->run = first;
    known->run_end = *place;
    return n >= in->b;
}

// Whether exactly one of the characters before and behind this place is of the class.
static int at_border(const subject *s, uint32_t class, size_t place) {
    size_t before = place;
    while (before > 0 && is_continuation(s->text[before - 1]))
        before--;
    const int left = before > 0 && class_length(s, class, before - 1) > 0;
    return left != (class_length(s, class, place) > 0);
}

// Whether the instructions from `at` on match the text from `place` on: where the match ends, or NO_PLACE.
// Recursion always goes to a later instruction, so it is never deeper than the program is long.
static size_t match(const subject *s, uint32_t at, size_t place) {
    for (;;) {
        const llm_instruction *in = &s->e->t->code[at];
        size_t end, least;
        if (!charge(s->e, 1))
            return NO_PLACE;
        switch (in->op) {
        case LLM_OP_MATCH:
            return place;
        case LLM_OP_ALT:
            end = match(s, at + 1, place);
            if (end != NO_PLACE)
                return end;
            at = in->a;
            break;
        case LLM_OP_JUMP:
            at = in->a;
            break;
        case LLM_OP_LOOK:
            end = match(s, at + 1, place);
            if ((end == NO_PLACE) != (in->b != 0))
                return NO_PLACE;
            at = in->a;
            break;
        case LLM_OP_END:
            if (place < s->n && s->text[place] != '\n')
                return NO_PLACE;
            at++;
            break;
        case LLM_OP_LOOP:
            if (!take_loop(s, at, &place))
                return NO_PLACE;
            at = in->a;
            break;
        case LLM_OP_BORDER:
            if (at_border(s, in->a, place) == (in->b != 0))
                return NO_PLACE;
            at++;
            break;
        default: // LLM_OP_RUN, LLM_OP_EAT
            if (!take_run(s, at, &place, &least))
                return NO_PLACE;
            at++;
            if (in->op == LLM_OP_RUN && place > least)
                return match_backwards(s, at, least, place, remember(s, at - 1));
        }
    }
}

static void split(encoder *e, size_t stage, const uint8_t *text, size_t n);

// Puts together what belongs together of the matches and of what lies between them, and hands it on to the
// next stage.
typedef struct splitter {
    size_t stage, start, end; // [start, end): what is held until it is known what follows
    int held, matched;        // whether anything is held; whether the last part of it was a match
} splitter;

// Whether a part belongs to the one before it.
static int joins_part(uint32_t how, int matched, int matched_before) {
    switch (how) {
    case LLM_SPLIT_CONTIGUOUS:
        return matched == matched_before;
    case LLM_SPLIT_PREVIOUS:
        return matched && !matched_before;
    case LLM_SPLIT_NEXT:
        return !matched && matched_before;
    }
    return 0;
}

static void add_part(encoder *e, splitter *p, const uint8_t *text, size_t start, size_t end, int matched) {
    uint32_t how = e->t->stages[p->stage].split & ~(uint32_t)LLM_SPLIT_INVERT;
    if (e->t->stages[p->stage].split & LLM_SPLIT_INVERT)
        matched = !matched;
    if (matched && how == LLM_SPLIT_REMOVED)
        return;
    int join = joins_part(how, matched, p->matched);
    if (!join || !p->held) {
        if (p->held)
            split(e, p->stage + 1, text + p->start, p->end - p->start);
        p->start = start;
    }
    p->end = end;
    p->held = 1;
    p->matched = matched;
}

static void split(encoder *e, size_t stage, const uint8_t *text, size_t n) {
    if (stage == e->t->n_stages) {
        encode_piece(e, text, n);
        return;
    }
    e->texts++;
    subject s = {e, text, n, e->texts};
    splitter p = {.stage = stage};
    size_t done = 0, place = 0;
    while (place < n && !e->error) {
        size_t end = match(&s, e->t->stages[stage].start, place);
        if (end == NO_PLACE || end == place) {
            place += utf8_length(text + place, n - place);
            continue;
        }
        if (done < place)
            add_part(e, &p, text, done, place, 0);
        add_part(e, &p, text, place, end, 1);
        done = place = end;
    }
    if (done < n && !e->error)
        add_part(e, &p, text, done, n, 0);
    if (p.held && !e->error)
        split(e, stage + 1, text + p.start, p.end - p.start);
}

/* ------------------------------------------------------------------------------------------------------
 * Unicode normalization form C */

enum { HANGUL = 0xAC00, HANGUL_END = 0xD7A4, HANGUL_L = 0x1100, HANGUL_V = 0x1161, HANGUL_T = 0x11A7 };

typedef struct point {
    uint32_t code, order; // order: its combining class
} point;

static point *points_of(const encoder *e) { return (point *)e->points.data; }

static const llm_nfc_char *find_nfc(const llm_tokenizer *t, uint32_t code) {
    size_t low = 0, high = t->n_nfc_chars;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (t->nfc_chars[middle].code < code)
            low = middle + 1;
        else
            high = middle;
    }
    return low < t->n_nfc_chars && t->nfc_chars[low].code == code ? &t->nfc_chars[low] : NULL;
}

// The entry of the character at text, whose length goes to *length.
static const llm_nfc_char *nfc_at(const llm_tokenizer *t, const uint8_t *text, size_t n, size_t *length) {
    *length = utf8_length(text, n);
    uint32_t code = utf8_code(text, *length);
    return code < 0x300 ? NULL : find_nfc(t, code);
}

static uint32_t compose(const llm_tokenizer *t, uint32_t first, uint32_t second) {
    if (first - HANGUL_L < 19 && second - HANGUL_V < 21)
        return HANGUL + ((first - HANGUL_L) * 21 + (second - HANGUL_V)) * 28;
    if (first - HANGUL < HANGUL_END - HANGUL && (first - HANGUL) % 28 == 0 && second - HANGUL_T - 1 < 27)
        return first + (second - HANGUL_T);
    size_t low = 0, high = t->n_nfc_pairs;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const llm_nfc_pair *pair = &t->nfc_pairs[middle];
        if (pair->first == first && pair->second == second)
            return pair->result;
        if (pair->first < first || (pair->first == first && pair->second < second))
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

static void add_point(encoder *e, uint32_t code, uint32_t order) {
    if (e->points.size >= e->room)
        e->error = "the file's decompositions make too much of it";
    else if (need(e, &e->points, 1, sizeof(point)))
        points_of(e)[e->points.size++] = (point){code, order & 255};
}

static void decompose(encoder *e, uint32_t code) {
    const llm_tokenizer *t = e->t;
    if (code - HANGUL < HANGUL_END - HANGUL) {
        uint32_t syllable = code - HANGUL, tail = syllable % 28;
        add_point(e, HANGUL_L + syllable / 588, 0);
        add_point(e, HANGUL_V + syllable % 588 / 28, 0);
        if (tail)
            add_point(e, HANGUL_T + tail, 0);
        return;
    }
    const llm_nfc_char *known = find_nfc(t, code);
    if (!known || known->length == 0 || known->start > t->n_nfc_points ||
        known->length > t->n_nfc_points - known->start) {
        add_point(e, code, known ? known->order : 0);
        return;
    }
    for (uint32_t i = 0; i < known->length && charge(e, 1); i++) {
        uint32_t piece = t->nfc_points[known->start + i];
        const llm_nfc_char *mark = find_nfc(t, piece);
        add_point(e, piece, mark ? mark->order : 0);
    }
}

// Sorts a run of marks by combining class, equal ones as they stand. Counting, since a text can be one run of
// a million marks.
static void sort_marks(encoder *e, size_t start, size_t end) {
    size_t places[257] = {0}, n = end - start;
    if (!need(e, &e->points, n, sizeof(point)))
        return;
    point *marks = points_of(e) + start, *sorted = points_of(e) + e->points.size;
    for (size_t i = 0; i < n; i++)
        places[marks[i].order + 1]++;
    for (size_t i = 1; i < 257; i++)
        places[i] += places[i - 1];
    for (size_t i = 0; i < n; i++)
        sorted[places[marks[i].order]++] = marks[i];
    memcpy(marks, sorted, n * sizeof *marks);
}

// Puts each run of marks in order.
static void order_marks(encoder *e, size_t n_points) {
    size_t run = 0, unsorted = 0; // where the run begins; whether it needs sorting
    for (size_t i = 0; i < n_points; i++) {
        const point *p = points_of(e);
        if (p[i].order == 0) {
            if (unsorted)
                sort_marks(e, run, i);
            run = i + 1;
            unsorted = 0;
        } else if (i > run && p[i - 1].order > p[i].order) {
            unsorted = 1;
        }
    }
    if (unsorted)
        sort_marks(e, run, n_points);
}

// Composes what can be composed of the points (n,); returns how many are left.
static size_t compose_all(const llm_tokenizer *t, point *p, size_t n) {
    size_t kept = 0, starter = NO_PLACE;
    for (size_t i = 0; i < n; i++) {
        int reaches = starter != NO_PLACE && (starter + 1 == kept || p[kept - 1].order < p[i].order);
        uint32_t both = reaches ? compose(t, p[starter].code, p[i].code) : 0;
        if (both) {
            p[starter].code = both;
            continue;
        }
        if (p[i].order == 0)
            starter = kept;
        p[kept++] = p[i];
    }
    return kept;
}

// A starter and the marks behind it (and further starters that combine backwards): decomposed, put in order,
// composed, written.
static void normalize_cluster(encoder *e, const uint8_t *text, size_t n, buffer *out) {
    e->points.size = 0;
    for (size_t i = 0, length; i < n && !e->error; i += length) {
        length = utf8_length(text + i, n - i);
        decompose(e, utf8_code(text + i, length));
    }
    size_t n_points = e->points.size;
    order_marks(e, n_points);
    n_points = compose_all(e->t, points_of(e), n_points);
    for (size_t i = 0; i < n_points; i++)
        append_code(e, out, points_of(e)[i].code);
}

// Copies text to out, normalising the clusters that can need it. Characters below U+0300 are starters that
// compose to themselves.
static void normalize_nfc(encoder *e, const uint8_t *text, size_t n, buffer *out) {
    size_t done = 0, last = 0, i = 0,
           length; // text[done...] is not written yet; the last starter is at `last`
    while (i < n && !e->error) {
        const llm_nfc_char *known = nfc_at(e->t, text + i, n - i, &length);
        if (!known) {
            last = i;
            i += length;
            continue;
        }
        size_t start = known->order == 0 || last < done ? i : last;
        append_normal(e, out, text + done, start - done);
        i += length;
        while (i < n) {
            known = nfc_at(e->t, text + i, n - i, &length);
            if (!known || known->order == 0)
                break;
            i += length;
        }
        normalize_cluster(e, text + start, i - start, out);
        done = last = i;
    }
    append_normal(e, out, text + done, n - done);
}

/* ------------------------------------------------------------------------------------------------------
 * The other normalisation steps */

// Copies text to out with every `from` replaced by `to`.
static void replace(encoder *e, const uint8_t *text, size_t n, const llm_normalize_step *step,
    const uint8_t *from, buffer *out) {
    const uint8_t *to = from + step->from_size;
    size_t done = 0, i = 0, size = step->from_size;
    while (size > 0 && n - i >= size && !e->error) {
        const uint8_t *next = memchr(text + i, from[0], n - size - i + 1);
        if (!next)
            break;
        i = (size_t)(next - text);
        charge(e, size / 4); // what memcmp may cost
        if (memcmp(next, from, size) != 0) {
            i++;
            continue;
        }
        append_normal(e, out, text + done, i - done);
        append_normal(e, out, to, step->to_size);
        i += size;
        done = i;
    }
    append_normal(e, out, text + done, n - done);
}

static void trim_spaces(encoder *e, const uint8_t *text, size_t n, buffer *out) {
    for (size_t i = 0; i < n; i++)
        if (text[i] != ' ' || (i > 0 && text[i - 1] != ' ' && out->size > 0))
            append_normal(e, out, text + i, 1);
    for (;;) {
        if (out->size > 0 && out->data[out->size - 1] == ' ')
            out->size--;
        else if (out->size > 2 && memcmp(out->data + out->size - 3, "\xE2\x96\x81", 3) == 0)
            out->size -= 3;
        else
            return;
    }
}

// Reads the step at *place and moves on; 0 at the end, and when what is there is not a step.
static int next_step(const llm_tokenizer *t, size_t *place, llm_normalize_step *step, const uint8_t **texts) {
    if (t->normalizer_size - *place < sizeof *step)
        return 0;
    memcpy(step, t->normalizer + *place, sizeof *step);
    size_t left = t->normalizer_size - *place - sizeof *step;
    if (step->from_size > left || step->to_size > left - step->from_size)
        return 0;
    *texts = t->normalizer + *place + sizeof *step;
    *place += sizeof *step + step->from_size + step->to_size;
    return 1;
}

static void normalize(encoder *e, const uint8_t **text, size_t *n) {
    llm_normalize_step step;
    const uint8_t *texts;
    size_t place = 0;
    for (int turn = 0; *n > 0 && next_step(e->t, &place, &step, &texts); turn = !turn) {
        buffer *out = &e->normal[turn];
        out->size = 0;
        if (!charge(e, 1 + *n))
            return;
        if (step.kind == LLM_NORMALIZE_NFC) {
            normalize_nfc(e, *text, *n, out);
        } else if (step.kind == LLM_NORMALIZE_REPLACE) {
            replace(e, *text, *n, &step, texts, out);
        } else if (step.kind == LLM_NORMALIZE_TRIM) {
            trim_spaces(e, *text, *n, out);
        } else {
            append_normal(e, out, texts + step.from_size, step.to_size);
            append_normal(e, out, *text, *n);
        }
        *text = out->data;
        *n = out->size;
        if (e->error)
            return;
    }
    e->room -= *n < e->room ? *n : e->room;
}

/* ------------------------------------------------------------------------------------------------------
 * Added tokens, and the way of a text through all steps */

enum { RAW = 0, NORMAL = 1 };
enum { CLASS_SPACE = 0, CLASS_WORD = 1 };

// The first of the added tokens [low, high), which share their first `depth` bytes, whose next byte is at least
// `byte`; a token that ends there comes before all others.
static size_t find_byte(const llm_tokenizer *t, size_t low, size_t high, size_t depth, int byte) {
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const llm_added *item = &t->added[middle];
        int its = item->length > depth ? t->added_bytes[item->start + depth] : -1;
        if (its < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// The longest added token of the group that text begins with, or NULL. Tokens that share the bytes seen so
// far are one range of the sorted list, which each further byte narrows.
static const llm_added *find_added(encoder *e, int group, const uint8_t *text, size_t n) {
    const llm_tokenizer *t = e->t;
    size_t low = group == RAW ? 0 : t->n_raw, high = group == RAW ? t->n_raw : t->n_added;
    const llm_added *best = NULL;
    for (size_t depth = 0; depth < n && low < high && charge(e, 1); depth++) {
        low = find_byte(t, low, high, depth, text[depth]);
        high = find_byte(t, low, high, depth, text[depth] + 1);
        if (low < high && t->added[low].length == depth + 1)
            best = &t->added[low];
    }
    return best;
}

// The start of the character before text[at]. Never more than four bytes before, also when a damaged file
// brought in text that is not UTF-8.
static size_t step_back(const uint8_t *text, size_t at) {
    size_t start = at - 1;
    while (start > 0 && at - start < 4 && (text[start] & 0xC0) == 0x80)
        start--;
    return start;
}

// in_class for files that may not have the class.
static size_t class_at(const llm_tokenizer *t, uint32_t number, const uint8_t *text, size_t n) {
    return number < t->n_classes ? in_class(t, number, text, n) : 0;
}

static void encode_between(encoder *e, int group, const uint8_t *text, size_t n, int at_start);

// Whether an added token counts where it was found, at [start, stop) of text (n,).
static int counts(const encoder *e, const llm_added *token, const uint8_t *text, size_t n, size_t start) {
    size_t stop = start + token->length;
    if (token->flags & LLM_ADDED_SPECIAL && !(e->flags & LLM_SPECIAL))
        return 0;
    if (!(token->flags & LLM_ADDED_WORD))
        return 1;
    size_t back = start ? step_back(text, start) : 0;
    int word_before = start > 0 && class_at(e->t, CLASS_WORD, text + back, start - back);
    return !word_before && !(stop < n && class_at(e->t, CLASS_WORD, text + stop, n - stop));
}

// Where white space begins that ends at `start`, but not before `least`.
static size_t space_before(const encoder *e, const uint8_t *text, size_t least, size_t start) {
    while (start > least) {
        size_t back = step_back(text, start);
        if (!class_at(e->t, CLASS_SPACE, text + back, start - back))
            break;
        start = back;
    }
    return start;
}

static size_t space_behind(const encoder *e, const uint8_t *text, size_t stop, size_t n) {
    while (stop < n) {
        size_t length = class_at(e->t, CLASS_SPACE, text + stop, n - stop);
        if (length == 0)
            break;
        stop += length;
    }
    return stop;
}

// Cuts the added tokens of a group out of text; what is between them goes on to encode_between.
static void cut_added(encoder *e, int group, const uint8_t *text, size_t n, int at_start) {
    const uint8_t *may_begin = e->t->added_first[group];
    size_t done = 0, i = 0;
    while (i < n && !e->error) {
        const llm_added *token = may_begin[text[i]] ? find_added(e, group, text + i, n - i) : NULL;
        if (!token) {
            i++;
            continue;
        }
        size_t start = i, stop = i + token->length;
        i = stop;
        if (!counts(e, token, text, n, start))
            continue;
        if (token->flags & LLM_ADDED_LSTRIP)
            start = space_before(e, text, done, start);
        if (token->flags & LLM_ADDED_RSTRIP)
            stop = space_behind(e, text, stop, n);
        if (done < start)
            encode_between(e, group, text + done, start - done, at_start && done == 0);
        emit(e, token->id);
        done = stop;
    }
    if (done < n && !e->error)
        encode_between(e, group, text + done, n - done, at_start && done == 0);
}

static void encode_between(encoder *e, int group, const uint8_t *text, size_t n, int at_start) {
    uint32_t flags = e->t->info->flags;
    if (group == RAW) {
        normalize(e, &text, &n);
        cut_added(e, NORMAL, text, n, at_start);
        return;
    }
    int takes_prefix = flags & LLM_PREFIX_SPACE && (at_start || !(flags & LLM_PREFIX_FIRST));
    if (takes_prefix && text[0] != ' ') {
        e->prefixed.size = 0;
        append_bytes(e, &e->prefixed, " ", 1);
        append_bytes(e, &e->prefixed, text, n);
        text = e->prefixed.data;
        n = e->prefixed.size;
    }
    split(e, 0, text, n);
}

// Puts U+FFFD where text is not UTF-8. Leaves `out` empty when nothing has to be replaced.
static void make_valid(encoder *e, const uint8_t *text, size_t n, buffer *out) {
    size_t done = 0;
    for (size_t i = 0, length; i < n; i += length) {
        length = 1;
        if (text[i] < 0x80 || utf8_check(text + i, n - i, &length) == 1)
            continue;
        append_bytes(e, out, text + done, i - done);
        append_bytes(e, out, "\xEF\xBF\xBD", 3);
        done = i + length;
    }
    if (done > 0)
        append_bytes(e, out, text + done, n - done);
}

static void close_encoder(encoder *e) {
    buffer all[] = {e->valid, e->normal[0], e->normal[1], e->prefixed, e->symbols, e->heap, e->points};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i].data);
    free(e->memories);
}

int64_t llm_encode(const llm_tokenizer *t, const char *text, size_t len, uint32_t flags, uint32_t *tokens,
    size_t capacity, char *err, size_t errlen) {
    const uint8_t *bytes = (const uint8_t *)text;
    int by_default = !(flags & (LLM_NO_BOS | LLM_BOS));
    encoder e = {.t = t, .flags = flags, .tokens = tokens, .capacity = capacity};
    e.memories = calloc(t->n_code + 1, sizeof *e.memories);
    if (!e.memories)
        e.error = "out of memory";
    make_valid(&e, bytes, len, &e.valid);
    if (e.valid.size > 0) {
        bytes = e.valid.data;
        len = e.valid.size;
    }
    e.steps = (uint64_t)len * 2000 + 1000000;
    e.room = len * 64 + 4096;
    if (by_default && t->info->flags & LLM_ADD_BOS)
        put_ids(&e, t->before, t->n_before);
    e.need_before = !(flags & LLM_NO_BOS) && flags & LLM_BOS && t->n_before > 0;
    cut_added(&e, RAW, bytes, len, 1);
    if (e.need_before)
        put_before(&e);
    if (by_default && t->info->flags & LLM_ADD_EOS)
        put_ids(&e, t->after, t->n_after);
    close_encoder(&e);
    if (e.error)
        return FAIL("cannot encode the text: %s", e.error);
    return (int64_t)e.n_tokens;
}

/* ------------------------------------------------------------------------------------------------------
 * Decoding */

enum {            // bits of llm_decoder.started
    STARTED = 1,  // see llm.h
    EACH_BYTE = 2 // each byte of a broken character gives its own U+FFFD
};

typedef struct output {
    char *data;
    size_t size, room;
} output;

static void put_bytes(output *out, const void *data, size_t n) {
    if (n <= out->room - out->size) {
        memcpy(out->data + out->size, data, n);
        out->size += n;
    }
}

// Puts U+FFFD for n bytes that are no character.
static void put_broken(output *out, const llm_decoder *d, size_t n) {
    size_t times = d->started & EACH_BYTE ? n : n > 0;
    for (size_t i = 0; i < times; i++)
        put_bytes(out, "\xEF\xBF\xBD", 3);
}

// Takes one more byte, and gives out what is whole or broken now.
static void take_byte(llm_decoder *d, uint8_t byte, int strip, output *out) {
    d->held[d->n_held++] = byte;
    while (d->n_held > 0) {
        size_t n;
        int whole = utf8_check(d->held, d->n_held, &n);
        if (whole < 0)
            return;
        int dropped = strip && !(d->started & STARTED) && d->held[0] == ' ';
        if (!whole)
            put_broken(out, d, n);
        else if (!dropped)
            put_bytes(out, d->held, n);
        d->started |= STARTED;
        d->n_held -= (uint32_t)n;
        memmove(d->held, d->held + n, d->n_held);
    }
}

size_t llm_decode(
    const llm_tokenizer *t, llm_decoder *d, uint32_t token, int special, char *out, size_t capacity) {
    output o = {out, 0, capacity};
    uint32_t flags = t->info->flags;
    if (token >= t->info->n_tokens || t->types[token] & LLM_TOKEN_ABSENT)
        return 0;
    if (t->types[token] & LLM_TOKEN_SPECIAL && !special)
        return 0;
    if (!(flags & LLM_BYTE_LEVEL))
        d->started |= EACH_BYTE;
    if (d->n_held > 3)
        d->n_held = 0;
    size_t n;
    const uint8_t *bytes = token_text(t, token, &n);
    int skip = flags & LLM_STRIP_SPACES && !(d->started & STARTED);
    for (size_t i = 0; i < n; i++)
        if (!skip || bytes[i] != ' ')
            take_byte(d, bytes[i], (flags & LLM_STRIP_SPACE) != 0, &o);
    if (flags & LLM_STRIP_SPACES)
        d->started |= STARTED;
    return o.size;
}

size_t llm_decode_end(llm_decoder *d, char *out, size_t capacity) {
    output o = {out, 0, capacity};
    put_broken(&o, d, d->n_held < 4 ? d->n_held : 0);
    *d = (llm_decoder){0};
    return o.size;
}

/* ------------------------------------------------------------------------------------------------------
 * Facts about tokens */

size_t llm_token_max_bytes(const llm_tokenizer *t) { return t->max_bytes; }

uint32_t llm_token_count(const llm_tokenizer *t) { return t->info->n_tokens; }

int64_t llm_token_bos(const llm_tokenizer *t) {
    return t->info->bos == NO_TOKEN ? -1 : (int64_t)t->info->bos;
}

int64_t llm_token_eos(const llm_tokenizer *t) {
    return t->info->eos == NO_TOKEN ? -1 : (int64_t)t->info->eos;
}

const uint32_t *llm_token_stops(const llm_tokenizer *t, size_t *n) {
    *n = t->n_stops ? t->n_stops : t->info->eos != NO_TOKEN;
    return t->n_stops ? t->stops : &t->info->eos;
}

int llm_token_is_stop(const llm_tokenizer *t, uint32_t token) {
    size_t n, low = 0;
    const uint32_t *stops = llm_token_stops(t, &n);
    size_t high = n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (stops[middle] < token)
            low = middle + 1;
        else
            high = middle;
    }
    return low < n && stops[low] == token;
}

int llm_token_is_special(const llm_tokenizer *t, uint32_t token) {
    return token < t->info->n_tokens && t->types[token] & LLM_TOKEN_SPECIAL;
}

int64_t llm_token_find(const llm_tokenizer *t, const char *text, size_t len) {
    const uint8_t *bytes = (const uint8_t *)text;
    for (size_t i = 0; i < t->n_added; i++)
        if (t->added[i].length == len && memcmp(t->added_bytes + t->added[i].start, bytes, len) == 0)
            return t->added[i].id;
    uint32_t id = find_token(t, bytes, len);
    return id == NO_TOKEN ? -1 : (int64_t)id;
}

/* ------------------------------------------------------------------------------------------------------
 * Opening: every section is measured here, and every offset and id that is used without a look later */

typedef struct loader {
    const llm_model *model;
    char *err;
    size_t errlen;
    const char *name; // of the section at hand
    const uint8_t *data;
    size_t left;
} loader;

// What is set beyond these is of a version that this one would misread.
enum { ALL_FLAGS = 2 * LLM_STRIP_SPACES - 1 };
static const char NEWER[] = "has a bit set that is not known here, as a newer version may do";

static int damaged(const loader *l, const char *what) {
    fail(l->err, l->errlen, "the tokenizer's section %s %s", l->name, what);
    return 0;
}

// Turns to a section; an absent one is like an empty one. Returns whether it is there.
static int open_section(loader *l, uint32_t tag, const char *name) {
    l->name = name;
    l->data = llm_section(l->model, tag, &l->left);
    return l->data != NULL;
}

// Takes n items off the section, or NULL.
static const void *take_items(loader *l, size_t n, size_t item) {
    static const uint64_t nothing;
    const void *data = l->data ? (const void *)l->data : &nothing;
    if (n > l->left / item) {
        damaged(l, "is too short");
        return NULL;
    }
    l->data = n > 0 ? l->data + n * item : l->data;
    l->left -= n * item;
    return data;
}

static int check_starts(const loader *l, const uint32_t *starts, uint32_t n, size_t end) {
    for (uint32_t i = 0; i < n; i++)
        if (starts[i] > starts[i + 1])
            return damaged(l, "is not in order");
    return starts[n] <= end || damaged(l, "points outside its table");
}

static int load_info(llm_tokenizer *t, loader *l) {
    if (!open_section(l, LLM_TOKENIZER, "LLM_TOKENIZER"))
        return damaged(l, "is missing");
    t->info = take_items(l, 1, sizeof *t->info);
    if (!t->info)
        return 0;
    const uint32_t *reserved = t->info->reserved;
    if (t->info->n_tokens == NO_TOKEN)
        return damaged(l, "has too many tokens");
    if (t->info->flags & ~(uint32_t)ALL_FLAGS || reserved[0] || reserved[1] || reserved[2])
        return damaged(l, NEWER);
    return 1;
}

static int load_texts(llm_tokenizer *t, loader *l) {
    uint32_t n = t->info->n_tokens, longest = 0;
    open_section(l, LLM_TOKEN_BYTES, "LLM_TOKEN_BYTES");
    size_t n_bytes = l->left;
    t->bytes = take_items(l, n_bytes, 1);
    open_section(l, LLM_TOKEN_STARTS, "LLM_TOKEN_STARTS");
    t->starts = take_items(l, (size_t)n + 1, sizeof *t->starts);
    if (!t->starts || !check_starts(l, t->starts, n, n_bytes))
        return 0;
    for (uint32_t i = 0; i < n; i++)
        if (t->starts[i + 1] - t->starts[i] > longest)
            longest = t->starts[i + 1] - t->starts[i];
    t->max_bytes = 3 * (size_t)longest + 12; // each byte may give an U+FFFD, and so may three held back
    return 1;
}

static int load_types(llm_tokenizer *t, loader *l) {
    uint32_t n = t->info->n_tokens;
    open_section(l, LLM_TOKEN_TYPES, "LLM_TOKEN_TYPES");
    t->types = take_items(l, n, 1);
    if (!t->types)
        return 0;
    for (uint32_t i = 0; i < n; i++)
        if (t->types[i] & ~(LLM_TOKEN_SPECIAL | LLM_TOKEN_BYTE | LLM_TOKEN_ABSENT))
            return damaged(l, NEWER);
    return 1;
}

static int load_order(llm_tokenizer *t, loader *l) {
    open_section(l, LLM_TOKEN_ORDER, "LLM_TOKEN_ORDER");
    t->n_order = l->left / sizeof *t->order;
    t->order = take_items(l, t->n_order, sizeof *t->order);
    for (size_t i = 0; i < t->n_order; i++)
        if (t->order[i] >= t->info->n_tokens)
            return damaged(l, "names a token that does not exist");
    for (size_t i = 0; i < 128; i++)
        t->ascii[i] = find_token(t, &(uint8_t){(uint8_t)i}, 1);
    return 1;
}

static int load_stops(llm_tokenizer *t, loader *l) {
    open_section(l, LLM_STOP, "LLM_STOP");
    t->n_stops = l->left / sizeof *t->stops;
    t->stops = take_items(l, t->n_stops, sizeof *t->stops);
    for (size_t i = 1; i < t->n_stops; i++)
        if (t->stops[i - 1] >= t->stops[i])
            return damaged(l, "is not in order");
    return 1;
}

static void set_joins(llm_tokenizer *t, uint8_t a, uint8_t b) {
    t->joins[a][b >> 3] |= (uint8_t)(1 << (b & 7));
}

// Where no unknown token stands for a character that is no token, its neighbours can merge: no cut beside it.
static void join_vanishing(llm_tokenizer *t) {
    int bytes = (t->info->flags & (LLM_BYTE_LEVEL | LLM_BYTE_FALLBACK)) != 0;
    if (t->info->unknown != NO_TOKEN)
        return;
    for (size_t i = 0; i < 256; i++) {
        int is_token = bytes ? t->info->bytes[i] != NO_TOKEN : i < 128 && t->ascii[i] != NO_TOKEN;
        if (is_token)
            continue;
        for (size_t j = 0; j < 256; j++) {
            set_joins(t, (uint8_t)i, (uint8_t)j);
            set_joins(t, (uint8_t)j, (uint8_t)i);
        }
    }
}

// Fills t->joins from the merges; `first` (n_tokens,): the first byte of each token, close together.
static void join_merged(llm_tokenizer *t, const uint8_t *first) {
    uint32_t n = t->info->n_tokens;
    for (uint32_t i = 0; i < n; i++) {
        size_t n_bytes;
        const uint8_t *text = token_text(t, i, &n_bytes);
        uint8_t last = n_bytes > 0 ? text[n_bytes - 1] : 0;
        for (size_t j = t->merge_starts[i]; j < t->merge_starts[i + 1]; j++)
            if (t->merges[j].right < n)
                set_joins(t, last, first[t->merges[j].right]);
    }
}

static int load_merges(llm_tokenizer *t, loader *l) {
    uint32_t n = t->info->n_tokens;
    open_section(l, LLM_MERGES, "LLM_MERGES");
    size_t n_merges = l->left / sizeof *t->merges;
    t->merges = take_items(l, n_merges, sizeof *t->merges);
    open_section(l, LLM_MERGE_STARTS, "LLM_MERGE_STARTS");
    t->merge_starts = take_items(l, (size_t)n + 1, sizeof *t->merge_starts);
    if (!t->merge_starts || !check_starts(l, t->merge_starts, n, n_merges))
        return 0;
    uint8_t *first = calloc((size_t)n + 1, 1);
    if (!first) {
        fail(l->err, l->errlen, "out of memory");
        return 0;
    }
    for (uint32_t i = 0; i < n; i++)
        if (t->starts[i] < t->starts[i + 1])
            first[i] = t->bytes[t->starts[i]];
    join_vanishing(t);
    join_merged(t, first);
    free(first);
    return 1;
}

static int load_added(llm_tokenizer *t, loader *l) {
    if (!open_section(l, LLM_ADDED, "LLM_ADDED"))
        return 1;
    const llm_added_head *head = take_items(l, 1, sizeof *head);
    if (!head)
        return 0;
    t->n_raw = head->n_raw;
    t->n_added = t->n_raw + head->n_normal;
    t->added = take_items(l, t->n_added, sizeof *t->added);
    if (!t->added)
        return 0;
    size_t n_bytes = l->left;
    t->added_bytes = take_items(l, n_bytes, 1);
    for (size_t i = 0; i < t->n_added; i++) {
        const llm_added *a = &t->added[i];
        int inside = a->start <= n_bytes && a->length <= n_bytes - a->start;
        if (a->id >= t->info->n_tokens || a->length == 0 || !inside)
            return damaged(l, "points outside its table");
        if (a->flags & ~(LLM_ADDED_SPECIAL | LLM_ADDED_LSTRIP | LLM_ADDED_RSTRIP | LLM_ADDED_WORD))
            return damaged(l, NEWER);
        t->added_first[i >= t->n_raw][t->added_bytes[a->start]] = 1;
    }
    return 1;
}

static int load_around(llm_tokenizer *t, loader *l) {
    t->before = &t->info->bos;
    t->after = &t->info->eos;
    t->n_before = t->info->bos != NO_TOKEN;
    t->n_after = t->info->eos != NO_TOKEN;
    if (!open_section(l, LLM_AROUND, "LLM_AROUND"))
        return 1;
    const llm_around_head *head = take_items(l, 1, sizeof *head);
    if (!head)
        return 0;
    if (head->n_before > LLM_MAX_AROUND || head->n_after > LLM_MAX_AROUND)
        return damaged(l, "is too long");
    const uint32_t *ids = take_items(l, (size_t)head->n_before + head->n_after, sizeof *ids);
    if (!ids)
        return 0;
    for (uint32_t i = 0; i < head->n_before + head->n_after; i++)
        if (ids[i] >= t->info->n_tokens)
            return damaged(l, "names a token that does not exist");
    if (head->n_before) {
        t->before = ids;
        t->n_before = head->n_before;
    }
    if (head->n_after) {
        t->after = ids + head->n_before;
        t->n_after = head->n_after;
    }
    return 1;
}

static int load_classes(llm_tokenizer *t, loader *l) {
    if (!open_section(l, LLM_CLASSES, "LLM_CLASSES"))
        return 1;
    const llm_class_head *head = take_items(l, 1, sizeof *head);
    if (!head)
        return 0;
    t->classes = take_items(l, head->n_classes, sizeof *t->classes);
    t->ranges = t->classes ? take_items(l, head->n_ranges, sizeof *t->ranges) : NULL;
    if (!t->ranges)
        return 0;
    t->n_classes = head->n_classes;
    for (size_t i = 0; i < t->n_classes; i++) {
        const llm_class *c = &t->classes[i];
        if (c->start > head->n_ranges || c->length > head->n_ranges - c->start)
            return damaged(l, "points outside its table");
    }
    return 1;
}

// Whether instruction i, of n_code, is one that match() may run.
static int is_sound(const llm_tokenizer *t, size_t i) {
    const llm_instruction *in = &t->code[i];
    int is_last = i + 1 == t->n_code;
    if (is_last)
        return in->op == LLM_OP_MATCH;
    switch (in->op) {
    case LLM_OP_LOOK:
    case LLM_OP_LOOP:
        return in->b <= 1 && in->a > i && in->a < t->n_code;
    case LLM_OP_ALT:
    case LLM_OP_JUMP:
        return in->a > i && in->a < t->n_code;
    case LLM_OP_RUN:
    case LLM_OP_EAT:
        return in->a < t->n_classes && in->b <= in->c;
    case LLM_OP_BORDER:
        return in->a < t->n_classes && in->b <= 1;
    }
    return in->op <= LLM_OP_BORDER;
}

static int load_pattern(llm_tokenizer *t, loader *l) {
    if (!open_section(l, LLM_PATTERN, "LLM_PATTERN"))
        return 1;
    const llm_pattern_head *head = take_items(l, 1, sizeof *head);
    if (!head)
        return 0;
    t->n_stages = head->n_stages;
    t->n_code = head->n_instructions;
    if (t->n_stages > LLM_MAX_STAGES || t->n_code > LLM_MAX_INSTRUCTIONS)
        return damaged(l, "is too long");
    t->stages = take_items(l, t->n_stages, sizeof *t->stages);
    t->code = t->stages ? take_items(l, t->n_code, sizeof *t->code) : NULL;
    if (!t->code)
        return 0;
    for (size_t i = 0; i < t->n_stages; i++) {
        if (t->stages[i].start >= t->n_code)
            return damaged(l, "points outside its table");
        if ((t->stages[i].split & ~(uint32_t)LLM_SPLIT_INVERT) > LLM_SPLIT_CONTIGUOUS)
            return damaged(l, NEWER);
    }
    for (size_t i = 0; i < t->n_code; i++)
        if (!is_sound(t, i))
            return damaged(l, "has a bad instruction");
    return 1;
}

static int load_normalizer(llm_tokenizer *t, loader *l) {
    llm_normalize_step step;
    const uint8_t *texts;
    size_t place = 0;
    open_section(l, LLM_NORMALIZER, "LLM_NORMALIZER");
    t->normalizer_size = l->left;
    t->normalizer = take_items(l, l->left, 1);
    while (next_step(t, &place, &step, &texts))
        if (step.kind < LLM_NORMALIZE_NFC || step.kind > LLM_NORMALIZE_TRIM)
            return damaged(l, "has an unknown step");
    if (place != t->normalizer_size)
        return damaged(l, "is too short");
    return 1;
}

static int load_nfc(llm_tokenizer *t, loader *l) {
    if (!open_section(l, LLM_NFC, "LLM_NFC"))
        return 1;
    const llm_nfc_head *head = take_items(l, 1, sizeof *head);
    if (!head)
        return 0;
    t->nfc_chars = take_items(l, head->n_chars, sizeof *t->nfc_chars);
    t->nfc_points = t->nfc_chars ? take_items(l, head->n_points, sizeof *t->nfc_points) : NULL;
    t->nfc_pairs = t->nfc_points ? take_items(l, head->n_pairs, sizeof *t->nfc_pairs) : NULL;
    if (!t->nfc_pairs)
        return 0;
    for (size_t i = 0; i < head->n_chars; i++)
        if (t->nfc_chars[i].order > 511)
            return damaged(l, NEWER);
    t->n_nfc_chars = head->n_chars;
    t->n_nfc_points = head->n_points;
    t->n_nfc_pairs = head->n_pairs;
    return 1;
}

llm_tokenizer *llm_tokenizer_open(const llm_model *model, char *err, size_t errlen) {
    static int (*const steps[])(llm_tokenizer *, loader *) = {load_info, load_texts, load_types, load_order,
        load_stops, load_merges, load_added, load_around, load_classes, load_pattern, load_normalizer,
        load_nfc};
    llm_tokenizer *t = calloc(1, sizeof *t);
    loader l = {.model = model, .err = err, .errlen = errlen};
    if (!t)
        return FAIL_NULL("out of memory");
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        if (!steps[i](t, &l)) {
            free(t);
            return NULL;
        }
    return t;
}

void llm_tokenizer_close(llm_tokenizer *t) { free(t); }
