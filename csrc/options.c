/* options.c - the options of all commands: one table, from which parsing and --help are made. */
#include "options.h"
#include "command.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum kind { FLAG, TEXT, LIST, COUNT, SEED, REAL };

typedef struct option {
    const char *name;
    char letter; /* 0: none */
    enum kind kind;
    unsigned commands;
    size_t field; /* offset in settings */
    double low, high;
    const char *value; /* what --help calls it */
    const char *help;
} option;

#define AT(name) offsetof(settings, name)

// clang-format off
static const option OPTIONS[] = {
    {.name = "model", .letter = 'm', .kind = TEXT, .commands = ALL, .field = AT(model), .value = "FILE",
     .help = "the model file (without it: the built-in model)"},
    {.name = "max-tokens", .letter = 'n', .kind = COUNT, .commands = SAMPLES | NEXT | BENCH,
     .field = AT(max_tokens), .low = 1, .high = 1 << 30, .value = "N",
     .help = "tokens to make at most (default: next 10, bench 64, else until the model or the context ends)"},
    {.name = "temperature", .letter = 't', .kind = REAL, .commands = SAMPLES,
     .field = AT(sampling.temperature), .low = 0, .high = 1000, .value = "T",
     .help = "0: always the most likely token"},
    {.name = "top-k", .kind = COUNT, .commands = SAMPLES,
     .field = AT(sampling.top_k), .low = 0, .high = UINT32_MAX, .value = "K",
     .help = "draw from the K most likely tokens; 0 or -1: off"},
    {.name = "top-p", .kind = REAL, .commands = SAMPLES,
     .field = AT(sampling.top_p), .low = 1e-6, .high = 1, .value = "P",
     .help = "draw from the fewest tokens whose probabilities reach P; 1: off"},
    {.name = "min-p", .kind = REAL, .commands = SAMPLES,
     .field = AT(sampling.min_p), .low = 0, .high = 1, .value = "P",
     .help = "drop tokens less likely than P times the most likely one; 0: off"},
    {.name = "repeat-penalty", .kind = REAL, .commands = SAMPLES,
     .field = AT(sampling.repeat_penalty), .low = 1e-3, .high = 1e3, .value = "X",
     .help = "weaken tokens that occurred, prompt included; 1: off"},
    {.name = "presence-penalty", .kind = REAL, .commands = SAMPLES,
     .field = AT(sampling.presence_penalty), .low = -1e3, .high = 1e3, .value = "X",
     .help = "subtract X from the logits of generated tokens; 0: off"},
    {.name = "frequency-penalty", .kind = REAL, .commands = SAMPLES,
     .field = AT(sampling.frequency_penalty), .low = -1e3, .high = 1e3, .value = "X",
     .help = "the same for each time they were generated; 0: off"},
    {.name = "seed", .kind = SEED, .commands = SAMPLES, .field = AT(sampling.seed), .value = "N",
     .help = "the same seed gives the same text (default, and -1: a random one)"},
    {.name = "stop", .kind = LIST, .commands = SAMPLES, .field = AT(stops), .value = "TEXT",
     .help = "end before this text, or at this token; may be given several times"},
    {.name = "draft", .kind = TEXT, .commands = SAMPLES, .field = AT(draft), .value = "HOW",
     .help = "where guesses at the next tokens come from, which save time and change no text: lookup (the default: "
             "from the text so far), off, or the FILE of a smaller model with the same tokens"},
    {.name = "system", .kind = TEXT, .commands = CHAT, .field = AT(system), .value = "TEXT",
     .help = "the system message"},
    {.name = "hide-thinking", .kind = FLAG, .commands = CHAT, .field = AT(hide_thinking),
     .help = "print replies without the reasoning before </think>"},
    {.name = "no-thinking", .kind = FLAG, .commands = CHAT, .field = AT(no_thinking),
     .help = "have the model reply without reasoning, if its chat template can say so"},
    {.name = "context", .kind = COUNT, .commands = ALL & ~(TOKENIZE | BENCH),
     .field = AT(context), .low = 1, .high = UINT32_MAX, .value = "N",
     .help = "positions to hold at most (default: the model's)"},
    {.name = "stride", .kind = COUNT, .commands = PERPLEXITY,
     .field = AT(stride), .low = 1, .high = UINT32_MAX, .value = "N",
     .help = "positions from one window to the next (default: half of the context)"},
    {.name = "no-special", .kind = FLAG, .commands = READS, .field = AT(no_special),
     .help = "read special tokens in the text as plain text"},
    {.name = "no-bos", .kind = FLAG, .commands = READS, .field = AT(no_bos),
     .help = "do not add the tokens that begin or end a text"},
    {.name = "no-echo", .kind = FLAG, .commands = GENERATE, .field = AT(no_echo),
     .help = "print the continuation without the prompt"},
    {.name = "ids", .kind = FLAG, .commands = TOKENIZE, .field = AT(ids),
     .help = "print only the ids, on one line"},
    {.name = "speed", .kind = FLAG, .commands = INFO, .field = AT(speed),
     .help = "measure how fast memory can be read, and so how many tokens/s to expect at most"},
    {.name = "verify", .kind = FLAG, .commands = INFO, .field = AT(verify),
     .help = "read the whole file and compare it with its checksums"},
    {.name = "prompt-tokens", .kind = COUNT, .commands = BENCH,
     .field = AT(prompt_tokens), .low = 1, .high = 1 << 20, .value = "N",
     .help = "tokens of the prompt"},
    {.name = "repeat", .kind = COUNT, .commands = BENCH,
     .field = AT(repeat), .low = 1, .high = 1000, .value = "N",
     .help = "how often each is measured; medians are printed"},
    {.name = "threads", .kind = COUNT, .commands = ALL & ~TOKENIZE,
     .field = AT(threads), .low = 1, .high = 1024, .value = "N",
     .help = "processors to use (default: those this process may use)"},
    {.name = "kv", .kind = TEXT, .commands = RUNS, .field = AT(kv), .value = "KIND",
     .help = "how keys and values are kept: fp16 or int8 (default: int8 for int8 and int4 files, else fp16)"},
    {.name = "exact", .kind = FLAG, .commands = RUNS, .field = AT(exact),
     .help = "compute fp16 files in float32 whatever the number of tokens, slower for prompts"},
    {.name = "verbose", .letter = 'v', .kind = FLAG, .commands = SAMPLES | PERPLEXITY, .field = AT(verbose),
     .help = "seed, speed and progress on stderr"},
    {.name = "help", .letter = 'h', .kind = FLAG, .commands = ALL, .field = AT(help),
     .help = "print this help"},
};
// clang-format on
enum { N_OPTIONS = sizeof OPTIONS / sizeof *OPTIONS };

settings default_settings(void) {
    return (settings){.sampling = llm_sampling_default(), .prompt_tokens = 512, .repeat = 5};
}

/* ---------------------------------------------------------------------------------------------------------
 * Help */

void print_wrapped(FILE *out, const char *words, size_t column, size_t indent) {
    while (*words) {
        size_t n = strcspn(words, " ");
        if (column > indent && column + 1 + n > 80) {
            fprintf(out, "\n%*s", (int)indent, "");
            column = indent;
        } else if (column > indent) {
            fputc(' ', out);
            column++;
        }
        fprintf(out, "%.*s", (int)n, words);
        column += n;
        words += n;
        words += *words == ' ';
    }
    fputc('\n', out);
}

/* The default of an option that is a number; 0: not worth a word. */
static double default_value(const option *x) {
    settings defaults = default_settings();
    const void *field = (const char *)&defaults + x->field;
    if (x->kind == REAL)
        return *(const float *)field;
    if (x->kind == COUNT)
        return *(const uint32_t *)field;
    return 0;
}

static void print_option(const option *x) {
    enum { COLUMN = 30 }; /* where the texts of the options begin */
    char help[256];
    double value = default_value(x);
    if (x->letter)
        printf("  -%c, ", x->letter);
    else
        printf("      ");
    printf("--%s %-*s ", x->name, COLUMN - 10 - (int)strlen(x->name), x->value ? x->value : "");
    if (value != 0)
        snprintf(help, sizeof help, "%s (default: %g)", x->help, value);
    else
        snprintf(help, sizeof help, "%s", x->help);
    print_wrapped(stdout, help, COLUMN, COLUMN);
}

void print_help(const command *c) {
    printf("usage: pyllm %s [OPTIONS]", c->name);
    if (c->argument)
        printf(" %s", c->argument);
    printf("\n\n%s.\n", c->help);
    if (c->details) {
        putchar('\n');
        print_wrapped(stdout, c->details, 0, 0);
    }
    puts("\noptions:");
    for (const option *x = OPTIONS; x < OPTIONS + N_OPTIONS; x++)
        if (x->commands & c->bit)
            print_option(x);
}

/* ---------------------------------------------------------------------------------------------------------
 * Parsing */

/* `hint` ends the message about a bad number. */
static int set_real(float *field, const option *x, const char *given, const char *hint) {
    char *end;
    float value = strtof(given, &end);
    int is_number = end != given && !*end;
    int in_range = value >= (float)x->low && value <= (float)x->high; /* NaN is not */
    if (!is_number || !in_range)
        return report(
            USAGE, "--%s takes a number from %g to %g, not '%s'%s", x->name, x->low, x->high, given, hint);
    *field = value;
    return OK;
}

/* -1 is for 0: off, or random, as other programs have it. */
static int is_unset(const option *x, const char *given) { return x->low == 0 && !strcmp(given, "-1"); }

/* Reads the value of a COUNT or SEED. */
static int read_whole(uint64_t *value, const option *x, const char *given, const char *hint) {
    unsigned long long low = (unsigned long long)x->low, high = UINT64_MAX;
    char *end;
    if (x->kind == COUNT)
        high = (unsigned long long)x->high;
    *value = 0;
    if (is_unset(x, given))
        return OK;
    errno = 0;
    *value = strtoull(given, &end, 10);
    int begins = *given >= '0' && *given <= '9'; /* strtoull takes signs and spaces */
    if (!begins || *end || errno || *value < low || *value > high)
        return report(USAGE, "--%s takes a whole number from %llu to %llu, not '%s'%s", x->name, low, high,
            given, hint);
    return OK;
}

/* Sets the field of one option from what was given. */
static int set_option(settings *o, const option *x, const char *given, const char *hint) {
    void *field = (char *)o + x->field;
    uint64_t value;
    switch (x->kind) {
    case FLAG:
        *(int *)field = 1;
        return OK;
    case TEXT:
        *(const char **)field = given;
        return OK;
    case LIST:
        o->stops[o->n_stops++] = given;
        return *given ? OK : report(USAGE, "--%s must not be empty", x->name);
    case REAL:
        return set_real(field, x, given, hint);
    case COUNT:
        if (read_whole(&value, x, given, hint) != OK)
            return USAGE;
        *(uint32_t *)field = (uint32_t)value;
        return OK;
    case SEED:
        o->has_seed = !is_unset(x, given);
        return read_whole(field, x, given, hint);
    }
    return OK;
}

/* The option of command c that arg names as --name, --name=value, -x or -xvalue; the value in it goes to
 * *value, or NULL. */
static const option *find_option(const command *c, const char *arg, const char **value) {
    for (const option *x = OPTIONS; x < OPTIONS + N_OPTIONS; x++) {
        size_t n = strlen(x->name);
        *value = NULL;
        if (!(x->commands & c->bit))
            continue;
        if (arg[1] == '-' && !strncmp(arg + 2, x->name, n)) {
            const char *behind = arg + 2 + n;
            if (*behind == '=')
                *value = behind + 1;
            if (!*behind || *behind == '=')
                return x;
        }
        if (x->letter && arg[1] == x->letter && (!arg[2] || x->kind != FLAG)) {
            if (arg[2])
                *value = arg + 2;
            return x;
        }
    }
    return NULL;
}

/* Takes the option **arguments, and the one behind it if that is its value. */
static int parse_option(settings *o, const command *c, char ***arguments) {
    const char *arg = **arguments, *value;
    const char *dashes = c->argument ? "; put -- before an argument that begins with a dash" : "";
    const option *x = find_option(c, arg, &value);
    if (!x)
        return report(
            USAGE, "'pyllm %s' has no option '%s'; see pyllm %s --help%s", c->name, arg, c->name, dashes);
    if (x->kind == FLAG && value)
        return report(USAGE, "--%s takes no value", x->name);
    if (x->kind != FLAG && !value) {
        value = (*arguments)[1];
        if (!value)
            return report(USAGE, "--%s needs a value (%s)", x->name, x->value);
        ++*arguments;
    }
    return set_option(o, x, value, value == arg + 2 ? dashes : "");
}

static int set_argument(settings *o, const command *c, const char *arg) {
    if (!c->argument)
        return report(USAGE, "'pyllm %s' takes no argument, and '%s' is one too many", c->name, arg);
    if (o->text)
        return report(USAGE, "'pyllm %s' takes %s, and '%s' is one too many (quote a text with spaces)",
            c->name, c->argument, arg);
    o->text = arg;
    return OK;
}

int parse(settings *o, const command *c, char **arguments) {
    int plain = 0; /* after "--" nothing is an option */
    for (; *arguments; arguments++) {
        const char *arg = *arguments;
        int status = OK;
        if (!plain && !strcmp(arg, "--"))
            plain = 1;
        else if (!plain && arg[0] == '-' && arg[1])
            status = parse_option(o, c, &arguments);
        else
            status = set_argument(o, c, arg);
        if (status != OK)
            return status;
    }
    int required = c->argument && c->argument[0] != '[';
    if (required && !o->text && !o->help)
        return report(USAGE, "'pyllm %s' needs a %s; see pyllm %s --help", c->name, c->argument, c->name);
    return OK;
}
