/* command.h - what the commands share (command.c), and the commands themselves. Not part of the library. */
#ifndef COMMAND_H
#define COMMAND_H
#include "llm.h"
#include "options.h"
#include "terminal.h"

/* The exit status, and what most functions return: whoever returns another than OK has reported why. */
enum { OK = 0, FAILED = 1, USAGE = 2, INTERRUPTED = 130 };

/* Prints a line on stderr, escaped since it may name what a file says, and returns `status`. */
__attribute__((format(printf, 2, 3))) int report(int status, const char *format, ...);

/* Tokens of a step of generate and chat at most: from 16 on products may be computed in another way, which rounds
 * differently, and drafts must not change a text. */
enum { MAX_STEP = 15 };

static inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

double seconds(void);

/* ---------------------------------------------------------------------------------------------------------
 * The open model, and what a command does with it */

typedef struct run {
    const settings *o;
    llm_model *model;
    const llm_header *h;
    llm_tokenizer *tokenizer;
    llm_session *session;
    uint32_t context, threads; /* the session's */
    text input;                /* the argument, or the file that it names */
    uint32_t *tokens;          /* (n,) its tokens */
    size_t n;
    float *logits;    /* (MAX_STEP, vocab_size) after the last tokens of sequence 0 that were run together */
    uint32_t *cached; /* (context,) the tokens of sequence 0 */
    char *piece;      /* one token's text */
    char *visible;    /* the same in quotes, with escapes */
    uint32_t *stop_tokens; /* (n_stop_tokens,) of --stop */
    size_t n_stop_tokens;
    struct drafts *drafts; /* what guesses at the next tokens; NULL but in generate and chat */
    void *taken[8];        /* what `take` gave */
    int n_taken;
    char err[256];
} run;

int has_section(const run *r, uint32_t tag);

/* Each opens a part of the run, which close_run frees. */
int open_tokenizer(run *r);
int open_session(run *r, uint32_t context);
void close_run(run *r);

/* Reports r->err. */
int engine_failed(run *r);

/* Memory until close_run; NULL, reported, if there is none. At most 8 times a run. */
void *take(run *r, size_t n, size_t size);

/* The same of memory that free() takes; NULL: there was none. */
void *keep(run *r, void *memory);

/* How many of the first tokens (n,) sequence 0, cut back, holds, whose tokens are `held`. The last one never counts: it
 * has to run again, for its logits. */
size_t reusable(const llm_session *session, const uint32_t *held, const uint32_t *tokens, size_t n);

/* Appends n tokens to sequence 0, looking at Ctrl-C between chunks. Fills r->logits (1, vocab_size): those after
 * the last. */
int extend(run *r, const uint32_t *tokens, size_t n);

/* ---------------------------------------------------------------------------------------------------------
 * Text that comes in */

/* Appends a whole file; "-" is standard input. */
int read_file(text *t, const char *path);

/* Reads the argument into r->input: itself, or standard input for "-", less one newline at the end if
 * `strip`. */
int read_argument(run *r, int strip);

/* llm_encode's flags by the options */
uint32_t encode_flags(const settings *o);

/* Encodes a text into r->tokens. */
int encode(run *r, const text *t, uint32_t flags);

/* Reads and encodes the prompt of generate and next, which must have tokens and fit into the context. */
int read_prompt(run *r);

/* Whether Python's strip() takes this byte for white space, of those of ASCII. */
int is_space(char byte);

/* ---------------------------------------------------------------------------------------------------------
 * Text that goes out */

/* A token's text in quotes, with escapes, valid until the next call. Bytes that are no whole UTF-8 are
 * escaped too. */
const char *visible_token(run *r, uint32_t token);

/* A number of bytes for people, valid until the fourth call after it. */
const char *size_text(double bytes);

/* Prints a section of text, control characters escaped, its first line after the label, the others below. */
int print_section(run *r, uint32_t tag, const char *label);

void flush_output(void);

/* Flushes; text that could not be written is a failure, reported unless nobody wanted it any more, as in
 * `pyllm ... | head`. */
int finish_output(int status);

/* ---------------------------------------------------------------------------------------------------------
 * The commands */

int run_generate(run *r);   /* generate.c */
int run_chat(run *r);       /* chat.c */
int run_info(run *r);       /* info.c */
int run_next(run *r);       /* look.c */
int run_tokenize(run *r);   /* look.c */
int run_perplexity(run *r); /* measure.c */
int run_bench(run *r);      /* measure.c */

/* n words of memory for read_speed(), in huge pages where there are such; NULL: was reported */
uint64_t *take_words(run *r, size_t n); /* measure.c */

/* Bytes a second that the session's threads read from n words of memory, which were written before */
double read_speed(const run *r, const uint64_t *words, size_t n); /* measure.c */

#endif
