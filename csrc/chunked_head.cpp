// The glue between the matrix products of the LM head (aapa.kernels.chunked.glue): threads over rows, with the row
// kernels of the newest instruction set that this processor has.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <limits>
#include <optional>
#include <string>

#include "head_rows.h"

namespace {

// torch has looked at the processor already, and at ATEN_CPU_CAPABILITY, by which a user may choose an older set.
const HeadRows& choose() {
#if defined(__x86_64__)
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return head_rows_avx512;
  }
  if ((capability == "AVX512" || capability == "AVX2") && __builtin_cpu_supports("avx2") &&
      __builtin_cpu_supports("fma")) {
    return head_rows_avx2;
  }
#endif
  return head_rows_baseline;
}

const HeadRows& rows_for(at::ScalarType dtype) {
  static const HeadRows& chosen = choose();
  return dtype == at::kDouble ? head_rows_double : chosen;
}

void check_logits(const at::Tensor& logits, const at::Tensor& column) {
  TORCH_CHECK(logits.dim() == 2, "logits: expected [R, V], got ", logits.dim(), " dimensions");
  TORCH_CHECK(logits.scalar_type() == at::kFloat || logits.scalar_type() == at::kDouble,
              "logits: expected float32 or float64, got ", logits.scalar_type());
  TORCH_CHECK(logits.size(1) <= 1 || logits.stride(1) == 1, "logits: expected contiguous rows");
  TORCH_CHECK(column.scalar_type() == at::kLong && column.dim() == 1 && column.size(0) == logits.size(0),
              "column: expected int64 [", logits.size(0), "]");
  const int64_t* found = column.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < column.size(0); ++row) {
    TORCH_CHECK(found[row] >= -1 && found[row] < logits.size(1), "column: expected -1 … ", logits.size(1) - 1, ", got ",
                found[row]);
  }
}

// A vector of the rows, contiguous in the dtype of the logits; keeps what it copied alive.
class RowVector {
 public:
  RowVector(const std::optional<at::Tensor>& given, const at::Tensor& logits, const char* name) {
    if (given.has_value()) {
      TORCH_CHECK(given->dim() == 1 && given->size(0) == logits.size(0) && given->scalar_type() == logits.scalar_type(),
                  name, ": expected [", logits.size(0), "] in ", logits.scalar_type());
      values_ = given->contiguous();
    }
  }
  const void* data() const { return values_.defined() ? values_.const_data_ptr() : nullptr; }

 private:
  at::Tensor values_;
};

// Rows of a thread: at least about 64 thousand elements.
int64_t grain(const at::Tensor& logits) { return std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, logits.size(1))); }

at::Tensor head_statistics(
    const at::Tensor& logits, const at::Tensor& column, const std::optional<at::Tensor>& scale) {
  const auto column_c = column.contiguous();
  check_logits(logits, column_c);
  const int64_t rows = logits.size(0);
  auto found = at::empty({4, rows}, logits.options());
  if (logits.size(1) == 0) {
    found.zero_();
    found.select(0, 0).fill_(-std::numeric_limits<double>::infinity());
    return found;
  }
  const RowVector scale_c(scale, logits, "scale");
  const HeadChunk chunk{const_cast<void*>(logits.const_data_ptr()), logits.stride(0), logits.size(1),
                        column_c.const_data_ptr<int64_t>(), scale_c.data()};
  const HeadRows& kernels = rows_for(logits.scalar_type());
  void* out = found.mutable_data_ptr();
  at::parallel_for(0, rows, grain(logits),
                   [&](int64_t begin, int64_t end) { kernels.statistics(chunk, begin, end, out, rows); });
  return found;
}

void head_gradient_(
    at::Tensor& logits,
    const at::Tensor& column,
    const std::optional<at::Tensor>& scale,
    const at::Tensor& lse,
    const at::Tensor& logprob_grad,
    const at::Tensor& entropy,
    const std::optional<at::Tensor>& entropy_grad) {
  const auto column_c = column.contiguous();
  check_logits(logits, column_c);
  const RowVector scale_c(scale, logits, "scale"), lse_c(lse, logits, "lse"), entropy_c(entropy, logits, "entropy");
  const RowVector logprob_grad_c(logprob_grad, logits, "logprob_grad"), entropy_grad_c(entropy_grad, logits, "entropy_grad");
  const HeadTerms terms{lse_c.data(), logprob_grad_c.data(), entropy_c.data(), entropy_grad_c.data()};
  const HeadChunk chunk{logits.mutable_data_ptr(), logits.stride(0), logits.size(1), column_c.const_data_ptr<int64_t>(),
                        scale_c.data()};
  const HeadRows& kernels = rows_for(logits.scalar_type());
  at::parallel_for(0, logits.size(0), grain(logits),
                   [&](int64_t begin, int64_t end) { kernels.gradient(chunk, terms, begin, end); });
}

// What float32 rows run on: "baseline", "avx2" or "avx512". Rows in float64 are plain C++ on every processor.
std::string head_instruction_set() { return rows_for(at::kFloat).name; }

}  // namespace

TORCH_LIBRARY_IMPL(aapa, CPU, m) {
  m.impl("head_statistics", &head_statistics);
  m.impl("head_gradient_", &head_gradient_);
}

// It has no tensor whose device could choose an implementation.
TORCH_LIBRARY_IMPL(aapa, CompositeExplicitAutograd, m) { m.impl("head_instruction_set", &head_instruction_set); }
