/* options.h - the options of all commands (options.c). Not part of the library. */
#ifndef OPTIONS_H
#define OPTIONS_H
#include "llm.h"
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* What the options of a command line have set */
typedef struct settings {
    const char *model, *system, *draft, *kv, *text;
    const char **stops; /* (n_stops,) */
    size_t n_stops;
    llm_sampling sampling;
    uint32_t max_tokens, threads, context, stride, prompt_tokens, repeat; /* 0: not given */
    int has_seed, no_echo, no_special, no_bos, hide_thinking, no_thinking, ids, speed, verify, exact, verbose,
        help;
} settings;

enum { /* a bit for each command: which of them take an option */
    GENERATE = 1,
    CHAT = 2,
    NEXT = 4,
    INFO = 8,
    TOKENIZE = 16,
    PERPLEXITY = 32,
    BENCH = 64,
    SAMPLES = GENERATE | CHAT,
    READS = GENERATE | NEXT | TOKENIZE | PERPLEXITY,
    RUNS = SAMPLES | NEXT | PERPLEXITY | BENCH,
    ALL = 127
};

enum { TOKENIZER = 1, SESSION = 2 }; /* what a command needs beside the model */

struct run;

typedef struct command {
    const char *name;
    unsigned bit, needs;
    int (*run)(struct run *r);
    const char *argument; /* NULL: takes none; in brackets: may be left out */
    const char *help;     /* one line */
    const char *details;  /* a paragraph; NULL: none */
} command;

settings default_settings(void);

/* Sets what the arguments of command c say, a list that ends with NULL. o->stops must have room for all of
 * them. Returns OK or USAGE. */
int parse(settings *o, const command *c, char **arguments);

void print_help(const command *c);

/* Prints words from this column on, in lines of at most 80 columns that begin at `indent`, and a newline. */
void print_wrapped(FILE *out, const char *words, size_t column, size_t indent);

#endif
