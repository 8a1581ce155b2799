/* lookup.c - what a text may go on with: prompt lookup (Saxena 2023).
 *
 * A text that quotes itself goes on as it did before: the last tokens are looked up in the text, and what followed
 * them there is the draft. An index by the last few tokens, one entry for each of them, is kept as tokens come: a
 * lookup costs the same however long the text is.
 *
 * Guessing costs nothing, running a guess does. So every guess is compared with the token that came, whether it was
 * given out or not, and how often guesses are right says how long a draft is worth its while: none, where a text
 * does not repeat. */
#include "fail.h"
#include "llm.h"

#include <stdlib.h>
#include <string.h>

enum {
    LONGEST = 3,    /* tokens that are looked up; where they never came, fewer, */
    SHORTEST = 2,   /* but not less: one token says little */
    RESUMES = 4,    /* so many tokens that agreed make up for one that did not: words are replaced in texts */
    SLOT_BITS = 17, /* places that the index has; where hashes collide the latest stays */
    ENOUGH = 16,    /* more tokens that agree make no better guess */
    CLASSES = 5     /* of guesses, see class_of() */
};

/* What one token more costs in a call of few tokens, in calls, where all of them read the same weights */
#define COST 0.2

/* How likely a guess is thought to be right before there was any, and how much each one changes that */
#define PRIOR 0.5f
#define CHANGE 0.1f

struct llm_lookup {
    uint32_t *text; /* (n,) of room for `capacity` */
    size_t n, capacity;
    float cost;           /* a draft ends where it is less likely than this to be right */
    size_t source;        /* where the text may go on as before: text[source] is the guess; 0: nowhere */
    size_t agreed;        /* tokens before it that are the last ones of the text too, up to ENOUGH */
    float rates[CLASSES]; /* how often guesses are right */
    uint32_t places[1 << SLOT_BITS]; /* by a hash of the tokens before: where they came last; 0: nowhere */
};

/* Bytes that a token reads of experts that another token does not go through */
static double own_bytes(const llm_header *h, const llm_layer *layers, uint32_t layer) {
    static const uint32_t ids[] = {LLM_GATE_UP, LLM_DOWN};
    const llm_layer *l = &layers[layer];
    double bytes = 0;
    for (size_t i = 0; l->n_experts && i < sizeof ids / sizeof *ids; i++) {
        llm_tensor t = {0};
        llm_layout(h, layers, ids[i], layer, 0, &t, NULL, 0);
        bytes += (double)t.size * l->n_active * (1 - (double)l->n_active / l->n_experts);
    }
    return bytes;
}

float llm_token_cost(const llm_model *model) {
    const llm_header *h = llm_model_header(model);
    const llm_layer *layers = llm_model_layers(model);
    llm_counts counts = {0};
    double own = 0;
    llm_count(h, layers, &counts, NULL, 0);
    for (uint32_t i = 0; i < h->n_layers; i++)
        own += own_bytes(h, layers, i);
    return (float)(COST + (1 - COST) * own / (double)counts.read);
}

llm_lookup *llm_lookup_open(const llm_model *model, char *err, size_t errlen) {
    llm_lookup *l = calloc(1, sizeof *l);
    REQUIRE_OR_NULL(l, "out of memory for drafts");
    l->cost = llm_token_cost(model);
    for (size_t i = 0; i < CLASSES; i++)
        l->rates[i] = PRIOR;
    return l;
}

void llm_lookup_close(llm_lookup *l) {
    if (l)
        free(l->text);
    free(l);
}

/* The more tokens agree, the likelier is the next: 0 or 1, 2 or 3, 4 to 7, 8 to 15, ENOUGH */
static size_t class_of(size_t agreed) {
    size_t level = 0;
    for (size_t n = agreed < ENOUGH ? agreed : ENOUGH; n > 1; n /= 2)
        level++;
    return level;
}

/* The entry of the index for the last `size` tokens of the text */
static uint32_t *place_behind(llm_lookup *l, size_t size) {
    uint32_t hash = (uint32_t)size;
    for (size_t i = l->n - size; i < l->n; i++)
        hash = ((hash ^ l->text[i]) * 0x9e3779b1u) ^ hash >> 15;
    return &l->places[hash * 0x85ebca6bu >> (32 - SLOT_BITS)];
}

/* How many tokens before a place are the last ones of the text too; 0 for its end, which a longer piece of the text
 * with the same hash may have noted just now */
static size_t count_agreed(const llm_lookup *l, size_t place) {
    size_t n = 0;
    while (place < l->n && n < place && n < ENOUGH && l->text[place - 1 - n] == l->text[l->n - 1 - n])
        n++;
    return n;
}

/* Notes where the last tokens are now; and finds where they were before, unless the guesses have been right. */
static void look_up(llm_lookup *l) {
    for (size_t size = LONGEST; size >= SHORTEST; size--) {
        if (size > l->n)
            continue;
        uint32_t *place = place_behind(l, size);
        const size_t agreed = l->agreed ? 0 : count_agreed(l, *place);
        if (agreed >= size) {
            l->source = *place;
            l->agreed = agreed;
        }
        *place = (uint32_t)l->n;
    }
}

/* Compares the guess with the token that came, and goes on behind both. */
static void judge(llm_lookup *l, uint32_t token, int generated) {
    const int right = l->text[l->source] == token;
    float *rate = &l->rates[class_of(l->agreed)];
    if (generated)
        *rate += CHANGE * ((float)right - *rate);
    if (right || l->agreed >= RESUMES)
        l->source++;
    else
        l->source = 0;
    l->agreed = right ? l->agreed + (l->agreed < ENOUGH) : 0;
}

static int make_room(llm_lookup *l, size_t n, char *err, size_t errlen) {
    if (n <= l->capacity - l->n)
        return 0;
    const size_t capacity = 2 * l->n + n + 1024;
    uint32_t *text = NULL;
    if (n < UINT32_MAX && capacity < UINT32_MAX)
        text = realloc(l->text, capacity * sizeof *text);
    REQUIRE(text, "out of memory for drafts");
    l->text = text;
    l->capacity = capacity;
    return 0;
}

int llm_lookup_add(llm_lookup *l, const uint32_t *tokens, size_t n, int generated, char *err, size_t errlen) {
    TRY(make_room(l, n, err, errlen));
    for (size_t i = 0; i < n; i++) {
        if (l->source)
            judge(l, tokens[i], generated);
        l->text[l->n] = tokens[i];
        l->n++;
        look_up(l);
    }
    return 0;
}

size_t llm_lookup_draft(const llm_lookup *l, uint32_t *draft, size_t most) {
    float likely = 1;
    size_t n = 0;
    while (l->source && n < most) {
        const size_t at = l->source + n; /* behind the end of the text comes the draft itself */
        likely *= l->rates[class_of(l->agreed + n)];
        if (likely < l->cost)
            break;
        draft[n] = at < l->n ? l->text[at] : draft[at - l->n];
        n++;
    }
    return n;
}
