/* neon.h - arm_neon.h with the names of all instructions. Clang before 16 hides those that not every processor has, also
 * from functions that may use them. */
#ifndef NEON_H
#define NEON_H
#if defined(__aarch64__)
#if defined(__clang__) && __clang_major__ < 16
#define __ARM_FEATURE_DOTPROD 1
#define __ARM_FEATURE_MATMUL_INT8 1
#endif
#include <arm_neon.h>
#endif
#endif
