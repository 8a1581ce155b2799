/* isa_neon.c - kernels for NEON, which every aarch64 processor has: 4 floats in a vector. */
#if defined(__aarch64__)
#include "kernels.h"
#include "neon.h"

#define ISA neon
#define TARGET
#include "words_neon.inc"
#include "kernels.inc"

static int has_neon(void) { return 1; }

const kernels kernels_neon = {
    .name = "neon",
    .has = has_neon,
    .rows = 16,
    .few = PRODUCTS(neon, 2),
    .many = MANY_PRODUCTS(neon),
    KERNELS(neon),
};
#else
typedef int nothing_neon; /* C wants something in a file */
#endif
