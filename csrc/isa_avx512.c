/* isa_avx512.c - kernels for AVX-512 with VNNI (Intel from 2019, AMD from 2022): 16 floats in a vector. With AMX
 * beside it (amx.inc) it is another table. */
#if defined(__x86_64__)
#include "kernels.h"
#include <immintrin.h>

#define ISA avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")))
#define VL 16
#define HALF(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define TO_HALF(p, v) _mm256_storeu_si256((__m256i *)(p), _mm512_cvtps_ph(v, 0))
#define MADD(i, w, x) (INTS) _mm512_dpwssd_epi32((__m512i)(i), (__m512i)(w), (__m512i)(x))
#define FMA(a, b, c) (VEC) _mm512_fmadd_ps(a, b, c)
#define LOOKUP(p, i) \
    (BYTES) _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(p))), (__m512i)(i))
#define DOT(i, w, x) (INTS) _mm512_dpbusd_epi32((__m512i)(i), (__m512i)(w), (__m512i)(x))
#define DOT_POSITIVE(i, w, x) (INTS) _mm512_dpbusd_epi32((__m512i)(i), (__m512i)(x), (__m512i)(w))
#define SHIFTED SIGNED
#include "kernels.inc"

static int has_avx512(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni");
}

const kernels kernels_avx512 = {
    .name = "avx512",
    .has = has_avx512,
    .rows = 32,
    .few = PRODUCTS(avx512, 1),
    .many = MANY_PRODUCTS(avx512),
    KERNELS(avx512),
};

#include "amx.inc"
#else
typedef int nothing_avx512; /* C wants something in a file */
#endif
