/* measure.c - the commands that measure: `perplexity`, how well a model predicts a text, and `bench`, how fast
 * it runs here. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* madvise */
#endif
#include "command.h"
#include "threads.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---------------------------------------------------------------------------------------------------------
 * perplexity */

typedef struct score {
    double n, sum, squares; /* of the negative log-likelihoods */
} score;

enum { MAX_ROWS = 256 }; /* of logits at a time */

typedef struct windows {
    uint32_t first[LLM_MAX_AROUND]; /* (n_first,) what begins every window */
    size_t n_first;
    size_t room, stride; /* tokens of the text in a window, and from one to the next */
    uint32_t *tokens;    /* (context,) one window */
    size_t n_rows;
    float *rows; /* (n_rows, vocab_size) */
} windows;

static void add_loss(score *s, double loss) {
    s->n++;
    s->sum += loss;
    s->squares += loss * loss;
}

/* Runs the first n tokens of w->tokens and scores those from index `from` > 0 on. */
static int score_window(run *r, const windows *w, size_t n, size_t from, score *s) {
    size_t vocab = r->h->vocab_size, begun = from - 1; /* the first position whose logits matter */
    uint8_t want[MAX_ROWS];
    memset(want, 1, sizeof want);
    if (llm_truncate(r->session, 0, 0, r->err, sizeof r->err))
        return engine_failed(r);
    int status = extend(r, w->tokens, begun);
    for (size_t at = begun; status == OK && at < n - 1; at += w->n_rows) {
        const uint32_t *tokens = w->tokens + at;
        size_t m = smaller(n - 1 - at, w->n_rows);
        if (llm_forward(r->session, m, tokens, NULL, want, w->rows, r->err, sizeof r->err))
            return engine_failed(r);
        for (size_t i = 0; i < m; i++)
            add_loss(s, -llm_logprobs(w->rows + i * vocab, vocab, tokens[i + 1], 0, NULL, NULL));
        status = interrupted ? INTERRUPTED : OK;
    }
    return status;
}

/* Finds what begins every window: what begins every text, where a text begins with it by default. */
static void find_first(run *r, windows *w) {
    uint32_t all[2 * LLM_MAX_AROUND], flags = encode_flags(r->o);
    int64_t n_first =
        llm_encode(r->tokenizer, "", 0, LLM_BOS, w->first, LLM_MAX_AROUND, r->err, sizeof r->err);
    int64_t n_all = llm_encode(r->tokenizer, "a", 1, flags, all, 2 * LLM_MAX_AROUND, r->err, sizeof r->err);
    if (n_first > 0 && n_all > n_first && !memcmp(w->first, all, (size_t)n_first * sizeof *all))
        w->n_first = (size_t)n_first;
}

static int open_windows(run *r, windows *w) {
    size_t vocab = r->h->vocab_size;
    find_first(r, w);
    size_t unscored = w->n_first ? 0 : 1; /* of a window's tokens of the text: nothing is before the first */
    if (r->n + w->n_first < 2 || r->context < w->n_first + 1 + unscored)
        return report(
            FAILED, "%s: %zu tokens in a context of %u: none to predict", r->o->text, r->n, r->context);
    w->room = r->context - w->n_first;
    w->stride = r->o->stride ? r->o->stride : (w->room + 1) / 2;
    w->stride = smaller(w->stride, w->room - unscored); /* more would leave tokens out */
    w->n_rows = smaller(((size_t)32 << 20) / (vocab * sizeof(float)), MAX_ROWS); /* 32 MiB at a time */
    if (w->n_rows < 1)
        w->n_rows = 1;
    w->rows = take(r, w->n_rows * vocab, sizeof *w->rows);
    if (!w->rows)
        return FAILED;
    w->tokens = take(r, r->context, sizeof *w->tokens);
    return w->tokens ? OK : FAILED;
}

/* Scores each token of the text once, in the first window that has it. */
static int score_text(run *r, const windows *w, score *s) {
    size_t done = w->n_first ? 0 : 1;
    for (size_t at = 0; done < r->n; at += w->stride) {
        size_t n = smaller(r->n - at, w->room), skip = w->n_first;
        memcpy(w->tokens, w->first, skip * sizeof *w->tokens);
        memcpy(w->tokens + skip, r->tokens + at, n * sizeof *w->tokens);
        int status = score_window(r, w, skip + n, skip + done - at, s);
        done = at + n;
        if (r->o->verbose)
            report(OK, "%zu of %zu tokens, perplexity %.4f", done, r->n, exp(s->sum / s->n));
        if (status != OK)
            return status;
    }
    return OK;
}

int run_perplexity(run *r) {
    windows w = {.n_first = 0};
    score s = {0};
    if (read_file(&r->input, r->o->text) != OK)
        return FAILED;
    if (encode(r, &r->input, encode_flags(r->o) | LLM_NO_BOS) != OK || open_windows(r, &w) != OK)
        return FAILED;
    catch_interrupts();
    int status = score_text(r, &w, &s);
    if (status != OK)
        return status;
    double mean = s.sum / s.n, variance = s.squares / s.n - mean * mean, error = 0;
    if (variance > 0 && s.n > 1)
        error = sqrt(variance / (s.n - 1));
    printf("tokens      %zu (%.0f predicted)\n", r->n, s.n);
    printf("mean loss   %.5f +- %.5f (negative log-likelihood in nats)\n", mean, error);
    printf("perplexity  %.4f +- %.4f\n", exp(mean), exp(mean) * error);
    return OK;
}

/* ---------------------------------------------------------------------------------------------------------
 * bench */

typedef struct reading {
    const uint64_t *words; /* (n,) */
    size_t n;
    _Atomic uint64_t sum;
} reading;

/* Several sums, and lines that are asked for ahead: one alone waits for memory most of the time. */
static void read_part(void *context) {
    enum { BLOCK = 64, LINE = 8, AHEAD = 256, SUMS = 16 }; /* words */
    reading *all = context;
    uint64_t sums[SUMS] = {0};
    EACH(block, all->n / BLOCK) {
        const uint64_t *words = all->words + block * BLOCK;
        for (size_t i = 0; i < BLOCK; i += LINE)
            __builtin_prefetch(words + i + AHEAD);
        for (size_t i = 0; i < BLOCK; i++)
            sums[i % SUMS] += words[i];
    }
    for (size_t i = 0; i < SUMS; i++)
        all->sum += sums[i];
}

uint64_t *take_words(run *r, size_t n) {
    enum { HUGE = 1 << 21 };
    const size_t size = (n * sizeof(uint64_t) + HUGE - 1) / HUGE * HUGE;
    uint64_t *words = keep(r, aligned_alloc(HUGE, size));
    if (!words)
        return NULL;
#ifdef MADV_HUGEPAGE
    madvise(words, size, MADV_HUGEPAGE); /* with small pages looking them up is what would be measured */
#endif
    memset(words, 1, size); /* pages that nobody has written are all one page of zeros */
    return words;
}

double read_speed(const run *r, const uint64_t *words, size_t n) {
    reading all = {.words = words, .n = n};
    double start = seconds();
    team(r->threads, read_part, &all);
    return (double)n * sizeof *words / (seconds() - start);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, size_t n) {
    qsort(x, n, sizeof *x, by_value);
    return (x[(n - 1) / 2] + x[n / 2]) / 2;
}

typedef struct bench {
    size_t n_prompt, n_made, n_words, repeat;
    uint32_t *tokens;                /* (n_prompt + n_made,) */
    uint64_t *words;                 /* (n_words,) more than caches hold */
    double *prefill, *decode, *read; /* (repeat,) tokens and bytes a second */
} bench;

static int open_bench(run *r, bench *b, uint64_t weights) {
    size_t n = b->n_prompt + b->n_made;
    b->n_words = (size_t)fmin(fmax((double)weights, 0x1p28), 0x1p30) / sizeof *b->words;
    b->words = take_words(r, b->n_words);
    if (!b->words)
        return FAILED;
    b->tokens = take(r, n, sizeof *b->tokens);
    double *numbers = b->tokens ? take(r, 3 * b->repeat, sizeof *numbers) : NULL;
    if (!numbers)
        return FAILED;
    b->prefill = numbers;
    b->decode = numbers + b->repeat;
    b->read = numbers + 2 * b->repeat;
    for (size_t i = 0; i < n; i++) /* no text, but the same work */
        b->tokens[i] = (uint32_t)((i * 2654435761u) % r->h->vocab_size);
    return OK;
}

/* Measures all three once, as number i. */
static int bench_once(run *r, bench *b, size_t i) {
    double start = seconds();
    if (llm_truncate(r->session, 0, 0, r->err, sizeof r->err))
        return engine_failed(r);
    if (extend(r, b->tokens, b->n_prompt) != OK)
        return FAILED;
    double prompted = seconds();
    for (size_t j = 0; j < b->n_made; j++)
        if (extend(r, b->tokens + b->n_prompt + j, 1) != OK)
            return FAILED;
    double made = seconds();
    b->prefill[i] = (double)b->n_prompt / (prompted - start);
    b->decode[i] = (double)b->n_made / (made - prompted);
    b->read[i] = read_speed(r, b->words, b->n_words);
    return OK;
}

int run_bench(run *r) {
    bench b = {.n_prompt = r->o->prompt_tokens, .repeat = r->o->repeat};
    b.n_made = r->o->max_tokens ? r->o->max_tokens : 64;
    llm_counts n;
    if (llm_count(r->h, llm_model_layers(r->model), &n, r->err, sizeof r->err))
        return engine_failed(r);
    const int bad = open_session(r, (uint32_t)(b.n_prompt + b.n_made));
    if (bad)
        return bad;
    if (open_bench(r, &b, n.read) != OK)
        return FAILED;
    if (bench_once(r, &b, 0) != OK) /* brings the file into memory, and is overwritten */
        return FAILED;
    for (size_t i = 0; i < b.repeat; i++)
        if (bench_once(r, &b, i) != OK)
            return FAILED;
    double prefill = median(b.prefill, b.repeat), decode = median(b.decode, b.repeat);
    double speed = median(b.read, b.repeat), reads = (double)n.read;
    print_section(r, LLM_NAME, "model");
    printf("%-18s%s, %u threads; medians of %zu\n", "runs with", llm_session_isa(r->session), r->threads,
        b.repeat);
    printf("%-18s%.1f tokens/s (%zu tokens)\n", "prefill", prefill, b.n_prompt);
    printf("%-18s%.1f tokens/s (%zu tokens after those)\n", "decode", decode, b.n_made);
    printf("%-18s%s of weights a token\n", "decode reads", size_text(reads));
    printf("%-18s%.2f GB/s (%s)\n", "read bandwidth", speed / 1e9,
        size_text((double)(b.n_words * sizeof *b.words)));
    printf("%-18s%.0f %% of that\n", "decode reaches", 100 * reads * decode / speed);
    return OK;
}
