/* command.c - what the commands share.
 *
 * Owns how failures are reported, the model that a command has opened, and how texts come in and go out. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* clock_gettime, vasprintf under -std=c11 */
#endif
#include "command.h"
#include "draft.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int report(int status, const char *format, ...) {
    char *line = NULL, *escaped = NULL;
    va_list args;
    va_start(args, format);
    int n = vasprintf(&line, format, args);
    va_end(args);
    if (n >= 0)
        escaped = malloc(4 * (size_t)n + 1);
    if (escaped) {
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

double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---------------------------------------------------------------------------------------------------------
 * The open model */

void close_run(run *r) {
    for (int i = 0; i < r->n_taken; i++)
        free(r->taken[i]);
    free(r->tokens);
    free(r->input.data);
    close_drafts(r->drafts);
    llm_session_close(r->session);
    llm_tokenizer_close(r->tokenizer);
    llm_close(r->model);
}

int engine_failed(run *r) { return report(FAILED, "%s", r->err); }

void *keep(run *r, void *memory) {
    if (!memory)
        report(FAILED, "out of memory");
    else
        r->taken[r->n_taken++] = memory;
    return memory;
}

void *take(run *r, size_t n, size_t size) {
    return keep(r, n < SIZE_MAX / size ? malloc(n * size + 1) : NULL);
}

int has_section(const run *r, uint32_t tag) {
    size_t size;
    return llm_section(r->model, tag, &size) != NULL;
}

int open_tokenizer(run *r) {
    r->tokenizer = llm_tokenizer_open(r->model, r->err, sizeof r->err);
    if (!r->tokenizer)
        return engine_failed(r);
    size_t room = llm_token_max_bytes(r->tokenizer) + sizeof(llm_decoder);
    r->piece = take(r, room, 1);
    if (!r->piece)
        return FAILED;
    r->visible = take(r, room, 4);
    return r->visible ? OK : FAILED;
}

/* What --kv says */
static int read_kv(const run *r, uint32_t *kv) {
    for (*kv = LLM_KV_DEFAULT; r->o->kv && llm_kv_name(*kv); ++*kv)
        if (*kv != LLM_KV_DEFAULT && !strcmp(r->o->kv, llm_kv_name(*kv)))
            return OK;
    return r->o->kv ? report(USAGE, "--kv takes fp16 or int8, not '%s'", r->o->kv) : OK;
}

int open_session(run *r, uint32_t context) {
    llm_options options = {.context = context, .threads = r->o->threads, .exact = (uint32_t)r->o->exact};
    const int bad = read_kv(r, &options.kv);
    if (bad)
        return bad;
    r->session = llm_session_open(r->model, &options, r->err, sizeof r->err);
    if (!r->session)
        return engine_failed(r);
    r->context = llm_session_options(r->session)->context;
    r->threads = llm_session_options(r->session)->threads;
    r->logits = take(r, (size_t)MAX_STEP * r->h->vocab_size, sizeof *r->logits);
    if (!r->logits)
        return FAILED;
    r->cached = take(r, r->context, sizeof *r->cached);
    return r->cached ? OK : FAILED;
}

size_t reusable(const llm_session *session, const uint32_t *held, const uint32_t *tokens, size_t n) {
    size_t same = 0;
    const size_t most = smaller(llm_length(session, 0), n - 1);
    while (same < most && held[same] == tokens[same])
        same++;
    return llm_cut(session, 0, same);
}

int extend(run *r, const uint32_t *tokens, size_t n) {
    enum { CHUNK = 256 };
    for (size_t at = 0; at < n; at += CHUNK) {
        size_t m = smaller(n - at, CHUNK), length = llm_length(r->session, 0);
        float *logits = at + m == n ? r->logits : NULL;
        if (interrupted)
            return INTERRUPTED;
        if (llm_forward(r->session, m, tokens + at, NULL, NULL, logits, r->err, sizeof r->err))
            return engine_failed(r);
        memcpy(r->cached + length, tokens + at, m * sizeof *tokens);
    }
    return OK;
}

/* ---------------------------------------------------------------------------------------------------------
 * Text that comes in */

static int is_complete(const text *t) {
    return t->failed ? report(FAILED, "out of memory for the text") : OK;
}

/* Appends what is typed or pasted at a terminal until Ctrl-D. */
static int read_typed(text *t) {
    open_terminal();
    enum line got = read_line(t, "");
    while (got == LINE_READ && !t->failed) {
        append(t, "\n", 1);
        got = read_line(t, "");
    }
    int error = errno;
    close_terminal();
    if (got == LINE_FAILED)
        return report(FAILED, "standard input: %s", strerror(error));
    return is_complete(t);
}

/* Appends what an open file has; returns errno where that fails, else 0. */
static int read_stream(text *t, FILE *in) {
    char buffer[65536];
    size_t n;
    do {
        n = fread(buffer, 1, sizeof buffer, in);
        append(t, buffer, n);
    } while (n > 0 && !t->failed);
    return ferror(in) ? errno : 0;
}

int read_file(text *t, const char *path) {
    int typed = !strcmp(path, "-");
    if (typed && isatty(STDIN_FILENO))
        return read_typed(t);
    FILE *in = typed ? stdin : fopen(path, "rb");
    if (!in)
        return report(FAILED, "%s: %s", path, strerror(errno));
    int error = read_stream(t, in);
    if (!typed)
        fclose(in);
    if (error)
        return report(FAILED, "%s: %s", typed ? "standard input" : path, strerror(error));
    return is_complete(t);
}

int read_argument(run *r, int strip) {
    const char *argument = r->o->text ? r->o->text : "";
    text *t = &r->input;
    if (strcmp(argument, "-")) {
        append(t, argument, strlen(argument));
        return OK; /* encode looks at input.failed */
    }
    int status = read_file(t, "-");
    if (strip && t->len && t->data[t->len - 1] == '\n')
        t->len--;
    return status;
}

uint32_t encode_flags(const settings *o) {
    uint32_t flags = 0;
    if (!o->no_special)
        flags |= LLM_SPECIAL;
    if (o->no_bos)
        flags |= LLM_NO_BOS;
    return flags;
}

/* Makes room for this many tokens, whose text is not there yet. */
static int make_room(run *r, size_t capacity) {
    free(r->tokens);
    r->tokens = NULL;
    if (capacity <= SIZE_MAX / sizeof *r->tokens)
        r->tokens = malloc(capacity * sizeof *r->tokens);
    return r->tokens ? OK : report(FAILED, "out of memory for the tokens");
}

int encode(run *r, const text *t, uint32_t flags) {
    const char *data = t->len ? t->data : "";
    size_t capacity = t->len + 16; /* nearly always enough */
    if (is_complete(t) != OK)
        return FAILED;
    for (;;) {
        r->n = 0;
        if (make_room(r, capacity) != OK)
            return FAILED;
        int64_t n = llm_encode(r->tokenizer, data, t->len, flags, r->tokens, capacity, r->err, sizeof r->err);
        if (n < 0)
            return engine_failed(r);
        r->n = (size_t)n;
        if (r->n <= capacity)
            return OK;
        capacity = r->n;
    }
}

int read_prompt(run *r) {
    uint32_t flags = encode_flags(r->o);
    if (read_argument(r, 1) != OK || encode(r, &r->input, flags) != OK)
        return FAILED;
    if (r->n == 0 && !r->o->no_bos) /* a tokenizer that adds no BOS: an empty prompt needs it */
        if (encode(r, &r->input, flags | LLM_BOS) != OK)
            return FAILED;
    if (r->n == 0)
        return report(FAILED, "the prompt is empty, and there is no BOS token to begin with");
    if (r->n > r->context)
        return report(FAILED, "the prompt has %zu tokens, more than the context of %u", r->n, r->context);
    return OK;
}

int is_space(char byte) {
    static const char space[] = " \t\n\r\v\f\x1c\x1d\x1e\x1f";
    return memchr(space, byte, sizeof space - 1) != NULL;
}

/* ---------------------------------------------------------------------------------------------------------
 * Text that goes out */

const char *visible_token(run *r, uint32_t token) {
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

const char *size_text(double bytes) {
    static const char *units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    static char texts[4][32];
    static int calls = 0;
    char *out = texts[calls % 4];
    int unit = 0;
    calls++;
    while (bytes >= 1024 && unit < 4) {
        bytes /= 1024;
        unit++;
    }
    snprintf(out, sizeof *texts, "%.*f %s", unit > 0, bytes, units[unit]);
    return out;
}

int print_section(run *r, uint32_t tag, const char *label) {
    size_t size;
    const char *data = llm_section(r->model, tag, &size);
    const char *end = data ? data + size : NULL;
    while (data < end) {
        const char *newline = memchr(data, '\n', (size_t)(end - data));
        size_t n = (size_t)((newline ? newline : end) - data);
        char *line = malloc(4 * n + 1);
        if (!line)
            return report(FAILED, "out of memory");
        *escape(line, data, n, ONE_LINE) = 0;
        printf("%-18s%s\n", label, line);
        free(line);
        label = "";
        data = newline ? newline + 1 : end;
    }
    return OK;
}

/* The first error of writing to stdout, which stdio does not keep. */
static int output_error;

void flush_output(void) {
    errno = 0;
    if ((fflush(stdout) || ferror(stdout)) && !output_error)
        output_error = errno;
}

int finish_output(int status) {
    flush_output();
    if (!ferror(stdout))
        return status;
    if (output_error == EPIPE)
        return FAILED;
    if (!output_error)
        return report(FAILED, "cannot write to standard output");
    return report(FAILED, "cannot write to standard output: %s", strerror(output_error));
}
