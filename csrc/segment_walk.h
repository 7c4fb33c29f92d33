// The transducer of aapa.kernels.sentence_types over one sequence, for the CPU and for a GPU.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define SEGMENT_FUNCTION __device__ inline
#else
#define SEGMENT_FUNCTION inline
#endif

struct SegmentTable {
  const int32_t* classes;  // of each token id
  const uint8_t* next;     // [rows, states]; so are cut and mark, one byte each
  const uint8_t* cut;
  const uint8_t* mark;
  int64_t vocabulary, rows, states;
};

// What segment_walk returns where a look-up would lead outside of the table.
constexpr int32_t kBadToken = -1, kBadClass = -2, kBadState = -3;

// Number of sentences in tokens[begin, end); writes where they begin unless out == nullptr. At most 1 + end - begin.
template <typename Token>
SEGMENT_FUNCTION int32_t
segment_walk(const Token* tokens, int32_t begin, int32_t end, const SegmentTable& table, int32_t* out) {
  if (begin >= end) {
    return 0;
  }
  int32_t found = 1, mark = begin, last = begin;
  int64_t state = 0;
  if (out != nullptr) {
    out[0] = begin;
  }
  for (int32_t place = begin; place < end; ++place) {
    const int64_t token = tokens[place];
    if (token < 0 || token >= table.vocabulary) {
      return kBadToken;
    }
    const int64_t row = table.classes[token];
    if (row < 0 || row >= table.rows) {
      return kBadClass;
    }
    const int64_t step = row * table.states + state;
    if (table.cut[step] != 0 && mark > last) {
      last = mark;
      if (out != nullptr) {
        out[found] = mark;
      }
      ++found;
    }
    if (table.mark[step] != 0) {
      mark = place + 1;
    }
    state = table.next[step];
    if (state >= table.states) {
      return kBadState;
    }
  }
  return found;
}
