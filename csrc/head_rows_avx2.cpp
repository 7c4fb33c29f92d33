// Row kernels for processors with AVX2. Only what follows the pragma uses its instructions, and it calls nothing.
#include "head_rows.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define LANES 8
#define HEAD_ROWS head_rows_avx2
#define INSTRUCTION_SET "avx2"
#include "head_rows.inc"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
