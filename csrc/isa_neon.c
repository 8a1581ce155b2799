/* isa_neon.c - kernels for NEON, which every aarch64 processor has: 4 floats in a vector. */
#if defined(__aarch64__)
#include "kernels.h"
#include <arm_neon.h>

static inline int32x4_t madd_neon(int32x4_t i, int16x8_t w, int16x8_t x) {
    return vaddq_s32(i, vpaddq_s32(vmull_s16(vget_low_s16(w), vget_low_s16(x)), vmull_high_s16(w, x)));
}

#define ISA neon
#define TARGET
#define VL 4
#define HALF(p) vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))
#define TO_HALF(p, v) vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)))
#define MADD(i, w, x) madd_neon((int32x4_t)(i), (int16x8_t)(w), (int16x8_t)(x))
#define FMA(a, b, c) vfmaq_f32(c, a, b)
#define LOOKUP(p, i) vqtbl1q_u8(vld1q_u8((const uint8_t *)(p)), i)
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
