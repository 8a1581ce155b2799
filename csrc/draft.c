/* draft.c - what guesses at the next tokens of a text, so that several are run in one step.
 *
 * Owns the prompt lookup of the text at hand, or the smaller model of --draft with a session of its own, and how many
 * guesses are worth running. Whatever is guessed, generate.c draws the same tokens: what fails here costs time only,
 * and is not reported. */
#include "draft.h"

#include <stdlib.h>
#include <string.h>

/* What running a model for a guess counts for at most, in steps: who names one wants it used. */
#define MAX_OWN 0.3

/* How likely a model's guess is thought to be right at first, and how much each one changes that */
#define PRIOR 0.7f
#define CHANGE 0.1f

enum {
    PAUSE = 32,  /* tokens that are made without a model whose guesses are not worth their cost */
    CHUNK = 256, /* tokens that it reads between looks at Ctrl-C */
};

/* ---------------------------------------------------------------------------------------------------------
 * Opening */

/* Whether both models have the same tokens: texts and kinds, by id. */
static int same_tokens(const llm_model *a, const llm_model *b) {
    static const uint32_t tags[] = {LLM_TOKEN_STARTS, LLM_TOKEN_BYTES, LLM_TOKEN_TYPES};
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++) {
        size_t n, m;
        const void *of_a = llm_section(a, tags[i], &n), *of_b = llm_section(b, tags[i], &m);
        if (n != m || (n && memcmp(of_a, of_b, n)))
            return 0;
    }
    return 1;
}

/* Bytes of weights that a model reads for a token */
static double bytes_read(const llm_model *m) {
    llm_counts counts = {0};
    llm_count(llm_model_header(m), llm_model_layers(m), &counts, NULL, 0);
    return (double)counts.read;
}

static int open_draft_model(run *r, drafts *d, const char *path) {
    const llm_options options = {.context = r->context, .threads = r->o->threads};
    d->model = llm_open(path, r->err, sizeof r->err);
    if (!d->model)
        return report(FAILED, "--draft: %s", r->err);
    if (!same_tokens(d->model, r->model))
        return report(FAILED, "--draft: %s has other tokens than the model", path);
    d->session = llm_session_open(d->model, &options, r->err, sizeof r->err);
    if (!d->session)
        return report(FAILED, "--draft: %s", r->err);
    d->vocab_size = llm_model_header(d->model)->vocab_size;
    d->held = malloc(r->context * sizeof *d->held);
    d->logits = malloc(d->vocab_size * sizeof *d->logits);
    if (!d->held || !d->logits)
        return report(FAILED, "--draft: out of memory");
    double own = bytes_read(d->model) / bytes_read(r->model);
    d->cost = llm_token_cost(r->model) + (float)(own < MAX_OWN ? own : MAX_OWN);
    d->rate = PRIOR;
    return OK;
}

int open_drafts(run *r) {
    const char *how = r->o->draft;
    r->drafts = calloc(1, sizeof *r->drafts);
    if (!r->drafts)
        return report(FAILED, "out of memory");
    if (how && !strcmp(how, "off"))
        return OK;
    if (how && strcmp(how, "lookup"))
        return open_draft_model(r, r->drafts, how);
    r->drafts->lookup = llm_lookup_open(r->model, r->err, sizeof r->err);
    return r->drafts->lookup ? OK : engine_failed(r);
}

void close_drafts(drafts *d) {
    if (!d)
        return;
    llm_lookup_close(d->lookup);
    llm_session_close(d->session);
    llm_close(d->model);
    free(d->held);
    free(d->logits);
    free(d);
}

/* ---------------------------------------------------------------------------------------------------------
 * A smaller model */

/* Learns from the tokens of the text (n,) that came where the last guesses were. */
static void judge(drafts *d, const uint32_t *tokens, size_t n) {
    int right = 1;
    for (size_t i = 0; right && i < d->n_last && d->start + i < n; i++) {
        right = tokens[d->start + i] == d->guesses[i];
        d->rate += CHANGE * ((float)right - d->rate);
    }
    d->n_last = 0;
}

/* How many guesses are worth their cost behind n tokens; one now and then if none is. */
static size_t count_worth(const drafts *d, size_t n) {
    size_t worth = 0;
    float likely = d->rate;
    while (worth < MAX_STEP && likely >= d->cost) {
        likely *= d->rate;
        worth++;
    }
    return worth || n < d->start + PAUSE ? worth : 1;
}

/* Appends n tokens to the model's sequence. Returns whether that went well. */
static int run_model(drafts *d, const uint32_t *tokens, size_t n) {
    char err[256];
    const size_t length = llm_length(d->session, 0);
    for (size_t i = 0; i < n; i++)
        if (tokens[i] >= d->vocab_size) /* one that only the other model has */
            return 0;
    if (llm_forward(d->session, n, tokens, NULL, NULL, d->logits, err, sizeof err))
        return 0;
    memcpy(d->held + length, tokens, n * sizeof *tokens);
    return 1;
}

/* Makes the model's sequence the n tokens of the text, and its logits those after the last. Returns whether that
 * went well. */
static int catch_up(drafts *d, const uint32_t *tokens, size_t n) {
    const size_t same = reusable(d->session, d->held, tokens, n);
    if (llm_truncate(d->session, 0, same, NULL, 0))
        return 0;
    for (size_t at = same; at < n; at += CHUNK)
        if (interrupted || !run_model(d, tokens + at, smaller(n - at, CHUNK)))
            return 0;
    return 1;
}

static uint32_t most_likely(const float *logits, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

/* The model's guesses at what follows the text (n,); returns how many there are. */
static size_t ask_model(drafts *d, const uint32_t *tokens, size_t n, size_t most) {
    judge(d, tokens, n);
    most = smaller(most, count_worth(d, n));
    if (!most || !catch_up(d, tokens, n))
        return 0;
    d->start = n;
    while (d->n_last < most) {
        uint32_t *next = &d->guesses[d->n_last];
        *next = most_likely(d->logits, d->vocab_size);
        d->n_last++;
        if (d->n_last < most && !run_model(d, next, 1))
            break;
    }
    return d->n_last;
}

/* ---------------------------------------------------------------------------------------------------------
 * A text */

/* Tells the lookup of the first n tokens of the text. Without memory for them it ends. */
static void tell_lookup(drafts *d, const uint32_t *tokens, size_t n, int generated) {
    if (llm_lookup_add(d->lookup, tokens + d->n_known, n - d->n_known, generated, NULL, 0)) {
        llm_lookup_close(d->lookup);
        d->lookup = NULL;
    }
    d->n_known = n;
}

void begin_drafts(run *r) {
    drafts *d = r->drafts;
    d->n_known = d->n_guesses = d->drafted = d->accepted = d->start = d->n_last = 0;
    if (!d->lookup)
        return;
    llm_lookup_close(d->lookup); /* it knows another text */
    d->lookup = llm_lookup_open(r->model, NULL, 0);
    if (d->lookup)
        tell_lookup(d, r->tokens, r->n, 0);
}

void guess(run *r, size_t n, size_t most) {
    drafts *d = r->drafts;
    d->n_guesses = 0;
    if (d->lookup)
        tell_lookup(d, r->cached, n, 1);
    if (d->lookup)
        d->n_guesses = llm_lookup_draft(d->lookup, d->guesses, most);
    else if (d->session)
        d->n_guesses = ask_model(d, r->cached, n, most);
}
