/* isa_avxvnni.c - kernels for AVX2 with AVX-VNNI (Intel's processors without AVX-512, from 2021): 8 floats in a vector. */
#if defined(__x86_64__)
#include "kernels.h"
#include <cpuid.h>
#include <immintrin.h>

#define ISA avxvnni
#define TARGET __attribute__((target("avx2,avxvnni,fma,f16c")))
#define MADD(i, w, x) (INTS) _mm256_dpwssd_avx_epi32((__m256i)(i), (__m256i)(w), (__m256i)(x))
#define DOT(i, w, x) (INTS) _mm256_dpbusd_avx_epi32((__m256i)(i), (__m256i)(w), (__m256i)(x))
#define DOT_POSITIVE(i, w, x) (INTS) _mm256_dpbusd_avx_epi32((__m256i)(i), (__m256i)(x), (__m256i)(w))
#define SHIFTED SIGNED
#include "words_avx2.inc"
#include "kernels.inc"

static int has_avxvnni(void) { /* not every compiler knows its name */
    unsigned a = 0, b, c, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}

const kernels kernels_avxvnni = {
    .name = "avxvnni",
    .has = has_avxvnni,
    .rows = 16,
    .few = PRODUCTS(avxvnni, 1),
    .many = MANY_PRODUCTS(avxvnni),
    KERNELS(avxvnni),
};
#else
typedef int nothing_avxvnni; /* C wants something in a file */
#endif
