/* fail.h - how the library reports errors: one sentence into the caller's buffer. Not part of the
 * interface. */
#ifndef FAIL_H
#define FAIL_H
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

/* Formats the sentence into err (errlen bytes; nothing when errlen is 0) and returns -1. */
__attribute__((format(printf, 3, 4))) static inline int fail(
    char *err, size_t errlen, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (errlen)
        vsnprintf(err, errlen, format, args);
    va_end(args);
    return -1;
}

/* For functions that have `err` and `errlen`, and return an int or a pointer. */
#define FAIL(...) fail(err, errlen, __VA_ARGS__)
#define FAIL_NULL(...) (FAIL(__VA_ARGS__), NULL)

/* Returns from the function with this error unless the condition holds. */
#define REQUIRE(condition, ...)       \
    do {                              \
        if (!(condition))             \
            return FAIL(__VA_ARGS__); \
    } while (0)

/* The same from a function that returns a pointer. */
#define REQUIRE_OR_NULL(condition, ...)    \
    do {                                   \
        if (!(condition))                  \
            return FAIL_NULL(__VA_ARGS__); \
    } while (0)

/* Returns -1 from the function when a call that has set err says that it failed. */
#define TRY(failed)    \
    do {               \
        if (failed)    \
            return -1; \
    } while (0)

#endif
