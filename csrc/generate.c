/* generate.c - the sampling loop: tokens to a text that is printed while it comes, until something ends it.
 *
 * Owns what ends a text (stop texts and stop tokens), and what of it may be printed already. The command
 * `generate` is at the end; chat.c is the other caller. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memmem */
#endif
#include "generate.h"
#include "draft.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

uint64_t choose_seed(const settings *o) {
    if (o->has_seed)
        return o->sampling.seed;
    uint64_t seed = (uint64_t)time(NULL) * 1000003u + (uint64_t)getpid();
    FILE *random = fopen("/dev/urandom", "rb");
    if (random) {
        if (fread(&seed, sizeof seed, 1, random) != 1)
            seed++;
        fclose(random);
    }
    return seed;
}

/* ---------------------------------------------------------------------------------------------------------
 * Stop tokens */

/* Whether a control token's text is in `stop`; an unknown token, which any text may become, is not meant. */
static int names_control(run *r, const char *stop, uint32_t token) {
    llm_decoder d = {.started = 1};
    if (!llm_token_is_special(r->tokenizer, token))
        return 0;
    size_t n = llm_decode(r->tokenizer, &d, token, 1, r->piece, llm_token_max_bytes(r->tokenizer));
    return n && memmem(stop, strlen(stop), r->piece, n) != NULL;
}

/* Whether a control token has a text after all. */
static int is_visible(const uint32_t *visible, uint32_t token) {
    for (; visible && *visible != UINT32_MAX; visible++)
        if (*visible == token)
            return 1;
    return 0;
}

/* Adds the control token that a stop text is, if it is one. */
static int add_stop_tokens(run *r, const char *stop, const uint32_t *visible) {
    text t = {0};
    append(&t, stop, strlen(stop));
    int status = encode(r, &t, LLM_SPECIAL | LLM_NO_BOS);
    free(t.data);
    if (status != OK)
        return status;
    for (size_t i = 0; i < r->n; i++) {
        uint32_t token = r->tokens[i];
        if (is_visible(visible, token) || !names_control(r, stop, token))
            continue;
        if (r->n > 1)
            return report(FAILED,
                "--stop '%s' can never come: %s is a control token, which has no text; let it be a stop text "
                "of its own",
                stop, visible_token(r, token));
        r->stop_tokens[r->n_stop_tokens++] = token;
    }
    return OK;
}

int find_stop_tokens(run *r, const uint32_t *visible) {
    r->stop_tokens = take(r, r->o->n_stops, sizeof *r->stop_tokens);
    if (!r->stop_tokens)
        return FAILED;
    for (size_t i = 0; i < r->o->n_stops; i++)
        if (add_stop_tokens(r, r->o->stops[i], visible) != OK)
            return FAILED;
    return OK;
}

static int is_stop(const run *r, uint32_t token) {
    for (size_t i = 0; i < r->n_stop_tokens; i++)
        if (r->stop_tokens[i] == token)
            return 1;
    return llm_token_is_stop(r->tokenizer, token);
}

/* ---------------------------------------------------------------------------------------------------------
 * Printing what has come */

/* Prints n bytes: as they are, but on a terminal with escapes. */
static void print_text(const char *data, size_t n, int tty) {
    enum { PART = 256 };
    char visible[4 * PART + 1];
    while (tty && n) {
        size_t m = smaller(n, PART);
        while (m < n && m > PART - 4 && (data[m] & 0xc0) == 0x80) /* no character is cut */
            m--;
        fwrite(visible, 1, (size_t)(escape(visible, data, m, LINES) - visible), stdout);
        data += m;
        n -= m;
    }
    if (n)
        fwrite(data, 1, n, stdout);
}

/* Prints up to `end`. */
static void print(writer *w, size_t end, int thought) {
    int dim = thought && w->tty, hidden = thought && w->hide;
    if (end > w->shown && !hidden) {
        fputs(dim ? "\033[2m" : "", stdout);
        print_text(w->text.data + w->shown, end - w->shown, w->tty);
        fputs(dim ? "\033[22m" : "", stdout);
    }
    w->shown = end;
}

/* Where `word` begins in data[from .. end), or an end of that which may become it; else `end`. */
static size_t find(const char *data, size_t from, size_t end, const char *word) {
    size_t n = strlen(word);
    while (from < end && memcmp(data + from, word, smaller(n, end - from)))
        from++;
    return from;
}

static size_t skip_space(const char *data, size_t from, size_t end) {
    while (from < end && is_space(data[from]))
        from++;
    return from;
}

/* Before the reply: is there reasoning first, or the mark of none, which is never printed? Stays here while
 * there is nothing yet, or what may become a mark. */
static void print_start(writer *w, size_t end, int last) {
    const char *data = w->text.data, *begin = w->marks->begin, *plain = w->marks->plain;
    size_t at = skip_space(data, w->shown, end);
    int may_think = find(data, at, end, begin) == at;
    int may_be_plain = *plain && find(data, at, end, plain) == at;
    if (may_think && at + strlen(begin) <= end) {
        w->place = REASONING;
        print(w, at + strlen(begin), 1);
    } else if (may_be_plain && at + strlen(plain) <= end) {
        w->place = PLAIN;
        w->shown = at + strlen(plain);
    } else if (last || (!may_think && !may_be_plain)) {
        w->place = REPLY;
    }
}

/* Prints up to the end of the mark behind the reasoning, or up to what may become it. */
static void print_reasoning(writer *w, size_t end, int last) {
    const char *word = w->marks->end;
    size_t mark = find(w->text.data, w->shown, end, word), behind = mark + strlen(word);
    if (behind <= end) {
        w->place = BEHIND;
        print(w, behind, 1);
    } else {
        print(w, last ? end : mark, 1);
    }
}

/* Prints up to `end`, or less where that may be in the middle of a mark. */
static void print_parts(writer *w, size_t end, int last) {
    int begun = w->place == REPLY;
    if (w->place == START)
        print_start(w, end, last);
    if (w->place == REASONING)
        print_reasoning(w, end, last);
    if (w->place == BEHIND || w->place == PLAIN) {
        size_t at = skip_space(w->text.data, w->shown, end);
        if (w->place == BEHIND)
            print(w, at, 1);
        w->shown = at;
        if (at < end)
            w->place = REPLY;
    }
    if (w->place == REPLY && !begun)
        w->answer = w->shown;
    if (w->place == REPLY)
        print(w, end, 0);
}

/* Adds n bytes and prints what may be printed; `last`: nothing more will come. */
static void show(writer *w, const settings *o, const char *data, size_t n, int last) {
    text *t = &w->text;
    append(t, data, n);
    size_t stop = t->len, hold = t->len; /* where a stop text begins; and what may become one */
    for (size_t i = 0; i < o->n_stops; i++) {
        size_t at = find(t->data, w->shown, t->len, o->stops[i]);
        hold = smaller(hold, at);
        if (at + strlen(o->stops[i]) <= t->len) {
            w->stopped = 1;
            stop = smaller(stop, at);
        }
    }
    t->len = stop;
    if (last || w->stopped)
        print_parts(w, stop, 1);
    else
        print_parts(w, hold, 0);
    flush_output();
}

/* ---------------------------------------------------------------------------------------------------------
 * The loop */

typedef struct times {
    double start, prompted, end; /* in seconds */
} times;

static void say_speed(const run *r, uint64_t seed, size_t reused, size_t made, const times *t) {
    double prefill = t->prompted - t->start, decode = t->end - t->prompted;
    size_t run_now = r->n - reused;
    fprintf(stderr, "pyllm: seed %" PRIu64 "; prompt of %zu tokens, %zu of them run in %.2f s (%.1f/s); ",
        seed, r->n, run_now, prefill, (double)run_now / prefill);
    fprintf(stderr, "%zu tokens made in %.2f s (%.1f/s), %zu of %zu drafted accepted; %s, %u threads\n", made,
        decode, (double)made / decode, r->drafts->accepted, r->drafts->drafted, llm_session_isa(r->session),
        r->threads);
}

/* Decodes a token and shows what its text is. */
static void show_token(run *r, writer *w, llm_decoder *d, uint32_t token) {
    int special = is_visible(w->visible, token);
    size_t n = llm_decode(r->tokenizer, d, token, special, r->piece, llm_token_max_bytes(r->tokenizer));
    show(w, r->o, r->piece, n, 0);
}

/* Cuts the guesses before the first that would end the text, or is no token of this model. */
static void cut_guesses(const run *r) {
    drafts *d = r->drafts;
    for (size_t i = 0; i < d->n_guesses; i++)
        if (is_stop(r, d->guesses[i]) || d->guesses[i] >= r->h->vocab_size)
            d->n_guesses = i;
}

/* Drops all but the first n tokens of sequence 0, and runs those again that had to be dropped with them, and the token
 * behind. Fills r->logits (1, vocab_size). */
static int run_again(run *r, size_t n, uint32_t token) {
    size_t kept = llm_cut(r->session, 0, n);
    if (llm_truncate(r->session, 0, kept, r->err, sizeof r->err))
        return engine_failed(r);
    r->cached[n] = token;
    return extend(r, r->cached + kept, n + 1 - kept);
}

/* Runs the token behind the first n of sequence 0, all others of which are dropped, and at most `most` guesses at
 * what follows it. Fills r->logits (1 + guesses, vocab_size). */
static int run_token(run *r, size_t n, uint32_t token, size_t most) {
    static const uint8_t want[MAX_STEP] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    drafts *d = r->drafts;
    uint32_t step[MAX_STEP] = {token};
    d->n_guesses = 0;
    if (llm_cut(r->session, 0, n) < n) /* guesses were wrong, and a state cannot be cut */
        return run_again(r, n, token);
    if (llm_truncate(r->session, 0, n, r->err, sizeof r->err))
        return engine_failed(r);
    r->cached[n] = token;
    guess(r, n + 1, smaller(most, MAX_STEP - 1));
    cut_guesses(r);
    if (interrupted)
        return INTERRUPTED;
    if (d->n_guesses) {
        size_t n_step = 1 + d->n_guesses;
        memcpy(step + 1, d->guesses, d->n_guesses * sizeof *step);
        memcpy(r->cached + n, step, n_step * sizeof *step);
        d->drafted += d->n_guesses;
        if (!llm_forward(r->session, n_step, step, NULL, want, r->logits, r->err, sizeof r->err))
            return OK;
        d->n_guesses = 0; /* it may be the fault of a guess */
    }
    return extend(r, &token, 1);
}

/* Makes tokens after r->logits until something ends the text; *made: how many. *n: how many tokens of sequence 0 are
 * certain: there may be guesses behind them. */
static int sample(run *r, llm_sampler *sampler, llm_decoder *d, writer *w, size_t *n, size_t *made) {
    size_t limit = r->o->max_tokens ? r->o->max_tokens : SIZE_MAX;
    drafts *guessed = r->drafts;
    size_t row = 0; /* of r->logits: after how many right guesses */
    for (;;) {
        uint32_t token = llm_sample(sampler, r->logits + row * r->h->vocab_size, NULL);
        int right = row < guessed->n_guesses && guessed->guesses[row] == token;
        guessed->accepted += (size_t)right;
        if (is_stop(r, token))
            return OK;
        ++*made;
        show_token(r, w, d, token);
        if (w->text.failed)
            return report(FAILED, "out of memory for the text");
        if (ferror(stdout)) /* main says why */
            return FAILED;
        if (w->stopped || *made == limit || *n == r->context)
            return OK;
        if (interrupted)
            return INTERRUPTED;
        if (right) {
            row++;
        } else {
            size_t most =
                smaller(limit - *made, r->context - *n) - 1; /* none behind the last that may come */
            int status = run_token(r, *n, token, most);
            if (status != OK)
                return status;
            row = 0;
        }
        ++*n;
    }
}

int generate(run *r, size_t reused, uint64_t seed, writer *w) {
    llm_sampling sampling = r->o->sampling;
    sampling.seed = seed;
    llm_sampler *sampler = llm_sampler_open(&sampling, r->h->vocab_size, r->err, sizeof r->err);
    if (!sampler)
        return engine_failed(r);
    llm_decoder decoder = {.started = 0};
    size_t room = llm_token_max_bytes(r->tokenizer), made = 0;
    for (size_t i = 0; i < r->n; i++) { /* the continuation's first space is not a text's first space */
        llm_decode(r->tokenizer, &decoder, r->tokens[i], 0, r->piece, room);
        llm_sampler_accept(sampler, r->tokens[i], 0);
    }
    times t = {.start = seconds()};
    begin_drafts(r);
    int status = extend(r, r->tokens + reused, r->n - reused);
    t.prompted = seconds();
    if (status == OK) {
        size_t n = r->n;
        status = sample(r, sampler, &decoder, w, &n, &made);
        llm_truncate(r->session, 0, llm_cut(r->session, 0, n), NULL, 0); /* the guesses that never came */
    }
    if (!w->stopped)
        show(w, r->o, r->piece, llm_decode_end(&decoder, r->piece, room), 1);
    putchar('\n');
    flush_output();
    t.end = seconds();
    if (r->o->verbose)
        say_speed(r, seed, reused, made, &t);
    llm_sampler_close(sampler);
    return status;
}

/* ---------------------------------------------------------------------------------------------------------
 * generate */

int run_generate(run *r) {
    writer w = {.tty = isatty(STDOUT_FILENO)};
    if (open_drafts(r) != OK || find_stop_tokens(r, NULL) != OK || read_prompt(r) != OK)
        return FAILED;
    catch_interrupts();
    if (!r->o->no_echo)
        print_text(r->input.data, r->input.len, w.tty);
    flush_output();
    int status = generate(r, 0, choose_seed(r->o), &w);
    free(w.text.data);
    return status;
}
