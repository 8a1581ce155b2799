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

void append(text *t, const char *data, size_t n) {
    if (n > t->capacity - t->len) {
        size_t capacity = t->capacity ? t->capacity : 256;
        while (capacity - t->len < n && capacity <= SIZE_MAX / 2)
            capacity *= 2;
        char *grown = capacity - t->len < n ? NULL : realloc(t->data, capacity);
        if (!grown) {
            t->failed = 1;
            return;
        }
        t->data = grown;
        t->capacity = capacity;
    }
    if (n)
        memcpy(t->data + t->len, data, n);
    t->len += n;
}

/* The length of the UTF-8 character at data (n > 0,), which goes to *code; 0 if there is no whole one. */
static size_t character(const char *data, size_t n, uint32_t *code) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)data;
    size_t size = s[0] < 0x80 ? 1 : s[0] < 0xc0 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf8 ? 4 : 0;
    if (!size || size > n)
        return 0;
    uint32_t c = size == 1 ? s[0] : s[0] & (0x7fu >> size);
    for (size_t i = 1; i < size; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (s[i] & 0x3fu);
    }
    *code = c;
    return c >= least[size] && c <= 0x10ffff && (c < 0xd800 || c > 0xdfff) ? size : 0;
}

static int is_control(uint32_t c) {
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x2028 && c <= 0x202e) ||
           (c >= 0x2066 && c <= 0x2069);
}

char *escape(char *out, const char *data, size_t n, enum escaping how) {
    for (size_t i = 0, size; i < n; i += size) {
        uint32_t c;
        size = character(data + i, n - i, &c);
        const char *letter = size && c && c < 0x20 ? strchr("\nn\tt\rr", (int)c) : NULL;
        int stays = how == LINES && size && (c == '\n' || c == '\t');
        if (!size) {
            size = 1;
            out += sprintf(out, "\\x%02x", (unsigned char)data[i]);
        } else if (letter && !stays) {
            *out++ = '\\';
            *out++ = letter[1];
        } else if (is_control(c) && !stays) {
            out += sprintf(out, c < 0x80 ? "\\x%02x" : "\\u%04x", c);
        } else {
            if (how == QUOTED && (c == '"' || c == '\\'))
                *out++ = '\\';
            memcpy(out, data + i, size);
            out += size;
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
        data += written > 0 ? written : 0;
        n -= written > 0 ? (size_t)written : 0;
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

void open_terminal(void) {
    static const int deaths[] = {
        SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    const char *term = getenv("TERM"), *name = ttyname(STDIN_FILENO);
    if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &terminal.before))
        return;
    int writable = (fcntl(STDIN_FILENO, F_GETFL) & O_ACCMODE) == O_RDWR;
    terminal.out = writable ? STDIN_FILENO : name ? open(name, O_WRONLY | O_NOCTTY | O_CLOEXEC) : -1;
    if (terminal.out < 0)
        return;
    terminal.dumb = term && !strcmp(term, "dumb");
    terminal.echoes = (terminal.before.c_lflag & ECHO) != 0;
    terminal.edits = terminal.before;
    terminal.edits.c_lflag &= ~(tcflag_t)(ICANON | ECHO | IEXTEN);
    terminal.edits.c_lflag |= NOFLSH; /* else Ctrl-C may drop what is written because of it */
    terminal.edits.c_iflag &= ~(tcflag_t)(ICRNL | INLCR | IGNCR);
    terminal.edits.c_cc[VMIN] = 1;
    terminal.edits.c_cc[VTIME] = 0;
    setlocale(LC_CTYPE, ""); /* for wcwidth */
    open_wake();
    for (size_t i = 0; i < sizeof deaths / sizeof *deaths; i++)
        handle(deaths[i], on_death, SA_RESETHAND);
    handle(SIGTSTP, on_suspend, SA_RESTART | SA_RESETHAND | SA_NODEFER);
    handle(SIGCONT, on_continue, SA_RESTART);
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
    while (wake[0] >= 0 && read(wake[0], bytes, sizeof bytes) > 0)
        ;
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

/* The next byte, or one of the above. A signal between the look at a flag and the wait is not lost: it has
 * written to the pipe, whichever thread it came to. */
static int read_byte(void) {
    for (;;) {
        fd_set set;
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
            break;
        FD_ZERO(&set);
        FD_SET(STDIN_FILENO, &set);
        if (wake[0] >= 0 && wake[0] < FD_SETSIZE)
            FD_SET(wake[0], &set);
        if (select((wake[0] > 0 && wake[0] < FD_SETSIZE ? wake[0] : 0) + 1, &set, NULL, NULL, NULL) < 0) {
            if (errno == EINTR)
                continue;
            return FAILURE;
        }
        if (!FD_ISSET(STDIN_FILENO, &set)) {
            empty_wake();
            continue;
        }
        ssize_t n = read(STDIN_FILENO, ahead, sizeof ahead);
        if (n <= 0 && interrupted) /* both came while it waited: Ctrl-C counts */
            continue;
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            return FAILURE;
        if (n == 0)
            return NO_MORE;
        ahead_at = 0;
        ahead_end = n > 0 ? (size_t)n : 0;
    }
    int byte = ahead[ahead_at++];
    if (terminal.early > 0 && terminal.early-- && !byte)
        return 'D' - '@'; /* the kernel has put a NUL where Ctrl-D was typed */
    return byte;
}

/* ---------------------------------------------------------------------------------------------------------
 * The line editor */

typedef struct editor {
    const char *prompt;
    text *line;
    size_t start; /* of this line in it */
    size_t shown; /* up to here it is on the screen */
} editor;

/* Writes what is shown for the character at data (n > 0,) to out (at most 16 bytes) and the columns that it
 * takes to *columns. Returns its length. */
static size_t appearance(
    const editor *e, const char *data, size_t n, char *out, size_t *out_size, size_t *columns) {
    uint32_t c = 0;
    size_t size = character(data, n, &c), length = size ? size : 1;
    int width = size && c >= 0x80 && !is_control(c) ? wcwidth((wchar_t)c) : -1;
    if (*data == '\n')
        *out_size = (size_t)sprintf(out, *e->prompt ? "\n. " : "\n");
    else if (*data == '\t')
        *out_size = (size_t)sprintf(out, "    ");
    else
        *out_size = (size_t)(escape(out, data, length, ONE_LINE) - out);
    *columns = width >= 0 ? (size_t)width : size && c >= 0x80 && !is_control(c) ? 1 : *out_size;
    return length;
}

/* Whether data (n > 0,) is the beginning of a character whose rest may still come. */
static int is_unfinished(const char *data, size_t n) {
    unsigned char first = (unsigned char)*data;
    size_t size = first < 0xc0 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf8 ? 4 : 1;
    for (size_t i = 1; i < n; i++)
        if ((data[i] & 0xc0) != 0x80)
            return 0;
    return n < size;
}

/* Shows what was added to the line. */
static void show_new(editor *e) {
    char out[16];
    size_t size, columns;
    while (e->shown < e->line->len && !is_unfinished(e->line->data + e->shown, e->line->len - e->shown)) {
        e->shown += appearance(e, e->line->data + e->shown, e->line->len - e->shown, out, &size, &columns);
        if (terminal.echoes)
            put(out, size);
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
    size_t wide = terminal_columns(), size, columns;
    char out[16];
    for (size_t at = e->start; at < e->shown;) {
        int newline = e->line->data[at] == '\n';
        at += appearance(e, e->line->data + at, e->shown - at, out, &size, &columns);
        if (newline || p.column + columns > wide) {
            p.row++;
            p.column = newline && *e->prompt ? 2 : 0;
        }
        p.column += newline ? 0 : columns;
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
    e->shown = e->shown < length ? e->shown : length;
    place after = find_cursor(e);
    if (before.row != after.row || before.column <= after.column || before.column == terminal_columns())
        show_again(e, before.row);
    else
        for (; terminal.echoes && before.column > after.column; before.column--)
            put("\b \b", 3);
}

/* Where the last character, or the last word, begins. */
static size_t last_character(const editor *e) {
    size_t at = e->line->len;
    while (at > e->start && (e->line->data[--at] & 0xc0) == 0x80)
        ;
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
    if (c != '[' && c != 'O') { /* ESC itself, or Alt with a key, which counts alone */
        ahead_at -= c >= 0;
        return c < 0 ? c : 0;
    }
    int last = c == 'O' ? 0x20 : 0x40;                                    /* the first byte that ends it */
    while ((c = read_byte()) >= 0x20 && (c < last || (c == '[' && !n))) { /* ESC [ [ A: Linux's F1 */
        if (n < sizeof sequence - 1)
            sequence[n++] = (char)c;
    }
    if (c < 0)
        return c;
    if (c < 0x20) /* nothing that belongs to one */
        ahead_at--;
    return c == '~' && !strcmp(sequence, "200");
}

/* Appends what is pasted, up to the mark behind it, with newlines for all line ends. Returns 0, or what
 * read_byte does instead of a byte. */
static int read_paste(editor *e) {
    static const char mark[] = "\033[201~";
    enum { N = sizeof mark - 1 };
    text *t = e->line;
    size_t begun = t->len;
    for (int c, last = 0; !t->failed; last = c) {
        if ((c = read_byte()) == RESUMED)
            terminal.resumed = 0;
        else if (c < 0)
            return c;
        else if (c != '\n' || last != '\r')
            append(t, c == '\r' ? "\n" : &(char){(char)c}, 1);
        if (t->len - begun >= N && !memcmp(t->data + t->len - N, mark, N)) {
            t->len -= N;
            break;
        }
    }
    show_new(e);
    return 0;
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
            c = c == 1 ? read_paste(&e) : c;
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
            if (terminal.echoes)
                put("\n", 1);
            line->len -= line->len > e.start && line->data[line->len - 1] == '\n'; /* of a paste */
            return LINE_READ;
        } else if (c == 'D' - '@' && (line->len == e.start || !*prompt)) {
            if (terminal.echoes && line->len > e.start && line->data[line->len - 1] != '\n')
                put("\n", 1);
            return LINE_END;
        } else if (c == '\b' || c == 0x7f) {
            shorten(&e, last_character(&e));
        } else if (c == 'W' - '@') {
            shorten(&e, last_word(&e));
        } else if (c == 'U' - '@') {
            shorten(&e, e.start);
        } else if (c >= 0x20 || c == '\t') {
            append(line, &(char){(char)c}, 1);
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
    int byte;
    if (isatty(STDIN_FILENO))
        fputs(prompt, stderr);
    if (terminal.out >= 0)
        return edit_line(line, prompt);
    while ((byte = read_byte()) >= 0 && byte != '\n')
        append(line, &(char){(char)byte}, 1);
    if (byte == INTERRUPT)
        return LINE_INTERRUPTED;
    if (byte == FAILURE)
        return LINE_FAILED;
    if (byte == NO_MORE && line->len == start)
        return LINE_END;
    line->len -= line->len > start && line->data[line->len - 1] == '\r';
    return LINE_READ;
}
