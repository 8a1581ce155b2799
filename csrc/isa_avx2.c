/* isa_avx2.c - kernels for AVX2 with FMA and F16C (Intel from 2013, AMD from 2015): 8 floats in a vector. */
#if defined(__x86_64__)
#include "kernels.h"
#include <immintrin.h>

#define ISA avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define VL 8
#define HALF(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define TO_HALF(p, v) _mm_storeu_si128((__m128i *)(p), _mm256_cvtps_ph(v, 0))
#define MADD(i, w, x) ((i) + (ints_avx2)_mm256_madd_epi16((__m256i)(w), (__m256i)(x)))
#define SUM(v) sum4_avx2(_mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1))
#define sum4_avx2(v) _mm_cvtss_f32(_mm_dp_ps(v, _mm_set1_ps(1), 0xff))
#include "kernels.inc"

static int has_avx2(void) { /* F16C is older than either */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

const kernels kernels_avx2 = {
    .name = "avx2",
    .has = has_avx2,
    .rows = 16,
    .few = PRODUCTS(avx2),
    KERNELS(avx2),
};
#else
typedef int nothing_avx2; /* C wants something in a file */
#endif
