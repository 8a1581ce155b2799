/* main.c - the command `pyllm`.
 *
 * Owns the command line and the texts that a user sees; all that it knows of models is llm.h, of terminals
 * terminal.h.
 * Generated text and results go to stdout, everything else to stderr. Exit status: 0; 1 for a failure; 2 for
 * a command line that makes no sense; 130 after Ctrl-C. A function that returns a status has reported its
 * failure. Reading order: options, text, the open model, generating, one section for each command, main. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* clock_gettime, vasprintf, readlink under -std=c11 */
#endif
#include "llm.h"
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __APPLE__
#include <mach-o/dyld.h>
#endif

#ifndef PYLLM_VERSION
#define PYLLM_VERSION "dev"
#endif

enum { OK = 0, FAILED = 1, USAGE = 2, INTERRUPTED = 130, END_OF_INPUT = 256 /* of read_message only */ };

/* Prints a line on stderr, escaped since it may name what a file says, and returns `status`. */
__attribute__((format(printf, 2, 3))) static int report(int status, const char *format, ...) {
    char *line = NULL, *escaped = NULL;
    va_list args;
    va_start(args, format);
    int n = vasprintf(&line, format, args);
    va_end(args);
    if (n >= 0 && (escaped = malloc(4 * (size_t)n + 1))) {
        *escape(escaped, line, (size_t)n, ONE_LINE) = 0;
        fprintf(stderr, "pyllm: %s\n", escaped);
    } else {
        fputs("pyllm: out of memory\n", stderr);
    }
    if (n >= 0)
        free(line);
    free(escaped);
    return status;
}

/* The built-in model: the whole file inside the binary, in a read-only section. */
#ifdef PYLLM_BUILTIN
#ifdef __APPLE__
__asm__(".section __TEXT,__const\n.private_extern _pyllm_builtin\n.private_extern _pyllm_builtin_size\n"
        ".p2align 6\n_pyllm_builtin: .incbin \"" PYLLM_BUILTIN "\"\nLpyllm_end:\n"
        ".p2align 3\n_pyllm_builtin_size: .quad Lpyllm_end - _pyllm_builtin\n.text\n");
#else
__asm__(".pushsection .rodata\n.globl pyllm_builtin\n.globl pyllm_builtin_size\n"
        ".balign 64\npyllm_builtin: .incbin \"" PYLLM_BUILTIN "\"\n.Lpyllm_end:\n"
        ".balign 8\npyllm_builtin_size: .quad .Lpyllm_end - pyllm_builtin\n.popsection\n");
#endif
extern const unsigned char pyllm_builtin[] __attribute__((visibility("hidden")));
extern const uint64_t pyllm_builtin_size __attribute__((visibility("hidden")));
#endif

/* ---------------------------------------------------------------------------------------------------------
 * Options: one table, from which parsing and --help are made */

typedef struct settings {
    const char *model, *system, *text;
    const char **stops; /* (n_stops,) */
    size_t n_stops;
    llm_sampling sampling;
    uint32_t max_tokens, threads, context, stride, prompt_tokens, repeat; /* 0: not given */
    int has_seed, no_echo, no_special, no_bos, hide_thinking, no_thinking, ids, speed, verbose, help;
} settings;

enum kind { FLAG, TEXT, LIST, COUNT, SEED, REAL };

enum { /* which commands take an option */
    GENERATE = 1,
    CHAT = 2,
    NEXT = 4,
    INFO = 8,
    TOKENIZE = 16,
    PERPLEXITY = 32,
    BENCH = 64,
    SAMPLES = GENERATE | CHAT,
    READS = GENERATE | NEXT | TOKENIZE | PERPLEXITY,
    ALL = 127
};

typedef struct option {
    const char *name;
    char letter; /* 0: none */
    enum kind kind;
    unsigned commands;
    size_t field; /* offset in settings */
    double low, high;
    const char *value, *help;
} option;

#define AT(name) offsetof(settings, name)

// clang-format off
static const option OPTIONS[] = {
    {"model", 'm', TEXT, ALL, AT(model), 0, 0, "FILE", "the model file (without it: the built-in model)"},
    {"max-tokens", 'n', COUNT, SAMPLES | NEXT | BENCH, AT(max_tokens), 1, 1 << 30, "N",
     "tokens to make at most (default: next 10, bench 64, else until the model or the context ends)"},
    {"temperature", 't', REAL, SAMPLES, AT(sampling.temperature), 0, 1000, "T",
     "0: always the most likely token"},
    {"top-k", 0, COUNT, SAMPLES, AT(sampling.top_k), 0, UINT32_MAX, "K",
     "draw from the K most likely tokens; 0 or -1: off"},
    {"top-p", 0, REAL, SAMPLES, AT(sampling.top_p), 1e-6, 1, "P",
     "draw from the fewest tokens whose probabilities reach P; 1: off"},
    {"min-p", 0, REAL, SAMPLES, AT(sampling.min_p), 0, 1, "P",
     "drop tokens less likely than P times the most likely one; 0: off"},
    {"repeat-penalty", 0, REAL, SAMPLES, AT(sampling.repeat_penalty), 1e-3, 1e3, "X",
     "weaken tokens that occurred, prompt included; 1: off"},
    {"presence-penalty", 0, REAL, SAMPLES, AT(sampling.presence_penalty), -1e3, 1e3, "X",
     "subtract X from the logits of generated tokens; 0: off"},
    {"frequency-penalty", 0, REAL, SAMPLES, AT(sampling.frequency_penalty), -1e3, 1e3, "X",
     "the same for each time they were generated; 0: off"},
    {"seed", 0, SEED, SAMPLES, AT(sampling.seed), 0, 0, "N",
     "the same seed gives the same text (default, and -1: a random one)"},
    {"stop", 0, LIST, SAMPLES, AT(stops), 0, 0, "TEXT",
     "end before this text, or at this token; may be given several times"},
    {"system", 0, TEXT, CHAT, AT(system), 0, 0, "TEXT", "the system message"},
    {"hide-thinking", 0, FLAG, CHAT, AT(hide_thinking), 0, 0, NULL,
     "print replies without the reasoning before </think>"},
    {"no-thinking", 0, FLAG, CHAT, AT(no_thinking), 0, 0, NULL,
     "have the model reply without reasoning, if its chat template can say so"},
    {"context", 0, COUNT, ALL & ~(TOKENIZE | BENCH), AT(context), 1, UINT32_MAX, "N",
     "positions to hold at most (default: the model's)"},
    {"stride", 0, COUNT, PERPLEXITY, AT(stride), 1, UINT32_MAX, "N",
     "positions from one window to the next (default: half of the context)"},
    {"no-special", 0, FLAG, READS, AT(no_special), 0, 0, NULL,
     "read special tokens in the text as plain text"},
    {"no-bos", 0, FLAG, READS, AT(no_bos), 0, 0, NULL, "do not add the tokens that begin or end a text"},
    {"no-echo", 0, FLAG, GENERATE, AT(no_echo), 0, 0, NULL, "print the continuation without the prompt"},
    {"ids", 0, FLAG, TOKENIZE, AT(ids), 0, 0, NULL, "print only the ids, on one line"},
    {"speed", 0, FLAG, INFO, AT(speed), 0, 0, NULL,
     "measure how fast memory can be read, and so how many tokens/s to expect at most"},
    {"prompt-tokens", 0, COUNT, BENCH, AT(prompt_tokens), 1, 1 << 20, "N", "tokens of the prompt"},
    {"repeat", 0, COUNT, BENCH, AT(repeat), 1, 1000, "N", "how often each is measured; medians are printed"},
    {"threads", 0, COUNT, ALL & ~TOKENIZE, AT(threads), 1, 1024, "N",
     "processors to use (default: those this process may use)"},
    {"verbose", 'v', FLAG, SAMPLES | PERPLEXITY, AT(verbose), 0, 0, NULL,
     "seed, speed and progress on stderr"},
    {"help", 'h', FLAG, ALL, AT(help), 0, 0, NULL, "print this help"},
};
// clang-format on
enum { N_OPTIONS = sizeof OPTIONS / sizeof *OPTIONS };

typedef struct run run;
enum { TOKENIZER = 1, SESSION = 2 }; /* what a command needs beside the model */

typedef struct command {
    const char *name;
    unsigned bit, needs;
    int (*run)(run *r);
    const char *argument;       /* NULL: takes none; in brackets: may be left out */
    const char *help, *details; /* details: a paragraph; NULL: none */
} command;

static settings default_settings(void) {
    return (settings){.sampling = llm_sampling_default(), .prompt_tokens = 512, .repeat = 5};
}

/* Prints words from this column on, in lines of at most 80 columns that begin at `indent`, and a newline. */
static void print_wrapped(FILE *out, const char *words, size_t column, size_t indent) {
    for (size_t n; *words; words += n, words += *words == ' ') {
        n = strcspn(words, " ");
        if (column > indent && column + 1 + n > 80) {
            fprintf(out, "\n%*s", (int)indent, "");
            column = indent;
        } else if (column > indent) {
            fputc(' ', out);
            column++;
        }
        fprintf(out, "%.*s", (int)n, words);
        column += n;
    }
    fputc('\n', out);
}

static void print_help(const command *c) {
    enum { COLUMN = 30 }; /* where the texts of the options begin */
    settings defaults = default_settings();
    printf("usage: pyllm %s [OPTIONS]%s%s\n\n%s.\n", c->name, c->argument ? " " : "",
        c->argument ? c->argument : "", c->help);
    if (c->details) {
        putchar('\n');
        print_wrapped(stdout, c->details, 0, 0);
    }
    puts("\noptions:");
    for (const option *x = OPTIONS; x < OPTIONS + N_OPTIONS; x++) {
        char help[256];
        const void *field = (const char *)&defaults + x->field;
        double value = x->kind == REAL    ? *(const float *)field
                       : x->kind == COUNT ? *(const uint32_t *)field
                                          : 0;
        if (!(x->commands & c->bit))
            continue;
        printf(x->letter ? "  -%c, " : "      ", x->letter);
        printf("--%s %-*s ", x->name, COLUMN - 10 - (int)strlen(x->name), x->value ? x->value : "");
        snprintf(help, sizeof help, value != 0 ? "%s (default: %g)" : "%s", x->help, value);
        print_wrapped(stdout, help, COLUMN, COLUMN);
    }
}

/* Sets the field of one option from what was given; `hint` ends the message about a number. */
static int set_option(settings *o, const option *x, const char *given, const char *hint) {
    void *field = (char *)o + x->field;
    char *end = NULL;
    if (x->kind == FLAG) {
        *(int *)field = 1;
    } else if (x->kind == TEXT) {
        *(const char **)field = given;
    } else if (x->kind == LIST) {
        o->stops[o->n_stops++] = given;
        if (!*given)
            return report(USAGE, "--%s must not be empty", x->name);
    } else if (x->kind == REAL) {
        float value = strtof(given, &end);
        if (end == given || *end || !(value >= (float)x->low && value <= (float)x->high)) /* NaN fails this */
            return report(USAGE, "--%s takes a number from %g to %g, not '%s'%s", x->name, x->low, x->high,
                given, hint);
        *(float *)field = value;
    } else {
        int digits = *given >= '0' && *given <= '9';     /* strtoull takes signs and spaces */
        int unset = x->low == 0 && !strcmp(given, "-1"); /* off, or random: as other programs have it */
        unsigned long long low = (unsigned long long)x->low, high = UINT64_MAX, value;
        if (x->kind == COUNT)
            high = (unsigned long long)x->high;
        errno = 0;
        value = unset ? 0 : strtoull(given, &end, 10);
        if (!unset && (!digits || *end || errno || value < low || value > high))
            return report(USAGE, "--%s takes a whole number from %llu to %llu, not '%s'%s", x->name, low,
                high, given, hint);
        if (x->kind == COUNT) {
            *(uint32_t *)field = (uint32_t)value;
        } else {
            *(uint64_t *)field = value;
            o->has_seed = !unset;
        }
    }
    return OK;
}

/* The option of command c that arg names as --name, --name=value, -x or -xvalue; the value in it goes to
 * *value. */
static const option *find_option(const command *c, const char *arg, const char **value) {
    for (const option *x = OPTIONS; x < OPTIONS + N_OPTIONS; x++) {
        size_t n = strlen(x->name);
        int named = arg[1] == '-' && !strncmp(arg + 2, x->name, n) && (!arg[2 + n] || arg[2 + n] == '=');
        int lettered = x->letter && arg[1] == x->letter && (!arg[2] || x->kind != FLAG);
        if ((x->commands & c->bit) && (named || lettered)) {
            const char *behind = named ? arg + 2 + n : arg + 2;
            *value = *behind ? behind + named : NULL;
            return x;
        }
    }
    return NULL;
}

static int parse(settings *o, const command *c, int argc, char **argv) {
    int plain = 0; /* after "--" nothing is an option */
    const char *dashes = c->argument ? "; put -- before an argument that begins with a dash" : "";
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i], *value = NULL;
        if (!plain && !strcmp(arg, "--")) {
            plain = 1;
        } else if (!plain && arg[0] == '-' && arg[1]) {
            const option *x = find_option(c, arg, &value);
            if (!x)
                return report(USAGE, "'pyllm %s' has no option '%s'; see pyllm %s --help%s", c->name, arg,
                    c->name, dashes);
            if (x->kind == FLAG && value)
                return report(USAGE, "--%s takes no value", x->name);
            if (x->kind != FLAG && !value && !(value = ++i < argc ? argv[i] : NULL))
                return report(USAGE, "--%s needs a value (%s)", x->name, x->value);
            if (set_option(o, x, value, value == arg + 2 ? dashes : "") != OK)
                return USAGE;
        } else if (!c->argument || o->text) {
            return report(USAGE, "'pyllm %s' takes %s, and '%s' is one too many%s", c->name,
                c->argument ? c->argument : "no argument", arg, o->text ? " (quote a text with spaces)" : "");
        } else {
            o->text = arg;
        }
    }
    if (c->argument && c->argument[0] != '[' && !o->text && !o->help)
        return report(USAGE, "'pyllm %s' needs a %s; see pyllm %s --help", c->name, c->argument, c->name);
    return OK;
}

/* ---------------------------------------------------------------------------------------------------------
 * Text */

/* Appends what is typed or pasted at a terminal until Ctrl-D. */
static int read_typed(text *t) {
    enum line got;
    open_terminal();
    while ((got = read_line(t, "")) == LINE_READ && !t->failed)
        append(t, "\n", 1);
    int error = errno;
    close_terminal();
    if (got == LINE_FAILED)
        return report(FAILED, "standard input: %s", strerror(error));
    return t->failed ? report(FAILED, "out of memory for the text") : OK;
}

/* Appends a whole file; "-" is standard input. */
static int read_file(text *t, const char *path) {
    char buffer[65536];
    size_t n;
    FILE *in = strcmp(path, "-") ? fopen(path, "rb") : stdin;
    if (!in)
        return report(FAILED, "%s: %s", path, strerror(errno));
    if (in == stdin && isatty(STDIN_FILENO))
        return read_typed(t);
    while (!t->failed && (n = fread(buffer, 1, sizeof buffer, in)) > 0)
        append(t, buffer, n);
    int error = ferror(in) ? errno : 0;
    if (in != stdin)
        fclose(in);
    if (error)
        return report(FAILED, "%s: %s", in == stdin ? "standard input" : path, strerror(error));
    return t->failed ? report(FAILED, "out of memory for the text") : OK;
}

/* A number of bytes for people, valid until the fourth call after it. */
static const char *size_text(double bytes) {
    static const char *units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    static char texts[4][32];
    static int calls = 0;
    char *out = texts[calls++ % 4];
    int unit = 0;
    for (; bytes >= 1024 && unit < 4; unit++)
        bytes /= 1024;
    snprintf(out, sizeof *texts, unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
    return out;
}

/* ---------------------------------------------------------------------------------------------------------
 * The open model, and what a command does with it */

struct run {
    const settings *o;
    llm_model *model;
    const llm_header *h;
    llm_tokenizer *tokenizer;
    llm_session *session;
    uint32_t context, threads; /* the session's */
    text input;                /* the argument, or the file that it names */
    uint32_t *tokens;          /* (n,) its tokens */
    size_t n;
    float *logits;         /* (vocab_size,) after the last token of sequence 0 */
    uint32_t *cached;      /* (context,) the tokens of sequence 0 */
    char *piece;           /* one token's text */
    char *visible;         /* the same in quotes, with escapes */
    uint32_t *stop_tokens; /* (n_stop_tokens,) of --stop */
    size_t n_stop_tokens;
    void *taken[8]; /* what `take` gave */
    int n_taken;
    char err[256];
};

static void close_run(run *r) {
    while (r->n_taken)
        free(r->taken[--r->n_taken]);
    free(r->tokens);
    free(r->input.data);
    llm_session_close(r->session);
    llm_tokenizer_close(r->tokenizer);
    llm_close(r->model);
}

static int engine_failed(run *r) { return report(FAILED, "%s", r->err); }

/* Memory until close_run; NULL, reported, if there is none. At most 8 times a run. */
static void *take(run *r, size_t n, size_t size) {
    void *memory = n < SIZE_MAX / size ? malloc(n * size + 1) : NULL;
    if (!memory)
        report(FAILED, "out of memory");
    else
        r->taken[r->n_taken++] = memory;
    return memory;
}

static int open_tokenizer(run *r) {
    r->tokenizer = llm_tokenizer_open(r->model, r->err, sizeof r->err);
    if (!r->tokenizer)
        return engine_failed(r);
    size_t room = llm_token_max_bytes(r->tokenizer) + sizeof(llm_decoder);
    return (r->piece = take(r, room, 1)) && (r->visible = take(r, room, 4)) ? OK : FAILED;
}

static int open_session(run *r, uint32_t context) {
    llm_options options = {.context = context, .threads = r->o->threads};
    r->session = llm_session_open(r->model, &options, r->err, sizeof r->err);
    if (!r->session)
        return engine_failed(r);
    r->context = llm_session_options(r->session)->context;
    r->threads = llm_session_options(r->session)->threads;
    r->logits = take(r, r->h->vocab_size, sizeof *r->logits);
    r->cached = r->logits ? take(r, r->context, sizeof *r->cached) : NULL;
    return r->cached ? OK : FAILED;
}

/* Opens what the command needs, runs it and closes all. */
static int run_command(const command *c, const settings *o) {
    run r = {.o = o};
    int status = OK;
    if (c->bit == CHAT)
        open_terminal(); /* before anything takes time: what is typed meanwhile must not be cut */
    if (o->model)
        r.model = llm_open(o->model, r.err, sizeof r.err);
    else
#ifdef PYLLM_BUILTIN
        r.model = llm_open_memory(pyllm_builtin, pyllm_builtin_size, r.err, sizeof r.err);
#else
        return report(FAILED, "this build has no built-in model; name one with -m FILE");
#endif
    if (!r.model)
        return engine_failed(&r);
    r.h = llm_model_header(r.model);
    if (c->needs & TOKENIZER)
        status = open_tokenizer(&r);
    if (status == OK && (c->needs & SESSION))
        status = open_session(&r, o->context);
    if (status == OK)
        status = c->run(&r);
    close_run(&r);
    return status;
}

static uint32_t encode_flags(const settings *o) {
    return (o->no_special ? 0u : (uint32_t)LLM_SPECIAL) | (o->no_bos ? (uint32_t)LLM_NO_BOS : 0u);
}

/* Encodes a text into r->tokens. */
static int encode(run *r, const text *t, uint32_t flags) {
    size_t capacity = t->len + 16; /* nearly always enough */
    if (t->failed)
        return report(FAILED, "out of memory for the text");
    for (;; capacity = r->n) {
        free(r->tokens);
        r->tokens = capacity <= SIZE_MAX / sizeof *r->tokens ? malloc(capacity * sizeof *r->tokens) : NULL;
        if (!r->tokens)
            return report(FAILED, "out of memory for the tokens");
        int64_t n = llm_encode(
            r->tokenizer, t->len ? t->data : "", t->len, flags, r->tokens, capacity, r->err, sizeof r->err);
        r->n = n < 0 ? 0 : (size_t)n;
        if (n < 0)
            return engine_failed(r);
        if (r->n <= capacity)
            return OK;
    }
}

/* A token's text in quotes, with escapes, valid until the next call. Bytes that are no whole UTF-8 are
 * escaped too. */
static const char *visible_token(run *r, uint32_t token) {
    llm_decoder d = {.started = 1}; /* keeps a leading space */
    size_t n = llm_decode(r->tokenizer, &d, token, 1, r->piece, llm_token_max_bytes(r->tokenizer));
    char *out = r->visible;
    *out++ = '"';
    out = escape(out, r->piece, n, QUOTED);
    for (uint32_t i = 0; i < d.n_held && i < sizeof d.held; i++)
        out += sprintf(out, "\\x%02x", d.held[i]);
    strcpy(out, "\"");
    return r->visible;
}

/* Whether a control token's text is in `stop`; an unknown token, which any text may become, is not meant. */
static int names_control(run *r, const char *stop, uint32_t token) {
    llm_decoder d = {.started = 1};
    if (!llm_token_is_special(r->tokenizer, token))
        return 0;
    size_t n = llm_decode(r->tokenizer, &d, token, 1, r->piece, llm_token_max_bytes(r->tokenizer));
    return n && memmem(stop, strlen(stop), r->piece, n) != NULL;
}

/* Finds the control tokens among the stop texts. They have no text, so that they are looked for by id; and
 * what has one together with other text can never come. `shown`: (2,) those that have a text after all, or
 * NULL. */
static int find_stop_tokens(run *r, const uint32_t *shown) {
    r->stop_tokens = take(r, r->o->n_stops, sizeof *r->stop_tokens);
    if (!r->stop_tokens)
        return FAILED;
    for (size_t i = 0; i < r->o->n_stops; i++) {
        const char *stop = r->o->stops[i];
        text t = {0};
        append(&t, stop, strlen(stop));
        int status = encode(r, &t, LLM_SPECIAL | LLM_NO_BOS);
        free(t.data);
        if (status != OK)
            return status;
        for (size_t j = 0; j < r->n; j++) {
            uint32_t token = r->tokens[j];
            if ((shown && (token == shown[0] || token == shown[1])) || !names_control(r, stop, token))
                continue;
            if (r->n > 1)
                return report(FAILED,
                    "--stop '%s' can never come: %s is a control token, which has no text; let it be a stop "
                    "text of its own",
                    stop, visible_token(r, token));
            r->stop_tokens[r->n_stop_tokens++] = token;
        }
    }
    return OK;
}

static int is_stop(const run *r, uint32_t token) {
    for (size_t i = 0; i < r->n_stop_tokens; i++)
        if (r->stop_tokens[i] == token)
            return 1;
    return llm_token_is_stop(r->tokenizer, token);
}

/* Reads the argument: itself, or standard input for "-", less one newline at the end if `strip`. */
static int read_argument(run *r, int strip) {
    const char *argument = r->o->text ? r->o->text : "";
    if (strcmp(argument, "-")) {
        append(&r->input, argument, strlen(argument));
        return OK; /* encode looks at input.failed */
    }
    int status = read_file(&r->input, "-");
    r->input.len -= strip && r->input.len && r->input.data[r->input.len - 1] == '\n';
    return status;
}

/* Reads and encodes the prompt of generate and next, which must have tokens and fit into the context. */
static int read_prompt(run *r) {
    uint32_t flags = encode_flags(r->o);
    int status = read_argument(r, 1);
    if (status == OK)
        status = encode(r, &r->input, flags);
    if (status == OK && r->n == 0 &&
        !r->o->no_bos) /* a tokenizer that adds no BOS: an empty prompt needs it */
        status = encode(r, &r->input, flags | LLM_BOS);
    if (status == OK && r->n == 0)
        return report(FAILED, "the prompt is empty, and there is no BOS token to begin with");
    if (status == OK && r->n > r->context)
        return report(FAILED, "the prompt has %zu tokens, more than the context of %u", r->n, r->context);
    return status;
}

/* Prints a section of text, control characters escaped, its first line after the label, the others below. */
static int print_section(run *r, uint32_t tag, const char *label) {
    size_t size, n;
    const char *data = llm_section(r->model, tag, &size);
    for (; size; data += n, size -= n, label = "") {
        const char *newline = memchr(data, '\n', size);
        n = newline ? (size_t)(newline - data) : size;
        char *line = malloc(4 * n + 1);
        if (!line)
            return report(FAILED, "out of memory");
        *escape(line, data, n, ONE_LINE) = 0;
        printf("%-18s%s\n", label, line);
        free(line);
        n += newline != NULL;
    }
    return OK;
}

/* ---------------------------------------------------------------------------------------------------------
 * Generating */

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* --seed, or a random one. */
static uint64_t choose_seed(const settings *o) {
    uint64_t seed = (uint64_t)time(NULL) * 1000003u + (uint64_t)getpid();
    FILE *random = o->has_seed ? NULL : fopen("/dev/urandom", "rb");
    if (random) {
        if (fread(&seed, sizeof seed, 1, random) != 1)
            seed++;
        fclose(random);
    }
    return o->has_seed ? o->sampling.seed : seed;
}

/* Where the text is that is printed next. White space around the reasoning counts as part of it. */
enum place { REPLY, START, REASONING, BEHIND };

/* What was generated, and how much of it was printed or left out: all but an end that may become a stop text
 * or a mark of the reasoning. */
typedef struct writer {
    text text;
    size_t shown;
    int stopped; /* a stop text came; `text` ends before it */
    enum place place;
    const char *const *marks; /* (2,) the texts around the reasoning; NULL: it is a text like any other */
    const uint32_t *visible;  /* (2,) with marks: control tokens to print, those of the marks */
    int hide;                 /* the reasoning is not printed */
    int tty; /* stdout is a terminal: control characters are escaped, the reasoning is dimmed */
} writer;

/* Where `word` begins in data[from .. end), or an end of that which may become it; else `end`. */
static size_t find(const char *data, size_t from, size_t end, const char *word) {
    for (size_t n = strlen(word); from < end; from++)
        if (!memcmp(data + from, word, end - from < n ? end - from : n))
            break;
    return from;
}

static int is_space(char byte) { /* to Python's strip(), of ASCII */
    static const char space[] = " \t\n\r\v\f\x1c\x1d\x1e\x1f";
    return memchr(space, byte, sizeof space - 1) != NULL;
}

static size_t skip_space(const char *data, size_t from, size_t end) {
    while (from < end && is_space(data[from]))
        from++;
    return from;
}

/* The first error of writing to stdout, which stdio does not keep. */
static int output_error;

static void flush_output(void) {
    errno = 0;
    if ((fflush(stdout) || ferror(stdout)) && !output_error)
        output_error = errno;
}

/* Prints n bytes: as they are, but on a terminal with escapes. */
static void print_text(const char *data, size_t n, int tty) {
    enum { PART = 256 };
    char visible[4 * PART + 1];
    while (tty && n) {
        size_t m = n < PART ? n : PART;
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
    int dim = thought && w->tty;
    if (end > w->shown && !(thought && w->hide)) {
        fputs(dim ? "\033[2m" : "", stdout);
        print_text(w->text.data + w->shown, end - w->shown, w->tty);
        fputs(dim ? "\033[22m" : "", stdout);
    }
    w->shown = end;
}

/* Prints up to `end`, or less where that may be in the middle of a mark. */
static void print_parts(writer *w, size_t end, int last) {
    const char *data = w->text.data;
    if (w->place == START) {
        size_t at = skip_space(data, w->shown, end), mark = find(data, at, end, w->marks[0]);
        int whole = mark == at && end - at >= strlen(w->marks[0]);
        if (mark == at && !whole && !last)
            return; /* nothing yet, or what may become the mark */
        w->place = whole ? REASONING : REPLY;
        if (whole)
            print(w, at + strlen(w->marks[0]), 1);
    }
    if (w->place == REASONING) {
        size_t mark = find(data, w->shown, end, w->marks[1]), behind = mark + strlen(w->marks[1]);
        print(w, behind <= end ? behind : last ? end : mark, 1);
        w->place = behind <= end ? BEHIND : REASONING;
    }
    if (w->place == BEHIND) {
        print(w, skip_space(data, w->shown, end), 1);
        w->place = w->shown < end ? REPLY : BEHIND;
    }
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
        hold = at < hold ? at : hold;
        if (at + strlen(o->stops[i]) <= t->len)
            w->stopped = 1, stop = at < stop ? at : stop;
    }
    t->len = stop;
    print_parts(w, last || w->stopped ? stop : hold, last || w->stopped);
    flush_output();
}

/* Appends n tokens to sequence 0, looking at Ctrl-C between chunks. Fills r->logits: those after the last. */
static int extend(run *r, const uint32_t *tokens, size_t n) {
    enum { CHUNK = 256 };
    for (size_t at = 0; at < n; at += CHUNK) {
        size_t m = n - at < CHUNK ? n - at : CHUNK, length = llm_length(r->session, 0);
        if (interrupted)
            return INTERRUPTED;
        if (llm_forward(r->session, m, tokens + at, NULL, NULL, at + m == n ? r->logits : NULL, r->err,
                sizeof r->err))
            return engine_failed(r);
        memcpy(r->cached + length, tokens + at, m * sizeof *tokens);
    }
    return OK;
}

/* Runs r->tokens, of which sequence 0 already holds the first `reused`, then generates into w until a stop
 * token, a stop text, --max-tokens, the end of the context or Ctrl-C. Returns OK, FAILED or INTERRUPTED. */
static int generate(run *r, size_t reused, uint64_t seed, writer *w) {
    const settings *o = r->o;
    llm_sampling sampling = o->sampling;
    sampling.seed = seed;
    llm_sampler *sampler = llm_sampler_open(&sampling, r->h->vocab_size, r->err, sizeof r->err);
    llm_decoder decoder = {.started = 0};
    size_t room = llm_token_max_bytes(r->tokenizer), limit = o->max_tokens ? o->max_tokens : SIZE_MAX,
           made = 0;
    if (!sampler)
        return engine_failed(r);
    for (size_t i = 0; i < r->n; i++) { /* the continuation's first space is not a text's first space */
        llm_decode(r->tokenizer, &decoder, r->tokens[i], 0, r->piece, room);
        llm_sampler_accept(sampler, r->tokens[i], 0);
    }
    double start = seconds();
    int status = extend(r, r->tokens + reused, r->n - reused);
    double prompted = seconds();
    while (status == OK) {
        uint32_t token = llm_sample(sampler, r->logits);
        if (is_stop(r, token))
            break;
        made++;
        int special = w->marks && (token == w->visible[0] || token == w->visible[1]);
        show(w, o, r->piece, llm_decode(r->tokenizer, &decoder, token, special, r->piece, room), 0);
        if (w->text.failed)
            status = report(FAILED, "out of memory for the text");
        else if (ferror(stdout)) /* main says why */
            status = FAILED;
        else if (w->stopped || made == limit || llm_length(r->session, 0) == r->context)
            break;
        else
            status = extend(r, &token, 1);
    }
    if (!w->stopped)
        show(w, o, r->piece, llm_decode_end(&decoder, r->piece, room), 1);
    putchar('\n');
    flush_output();
    if (o->verbose) {
        double prefill = prompted - start, decode = seconds() - prompted;
        fprintf(stderr, "pyllm: seed %" PRIu64 "; prompt of %zu tokens, %zu of them run in %.2f s (%.1f/s); ",
            seed, r->n, r->n - reused, prefill, (double)(r->n - reused) / prefill);
        fprintf(stderr, "%zu tokens made in %.2f s (%.1f/s); %s, %u threads\n", made, decode,
            (double)made / decode, llm_session_isa(r->session), r->threads);
    }
    llm_sampler_close(sampler);
    return status;
}

static int run_generate(run *r) {
    writer w = {.tty = isatty(STDOUT_FILENO)};
    int status = find_stop_tokens(r, NULL);
    if (status == OK)
        status = read_prompt(r);
    if (status != OK)
        return status;
    catch_interrupts();
    if (!r->o->no_echo)
        print_text(r->input.data, r->input.len, w.tty);
    flush_output();
    status = generate(r, 0, choose_seed(r->o), &w);
    free(w.text.data);
    return status;
}

/* ---------------------------------------------------------------------------------------------------------
 * chat */

enum {
    BEFORE_SYSTEM,
    AFTER_SYSTEM,
    NO_SYSTEM,
    BEFORE_REPLY,
    AFTER_REPLY,
    WORDS,
    BEGIN_REPLY, /* may be missing */
    N_PARTS
}; /* LLM_CHAT_PARTS */

/* The texts around the reasoning of a thinking model. */
static const char *const MARKS[][2] = {{"<think>", "</think>"}, {"[THINK]", "[/THINK]"}};

typedef struct turn {
    text user, reply;
} turn;

typedef struct chat {
    run *r;
    const char *parts[N_PARTS];
    int trim, think, lines, last; /* which words part WORDS has */
    time_t now;                   /* the date in the parts */
    const char *const *marks;     /* (2,) of MARKS */
    uint32_t mark_tokens[2];      /* UINT32_MAX: the mark is no token */
    int begun;                    /* the prompt ends inside the reasoning */
    int tty;                      /* stdout is a terminal */
    turn *turns;                  /* (n_turns,) the last one waits for its reply */
    size_t n_turns, capacity;
    size_t first; /* the oldest turn that is still in the context */
} chat;

/* Reads one message: a line, and those after it while they end with a backslash. Returns OK, FAILED,
 * INTERRUPTED or END_OF_INPUT. */
static int read_message(text *message) {
    const char *prompt = "> ";
    for (message->len = 0;; prompt = ". ") {
        switch (read_line(message, prompt)) {
        case LINE_FAILED:
            return report(FAILED, "standard input: %s", strerror(errno));
        case LINE_INTERRUPTED: /* what was typed is dropped */
            return INTERRUPTED;
        case LINE_END:
            return message->len ? OK : END_OF_INPUT;
        case LINE_READ:
            break;
        }
        if (message->failed)
            return report(FAILED, "out of memory for the message");
        if (!message->len || message->data[message->len - 1] != '\\')
            return OK;
        message->data[message->len - 1] = '\n';
    }
}

/* Drops the turns from index n on. */
static void drop_turns(chat *c, size_t n) {
    while (c->n_turns > n) {
        turn *t = &c->turns[--c->n_turns];
        free(t->user.data);
        free(t->reply.data);
    }
    c->first = c->first < n ? c->first : n;
}

/* The token that a word is, or UINT32_MAX. */
static uint32_t token_of(run *r, const char *word) {
    uint32_t token;
    int64_t n = llm_encode(
        r->tokenizer, word, strlen(word), LLM_SPECIAL | LLM_NO_BOS, &token, 1, r->err, sizeof r->err);
    return n == 1 ? token : UINT32_MAX;
}

/* Finds the marks of the reasoning: those that the chat template writes, or that are tokens. */
static void find_marks(chat *c) {
    size_t size;
    const char *template = llm_section(c->r->model, LLM_CHAT_TEMPLATE, &size);
    size = template ? size : 0;
    for (size_t i = 0; i < sizeof MARKS / sizeof *MARKS && !c->marks; i++) {
        const char *end = MARKS[i][1];
        if (find(template, 0, size, end) + strlen(end) <= size || token_of(c->r, end) != UINT32_MAX)
            c->marks = MARKS[i];
    }
    c->marks = c->marks ? c->marks : MARKS[0];
    for (int i = 0; i < 2; i++)
        c->mark_tokens[i] = token_of(c->r, c->marks[i]);
}

/* Finds the six or seven strings of the chat template. */
static int open_chat(chat *c) {
    size_t size;
    uint32_t tag = c->r->o->no_thinking ? LLM_CHAT_NO_THINKING : LLM_CHAT_PARTS;
    const char *at = llm_section(c->r->model, tag, &size), *end = at + size;
    if (!at && llm_section(c->r->model, LLM_CHAT_WHY, &size)) {
        const char *why = llm_section(c->r->model, LLM_CHAT_WHY, &size);
        char *line = take(c->r, size, 4);
        if (!line)
            return FAILED;
        *escape(line, why, size, ONE_LINE) = 0;
        return report(FAILED, "this model cannot chat here: %s", line);
    }
    if (!at && llm_section(c->r->model, LLM_CHAT_PARTS, &size))
        return report(FAILED, "--no-thinking: this model's chat template cannot switch thinking off");
    if (!at)
        return report(FAILED, "this model has no chat template; `pyllm generate` continues texts");
    for (int i = 0; i < N_PARTS; i++) {
        c->parts[i] = at;
        if (i == BEGIN_REPLY && at == end) {
            c->parts[i] = "";
            break;
        }
        at = at < end ? memchr(at, 0, (size_t)(end - at)) : NULL;
        if (!at++)
            return report(FAILED, "the model file's chat template is broken: string %d does not end", i);
    }
    c->trim = strstr(c->parts[WORDS], "trim") != NULL;
    c->think = strstr(c->parts[WORDS], "think") != NULL;
    c->lines = strstr(c->parts[WORDS], "lines") != NULL;
    c->last = strstr(c->parts[WORDS], "last") != NULL;
    c->now = time(NULL);
    find_marks(c);
    if (c->r->o->system && !*c->parts[BEFORE_SYSTEM] && !*c->parts[AFTER_SYSTEM])
        return report(FAILED, "--system: this model's chat template has no system message");
    return OK;
}

/* Appends a date as strftime writes it; nothing for a pattern that not every C library knows. */
static void append_date(const chat *c, text *t, const char *pattern, size_t n) {
    char copy[64], date[256];
    if (n >= sizeof copy)
        return;
    memcpy(copy, pattern, n);
    copy[n] = 0;
    for (const char *at = copy; (at = strchr(at, '%')); at += 2) {
        at += at[1] == '-';
        if (!at[1] || !strchr("aAbBdeHIjmMpSuyY%", at[1]))
            return;
    }
    append(t, date, strftime(date, sizeof date, copy, localtime(&c->now)));
}

/* Appends a part of the template, with the date in place of a pattern between two bytes 1. */
static void append_part(const chat *c, text *t, int part) {
    const char *at = c->parts[part], *begin, *end;
    while ((begin = strchr(at, 1)) && (end = strchr(begin + 1, 1))) {
        append(t, at, (size_t)(begin - at));
        append_date(c, t, begin + 1, (size_t)(end - begin - 1));
        at = end + 1;
    }
    append(t, at, strlen(at));
}

/* Appends a message, without the white space around it if the template wants that; an earlier reply without
 * its reasoning if the template leaves it out. */
static void append_message(const chat *c, text *t, const char *data, size_t n, int is_reply) {
    if (c->trim) {
        for (; n && is_space(*data); n--)
            data++;
        while (n && is_space(data[n - 1]))
            n--;
    }
    const char *mark = MARKS[0][1];
    size_t m = strlen(mark);
    for (size_t i = n; is_reply && c->think && i >= m; i--) /* from the last </think> on */
        if (!memcmp(data + i - m, mark, m)) {
            data += i;
            n -= i;
            for (; c->lines && n && *data == '\n'; n--)
                data++;
            break;
        }
    append(t, data, n);
}

/* Encodes the conversation as it is now, up to where the next reply begins. Every turn encodes all of it
 * anew, so that the ids are those of the whole text, as the model's own library makes them. */
static int encode_turns(chat *c) {
    const char *system = c->r->o->system, *begin = c->marks[0];
    text all = {0};
    for (size_t i = c->first; i < c->n_turns; i++) {
        const turn *t = &c->turns[i];
        if (i > c->first) {
            append_message(c, &all, t[-1].reply.data, t[-1].reply.len, 1);
            append_part(c, &all, AFTER_REPLY);
        } else if (!system || c->last) {
            append_part(c, &all, NO_SYSTEM);
        }
        if (system && i == (c->last ? c->n_turns - 1 : c->first)) {
            append_part(c, &all, BEFORE_SYSTEM);
            append_message(c, &all, system, strlen(system), 0);
            append_part(c, &all, AFTER_SYSTEM);
        }
        append_message(c, &all, t->user.data, t->user.len, 0);
        append_part(c, &all, BEFORE_REPLY);
    }
    append_part(c, &all, BEGIN_REPLY);
    size_t end = all.len, m = strlen(begin);
    while (end && is_space(all.data[end - 1]))
        end--;
    c->begun = end >= m && !memcmp(all.data + end - m, begin, m);
    int status = encode(c->r, &all, LLM_SPECIAL | LLM_NO_BOS);
    free(all.data);
    return status;
}

/* Answers the last turn, reusing the keys and values of what did not change since the turn before. When it
 * and room for a reply, a quarter of the context, do not fit, the oldest turns are forgotten first. */
static int answer(chat *c, uint64_t seed) {
    run *r = c->r;
    size_t room = r->context / 4, forgotten = 0, same = 0, length = llm_length(r->session, 0);
    writer w = {.marks = c->marks, .visible = c->mark_tokens, .hide = r->o->hide_thinking, .tty = c->tty};
    int status = encode_turns(c);
    room = r->o->max_tokens && r->o->max_tokens < room ? r->o->max_tokens : room;
    for (; status == OK && r->n + room > r->context && c->first + 1 < c->n_turns; forgotten++) {
        c->first++;
        status = encode_turns(c);
    }
    if (forgotten)
        report(OK, "the context of %u is full; the oldest turns (%zu) are forgotten", r->context, forgotten);
    if (status == OK && r->n == 0)
        return report(FAILED, "the conversation has no tokens");
    if (status == OK && r->n > r->context) {
        report(OK, "this message makes %zu tokens, more than the context of %u; it was not sent", r->n,
            r->context);
        drop_turns(c, c->n_turns - 1);
        return OK;
    }
    while (same < length && same + 1 < r->n &&
           r->tokens[same] == r->cached[same]) /* the last one gives the logits */
        same++;
    if (status == OK && llm_truncate(r->session, 0, same, r->err, sizeof r->err))
        return engine_failed(r);
    w.place = c->begun ? REASONING : START;
    if (status == OK)
        status = generate(r, same, seed, &w);
    if (status == OK && w.hide && w.place == REASONING)
        report(OK, "the reply ended inside its reasoning, which is hidden");
    c->turns[c->n_turns - 1].reply = w.text;
    if (status == OK && llm_length(r->session, 0) == r->context)
        report(OK, "the context of %u is full; the reply was cut", r->context);
    return status;
}

static int is_line(const text *t, const char *line) {
    return t->len == strlen(line) && !memcmp(t->data, line, t->len);
}

/* Adds a turn with this message, whose memory it takes over. */
static int add_turn(chat *c, text *message) {
    if (c->n_turns == c->capacity) {
        size_t capacity = c->capacity ? 2 * c->capacity : 16;
        turn *grown = realloc(c->turns, capacity * sizeof *grown);
        if (!grown)
            return report(FAILED, "out of memory for the conversation");
        c->turns = grown;
        c->capacity = capacity;
    }
    c->turns[c->n_turns++] = (turn){.user = *message};
    *message = (text){0};
    return OK;
}

// clang-format off
static const char CHAT_HELP[] =
    "/reset  forget the conversation\n"
    "/exit   leave (so does Ctrl-D)\n"
    "/help   print this list\n"
    "A \\ at the end of a line continues the message on the next line. A pasted text of\n"
    "several lines is one message, sent by Enter. Ctrl-C ends a reply. Ctrl-W deletes a\n"
    "word, Ctrl-U the line.\n";
// clang-format on

static int run_chat(run *r) {
    chat c = {.r = r, .tty = isatty(STDOUT_FILENO)};
    text message = {0};
    int status = open_chat(&c), hinted = 0, tty = isatty(STDIN_FILENO);
    uint64_t seed = choose_seed(r->o);
    if (status == OK)
        status = find_stop_tokens(r, c.mark_tokens);
    if (status == OK)
        catch_interrupts();
    while (status == OK) {
        status = read_message(&message);
        if (status == INTERRUPTED && !hinted) {
            forget_interrupt(); /* before the hint invites the next one */
            hinted = 1;
            fputs("\n(Ctrl-C again or Ctrl-D leaves)\n", stderr);
            status = OK;
            continue;
        }
        hinted = 0;
        if ((status == END_OF_INPUT && tty) || status == INTERRUPTED)
            fputc('\n', stderr);
        if (status != OK || is_line(&message, "/exit"))
            break;
        if (is_line(&message, "/reset")) {
            drop_turns(&c, 0);
        } else if (is_line(&message, "/help")) {
            fputs(CHAT_HELP, stderr);
        } else if (message.len) {
            status = add_turn(&c, &message);
            if (status == OK)
                status = answer(&c, seed + c.n_turns - 1); /* each reply its own random numbers */
            if (status == INTERRUPTED) {                   /* what there is of the reply is kept */
                status = OK;
                forget_interrupt();
            }
        }
    }
    free(message.data);
    drop_turns(&c, 0);
    free(c.turns);
    return status == END_OF_INPUT ? OK : status;
}

/* ---------------------------------------------------------------------------------------------------------
 * next */

static int width_of(const char *s) {
    int n = 0;
    for (; *s; s++)
        n += (*s & 0xc0) != 0x80; /* not a continuation byte */
    return n;
}

static int run_next(run *r) {
    enum { BAR = 40 }; /* characters of the longest bar */
    static const char *eighths[] = {"", "\u258f", "\u258e", "\u258d", "\u258c", "\u258b", "\u258a", "\u2589"};
    size_t n = r->o->max_tokens ? r->o->max_tokens : 10;
    n = n < r->h->vocab_size ? n : r->h->vocab_size;
    int status = read_prompt(r), width = 0;
    if (status == OK)
        status = extend(r, r->tokens, r->n);
    uint32_t *top = status == OK ? take(r, n, sizeof *top) : NULL;
    float *logprobs = top ? take(r, n, sizeof *logprobs) : NULL;
    if (!logprobs)
        return status == OK ? FAILED : status;
    llm_logprobs(r->logits, r->h->vocab_size, 0, n, top, logprobs);
    for (size_t i = 0; i < n; i++) {
        int w = width_of(visible_token(r, top[i]));
        width = w > width ? w : width;
    }
    for (size_t i = 0; i < n; i++) {
        const char *token = visible_token(r, top[i]);
        int bar = (int)(exp(logprobs[i] - logprobs[0]) * BAR * 8 + 0.5);
        printf("%s%*s %6.2f %% ", token, width - width_of(token), "", 100 * exp(logprobs[i]));
        for (; bar >= 8; bar -= 8)
            fputs("\u2588", stdout);
        puts(eighths[bar > 0 ? bar : 0]);
    }
    return OK;
}

/* ---------------------------------------------------------------------------------------------------------
 * info */

/* Bytes a second that the session's threads read from n words of memory. */
static double read_speed(const run *r, const uint64_t *words, size_t n) {
    double start = seconds();
    llm_read_memory(words, n, r->threads);
    return (double)n * sizeof *words / (seconds() - start);
}

static void print_token(run *r, const char *label, int64_t token) {
    if (token >= 0)
        printf("%-18s%" PRId64 " %s\n", label, token, visible_token(r, (uint32_t)token));
}

static void print_stops(run *r) {
    enum { SHOWN = 16 };
    size_t n;
    const uint32_t *stops = llm_token_stops(r->tokenizer, &n);
    for (size_t i = 0; i < n && i < SHOWN; i++)
        print_token(r, "ends a text", stops[i]);
    if (n > SHOWN)
        printf("%-18s%zu more\n", "", n - SHOWN);
}

/* What sets the model apart from Llama. */
static void print_variant(const llm_header *h) {
    static const struct {
        uint32_t flag;
        const char *name;
    } flags[] = {{LLM_QKV_BIAS, "bias on q, k and v"}, {LLM_QK_NORM, "norm on q and k"},
        {LLM_QK_NORM_WHOLE, "over all heads"}, {LLM_NO_PRE_NORM, "no norm before a block"},
        {LLM_POST_NORM, "norm after a block"}, {LLM_GELU, "GELU"}, {LLM_ROUTER_SIGMOID, "experts by sigmoid"},
        {LLM_ROUTER_BIAS, "bias on their choice"}, {LLM_SHARED_GATE, "gate on the shared expert"}};
    const struct {
        float value, usual;
        const char *name;
    } numbers[] = {{h->attn_cap, 0, "scores up to"}, {h->logit_cap, 0, "logits up to"},
        {h->embed_scale, 1, "embedding times"}, {h->residual_scale, 1, "blocks times"},
        {h->expert_scale, 1, "experts times"}};
    printf("%-18soutput %s", "variant", h->flags & LLM_TIED ? "tied to the embedding" : "of its own");
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (h->flags & flags[i].flag)
            printf(", %s", flags[i].name);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i].value != numbers[i].usual)
            printf(", %s %g", numbers[i].name, numbers[i].value);
    putchar('\n');
}

static void print_shape(const run *r) {
    const llm_header *h = r->h;
    uint32_t n = 0, most = 0;
    for (uint32_t i = 0; i < h->n_layers; i++) {
        uint32_t window = llm_model_layers(r->model)[i].window;
        n += window != 0;
        most = window > most ? window : most;
    }
    printf("%-18s%u layers, width %u, feed-forward %u", "shape", h->n_layers, h->dim, h->ffn_dim);
    if (h->n_experts)
        printf(" in %u experts, %u for each token", h->n_experts, h->n_active);
    printf(h->shared_dim ? " and a shared one of %u\n" : "\n", h->shared_dim);
    printf(
        "%-18s%u heads of %u, %u for keys and values", "attention", h->n_heads, h->head_dim, h->n_kv_heads);
    printf(n ? ", in %u layers over %u positions at most\n" : "\n", n, most);
}

/* Decoding reads all of its weights, and the keys and values so far, for each token: what memory allows. */
static int print_speed(run *r, double weights, double keys_and_values) {
    enum { N = 1 << 25 }; /* more than caches hold */
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE), speed = 0;
    uint64_t *words = take(r, N, sizeof *words);
    if (!words)
        return FAILED;
    memset(words, 1, N * sizeof *words);
    for (int i = 0; i < 3; i++)
        speed = fmax(speed, read_speed(r, words, N));
    printf("%-18s%.2f GB/s\n", "read bandwidth", speed / 1e9);
    printf("%-18sat most %.1f tokens/s, %.1f at the end of that context\n", "decode", speed / weights,
        speed / (weights + keys_and_values));
    if ((double)r->h->file_size > memory)
        printf("%-18sfar less: %s of memory do not hold the file\n", "", size_text(memory));
    return OK;
}

static int run_info(run *r) {
    const llm_header *h = r->h;
    double context = r->o->context ? r->o->context : h->context;
    llm_header other = *h;
    llm_counts n;
    size_t size;
    other.dtype = h->dtype == LLM_INT8 ? LLM_FP16 : LLM_INT8;
    if (llm_count(h, &n, r->err, sizeof r->err))
        return engine_failed(r);
    if (open_session(r, 1) != OK || /* for its threads and instruction set */
        print_section(r, LLM_NAME, "name") != OK || print_section(r, LLM_ABOUT, "about") != OK)
        return FAILED;
    printf("%-18s%" PRIu64 " bytes (%s), format %u\n", "file", h->file_size, size_text((double)h->file_size),
        h->version);
    uint64_t other_size = llm_file_size(&other, r->err, sizeof r->err);
    printf("%-18s%s; %" PRIu64 " bytes (%s) as %s\n", "weights",
        h->dtype == LLM_INT8 ? "int8, with an fp16 scale for every 64" : "fp16", other_size,
        size_text((double)other_size), h->dtype == LLM_INT8 ? "fp16" : "int8");
    printf("%-18s%" PRIu64, "parameters", n.parameters);
    printf(h->n_experts ? ", %" PRIu64 " of them for each token\n" : "\n", n.active);
    print_shape(r);
    print_variant(h);
    printf("%-18s%u\n", "vocabulary", h->vocab_size);
    if (!llm_section(r->model, LLM_TOKENIZER, &size)) {
        printf("%-18snone in this file\n", "tokenizer");
    } else if (open_tokenizer(r) == OK) {
        print_token(r, "BOS", llm_token_bos(r->tokenizer));
        print_token(r, "EOS", llm_token_eos(r->tokenizer));
        print_stops(r);
    } else {
        return FAILED;
    }
    int chats = llm_section(r->model, LLM_CHAT_PARTS, &size) != NULL;
    int template = llm_section(r->model, LLM_CHAT_TEMPLATE, &size) != NULL;
    printf("%-18s%s\n", "chat", chats ? "yes" : template ? "only from Python" : "no");
    print_section(r, LLM_CHAT_WHY, "");
    double weights = (double)n.read, kv = (double)n.kv * context;
    double seen = (double)llm_kv_read(h, llm_model_layers(r->model), (uint64_t)context);
    printf("%-18s%u\n", "context", h->context);
    printf("%-18s%" PRIu64 " bytes a token, %s at a context of %.0f\n", "keys and values", n.kv,
        size_text(kv), context);
    printf("%-18s%s with those\n", "memory", size_text((double)h->file_size + kv));
    printf("%-18s%s of weights a token, %s with those\n", "decode reads", size_text(weights),
        size_text(weights + seen));
    printf("%-18s%s, %u threads\n", "runs with", llm_session_isa(r->session), r->threads);
    return r->o->speed ? print_speed(r, weights, seen) : OK;
}

/* ---------------------------------------------------------------------------------------------------------
 * tokenize */

static int run_tokenize(run *r) {
    int status = read_argument(r, 0);
    if (status == OK)
        status = encode(r, &r->input, encode_flags(r->o));
    for (size_t i = 0; status == OK && i < r->n; i++)
        if (r->o->ids)
            printf("%s%u", i ? " " : "", r->tokens[i]);
        else
            printf("%7u  %s\n", r->tokens[i], visible_token(r, r->tokens[i]));
    if (status == OK && r->o->ids)
        putchar('\n');
    return status;
}

/* ---------------------------------------------------------------------------------------------------------
 * perplexity */

typedef struct score {
    double n, sum, squares; /* of the negative log-likelihoods */
} score;

/* Runs the tokens (n,) of one window and scores those from index `from` > 0 on. rows has room for `chunk`
 * of logits. */
static int score_window(
    run *r, const uint32_t *tokens, size_t n, size_t from, size_t chunk, float *rows, score *s) {
    size_t vocab = r->h->vocab_size, begun = from - 1; /* the first position whose logits matter */
    if (llm_truncate(r->session, 0, 0, r->err, sizeof r->err))
        return engine_failed(r);
    int status = extend(r, tokens, begun);
    for (size_t at = begun; status == OK && at < n - 1; at += chunk) {
        uint8_t want[256];
        size_t m = n - 1 - at < chunk ? n - 1 - at : chunk;
        memset(want, 1, sizeof want);
        if (llm_forward(r->session, m, tokens + at, NULL, want, rows, r->err, sizeof r->err))
            return engine_failed(r);
        for (size_t i = 0; i < m; i++) {
            double loss = -llm_logprobs(rows + i * vocab, vocab, tokens[at + i + 1], 0, NULL, NULL);
            s->n++;
            s->sum += loss;
            s->squares += loss * loss;
        }
        status = interrupted ? INTERRUPTED : OK;
    }
    return status;
}

static int run_perplexity(run *r) {
    const settings *o = r->o;
    size_t vocab = r->h->vocab_size, bos = 0, chunk = ((size_t)32 << 20) / (vocab * sizeof(float)), done = 1;
    uint32_t first[LLM_MAX_AROUND], all[2 * LLM_MAX_AROUND];
    score s = {0};
    int status = read_file(&r->input, o->text);
    if (status == OK)
        status = encode(r, &r->input, encode_flags(o) | LLM_NO_BOS);
    if (status != OK)
        return status;
    /* what begins every text, where a text begins with it by default */
    int64_t n_first = llm_encode(r->tokenizer, "", 0, LLM_BOS, first, LLM_MAX_AROUND, r->err, sizeof r->err);
    int64_t n_all =
        llm_encode(r->tokenizer, "a", 1, encode_flags(o), all, 2 * LLM_MAX_AROUND, r->err, sizeof r->err);
    if (n_first > 0 && n_all > n_first && !memcmp(first, all, (size_t)n_first * sizeof *first)) {
        bos = (size_t)n_first;
        done = 0;
    }
    if (r->n + bos < 2 || r->context < bos + 1 + !bos)
        return report(
            FAILED, "%s: %zu tokens in a context of %u: none to predict", o->text, r->n, r->context);
    chunk = chunk < 1 ? 1 : chunk > 256 ? 256 : chunk; /* 32 MiB of logits at a time */
    float *rows = take(r, chunk * vocab, sizeof *rows);
    uint32_t *window = take(r, r->context, sizeof *window);
    if (!rows || !window)
        return FAILED;
    size_t room = r->context - bos, stride = o->stride ? o->stride : (room + 1) / 2;
    stride = stride < room - !bos ? stride : room - !bos; /* more would leave tokens out */
    catch_interrupts();
    for (size_t at = 0; status == OK && done < r->n; at += stride) {
        size_t n = r->n - at < room ? r->n - at : room;
        memcpy(window, first, bos * sizeof *window);
        memcpy(window + bos, r->tokens + at, n * sizeof *window);
        status = score_window(r, window, n + bos, done - at + bos, chunk, rows, &s);
        done = at + n;
        if (o->verbose)
            report(OK, "%zu of %zu tokens, perplexity %.4f", done, r->n, exp(s.sum / s.n));
    }
    if (status != OK)
        return status;
    double mean = s.sum / s.n, variance = s.squares / s.n - mean * mean;
    double error = variance > 0 && s.n > 1 ? sqrt(variance / (s.n - 1)) : 0;
    printf("tokens      %zu (%.0f predicted)\n", r->n, s.n);
    printf("mean loss   %.5f +- %.5f (negative log-likelihood in nats)\n", mean, error);
    printf("perplexity  %.4f +- %.4f\n", exp(mean), exp(mean) * error);
    return OK;
}

/* ---------------------------------------------------------------------------------------------------------
 * bench */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, size_t n) {
    qsort(x, n, sizeof *x, by_value);
    return (x[(n - 1) / 2] + x[n / 2]) / 2;
}

static int run_bench(run *r) {
    size_t n_prompt = r->o->prompt_tokens, n_made = r->o->max_tokens ? r->o->max_tokens : 64,
           repeat = r->o->repeat;
    llm_counts n;
    if (llm_count(r->h, &n, r->err, sizeof r->err))
        return engine_failed(r);
    if (open_session(r, (uint32_t)(n_prompt + n_made)) != OK)
        return FAILED;
    size_t n_words =
        (size_t)fmin(fmax((double)n.read, 0x1p28), 0x1p30) / sizeof(uint64_t); /* more than caches hold */
    uint64_t *words = take(r, n_words, sizeof *words);
    uint32_t *tokens = take(r, n_prompt + n_made, sizeof *tokens);
    double *prefill = take(r, repeat, sizeof *prefill), *decode = take(r, repeat, sizeof *decode),
           *read = take(r, repeat, sizeof *read);
    if (!words || !tokens || !prefill || !decode || !read)
        return FAILED;
    for (size_t i = 0; i < n_prompt + n_made; i++) /* no text, but the same work */
        tokens[i] = (uint32_t)((i * 2654435761u) % r->h->vocab_size);
    memset(words, 1, n_words * sizeof *words); /* pages never written are all one page of zeros */
    for (size_t i = 0; i <= repeat;
        i++) { /* the first time brings the file into memory, and is overwritten */
        size_t at = i ? i - 1 : 0;
        double start = seconds();
        if (llm_truncate(r->session, 0, 0, r->err, sizeof r->err) || extend(r, tokens, n_prompt) != OK)
            return FAILED;
        double prompted = seconds();
        for (size_t j = 0; j < n_made; j++)
            if (extend(r, tokens + n_prompt + j, 1) != OK)
                return FAILED;
        prefill[at] = (double)n_prompt / (prompted - start);
        decode[at] = (double)n_made / (seconds() - prompted);
        read[at] = read_speed(r, words, n_words);
    }
    double decoded = median(decode, repeat), speed = median(read, repeat);
    print_section(r, LLM_NAME, "model");
    printf("%-18s%s, %u threads; medians of %zu\n", "runs with", llm_session_isa(r->session), r->threads,
        repeat);
    printf("%-18s%.1f tokens/s (%zu tokens)\n", "prefill", median(prefill, repeat), n_prompt);
    printf("%-18s%.1f tokens/s (%zu tokens after those)\n", "decode", decoded, n_made);
    printf("%-18s%s of weights a token\n", "decode reads", size_text((double)n.read));
    printf(
        "%-18s%.2f GB/s (%s)\n", "read bandwidth", speed / 1e9, size_text((double)(n_words * sizeof *words)));
    printf("%-18s%.0f %% of that\n", "decode reaches", 100 * (double)n.read * decoded / speed);
    return OK;
}

/* ---------------------------------------------------------------------------------------------------------
 * main */

// clang-format off
static const command COMMANDS[] = {
    {"generate", GENERATE, TOKENIZER | SESSION, run_generate, "[TEXT]", "continue a text",
     "TEXT is the prompt, - reads it from standard input (less one newline at its end); without it the model "
     "begins a text by itself. Special tokens such as <|im_end|> are recognised in it. Before a TEXT that "
     "begins with a dash, put --."},
    {"chat", CHAT, TOKENIZER | SESSION, run_chat, NULL, "talk with a chat model",
     "Reads messages from standard input, one a line; a \\ at the end of a line continues it on the next, and "
     "at a terminal a pasted text of several lines is one message. /reset starts over, /help lists such "
     "commands, /exit or Ctrl-D leaves; Ctrl-C ends a reply. When the context is full, the oldest turns are "
     "forgotten, the system message never."},
    {"next", NEXT, TOKENIZER | SESSION, run_next, "TEXT", "show the most likely next tokens of a text",
     "TEXT is the prompt, - reads it from standard input (less one newline at its end)."},
    {"info", INFO, 0, run_info, NULL, "show what is in a model file, and the memory it needs", NULL},
    {"tokenize", TOKENIZE, TOKENIZER, run_tokenize, "TEXT", "show the tokens of a text",
     "One line a token: its id and its text. TEXT - reads standard input, as it is."},
    {"perplexity", PERPLEXITY, TOKENIZER | SESSION, run_perplexity, "FILE",
     "measure how well the model predicts a text",
     "Reads FILE (- is standard input) in windows of the context, each --stride positions after the one "
     "before. Every token is predicted once, in the first window that has it, from all that is before it "
     "there. A window begins with BOS if the model's tokenizer adds one; without it the first token is not "
     "predicted. The error is one standard error, with tokens taken as independent."},
    {"bench", BENCH, 0, run_bench, NULL, "measure the speed of a model on this machine",
     "Prefill, decode and the speed of reading memory are measured in turn, --repeat times. The percentage is "
     "decode's: the bytes of weights that a token needs, times tokens a second, of the bytes that the same "
     "threads can read from memory in a second. It can pass 100 % when the weights fit into the caches."},
};
// clang-format on
enum { N_COMMANDS = sizeof COMMANDS / sizeof *COMMANDS };

static void print_usage(FILE *out) {
    fputs("usage: pyllm COMMAND [OPTIONS] [TEXT]\n\ncommands:\n", out);
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-12s %s\n", COMMANDS[i].name, COMMANDS[i].help);
    fputc('\n', out);
    print_wrapped(out,
        "pyllm COMMAND --help lists the options of a command. pyllm --version prints the version. Any other "
        "COMMAND runs the program pyllm-COMMAND.",
        0, 0);
}

/* Runs the program pyllm-NAME, looked for beside this one, then on PATH. argv[0] is NAME. Returns only if
 * it fails. */
static int run_external(char **argv) {
    char self[4096] = "", program[256], path[sizeof self + sizeof program];
    const char *name = argv[0];
    int n = snprintf(program, sizeof program, "pyllm-%s", name);
    if (!*name || *name == '-' || strchr(name, '/') || n >= (int)sizeof program)
        return report(USAGE, "'%s' is not a command; see pyllm --help", name);
#ifdef __APPLE__
    if (_NSGetExecutablePath(self, &(uint32_t){sizeof self}))
        self[0] = 0;
#else
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    self[length > 0 ? length : 0] = 0;
#endif
    char *slash = strrchr(self, '/');
    argv[0] = program;
    errno = ENOENT;
    if (slash) {
        snprintf(path, sizeof path, "%.*s/%s", (int)(slash - self), self, program);
        execv(path, argv);
    }
    if (errno == ENOENT)
        execvp(program, argv);
    return errno == ENOENT ? report(USAGE, "'%s' is not a command; see pyllm --help", name)
                           : report(FAILED, "%s: %s", program, strerror(errno));
}

/* A standard descriptor that is closed would be given to the next file or pipe that is opened. */
static void hold_descriptors(void) {
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            open("/dev/null", (fd ? O_RDONLY : O_WRONLY) | O_CLOEXEC); /* so that using it still fails */
}

/* Text that could not be written is a failure, reported unless nobody wanted it any more, as in
 * `pyllm ... | head`. */
static int finish(int status) {
    flush_output();
    if (!ferror(stdout))
        return status;
    if (output_error == EPIPE)
        return FAILED;
    return report(FAILED, "cannot write to standard output%s%s", output_error ? ": " : "",
        output_error ? strerror(output_error) : "");
}

int main(int argc, char **argv) {
    settings o = default_settings();
    const command *c = COMMANDS;
    hold_descriptors();
    if (argc < 2) {
        print_usage(stderr);
        return USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        print_usage(stdout);
        return finish(OK);
    }
    if (!strcmp(argv[1], "--version")) {
        puts("pyllm " PYLLM_VERSION);
        return finish(OK);
    }
    while (c < COMMANDS + N_COMMANDS && strcmp(argv[1], c->name))
        c++;
    if (c == COMMANDS + N_COMMANDS)
        return run_external(argv + 1);
    o.stops = calloc((size_t)argc, sizeof *o.stops);
    if (!o.stops)
        return report(FAILED, "out of memory");
    int status = parse(&o, c, argc - 2, argv + 2);
    if (status == OK && o.help)
        print_help(c);
    else if (status == OK)
        status = run_command(c, &o);
    free(o.stops);
    return finish(status);
}
