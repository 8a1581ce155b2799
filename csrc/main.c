/* main.c - the command `pyllm`: which commands there are, and how one is run.
 *
 * All that a command knows of models is llm.h, of terminals terminal.h. Generated text and results go to
 * stdout, everything else to stderr. Exit status: 0; 1 for a failure; 2 for a command line that makes no sense;
 * 130 after Ctrl-C. Each command has a file, or shares one: see the table, and the end of command.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* readlink under -std=c11 */
#endif
#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef __APPLE__
#include <mach-o/dyld.h>
#endif

#ifndef PYLLM_VERSION
#define PYLLM_VERSION "dev"
#endif

// clang-format off
static const command COMMANDS[] = {
    {.name = "generate", .bit = GENERATE, .needs = TOKENIZER | SESSION, .run = run_generate,
     .argument = "[TEXT]", .help = "continue a text",
     .details =
     "TEXT is the prompt, - reads it from standard input (less one newline at its end); without it the model "
     "begins a text by itself. Special tokens such as <|im_end|> are recognised in it. Before a TEXT that "
     "begins with a dash, put --."},
    {.name = "chat", .bit = CHAT, .needs = TOKENIZER | SESSION, .run = run_chat,
     .help = "talk with a chat model",
     .details =
     "Reads messages from standard input, one a line; a \\ at the end of a line continues it on the next, and "
     "at a terminal a pasted text of several lines is one message. /reset starts over, /help lists such "
     "commands, /exit or Ctrl-D leaves; Ctrl-C ends a reply. When the context is full, the oldest turns are "
     "forgotten, the system message never."},
    {.name = "next", .bit = NEXT, .needs = TOKENIZER | SESSION, .run = run_next,
     .argument = "TEXT", .help = "show the most likely next tokens of a text",
     .details =
     "TEXT is the prompt, - reads it from standard input (less one newline at its end)."},
    {.name = "info", .bit = INFO, .run = run_info,
     .help = "show what is in a model file, and the memory it needs"},
    {.name = "tokenize", .bit = TOKENIZE, .needs = TOKENIZER, .run = run_tokenize,
     .argument = "TEXT", .help = "show the tokens of a text",
     .details =
     "One line a token: its id and its text. TEXT - reads standard input, as it is."},
    {.name = "perplexity", .bit = PERPLEXITY, .needs = TOKENIZER | SESSION, .run = run_perplexity,
     .argument = "FILE", .help = "measure how well the model predicts a text",
     .details =
     "Reads FILE (- is standard input) in windows of the context, each --stride positions after the one "
     "before. Every token is predicted once, in the first window that has it, from all that is before it "
     "there. A window begins with BOS if the model's tokenizer adds one; without it the first token is not "
     "predicted. The error is one standard error, with tokens taken as independent."},
    {.name = "bench", .bit = BENCH, .run = run_bench,
     .help = "measure the speed of a model on this machine",
     .details =
     "Prefill, decode and the speed of reading memory are measured in turn, --repeat times. The percentage is "
     "decode's: the bytes of weights that a token needs, times tokens a second, of the bytes that the same "
     "threads can read from memory in a second. It can pass 100 % when the weights fit into the caches."},
};
// clang-format on
enum { N_COMMANDS = sizeof COMMANDS / sizeof *COMMANDS };

static const command *find_command(const char *name) {
    for (const command *c = COMMANDS; c < COMMANDS + N_COMMANDS; c++)
        if (!strcmp(name, c->name))
            return c;
    return NULL;
}

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

/* ---------------------------------------------------------------------------------------------------------
 * Running a command */

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

static llm_model *open_model(const char *path, char *err, size_t errlen) {
    if (path)
        return llm_open(path, err, errlen);
#ifdef PYLLM_BUILTIN
    return llm_open_memory(pyllm_builtin, pyllm_builtin_size, err, errlen);
#else
    snprintf(err, errlen, "this build has no built-in model; name one with -m FILE");
    return NULL;
#endif
}

/* Opens what the command needs, runs it and closes all. */
static int run_command(const command *c, const settings *o) {
    run r = {.o = o};
    int status = OK;
    if (c->bit == CHAT)
        open_terminal(); /* before anything takes time: what is typed meanwhile must not be cut */
    r.model = open_model(o->model, r.err, sizeof r.err);
    if (!r.model)
        return engine_failed(&r);
    r.h = llm_model_header(r.model);
    if (c->needs & TOKENIZER)
        status = open_tokenizer(&r);
    if (status == OK && c->needs & SESSION)
        status = open_session(&r, o->context);
    if (status == OK)
        status = c->run(&r);
    close_run(&r);
    return status;
}

/* The command with its arguments, a list of `n` that ends with NULL */
static int run_with_arguments(const command *c, size_t n, char **arguments) {
    settings o = default_settings();
    o.stops = calloc(n + 1, sizeof *o.stops);
    if (!o.stops)
        return report(FAILED, "out of memory");
    int status = parse(&o, c, arguments);
    if (status == OK && o.help)
        print_help(c);
    else if (status == OK)
        status = run_command(c, &o);
    free(o.stops);
    return status;
}

/* Where this program's own file lies, with the slash; "" where the system does not say. */
static void find_folder(char *path, size_t size) {
#ifdef __APPLE__
    uint32_t room = (uint32_t)size;
    if (_NSGetExecutablePath(path, &room))
        path[0] = 0;
#else
    ssize_t length = readlink("/proc/self/exe", path, size - 1);
    path[length > 0 ? length : 0] = 0;
#endif
    char *slash = strrchr(path, '/');
    path[slash ? slash + 1 - path : 0] = 0;
}

/* Runs the program pyllm-NAME, looked for beside this one, then on PATH. arguments[0] is NAME. Returns only if
 * it fails. */
static int run_external(char **arguments) {
    char folder[4096] = "", program[256], path[sizeof folder + sizeof program];
    const char *name = arguments[0];
    int n = snprintf(program, sizeof program, "pyllm-%s", name);
    if (!*name || *name == '-' || strchr(name, '/') || n >= (int)sizeof program)
        return report(USAGE, "'%s' is not a command; see pyllm --help", name);
    find_folder(folder, sizeof folder);
    arguments[0] = program;
    errno = ENOENT;
    if (*folder) {
        snprintf(path, sizeof path, "%s%s", folder, program);
        execv(path, arguments);
    }
    if (errno == ENOENT)
        execvp(program, arguments);
    if (errno == ENOENT)
        return report(USAGE, "'%s' is not a command; see pyllm --help", name);
    return report(FAILED, "%s: %s", program, strerror(errno));
}

/* A standard descriptor that is closed would be given to the next file or pipe that is opened. */
static void hold_descriptors(void) {
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            open("/dev/null", (fd ? O_RDONLY : O_WRONLY) | O_CLOEXEC); /* so that using it still fails */
}

int main(int argc, char **argv) {
    hold_descriptors();
    if (argc < 2) {
        print_usage(stderr);
        return USAGE;
    }
    const char *name = argv[1];
    const command *c = find_command(name);
    if (c)
        return finish_output(run_with_arguments(c, (size_t)argc - 2, argv + 2));
    if (!strcmp(name, "--help") || !strcmp(name, "-h")) {
        print_usage(stdout);
        return finish_output(OK);
    }
    if (!strcmp(name, "--version")) {
        puts("pyllm " PYLLM_VERSION);
        return finish_output(OK);
    }
    return run_external(argv + 1);
}
