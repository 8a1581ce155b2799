/* numbers.h - numbers of a file and of a cache, written and read one by one. Not part of the interface. */
#ifndef NUMBERS_H
#define NUMBERS_H
#include "kernels.h"

/* fp16 to float and back, to nearest even */
float half_to_float(uint16_t half);
uint16_t float_to_half(float f);

/* The scale with which n numbers fit into integers up to `most`, at most the largest of fp16; NaN if one of them is */
float scale_to(float most, const float *x, size_t n);
/* q (n,) = round(x / scale), within int8 */
void round_by(float scale, int8_t *q, const float *x, size_t n);

/* A tile's columns from c0 to c0 + n, n and c0 multiples of 8 */
void read_halves(const matrix *w, size_t row, size_t c0, size_t n, float out[][LLM_TILE]);
/* ... of int8 or int4, without their scales */
void read_integers(const matrix *w, size_t row, size_t c0, size_t n, int8_t out[][LLM_TILE]);
/* The scales (16,) of the group that column c0 is in */
void read_scales(const matrix *w, size_t row, size_t c0, float scales[LLM_TILE]);
/* The numbers (n, 16) of any dtype, n <= 64; rotated ones as they are */
void read_tile(const matrix *w, size_t row, size_t c0, size_t n, float out[][LLM_TILE]);

#endif
