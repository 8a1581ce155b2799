/* avx512.h - AVX-512 in software, to run the engine's "avx512" and, with tiles.h beside it, its "amx" where the
 * processor has only AVX2: given to the compiler with -include, it stands in for the intrinsics that csrc/ uses,
 * after the pseudocode of Intel's manual. An intrinsic that is missing here does not compile, by name.
 *
 * Arithmetic written as vectors (`a * b + c`) is left to the compiler, which splits vectors of 64 bytes in two
 * and fuses multiplications with additions as it does for the processor. The numbers are the processor's, to the
 * last bit, if it fuses the same ones. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* before the first system header, for the files that need it */
#endif
#ifdef __x86_64__
#include <immintrin.h>
#include <stdint.h>

/* Functions for any instruction set are compiled for AVX2, and AVX-512 is there whatever the processor says.
 * Neither name is replaced again within its own replacement. */
#define target(features) target("avx2,fma,f16c")
#define __builtin_cpu_supports(feature) \
    (__builtin_strncmp(feature, "avx512", 6) == 0 || __builtin_cpu_supports(feature))

#define SOFT static inline __attribute__((always_inline, target("")))

typedef union soft_512 {
    __m512 floats;
    __m512i integers;
    __m256 f[2];
    __m256i i[2];
} soft_512;

SOFT soft_512 soft_floats(__m512 v) { return (soft_512){.floats = v}; }
SOFT soft_512 soft_integers(__m512i v) { return (soft_512){.integers = v}; }

SOFT __m512 soft_mul_ps(__m512 a, __m512 b) {
    const soft_512 x = soft_floats(a), y = soft_floats(b);
    return (soft_512){.f = {_mm256_mul_ps(x.f[0], y.f[0]), _mm256_mul_ps(x.f[1], y.f[1])}}.floats;
}

/* Halves, then halves of these, and so on, as both GCC and Clang add them up */
SOFT float soft_reduce_add_ps(__m512 v) {
    const soft_512 x = soft_floats(v);
    const __m256 eight = _mm256_add_ps(x.f[1], x.f[0]);
    const __m128 four = _mm_add_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

SOFT __m512 soft_cvtph_ps(__m256i v) {
    return (soft_512){
        .f = {_mm256_cvtph_ps(_mm256_castsi256_si128(v)), _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1))}}
        .floats;
}

/* To nearest even, whatever the mode says: the engine asks for nothing else */
SOFT __m256i soft_cvtps_ph(__m512 v) {
    const soft_512 x = soft_floats(v);
    return _mm256_set_m128i(_mm256_cvtps_ph(x.f[1], 0), _mm256_cvtps_ph(x.f[0], 0));
}

SOFT __m512 soft_cvtepi32_ps(__m512i v) {
    const soft_512 x = soft_integers(v);
    return (soft_512){.f = {_mm256_cvtepi32_ps(x.i[0]), _mm256_cvtepi32_ps(x.i[1])}}.floats;
}

SOFT __m512i soft_cvtepu16_epi32(__m256i v) {
    return (soft_512){.i = {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)),
                          _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1))}}
        .integers;
}

SOFT __m512i soft_slli_epi32(__m512i v, unsigned count) {
    const soft_512 x = soft_integers(v);
    return (soft_512){.i = {_mm256_slli_epi32(x.i[0], (int)count), _mm256_slli_epi32(x.i[1], (int)count)}}
        .integers;
}

SOFT __m512i soft_srai_epi32(__m512i v, unsigned count) {
    const soft_512 x = soft_integers(v);
    return (soft_512){.i = {_mm256_srai_epi32(x.i[0], (int)count), _mm256_srai_epi32(x.i[1], (int)count)}}
        .integers;
}

SOFT __m512i soft_loadu_si512(const void *p) {
    const __m256i *halves = p;
    return (soft_512){.i = {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)}}.integers;
}

/* Sums wrap around; they do not saturate */
SOFT __m512i soft_dpwssd_epi32(__m512i sum, __m512i a, __m512i b) {
    const soft_512 s = soft_integers(sum), x = soft_integers(a), y = soft_integers(b);
    return (soft_512){.i = {_mm256_add_epi32(s.i[0], _mm256_madd_epi16(x.i[0], y.i[0])),
                          _mm256_add_epi32(s.i[1], _mm256_madd_epi16(x.i[1], y.i[1]))}}
        .integers;
}

/* To nearest even; numbers below the normal ones become 0, and NaN stays NaN */
SOFT uint16_t soft_bf16_of(uint32_t bits) {
    const uint32_t size = bits & 0x7fffffff;
    if (size < 0x00800000)
        return bits >> 16 & 0x8000;
    if (size > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

SOFT __m256i soft_cvtneps_pbh(__m512 v) {
    union {
        __m512 floats;
        uint32_t bits[16];
    } from = {v};
    union {
        uint16_t bits[16];
        __m256i halves;
    } to;
    for (int i = 0; i < 16; i++)
        to.bits[i] = soft_bf16_of(from.bits[i]);
    return to.halves;
}

#undef _mm512_mul_ps
#undef _mm512_reduce_add_ps
#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#undef _mm512_cvtepi32_ps
#undef _mm512_cvtepu16_epi32
#undef _mm512_slli_epi32
#undef _mm512_srai_epi32
#undef _mm512_loadu_si512
#undef _mm512_dpwssd_epi32
#undef _mm512_cvtneps_pbh
#define _mm512_mul_ps(a, b) soft_mul_ps(a, b)
#define _mm512_reduce_add_ps(v) soft_reduce_add_ps(v)
#define _mm512_cvtph_ps(v) soft_cvtph_ps(v)
#define _mm512_cvtps_ph(v, mode) soft_cvtps_ph(v)
#define _mm512_cvtepi32_ps(v) soft_cvtepi32_ps(v)
#define _mm512_cvtepu16_epi32(v) soft_cvtepu16_epi32(v)
#define _mm512_slli_epi32(v, count) soft_slli_epi32(v, count)
#define _mm512_srai_epi32(v, count) soft_srai_epi32(v, count)
#define _mm512_loadu_si512(p) soft_loadu_si512(p)
#define _mm512_dpwssd_epi32(sum, a, b) soft_dpwssd_epi32(sum, a, b)
#define _mm512_cvtneps_pbh(v) soft_cvtneps_pbh(v)
#endif
