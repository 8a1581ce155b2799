/* terminal.c - the terminal: text that is safe to show, Ctrl-C, and lines that are typed.
 *
 * Owns the mode of the terminal at standard input, the bytes read ahead from it, and the handlers of signals.
 * The line editor knows only the end of the line: backspace, Ctrl-W, Ctrl-U. It asks for bracketed paste, in
 * which a terminal marks what is pasted. What it needs of a terminal beyond moving left goes without saying
 * in all of today's; with TERM=dumb it does without. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sigaction, wcwidth under -std=c11 */
#endif
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

/* ---------------------------------------------------------------------------------------------------------
 * Text */

/* Makes room for n more bytes; 0 when memory runs out. */
static int grow(text *t, size_t n) {
    size_t capacity = t->capacity ? t->capacity : 256;
    while (capacity - t->len < n && capacity <= SIZE_MAX / 2)
        capacity *= 2;
    if (capacity - t->len < n)
        return 0;
    char *grown = realloc(t->data, capacity);
    if (!grown)
        return 0;
    t->data = grown;
    t->capacity = capacity;
    return 1;
}

void append(text *t, const char *data, size_t n) {
    if (n > t->capacity - t->len && !grow(t, n)) {
        t->failed = 1;
        return;
    }
    if (n)
        memcpy(t->data + t->len, data, n);
    t->len += n;
}

static void append_byte(text *t, int byte) { append(t, &(char){(char)byte}, 1); }

static int is_continuation(char byte) { return (byte & 0xc0) == 0x80; }

/* How long a UTF-8 character is by its first byte; 0: none begins so. */
static size_t size_by_first(unsigned char first) {
    if (first < 0x80)
        return 1;
    if (first < 0xc0 || first >= 0xf8)
        return 0;
    if (first < 0xe0)
        return 2;
    return first < 0xf0 ? 3 : 4;
}

/* The length of the UTF-8 character at data (n > 0,), which goes to *code; 0 if there is no whole one. */
static size_t character(const char *data, size_t n, uint32_t *code) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)data;
    size_t size = size_by_first(s[0]);
    if (!size || size > n)
        return 0;
    uint32_t c = size == 1 ? s[0] : s[0] & (0x7fu >> size);
    for (size_t i = 1; i < size; i++) {
        if (!is_continuation(data[i]))
            return 0;
        c = c << 6 | (s[i] & 0x3fu);
    }
    *code = c;
    int is_surrogate = c >= 0xd800 && c <= 0xdfff;
    return c >= least[size] && c <= 0x10ffff && !is_surrogate ? size : 0;
}

static int is_control(uint32_t c) {
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x2028 && c <= 0x202e) ||
           (c >= 0x2066 && c <= 0x2069);
}

/* Writes a whole character, with an escape if it must not be seen raw; returns the new end. */
static char *escape_character(char *out, const char *data, size_t size, uint32_t c, enum escaping how) {
    const char *letter = c && c < 0x20 ? strchr("\nn\tt\rr", (int)c) : NULL;
    int stays = how == LINES && (c == '\n' || c == '\t');
    if (letter && !stays) {
        *out++ = '\\';
        *out++ = letter[1];
        return out;
    }
    if (is_control(c) && !stays)
        return out + sprintf(out, c < 0x80 ? "\\x%02x" : "\\u%04x", c);
    if (how == QUOTED && (c == '"' || c == '\\'))
        *out++ = '\\';
    memcpy(out, data, size);
    return out + size;
}

char *escape(char *out, const char *data, size_t n, enum escaping how) {
    for (size_t i = 0; i < n;) {
        uint32_t c;
        size_t size = character(data + i, n - i, &c);
        if (size) {
            out = escape_character(out, data + i, size, c, how);
            i += size;
        } else {
            out += sprintf(out, "\\x%02x", (unsigned char)data[i]);
            i++;
        }
    }
    return out;
}

/* ---------------------------------------------------------------------------------------------------------
 * The terminal's mode */

static struct {
    int out;                       /* a descriptor to echo to; -1: no terminal was taken over */
    struct termios before, edits;  /* how it was, and how it is for the line editor */
    volatile sig_atomic_t taken;   /* it is that way now */
    volatile sig_atomic_t resumed; /* the line must be shown anew */
    int echoes, dumb;
    int early; /* bytes that were typed before it was taken over and are still to be read */
} terminal = {.out = -1};

static int wake[2] = {-1, -1}; /* a pipe: signal handlers write to it what read_byte waits for */

static void put(const char *data, size_t n) {
    while (n) {
        ssize_t written = write(terminal.out, data, n);
        if (written < 0 && errno != EINTR)
            return;
        if (written > 0) {
            data += written;
            n -= (size_t)written;
        }
    }
}

/* Whether the terminal may be set: a process in the background would be stopped for it. */
static int in_foreground(void) {
    pid_t group = tcgetpgrp(STDIN_FILENO);
    return group < 0 || group == getpgrp(); /* < 0: it is not the terminal that controls this process */
}

/* Both only call what signal handlers may call. */
static void take_terminal(void) {
    if (terminal.out < 0 || terminal.taken || tcsetattr(STDIN_FILENO, TCSADRAIN, &terminal.edits))
        return;
    terminal.taken = 1;
    if (!terminal.dumb)
        put("\033[?2004h", 8); /* bracketed paste */
}

static void give_terminal_back(void) {
    if (terminal.out < 0 || !terminal.taken || !in_foreground())
        return;
    terminal.taken = 0;
    if (!terminal.dumb)
        put("\033[?2004l", 8);
    tcsetattr(STDIN_FILENO, TCSADRAIN, &terminal.before);
}

static void on_death(int number) { /* with SA_RESETHAND */
    give_terminal_back();
    raise(number);
}

static void handle(int number, void (*handler)(int), int flags) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags}, old;
    sigemptyset(&action.sa_mask);
    if (!sigaction(number, NULL, &old) && old.sa_handler != SIG_IGN) /* as nohup and background jobs do */
        sigaction(number, &action, NULL);
}

static void on_suspend(int number) { /* with SA_RESETHAND and SA_NODEFER */
    int error = errno;
    give_terminal_back();
    raise(number); /* returns when the process goes on */
    handle(number, on_suspend, SA_RESTART | SA_RESETHAND | SA_NODEFER);
    errno = error;
}

static void wake_up(void) {
    if (write(wake[1], "", 1) < 0) /* it is full: there is a byte in it already */
        return;
}

static void on_continue(int number) {
    int error = errno;
    (void)number;
    terminal.resumed = 1;
    terminal.taken = 0; /* whatever it is set to now is another's choice */
    if (in_foreground())
        take_terminal();
    wake_up();
    errno = error;
}

/* Opens the pipe that interrupts waiting. Without one (no descriptors are left) only the key after Ctrl-C
 * does. */
static void open_wake(void) {
    if (wake[0] >= 0 || pipe(wake))
        return;
    for (int i = 0; i < 2; i++) {
        fcntl(wake[i], F_SETFD, FD_CLOEXEC);
        fcntl(wake[i], F_SETFL, O_NONBLOCK);
    }
}

/* A descriptor to echo to; -1: there is none. */
static int open_echo(void) {
    const char *name = ttyname(STDIN_FILENO);
    if ((fcntl(STDIN_FILENO, F_GETFL) & O_ACCMODE) == O_RDWR)
        return STDIN_FILENO;
    return name ? open(name, O_WRONLY | O_NOCTTY | O_CLOEXEC) : -1;
}

/* How the line editor wants a terminal that is this way now. */
static struct termios editing_mode(struct termios mode) {
    mode.c_lflag &= ~(tcflag_t)(ICANON | ECHO | IEXTEN);
    mode.c_lflag |= NOFLSH; /* else Ctrl-C may drop what is written because of it */
    mode.c_iflag &= ~(tcflag_t)(ICRNL | INLCR | IGNCR);
    mode.c_cc[VMIN] = 1;
    mode.c_cc[VTIME] = 0;
    return mode;
}

static void handle_signals(void) {
    static const int deaths[] = {
        SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    for (size_t i = 0; i < sizeof deaths / sizeof *deaths; i++)
        handle(deaths[i], on_death, SA_RESETHAND);
    handle(SIGTSTP, on_suspend, SA_RESTART | SA_RESETHAND | SA_NODEFER);
    handle(SIGCONT, on_continue, SA_RESTART);
}

void open_terminal(void) {
    const char *term = getenv("TERM");
    if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &terminal.before))
        return;
    terminal.out = open_echo();
    if (terminal.out < 0)
        return;
    terminal.dumb = term && !strcmp(term, "dumb");
    terminal.echoes = (terminal.before.c_lflag & ECHO) != 0;
    terminal.edits = editing_mode(terminal.before);
    setlocale(LC_CTYPE, ""); /* for wcwidth */
    open_wake();
    handle_signals();
    atexit(give_terminal_back);
    take_terminal();
    if (!terminal.taken)
        terminal.out = -1;
    else if (ioctl(STDIN_FILENO, FIONREAD, &terminal.early))
        terminal.early = 0;
}

void close_terminal(void) {
    give_terminal_back();
    terminal.out = -1;
}

/* ---------------------------------------------------------------------------------------------------------
 * Ctrl-C */

volatile sig_atomic_t interrupted;

static void on_interrupt(int number) {
    int error = errno;
    if (interrupted) {
        give_terminal_back();
        signal(number, SIG_DFL);
        raise(number);
    }
    interrupted = 1;
    wake_up();
    errno = error;
}

void catch_interrupts(void) {
    open_wake();
    handle(
        SIGINT, on_interrupt, SA_RESTART); /* a write goes on; what waits for input, waits for `wake` too */
}

static void empty_wake(void) {
    char bytes[64];
    ssize_t n = 1;
    while (wake[0] >= 0 && n > 0)
        n = read(wake[0], bytes, sizeof bytes);
}

void forget_interrupt(void) {
    interrupted = 0;
    empty_wake();
}

/* ---------------------------------------------------------------------------------------------------------
 * Bytes of standard input */

enum { NO_MORE = -1, INTERRUPT = -2, FAILURE = -3, RESUMED = -4 };

static unsigned char ahead[4096];
static size_t ahead_at, ahead_end;

/* Waits until there is something to read, or a signal has come. Returns which: 1, or 0; -1 where that fails. */
static int wait_for_input(void) {
    int woken_by = wake[0] < FD_SETSIZE ? wake[0] : -1;
    fd_set set;
    FD_ZERO(&set);
    FD_SET(STDIN_FILENO, &set);
    if (woken_by >= 0)
        FD_SET(woken_by, &set);
    if (select((woken_by > 0 ? woken_by : 0) + 1, &set, NULL, NULL, NULL) < 0)
        return errno == EINTR ? 0 : -1;
    if (FD_ISSET(STDIN_FILENO, &set))
        return 1;
    empty_wake();
    return 0;
}

/* Reads ahead what there is. Returns 0, NO_MORE or FAILURE. */
static int read_ahead(void) {
    ssize_t n = read(STDIN_FILENO, ahead, sizeof ahead);
    if (n <= 0 && interrupted) /* both came while it waited: Ctrl-C counts */
        return 0;
    if (n < 0)
        return errno == EINTR || errno == EAGAIN ? 0 : FAILURE;
    ahead_at = 0;
    ahead_end = (size_t)n;
    return n > 0 ? 0 : NO_MORE;
}

/* The next byte that was read ahead. */
static int next_byte(void) {
    int byte = ahead[ahead_at++];
    if (terminal.early == 0)
        return byte;
    terminal.early--;
    return byte ? byte : 'D' - '@'; /* the kernel has put a NUL where Ctrl-D was typed */
}

/* The next byte, or one of the above. A signal between the look at a flag and the wait is not lost: it has
 * written to the pipe, whichever thread it came to. */
static int read_byte(void) {
    for (;;) {
        if (interrupted) {
            if (terminal.out >= 0) { /* what was typed is dropped */
                ahead_at = ahead_end;
                tcflush(STDIN_FILENO, TCIFLUSH);
            }
            return INTERRUPT;
        }
        if (terminal.out >= 0 && terminal.resumed) {
            terminal.resumed = 0;
            return RESUMED;
        }
        if (ahead_at < ahead_end)
            return next_byte();
        int ready = wait_for_input();
        if (ready < 0)
            return FAILURE;
        int failed = ready ? read_ahead() : 0;
        if (failed)
            return failed;
    }
}

/* ---------------------------------------------------------------------------------------------------------
 * The line editor */

typedef struct editor {
    const char *prompt;
    text *line;
    size_t start; /* of this line in it */
    size_t shown; /* up to here it is on the screen */
} editor;

/* What is shown for a character */
typedef struct appearance {
    char out[16]; /* (size,) */
    size_t size;
    size_t columns; /* that it takes */
    size_t length;  /* of the character itself */
} appearance;

/* How the character at data (n > 0,) is shown. */
static appearance look_of(const editor *e, const char *data, size_t n) {
    uint32_t c = 0;
    appearance a = {.length = character(data, n, &c)};
    int is_wide = a.length && c >= 0x80 && !is_control(c); /* beyond ASCII, and shown as it is */
    if (!a.length)
        a.length = 1;
    if (*data == '\n')
        a.size = (size_t)sprintf(a.out, *e->prompt ? "\n. " : "\n");
    else if (*data == '\t')
        a.size = (size_t)sprintf(a.out, "    ");
    else
        a.size = (size_t)(escape(a.out, data, a.length, ONE_LINE) - a.out);
    a.columns = a.size;
    if (is_wide) {
        int width = wcwidth((wchar_t)c);
        a.columns = width >= 0 ? (size_t)width : 1;
    }
    return a;
}

/* Whether data (n > 0,) is the beginning of a character whose rest may still come. */
static int is_unfinished(const char *data, size_t n) {
    for (size_t i = 1; i < n; i++)
        if (!is_continuation(data[i]))
            return 0;
    return n < size_by_first((unsigned char)*data);
}

/* Shows what was added to the line. */
static void show_new(editor *e) {
    while (e->shown < e->line->len) {
        const char *data = e->line->data + e->shown;
        size_t n = e->line->len - e->shown;
        if (is_unfinished(data, n))
            break;
        appearance a = look_of(e, data, n);
        e->shown += a.length;
        if (terminal.echoes)
            put(a.out, a.size);
    }
}

static size_t terminal_columns(void) {
    struct winsize size;
    return ioctl(terminal.out, TIOCGWINSZ, &size) || !size.ws_col ? SIZE_MAX : size.ws_col;
}

typedef struct place {
    size_t row, column; /* below that of the prompt; column == terminal_columns(): the next one is below */
} place;

/* Where the cursor is behind what is shown. */
static place find_cursor(const editor *e) {
    place p = {0, strlen(e->prompt)};
    size_t wide = terminal_columns(), at = e->start;
    while (at < e->shown) {
        const char *data = e->line->data + at;
        appearance a = look_of(e, data, e->shown - at);
        at += a.length;
        if (*data == '\n') {
            p.row++;
            p.column = *e->prompt ? 2 : 0;
            continue;
        }
        if (p.column + a.columns > wide) {
            p.row++;
            p.column = 0;
        }
        p.column += a.columns;
    }
    return p;
}

/* Shows prompt and line anew, from where the prompt is `rows` above the cursor. */
static void show_again(editor *e, size_t rows) {
    char up[32];
    if (!terminal.echoes)
        return;
    if (terminal.dumb)
        put("\n", 1);
    else if (rows)
        put(up, (size_t)sprintf(up, "\r\033[%zuA\033[J", rows));
    else
        put("\r\033[J", 4);
    put(e->prompt, strlen(e->prompt));
    e->shown = e->start;
    show_new(e);
}

/* Shortens the line to its first `length` bytes. */
static void shorten(editor *e, size_t length) {
    place before = find_cursor(e);
    if (length == e->line->len)
        return;
    e->line->len = length;
    if (e->shown > length)
        e->shown = length;
    place after = find_cursor(e);
    if (before.row != after.row || before.column <= after.column || before.column == terminal_columns())
        show_again(e, before.row);
    else if (terminal.echoes)
        for (size_t i = after.column; i < before.column; i++)
            put("\b \b", 3);
}

/* Where the last character, or the last word, begins. */
static size_t last_character(const editor *e) {
    size_t at = e->line->len;
    if (at > e->start)
        at--;
    while (at > e->start && is_continuation(e->line->data[at]))
        at--;
    return at;
}

static size_t last_word(const editor *e) {
    const char *data = e->line->data;
    size_t at = e->line->len;
    while (at > e->start && strchr(" \t\n", data[at - 1]))
        at--;
    while (at > e->start && !strchr(" \t\n", data[at - 1]))
        at--;
    return at;
}

/* Reads the rest of what began with ESC, as arrow keys do, and drops it. Returns 1 if a paste begins, 0, or
 * what read_byte does instead of a byte. */
static int skip_sequence(void) {
    char sequence[8] = "";
    size_t n = 0;
    int c = read_byte();
    if (c < 0)
        return c;
    if (c != '[' && c != 'O') { /* ESC itself, or Alt with a key, which counts alone */
        ahead_at--;
        return 0;
    }
    int last = c == 'O' ? 0x20 : 0x40; /* the first byte that ends it */
    for (;;) {
        c = read_byte();
        int is_linux_key = c == '[' && n == 0; /* ESC [ [ A: Linux's F1 */
        if (c < 0x20 || (c >= last && !is_linux_key))
            break;
        if (n < sizeof sequence - 1)
            sequence[n++] = (char)c;
    }
    if (c < 0)
        return c;
    if (c < 0x20) /* nothing that belongs to one */
        ahead_at--;
    return c == '~' && !strcmp(sequence, "200");
}

/* Whether t, which was `begun` bytes long, ends with the mark behind a paste, which is dropped. */
static int ends_paste(text *t, size_t begun) {
    static const char mark[] = "\033[201~";
    enum { N = sizeof mark - 1 };
    if (t->len - begun < N || memcmp(t->data + t->len - N, mark, N))
        return 0;
    t->len -= N;
    return 1;
}

/* Appends what is pasted, up to the mark behind it, with newlines for all line ends. Returns 0, or what
 * read_byte does instead of a byte. */
static int read_paste(editor *e) {
    text *t = e->line;
    size_t begun = t->len;
    int last = 0; /* the byte before */
    while (!t->failed && !ends_paste(t, begun)) {
        int c = read_byte();
        if (c == RESUMED)
            terminal.resumed = 0;
        else if (c < 0)
            return c;
        else if (c == '\r')
            append_byte(t, '\n');
        else if (c != '\n' || last != '\r') /* CR LF is one line end */
            append_byte(t, c);
        last = c;
    }
    show_new(e);
    return 0;
}

static int ends_with_newline(const editor *e) {
    return e->line->len > e->start && e->line->data[e->line->len - 1] == '\n';
}

static void echo_newline(void) {
    if (terminal.echoes)
        put("\n", 1);
}

static enum line edit_line(text *line, const char *prompt) {
    static int last; /* the byte before, of the line before too: CR LF is one line end */
    editor e = {.prompt = prompt, .line = line, .start = line->len, .shown = line->len};
    take_terminal(); /* if the process came back in the background */
    terminal.resumed = 0;
    while (!line->failed) {
        int c = read_byte();
        if (c == '\033') {
            c = skip_sequence();
            if (c == 1)
                c = read_paste(&e);
        }
        if (c == RESUMED) {
            take_terminal();
            show_again(&e, 0);
        } else if (c == INTERRUPT) {
            return LINE_INTERRUPTED;
        } else if (c < 0) { /* the terminal is gone */
            line->len = e.start;
            return c == NO_MORE ? LINE_END : LINE_FAILED;
        } else if (c == '\r' || (c == '\n' && last != '\r')) {
            last = c;
            echo_newline();
            if (ends_with_newline(&e)) /* of a paste */
                line->len--;
            return LINE_READ;
        } else if (c == 'D' - '@' && (line->len == e.start || !*prompt)) {
            if (line->len > e.start && !ends_with_newline(&e))
                echo_newline();
            return LINE_END;
        } else if (c == '\b' || c == 0x7f) {
            shorten(&e, last_character(&e));
        } else if (c == 'W' - '@') {
            shorten(&e, last_word(&e));
        } else if (c == 'U' - '@') {
            shorten(&e, e.start);
        } else if (c >= 0x20 || c == '\t') {
            append_byte(line, c);
            show_new(&e);
        }
        last = c;
    }
    return LINE_READ;
}

/* ---------------------------------------------------------------------------------------------------------
 * Lines */

enum line read_line(text *line, const char *prompt) {
    size_t start = line->len;
    if (isatty(STDIN_FILENO))
        fputs(prompt, stderr);
    if (terminal.out >= 0)
        return edit_line(line, prompt);
    int byte = read_byte();
    while (byte >= 0 && byte != '\n') {
        append_byte(line, byte);
        byte = read_byte();
    }
    if (byte == INTERRUPT)
        return LINE_INTERRUPTED;
    if (byte == FAILURE)
        return LINE_FAILED;
    if (byte == NO_MORE && line->len == start)
        return LINE_END;
    if (line->len > start && line->data[line->len - 1] == '\r')
        line->len--;
    return LINE_READ;
}
