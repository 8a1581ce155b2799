/* draft.h - what guesses at the next tokens of a text (draft.c). Not part of the library. */
#ifndef DRAFT_H
#define DRAFT_H
#include "command.h"

/* As --draft says: prompt lookup, or a smaller model. Without either it guesses nothing. */
typedef struct drafts {
    uint32_t guesses[MAX_STEP]; /* (n_guesses,) those of this step */
    size_t n_guesses;
    size_t drafted, accepted; /* guesses that were run in this text, and those that were right */

    llm_lookup *lookup; /* NULL: a model guesses, or nothing does */
    size_t n_known;     /* tokens of the text that it knows */

    llm_model *model; /* NULL: no model guesses */
    uint32_t vocab_size;
    llm_session *session;
    uint32_t *held; /* (context,) the tokens of its sequence 0 */
    float *logits;  /* (vocab_size,) after the last of them */
    float cost;     /* of a guess, in steps: a draft ends where it is less likely than this to be right */
    float rate;     /* how often guesses are right */
    size_t start;   /* how many tokens the text had when it guessed last, */
    size_t n_last;  /* and how many guesses it made */
} drafts;

/* Opens r->drafts, which close_run frees. */
int open_drafts(run *r);
void close_drafts(drafts *d); /* NULL is allowed */

/* Begins a text with its prompt, r->tokens. */
void begin_drafts(run *r);

/* Makes d->guesses at most `most` tokens that may follow the first n of r->cached. */
void guess(run *r, size_t n, size_t most);

#endif
