/* generate.h - the sampling loop and what it prints (generate.c), which chat uses too. Not part of the
 * library. */
#ifndef GENERATE_H
#define GENERATE_H
#include "command.h"

/* Where the text is that is printed next. White space around the reasoning counts as part of it. PLAIN is behind
 * the mark of a reply without reasoning, which is never printed. */
enum place { REPLY, START, REASONING, BEHIND, PLAIN };

/* The texts around the reasoning of a reply. */
typedef struct marks {
    const char *begin, *end;
    const char *plain; /* before a reply without reasoning; "": nothing */
} marks;

/* What was generated, and how much of it was printed or left out: all but an end that may become a stop text
 * or a mark of the reasoning. */
typedef struct writer {
    text text;
    size_t shown;
    int stopped; /* a stop text came; `text` ends before it */
    enum place place;
    size_t answer;           /* where in the text the reply begins, once its place is REPLY */
    const marks *marks;      /* NULL: reasoning is a text like any other */
    const uint32_t *visible; /* control tokens to print, and UINT32_MAX behind them; NULL: none */
    int hide;                /* the reasoning is not printed */
    int tty; /* stdout is a terminal: control characters are escaped, the reasoning is dimmed */
} writer;

/* --seed, or a random one. */
uint64_t choose_seed(const settings *o);

/* Finds the control tokens among the stop texts. They have no text, so that they are looked for by id; and
 * what has one together with other text can never come. `visible`: as in a writer. */
int find_stop_tokens(run *r, const uint32_t *visible);

/* Runs r->tokens, of which sequence 0 already holds the first `reused`, then generates into w until a stop
 * token, a stop text, --max-tokens, the end of the context or Ctrl-C. Returns OK, FAILED or INTERRUPTED. */
int generate(run *r, size_t reused, uint64_t seed, writer *w);

#endif
