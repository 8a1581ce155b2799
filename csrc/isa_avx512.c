/* isa_avx512.c - kernels for AVX-512 with VNNI (Intel from 2019, AMD from 2022): 16 floats in a vector. */
#if defined(__x86_64__)
#include "kernels.h"
#include <immintrin.h>

#define ISA avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")))
#include "words_avx512.inc"
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
#else
typedef int nothing_avx512; /* C wants something in a file */
#endif
