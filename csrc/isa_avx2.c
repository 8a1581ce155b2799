/* isa_avx2.c - kernels for AVX2 with FMA and F16C (Intel from 2013, AMD from 2015): 8 floats in a vector. */
#if defined(__x86_64__)
#include "kernels.h"
#include <immintrin.h>

#define ISA avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define VL 8
#define HALF(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define TO_HALF(p, v) _mm_storeu_si128((__m128i *)(p), _mm256_cvtps_ph(v, 0))
#define MADD(i, w, x) (INTS) _mm256_add_epi32((__m256i)(i), _mm256_madd_epi16((__m256i)(w), (__m256i)(x)))
#define FMA(a, b, c) (VEC) _mm256_fmadd_ps(a, b, c)
#define LOOKUP(p, i)             \
    (BYTES) _mm256_shuffle_epi8( \
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(p))), (__m256i)(i))
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
