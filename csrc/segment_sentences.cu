// Sentence boundaries of packed sequences on a GPU: a thread for each sequence, few of which train at a time and none of
// which is long beside a training step. A plain C interface and no torch header, so that nvcc alone compiles it;
// aapa.kernels.native.cuda does, and calls it. Two passes, for the number of sentences is not known before: count, then
// (after a sum on the host's side) write.
#include <cstdint>
#include <cuda_runtime.h>

#include "segment_walk.h"

namespace {

struct Problem {
  const void* tokens;  // int32 or int64
  int wide;            // 1: int64
  const int32_t* offsets;
  int64_t sequences;
  SegmentTable table;
};

__device__ int32_t walk(const Problem& p, int64_t s, int32_t* out) {
  const int32_t begin = p.offsets[s], end = p.offsets[s + 1];
  return p.wide != 0 ? segment_walk(static_cast<const int64_t*>(p.tokens), begin, end, p.table, out)
                     : segment_walk(static_cast<const int32_t*>(p.tokens), begin, end, p.table, out);
}

__global__ void count_sentences(Problem p, int32_t* counts) {
  const int64_t s = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (s < p.sequences) {
    counts[s] = walk(p, s, nullptr);
  }
}

__global__ void write_sentences(Problem p, const int64_t* first, int32_t* out) {
  const int64_t s = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (s < p.sequences) {
    walk(p, s, out + first[s]);
  }
}

// Few threads to a block: sequences are few, and this spreads them over the multiprocessors.
constexpr int kThreads = 32;

unsigned blocks(const Problem& p) { return static_cast<unsigned>((p.sequences + kThreads - 1) / kThreads); }

}  // namespace

// Both return a cudaError_t, 0 for success. Pointers are device pointers; `stream` is a cudaStream_t.
extern "C" int aapa_segment_sentences_count(
    const void* tokens, int wide, const int32_t* offsets, int64_t sequences, const int32_t* classes, int64_t vocabulary,
    const uint8_t* next, const uint8_t* cut, const uint8_t* mark, int64_t rows, int64_t states, int32_t* counts,
    void* stream) {
  const Problem p{tokens, wide, offsets, sequences, {classes, next, cut, mark, vocabulary, rows, states}};
  if (sequences > 0) {
    count_sentences<<<blocks(p), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p, counts);
  }
  return static_cast<int>(cudaGetLastError());
}

extern "C" int aapa_segment_sentences_write(
    const void* tokens, int wide, const int32_t* offsets, int64_t sequences, const int32_t* classes, int64_t vocabulary,
    const uint8_t* next, const uint8_t* cut, const uint8_t* mark, int64_t rows, int64_t states, const int64_t* first,
    int32_t* out, void* stream) {
  const Problem p{tokens, wide, offsets, sequences, {classes, next, cut, mark, vocabulary, rows, states}};
  if (sequences > 0) {
    write_sentences<<<blocks(p), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p, first, out);
  }
  return static_cast<int>(cudaGetLastError());
}
