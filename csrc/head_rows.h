// Row kernels of the LM head's glue, one set per instruction set; plain C types, so that a unit compiled for a newer
// processor shares no inline function of a library with the others.
#pragma once
#include <cstdint>

// Rows [begin, end) of a chunk. z = logit * scale; scale == nullptr means 1.
struct HeadChunk {
  void* logits;           // float or double, `stride` elements from row to row
  int64_t stride;         //
  int64_t columns;        //
  const int64_t* column;  // of each row's target, -1 where it lies in another part
  const void* scale;      //
};

struct HeadTerms {
  const void* lse;
  const void* logprob_grad;
  const void* entropy;
  const void* entropy_grad;  // nullptr: nothing depends on the entropy
};

struct HeadRows {
  // out[0..3][row], `rows` elements apart: max z, sum exp(z - max), sum exp(z - max) (z - max), z at the target.
  void (*statistics)(const HeadChunk&, int64_t begin, int64_t end, void* out, int64_t rows);
  // Overwrites logits by scale (g (1[v = column] - p) - e p (log p + entropy)), p = exp(z - lse).
  void (*gradient)(const HeadChunk&, const HeadTerms&, int64_t begin, int64_t end);
  const char* name;  // of the instruction set
};

extern const HeadRows head_rows_double;
extern const HeadRows head_rows_baseline;
#if defined(__x86_64__)
extern const HeadRows head_rows_avx2;
extern const HeadRows head_rows_avx512;
#endif
