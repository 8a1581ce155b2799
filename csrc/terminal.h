/* terminal.h - what passes between the command and a terminal: text that is safe to show, Ctrl-C, and lines
 * that are typed. Not part of the library. */
#ifndef TERMINAL_H
#define TERMINAL_H
#include <signal.h>
#include <stddef.h>

/* A growing text. When memory runs out `failed` is set and stays; it is looked at once, at the end. */
typedef struct text {
    char *data; /* (len,), may hold NUL */
    size_t len, capacity;
    int failed;
} text;

void append(text *t, const char *data, size_t n);

/* Model files are untrusted: what they say must not reach a terminal raw. */
enum escaping {
    LINES,    /* newlines and tabs stay */
    ONE_LINE, /* they are escaped too */
    QUOTED    /* and quotes and backslashes */
};

/* Writes n bytes to out with escapes for control characters (those of ASCII, U+0080 to U+009F, the line and
 * paragraph separators, and what overrides the direction of text) and for bytes that are no UTF-8; returns
 * the new end. `out` needs 4 * n + 1 bytes. */
char *escape(char *out, const char *data, size_t n, enum escaping how);

/* Set by Ctrl-C. A second one before forget_interrupt ends the process as if there were no handler. */
extern volatile sig_atomic_t interrupted;
void catch_interrupts(void);
void forget_interrupt(void);

/* Takes the line editing over from the terminal, if standard input is one: the kernel's own cuts lines at
 * 4,095 bytes, and cannot tell a pasted newline from a typed one. However the process ends, or while it is
 * suspended, the terminal is as it was before. */
void open_terminal(void);
void close_terminal(void);

enum line {
    LINE_READ,
    LINE_END, /* of the input, by Ctrl-D at a terminal */
    LINE_INTERRUPTED,
    LINE_FAILED /* errno says why */
};

/* Appends a line of standard input, of any length, without its line end; the last one needs none. At a
 * terminal `prompt` goes to stderr before, and a pasted text of several lines is one line; with an empty prompt
 * Ctrl-D ends the input anywhere, and what is before it stays. Nothing but this may read standard input. */
enum line read_line(text *line, const char *prompt);

#endif
