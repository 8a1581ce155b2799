/* avx512.h - AVX-512 and AVX-VNNI in software, to run the engine's "avx512", "avxvnni" and, with tiles.h beside it,
 * "amx" where the processor has only AVX2: given to the compiler with -include, it stands in for the intrinsics that csrc/ uses,
 * after the pseudocode of Intel's manual. An intrinsic that is missing here does not compile, by name.
 *
 * Arithmetic written as vectors (`a * b + c`) is left to the compiler, which splits vectors of 64 bytes in two
 * and fuses multiplications with additions as it does for the processor. The numbers are the processor's, to the
 * last bit, if it fuses the same ones. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* before the first system header, for the files that need it */
#endif
#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#include <stdint.h>

/* Functions for any instruction set are compiled for AVX2; AVX-512 and AVX-VNNI are there whatever the processor
 * says. No name is replaced again within its own replacement. */
#define target(features) target("avx2,fma,f16c")
#define __builtin_cpu_supports(feature) \
    (__builtin_strncmp(feature, "avx512", 6) == 0 || __builtin_cpu_supports(feature))

#define __get_cpuid_count(leaf, part, a, b, c, d) (*(a) = *(b) = *(c) = *(d) = ~0u, 1)

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

/* Unsigned bytes of a times signed ones of b, four neighbours added up; sums wrap around */
SOFT __m256i soft_dot_bytes(__m256i sum, __m256i a, __m256i b) {
    const __m256i low = _mm256_set1_epi16(255);
    const __m256i even =
        _mm256_madd_epi16(_mm256_and_si256(a, low), _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}

SOFT __m512i soft_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    const soft_512 s = soft_integers(sum), x = soft_integers(a), y = soft_integers(b);
    return (soft_512){.i = {soft_dot_bytes(s.i[0], x.i[0], y.i[0]), soft_dot_bytes(s.i[1], x.i[1], y.i[1])}}
        .integers;
}

SOFT __m256i soft_dpwssd_avx_epi32(__m256i sum, __m256i a, __m256i b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}

SOFT __m512 soft_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    const soft_512 x = soft_floats(a), y = soft_floats(b), z = soft_floats(c);
    return (soft_512){.f = {_mm256_fmadd_ps(x.f[0], y.f[0], z.f[0]), _mm256_fmadd_ps(x.f[1], y.f[1], z.f[1])}}
        .floats;
}

SOFT __m512i soft_shuffle_epi8(__m512i a, __m512i b) {
    const soft_512 x = soft_integers(a), y = soft_integers(b);
    return (soft_512){.i = {_mm256_shuffle_epi8(x.i[0], y.i[0]), _mm256_shuffle_epi8(x.i[1], y.i[1])}}
        .integers;
}

SOFT __m512i soft_broadcast_i32x4(__m128i v) {
    const __m256i two = _mm256_broadcastsi128_si256(v);
    return (soft_512){.i = {two, two}}.integers;
}

SOFT __m512i soft_and_si512(__m512i a, __m512i b) {
    const soft_512 x = soft_integers(a), y = soft_integers(b);
    return (soft_512){.i = {_mm256_and_si256(x.i[0], y.i[0]), _mm256_and_si256(x.i[1], y.i[1])}}.integers;
}

SOFT __m512i soft_srli_epi16(__m512i v, unsigned count) {
    const soft_512 x = soft_integers(v);
    return (soft_512){.i = {_mm256_srli_epi16(x.i[0], (int)count), _mm256_srli_epi16(x.i[1], (int)count)}}
        .integers;
}

SOFT __m512i soft_set1_epi8(char n) {
    const __m256i all = _mm256_set1_epi8(n);
    return (soft_512){.i = {all, all}}.integers;
}

SOFT __m512 soft_set1_ps(float f) {
    const __m256 all = _mm256_set1_ps(f);
    return (soft_512){.f = {all, all}}.floats;
}

SOFT __m512 soft_loadu_ps(const void *p) {
    const float *halves = p;
    return (soft_512){.f = {_mm256_loadu_ps(halves), _mm256_loadu_ps(halves + 8)}}.floats;
}

SOFT void soft_storeu_ps(void *p, __m512 v) {
    const soft_512 x = soft_floats(v);
    _mm256_storeu_ps(p, x.f[0]);
    _mm256_storeu_ps((float *)p + 8, x.f[1]);
}

SOFT void soft_storeu_si512(void *p, __m512i v) {
    const soft_512 x = soft_integers(v);
    _mm256_storeu_si256(p, x.i[0]);
    _mm256_storeu_si256((__m256i *)p + 1, x.i[1]);
}

#undef _mm512_mul_ps
#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#undef _mm512_cvtepi32_ps
#undef _mm512_loadu_si512
#undef _mm512_dpwssd_epi32
#undef _mm512_dpbusd_epi32
#undef _mm512_fmadd_ps
#undef _mm512_shuffle_epi8
#undef _mm512_broadcast_i32x4
#undef _mm512_and_si512
#undef _mm512_srli_epi16
#undef _mm512_set1_epi8
#undef _mm512_set1_ps
#undef _mm512_loadu_ps
#undef _mm512_storeu_ps
#undef _mm512_storeu_si512
#undef _mm256_dpwssd_avx_epi32
#undef _mm256_dpbusd_avx_epi32
#define _mm512_mul_ps(a, b) soft_mul_ps(a, b)
#define _mm512_cvtph_ps(v) soft_cvtph_ps(v)
#define _mm512_cvtps_ph(v, mode) soft_cvtps_ph(v)
#define _mm512_cvtepi32_ps(v) soft_cvtepi32_ps(v)
#define _mm512_loadu_si512(p) soft_loadu_si512(p)
#define _mm512_dpwssd_epi32(sum, a, b) soft_dpwssd_epi32(sum, a, b)
#define _mm512_dpbusd_epi32(sum, a, b) soft_dpbusd_epi32(sum, a, b)
#define _mm256_dpwssd_avx_epi32(sum, a, b) soft_dpwssd_avx_epi32(sum, a, b)
#define _mm256_dpbusd_avx_epi32(sum, a, b) soft_dot_bytes(sum, a, b)
#define _mm512_fmadd_ps(a, b, c) soft_fmadd_ps(a, b, c)
#define _mm512_shuffle_epi8(a, b) soft_shuffle_epi8(a, b)
#define _mm512_broadcast_i32x4(v) soft_broadcast_i32x4(v)
#define _mm512_and_si512(a, b) soft_and_si512(a, b)
#define _mm512_srli_epi16(v, count) soft_srli_epi16(v, count)
#define _mm512_set1_epi8(n) soft_set1_epi8(n)
#define _mm512_set1_ps(f) soft_set1_ps(f)
#define _mm512_loadu_ps(p) soft_loadu_ps(p)
#define _mm512_storeu_ps(p, v) soft_storeu_ps(p, v)
#define _mm512_storeu_si512(p, v) soft_storeu_si512(p, v)
#endif
