// Sentence boundaries of packed sequences: the transducer of aapa.kernels.sentence_types, threads over sequences.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <vector>

namespace {

struct Table {
  const int32_t* classes;
  const uint8_t* next;
  const bool* cut;
  const bool* mark;
  int64_t vocabulary, rows, states;
};

// Tokens that a thread should have at least, or starting it costs more than it saves.
constexpr int64_t kGrain = 4096;

template <typename Token>
void segment(const Token* tokens, int64_t begin, int64_t end, const Table& table, std::vector<int32_t>& starts) {
  if (begin == end) {
    return;
  }
  starts.push_back(static_cast<int32_t>(begin));
  int64_t state = 0, mark = begin;
  for (int64_t place = begin; place < end; ++place) {
    const auto token = static_cast<int64_t>(tokens[place]);
    TORCH_CHECK_VALUE(
        token >= 0 && token < table.vocabulary, "token_T: expected ids in [0, ", table.vocabulary, "), got ", token);
    const int64_t row = table.classes[token];
    TORCH_CHECK_VALUE(row >= 0 && row < table.rows, "class_V: expected classes in [0, ", table.rows, "), got ", row);
    const int64_t step = row * table.states + state;
    if (table.cut[step]) {
      starts.push_back(static_cast<int32_t>(mark));
    }
    if (table.mark[step]) {
      mark = place + 1;
    }
    state = table.next[step];
    TORCH_CHECK_VALUE(state < table.states, "next_CQ: expected states in [0, ", table.states, "), got ", state);
  }
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
  const auto cut_c = cut.to(at::kBool).contiguous(), mark_c = mark.to(at::kBool).contiguous();
  const Table table{classes_c.const_data_ptr<int32_t>(), next_c.const_data_ptr<uint8_t>(), cut_c.const_data_ptr<bool>(),
                    mark_c.const_data_ptr<bool>(), classes_c.numel(), next_c.size(0), next_c.size(1)};
  const int64_t* offsets = offsets_c.const_data_ptr<int64_t>();
  const int64_t sequences = offsets_c.numel() - 1, total = token_c.numel();
  TORCH_CHECK_VALUE(sequences >= 0 && offsets[0] == 0 && offsets[sequences] == total,
                    "cu_seqlens: expected offsets from 0 to ", total);
  for (int64_t i = 0; i < sequences; ++i) {
    TORCH_CHECK_VALUE(offsets[i] <= offsets[i + 1], "cu_seqlens: expected offsets that do not decrease");
  }

  std::vector<std::vector<int32_t>> starts(sequences);
  const int64_t grain = std::max<int64_t>(1, kGrain * sequences / std::max<int64_t>(1, total));
  AT_DISPATCH_INDEX_TYPES(token_c.scalar_type(), "segment_sentences", [&] {
    const index_t* ids = token_c.const_data_ptr<index_t>();
    at::parallel_for(0, sequences, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        segment(ids, offsets[i], offsets[i + 1], table, starts[i]);
      }
    });
  });

  int64_t sentences = 0;
  for (const auto& part : starts) {
    sentences += static_cast<int64_t>(part.size());
  }
  auto result = at::empty({sentences + 1}, token.options().dtype(at::kInt));
  int32_t* out = result.mutable_data_ptr<int32_t>();
  for (const auto& part : starts) {
    out = std::copy(part.begin(), part.end(), out);
  }
  *out = static_cast<int32_t>(total);
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(aapa, CPU, m) { m.impl("segment_sentences", &segment_sentences); }
