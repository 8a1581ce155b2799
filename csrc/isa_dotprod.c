/* isa_dotprod.c - kernels for NEON with dot products of bytes (FEAT_DotProd: Neoverse N1, Cortex-A76, Apple M1): 4 floats
 * in a vector. With products of matrices beside it (i8mm.inc) it is another table. */
#if defined(__aarch64__)
#include "kernels.h"
#include "neon.h"
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#if defined(__clang__)
#define TARGET __attribute__((target("dotprod")))
#else
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

#define ISA dotprod
#define DOT(i, w, x) vdotq_s32((int32x4_t)(i), (int8x16_t)(w), (int8x16_t)(x))
#define DOT_POSITIVE(i, w, x) (int32x4_t) vdotq_u32((uint32x4_t)(i), (uint8x16_t)(w), (uint8x16_t)(x))
#define SHIFTED POSITIVE
#include "words_neon.inc"
#include "kernels.inc"

#if defined(__linux__)
static int has_dotprod(void) { return getauxval(AT_HWCAP) >> 20 & 1; } /* HWCAP_ASIMDDP */
#elif defined(__APPLE__)
static int has_feature(const char *name) {
    int yes = 0;
    size_t size = sizeof yes;
    return !sysctlbyname(name, &yes, &size, NULL, 0) && yes;
}

static int has_dotprod(void) { return has_feature("hw.optional.arm.FEAT_DotProd"); }
#else
static int has_dotprod(void) { return 0; }
#endif

const kernels kernels_dotprod = {
    .name = "dotprod",
    .has = has_dotprod,
    .rows = 16,
    .few = PRODUCTS(dotprod, 1),
    .many = MANY_PRODUCTS(dotprod),
    KERNELS(dotprod),
};

#include "i8mm.inc"
#else
typedef int nothing_dotprod; /* C wants something in a file */
#endif
