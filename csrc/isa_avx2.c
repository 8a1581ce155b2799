/* isa_avx2.c - kernels for AVX2 with FMA and F16C (Intel from 2013, AMD from 2015): 8 floats in a vector. */
#if defined(__x86_64__)
#include "kernels.h"
#include <immintrin.h>

#define ISA avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define MADD(i, w, x) (INTS) _mm256_add_epi32((__m256i)(i), _mm256_madd_epi16((__m256i)(w), (__m256i)(x)))
#include "words_avx2.inc"
#include "kernels.inc"

static int has_avx2(void) { /* F16C is older than either */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

const kernels kernels_avx2 = {
    .name = "avx2",
    .has = has_avx2,
    .rows = 16,
    .few = PRODUCTS(avx2, 2),
    .many = MANY_PRODUCTS(avx2),
    KERNELS(avx2),
};
#else
typedef int nothing_avx2; /* C wants something in a file */
#endif
