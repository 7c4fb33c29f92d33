// Sentence boundaries of packed sequences on the CPU: threads over sequences.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "segment_walk.h"

namespace {

// Tokens that a thread should have at least, or starting it costs more than it saves.
constexpr int64_t kGrain = 4096;

void check_walk(int32_t found, int64_t vocabulary) {
  TORCH_CHECK_VALUE(found != kBadToken, "token_T: expected ids in [0, ", vocabulary, "), got one outside");
  TORCH_CHECK_VALUE(found != kBadClass, "class_V: expected rows of next_CQ, got one outside");
  TORCH_CHECK_VALUE(found != kBadState, "next_CQ: expected states below its width, got one outside");
}

// A flag is a byte already.
at::Tensor bytes(const at::Tensor& flags) {
  return flags.scalar_type() == at::kBool ? flags.contiguous().view(at::kByte) : flags.to(at::kByte).contiguous();
}

const int64_t* check_offsets(const at::Tensor& offsets, int64_t total) {
  const int64_t* values = offsets.const_data_ptr<int64_t>();
  const int64_t sequences = offsets.numel() - 1;
  TORCH_CHECK_VALUE(sequences >= 0 && values[0] == 0 && values[sequences] == total,
                    "cu_seqlens: expected offsets from 0 to ", total);
  for (int64_t i = 0; i < sequences; ++i) {
    TORCH_CHECK_VALUE(values[i] <= values[i + 1], "cu_seqlens: expected offsets that do not decrease");
  }
  return values;
}

at::Tensor segment_sentences(
    const at::Tensor& token,
    const at::Tensor& cu_seqlens,
    const at::Tensor& classes,
    const at::Tensor& next,
    const at::Tensor& cut,
    const at::Tensor& mark) {
  const auto token_c = token.contiguous();
  const auto offsets_c = cu_seqlens.to(at::kLong).contiguous();
  const auto classes_c = classes.to(at::kInt).contiguous(), next_c = next.to(at::kByte).contiguous();
  const auto cut_c = bytes(cut), mark_c = bytes(mark);
  const SegmentTable table{classes_c.const_data_ptr<int32_t>(), next_c.const_data_ptr<uint8_t>(),
                           cut_c.const_data_ptr<uint8_t>(),     mark_c.const_data_ptr<uint8_t>(),
                           classes_c.numel(),                   next_c.size(0),
                           next_c.size(1)};
  const int64_t total = token_c.numel(), sequences = offsets_c.numel() - 1;
  TORCH_CHECK_VALUE(total < INT32_MAX, "token_T: expected fewer than 2^31 tokens, got ", total);
  const int64_t* offsets = check_offsets(offsets_c, total);

  // Sequence i has room for its tokens and one more, and is moved to its place when all counts are known.
  std::vector<int32_t> room(total + sequences);
  std::vector<int32_t> counts(sequences);
  const int64_t grain = std::max<int64_t>(1, kGrain * sequences / std::max<int64_t>(1, total));
  AT_DISPATCH_INDEX_TYPES(token_c.scalar_type(), "segment_sentences", [&] {
    const index_t* ids = token_c.const_data_ptr<index_t>();
    at::parallel_for(0, sequences, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const auto begin = static_cast<int32_t>(offsets[i]), end = static_cast<int32_t>(offsets[i + 1]);
        counts[i] = segment_walk(ids, begin, end, table, room.data() + offsets[i] + i);
      }
    });
  });

  int64_t sentences = 0;
  for (const int32_t count : counts) {
    check_walk(count, table.vocabulary);
    sentences += count;
  }
  auto result = at::empty({sentences + 1}, token.options().dtype(at::kInt));
  int32_t* out = result.mutable_data_ptr<int32_t>();
  for (int64_t i = 0; i < sequences; ++i) {
    out = std::copy_n(room.data() + offsets[i] + i, counts[i], out);
  }
  *out = static_cast<int32_t>(total);
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(aapa, CPU, m) { m.impl("segment_sentences", &segment_sentences); }
