/* chat.c - the command `chat`: a conversation with a model.
 *
 * Owns the turns so far, how the model's chat template makes one text of them, and which of them are still in
 * the context. Replies are made and printed by generate.c. Reading order: the template, the conversation as
 * text, a reply, messages and what is typed beside them. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memmem */
#endif
#include "generate.h"
#include "draft.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { END_OF_INPUT = 256 }; /* a status of read_message only */

/* The strings of LLM_CHAT_PARTS */
enum {
    BEFORE_SYSTEM,
    AFTER_SYSTEM,
    NO_SYSTEM,
    BEFORE_REPLY,
    AFTER_REPLY,
    WORDS,
    BEGIN_REPLY, /* this and the next may be missing */
    BEGIN_TOLD,
    N_PARTS
};

/* The texts around the reasoning of thinking models, as pyllm/chat.py has them. */
static const marks MARKS[] = {
    {"<think>", "</think>", ""},
    {"[THINK]", "[/THINK]", ""},
    {"<|channel>thought", "<channel|>", ""}, /* Gemma 4 */
    {"<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>"},                                   /* gpt-oss */
    {"<|think|>", "<|end|><|begin|>assistant<|content|>", "<|content|>"}, /* Solar Open */
    {"<seed:think>", "</seed:think>", ""},                                /* Seed-OSS */
    {"<think:opensource>", "</think:opensource>", ""},                    /* Hy3 */
    {"<|inner_prefix|>", "<|inner_suffix|>", ""},                         /* Apertus */
    {"<|START_THINKING|>", "<|END_THINKING|>", ""},                       /* Command R7B and later */
};
enum { N_MARKS = sizeof MARKS / sizeof *MARKS };

enum { MAX_MARK = 128 }; /* tokens of all marks of a model */

typedef struct turn {
    text user, reply;
    size_t answer; /* where in the reply its reasoning ends */
} turn;

typedef struct chat {
    run *r;
    const char *parts[N_PARTS];
    int trim, think, lines, last, answer; /* which words part WORDS has */
    time_t now;                           /* the date in the parts */
    const marks *marks;                   /* one of MARKS */
    uint32_t visible[MAX_MARK + 1];       /* the control tokens in them, and UINT32_MAX behind them */
    int begun;                            /* the prompt ends inside the reasoning */
    int tty;                              /* stdout is a terminal */
    turn *turns;                          /* (n_turns,) the last one waits for its reply */
    size_t n_turns, capacity;
    size_t first; /* the oldest turn that is still in the context */
} chat;

/* ---------------------------------------------------------------------------------------------------------
 * The chat template */

/* Reports why the model has no parts of a chat template. */
static int cannot_chat(run *r) {
    size_t size;
    const char *why = llm_section(r->model, LLM_CHAT_WHY, &size);
    if (why) {
        char *line = take(r, size, 4);
        if (!line)
            return FAILED;
        *escape(line, why, size, ONE_LINE) = 0;
        return report(FAILED, "this model cannot chat here: %s", line);
    }
    if (has_section(r, LLM_CHAT_PARTS))
        return report(FAILED, "--no-thinking: this model's chat template cannot switch thinking off");
    return report(FAILED, "this model has no chat template; `pyllm generate` continues texts");
}

/* Finds the six to eight strings in a section of `size` bytes. */
static int cut_parts(chat *c, const char *at, size_t size) {
    const char *end = at + size;
    c->parts[BEGIN_REPLY] = c->parts[BEGIN_TOLD] = "";
    for (int i = 0; i < N_PARTS; i++) {
        if (i >= BEGIN_REPLY && at == end)
            break;
        c->parts[i] = at;
        at = at < end ? memchr(at, 0, (size_t)(end - at)) : NULL;
        if (!at)
            return report(FAILED, "the model file's chat template is broken: string %d does not end", i);
        at++;
    }
    return OK;
}

static int has_word(const chat *c, const char *word) { return strstr(c->parts[WORDS], word) != NULL; }

/* Writes at most `capacity` tokens of a mark; returns how many it has. */
static size_t encode_mark(run *r, const char *mark, uint32_t *tokens, size_t capacity) {
    uint32_t flags = LLM_SPECIAL | LLM_NO_BOS;
    int64_t n = llm_encode(r->tokenizer, mark, strlen(mark), flags, tokens, capacity, r->err, sizeof r->err);
    return n < 0 ? 0 : (size_t)n;
}

/* Whether the chat template writes marks, or they are tokens. */
static int are_known(run *r, const marks *m) {
    const char *sign = *m->plain ? m->plain : m->end;
    size_t size;
    const char *template = llm_section(r->model, LLM_CHAT_TEMPLATE, &size);
    uint32_t token;
    return (template && memmem(template, size, sign, strlen(sign))) || encode_mark(r, sign, &token, 1) == 1;
}

/* Finds the marks of the reasoning, and the control tokens in them. */
static void find_marks(chat *c) {
    c->marks = MARKS;
    for (size_t i = N_MARKS; i-- > 0;)
        if (are_known(c->r, &MARKS[i]))
            c->marks = &MARKS[i];
    const char *words[] = {c->marks->begin, c->marks->end, c->marks->plain};
    size_t n = 0;
    for (int i = 0; i < 3; i++) {
        size_t first = n, made = encode_mark(c->r, words[i], c->visible + n, MAX_MARK - n);
        for (size_t j = first; j < smaller(first + made, MAX_MARK); j++)
            if (llm_token_is_special(c->r->tokenizer, c->visible[j]))
                c->visible[n++] = c->visible[j];
    }
    c->visible[n] = UINT32_MAX;
}

static int open_chat(chat *c) {
    size_t size;
    uint32_t tag = c->r->o->no_thinking ? LLM_CHAT_NO_THINKING : LLM_CHAT_PARTS;
    const char *parts = llm_section(c->r->model, tag, &size);
    if (!parts)
        return cannot_chat(c->r);
    if (cut_parts(c, parts, size) != OK)
        return FAILED;
    c->trim = has_word(c, "trim");
    c->think = has_word(c, "think");
    c->lines = has_word(c, "lines");
    c->last = has_word(c, "last");
    c->answer = has_word(c, "answer");
    c->now = time(NULL);
    find_marks(c);
    if (c->r->o->system && !*c->parts[BEFORE_SYSTEM] && !*c->parts[AFTER_SYSTEM])
        return report(FAILED, "--system: this model's chat template has no system message");
    return OK;
}

/* ---------------------------------------------------------------------------------------------------------
 * The conversation as one text */

/* Whether every C library's strftime knows what is in this pattern. */
static int is_portable(const char *pattern) {
    const char *at = strchr(pattern, '%');
    while (at) {
        if (at[1] == '-')
            at++;
        if (!at[1] || !strchr("aAbBdeHIjmMpSuyY%", at[1]))
            return 0;
        at = strchr(at + 2, '%');
    }
    return 1;
}

/* Appends a date as strftime writes it; nothing for a pattern that is not portable. */
static void append_date(const chat *c, text *t, const char *pattern, size_t n) {
    char copy[64], date[256];
    if (n >= sizeof copy)
        return;
    memcpy(copy, pattern, n);
    copy[n] = 0;
    if (is_portable(copy))
        append(t, date, strftime(date, sizeof date, copy, localtime(&c->now)));
}

/* Appends a part of the template, with the date in place of a pattern between two bytes 1. */
static void append_part(const chat *c, text *t, int part) {
    const char *at = c->parts[part];
    for (;;) {
        const char *begin = strchr(at, 1), *end = begin ? strchr(begin + 1, 1) : NULL;
        if (!end)
            break;
        append(t, at, (size_t)(begin - at));
        append_date(c, t, begin + 1, (size_t)(end - begin - 1));
        at = end + 1;
    }
    append(t, at, strlen(at));
}

typedef struct span {
    const char *data;
    size_t n;
} span;

static span span_of(const text *t) { return (span){t->data, t->len}; }

/* A message without the white space around it, if the template wants that. */
static span strip(const chat *c, span s) {
    while (c->trim && s.n && is_space(*s.data)) {
        s.data++;
        s.n--;
    }
    while (c->trim && s.n && is_space(s.data[s.n - 1]))
        s.n--;
    return s;
}

/* A reply without its reasoning, if the template leaves that out of earlier ones: what is behind its last
 * </think>, and without the line breaks there if the template drops them. */
static span without_reasoning(const chat *c, span s) {
    const char *mark = MARKS[0].end;
    size_t m = strlen(mark), at = s.n;
    while (at >= m && memcmp(s.data + at - m, mark, m))
        at--;
    if (!c->think || at < m)
        return s;
    while (c->lines && at < s.n && s.data[at] == '\n')
        at++;
    return (span){s.data + at, s.n - at};
}

static void append_message(const chat *c, text *t, span message) {
    message = strip(c, message);
    append(t, message.data, message.n);
}

static void append_reply(const chat *c, text *t, const turn *told) {
    span reply = span_of(&told->reply);
    if (c->answer && told->answer) {
        reply.data += told->answer;
        reply.n -= told->answer;
    }
    reply = without_reasoning(c, strip(c, reply));
    append_part(c, t, BEGIN_TOLD);
    append(t, reply.data, reply.n);
}

/* Appends turn i up to where its reply begins, behind the reply to the turn before. */
static void append_turn(const chat *c, text *t, size_t i) {
    const char *system = c->r->o->system;
    size_t system_at = c->last ? c->n_turns - 1 : c->first;
    if (i > c->first) {
        append_reply(c, t, &c->turns[i - 1]);
        append_part(c, t, AFTER_REPLY);
    } else if (!system || c->last) {
        append_part(c, t, NO_SYSTEM);
    }
    if (system && i == system_at) {
        append_part(c, t, BEFORE_SYSTEM);
        append_message(c, t, (span){system, strlen(system)});
        append_part(c, t, AFTER_SYSTEM);
    }
    append_message(c, t, span_of(&c->turns[i].user));
    append_part(c, t, BEFORE_REPLY);
}

/* Whether a text ends with a word and white space. */
static int ends_with(const text *t, const char *word) {
    size_t end = t->len, n = strlen(word);
    while (end && is_space(t->data[end - 1]))
        end--;
    return end >= n && !memcmp(t->data + end - n, word, n);
}

/* Encodes the conversation as it is now, up to where the next reply begins. Every turn encodes all of it
 * anew, so that the ids are those of the whole text, as the model's own library makes them. */
static int encode_turns(chat *c) {
    text all = {0};
    for (size_t i = c->first; i < c->n_turns; i++)
        append_turn(c, &all, i);
    append_part(c, &all, BEGIN_REPLY);
    c->begun = ends_with(&all, c->marks->begin);
    int status = encode(c->r, &all, LLM_SPECIAL | LLM_NO_BOS);
    free(all.data);
    return status;
}

/* ---------------------------------------------------------------------------------------------------------
 * Turns and replies */

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

/* Drops the turns from index n on. */
static void drop_turns(chat *c, size_t n) {
    while (c->n_turns > n) {
        turn *t = &c->turns[--c->n_turns];
        free(t->user.data);
        free(t->reply.data);
    }
    c->first = smaller(c->first, n);
}

/* Encodes the turns that fit into the context together with room for a reply, a quarter of it: when it is
 * full, the oldest ones are forgotten. */
static int encode_what_fits(chat *c) {
    run *r = c->r;
    size_t room = r->context / 4, before = c->first;
    if (r->o->max_tokens)
        room = smaller(room, r->o->max_tokens);
    int status = encode_turns(c);
    while (status == OK && r->n + room > r->context && c->first + 1 < c->n_turns) {
        c->first++;
        status = encode_turns(c);
    }
    if (c->first > before)
        report(OK, "the context of %u is full; the oldest turns (%zu) are forgotten", r->context,
            c->first - before);
    if (status == OK && r->n == 0)
        return report(FAILED, "the conversation has no tokens");
    return status;
}

/* Answers the last turn, reusing the keys and values of what did not change since the turn before. */
static int answer(chat *c, uint64_t seed) {
    run *r = c->r;
    writer w = {.marks = c->marks, .visible = c->visible, .hide = r->o->hide_thinking, .tty = c->tty};
    int status = encode_what_fits(c);
    if (status != OK)
        return status;
    if (r->n > r->context) {
        report(OK, "this message makes %zu tokens, more than the context of %u; it was not sent", r->n,
            r->context);
        drop_turns(c, c->n_turns - 1);
        return OK;
    }
    size_t cached = reusable(r->session, r->cached, r->tokens, r->n);
    if (llm_truncate(r->session, 0, cached, r->err, sizeof r->err))
        return engine_failed(r);
    w.place = c->begun ? REASONING : START;
    status = generate(r, cached, seed, &w);
    turn *now = &c->turns[c->n_turns - 1];
    now->reply = w.text;
    now->answer = w.place == REPLY ? w.answer : w.text.len;
    if (status == OK && w.hide && w.place == REASONING)
        report(OK, "the reply ended inside its reasoning, which is hidden");
    if (status == OK && llm_length(r->session, 0) == r->context)
        report(OK, "the context of %u is full; the reply was cut", r->context);
    return status;
}

/* ---------------------------------------------------------------------------------------------------------
 * Messages */

/* Reads one message: a line, and those after it while they end with a backslash. Returns OK, FAILED,
 * INTERRUPTED or END_OF_INPUT. */
static int read_message(text *message) {
    const char *prompt = "> ";
    message->len = 0;
    for (;;) {
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
        prompt = ". ";
    }
}

/* The same; a first Ctrl-C, which leaves nothing, gives a hint and another try. */
static int read_message_or_hint(text *message) {
    int status = read_message(message);
    if (status != INTERRUPTED)
        return status;
    forget_interrupt(); /* before the hint invites the next one */
    fputs("\n(Ctrl-C again or Ctrl-D leaves)\n", stderr);
    return read_message(message);
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

static int is_line(const text *t, const char *line) {
    return t->len == strlen(line) && !memcmp(t->data, line, t->len);
}

/* Does what a message says: a command, or something to answer. */
static int handle_message(chat *c, text *message, uint64_t seed) {
    if (is_line(message, "/reset")) {
        drop_turns(c, 0);
        return OK;
    }
    if (is_line(message, "/help")) {
        fputs(CHAT_HELP, stderr);
        return OK;
    }
    if (!message->len)
        return OK;
    if (add_turn(c, message) != OK)
        return FAILED;
    int status = answer(c, seed + c->n_turns - 1); /* each reply its own random numbers */
    if (status != INTERRUPTED)
        return status;
    forget_interrupt(); /* what there is of the reply is kept */
    return OK;
}

int run_chat(run *r) {
    chat c = {.r = r, .tty = isatty(STDOUT_FILENO)};
    text message = {0};
    uint64_t seed = choose_seed(r->o);
    int tty = isatty(STDIN_FILENO);
    if (open_chat(&c) != OK || open_drafts(r) != OK || find_stop_tokens(r, c.visible) != OK)
        return FAILED;
    catch_interrupts();
    int status = OK;
    while (status == OK) {
        status = read_message_or_hint(&message);
        if (status == OK && is_line(&message, "/exit"))
            break;
        if (status == OK)
            status = handle_message(&c, &message, seed);
        else if (status == INTERRUPTED || (status == END_OF_INPUT && tty))
            fputc('\n', stderr);
    }
    free(message.data);
    drop_turns(&c, 0);
    free(c.turns);
    return status == END_OF_INPUT ? OK : status;
}
