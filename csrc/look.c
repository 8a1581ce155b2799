/* look.c - the commands that show what a model makes of a text: `next` and `tokenize`. */
#include "command.h"

#include <math.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------------------
 * next */

static int width_of(const char *s) {
    int n = 0;
    for (; *s; s++)
        n += (*s & 0xc0) != 0x80; /* not a continuation byte */
    return n;
}

/* Prints a bar of this many eighths of a character. */
static void print_bar(int eighths) {
    static const char *ends[] = {"", "\u258f", "\u258e", "\u258d", "\u258c", "\u258b", "\u258a", "\u2589"};
    for (int i = 0; i < eighths / 8; i++)
        fputs("\u2588", stdout);
    puts(ends[eighths % 8]);
}

int run_next(run *r) {
    enum { BAR = 40 }; /* characters of the longest bar */
    size_t n = smaller(r->o->max_tokens ? r->o->max_tokens : 10, r->h->vocab_size);
    int width = 0;
    if (read_prompt(r) != OK)
        return FAILED;
    int status = extend(r, r->tokens, r->n);
    if (status != OK)
        return status;
    uint32_t *top = take(r, n, sizeof *top);
    float *logprobs = top ? take(r, n, sizeof *logprobs) : NULL;
    if (!logprobs)
        return FAILED;
    llm_logprobs(r->logits, r->h->vocab_size, 0, n, top, logprobs);
    for (size_t i = 0; i < n; i++) {
        int w = width_of(visible_token(r, top[i]));
        if (w > width)
            width = w;
    }
    for (size_t i = 0; i < n; i++) {
        const char *token = visible_token(r, top[i]);
        printf("%s%*s %6.2f %% ", token, width - width_of(token), "", 100 * exp(logprobs[i]));
        print_bar((int)(exp(logprobs[i] - logprobs[0]) * BAR * 8 + 0.5));
    }
    return OK;
}

/* ---------------------------------------------------------------------------------------------------------
 * tokenize */

static void print_ids(const run *r) {
    for (size_t i = 0; i < r->n; i++)
        printf("%s%u", i ? " " : "", r->tokens[i]);
    putchar('\n');
}

int run_tokenize(run *r) {
    if (read_argument(r, 0) != OK || encode(r, &r->input, encode_flags(r->o)) != OK)
        return FAILED;
    if (r->o->ids) {
        print_ids(r);
        return OK;
    }
    for (size_t i = 0; i < r->n; i++)
        printf("%7u  %s\n", r->tokens[i], visible_token(r, r->tokens[i]));
    return OK;
}
