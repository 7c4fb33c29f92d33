// Means of the hidden states of each sentence, [S, D]: threads over sentences, sums in token order.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <vector>

namespace {

at::Tensor sentence_means(const at::Tensor& hidden, const at::Tensor& cu_sents) {
  TORCH_CHECK(hidden.dim() == 2, "hidden: expected [T, D], got ", hidden.dim(), " dimensions");
  const auto hidden_c = hidden.contiguous();
  const auto offsets_c = cu_sents.to(at::kLong).contiguous();
  const int64_t* offsets = offsets_c.const_data_ptr<int64_t>();
  const int64_t sentences = offsets_c.numel() - 1, width = hidden.size(1);
  TORCH_CHECK_VALUE(sentences >= 0 && offsets[0] == 0 && offsets[sentences] == hidden.size(0),
                    "cu_sents: expected offsets from 0 to ", hidden.size(0));
  for (int64_t s = 0; s < sentences; ++s) {
    TORCH_CHECK_VALUE(offsets[s] < offsets[s + 1], "cu_sents: expected increasing offsets");
  }
  const auto dtype = hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  auto means = at::zeros({sentences, width}, hidden.options().dtype(dtype));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, hidden.scalar_type(), "sentence_means", [&] {
    using sum_t = at::opmath_type<scalar_t>;
    const scalar_t* from = hidden_c.const_data_ptr<scalar_t>();
    sum_t* to = means.mutable_data_ptr<sum_t>();
    // Sentences differ in length: many small tasks even that out.
    const int64_t grain = std::max<int64_t>(1, (1 << 15) * sentences / std::max<int64_t>(1, hidden.numel()));
    at::parallel_for(0, sentences, grain, [&](int64_t first, int64_t last) {
      for (int64_t s = first; s < last; ++s) {
        sum_t* __restrict__ mean = to + s * width;
        for (int64_t token = offsets[s]; token < offsets[s + 1]; ++token) {
          const scalar_t* row = from + token * width;
          for (int64_t d = 0; d < width; ++d) {
            mean[d] += static_cast<sum_t>(row[d]);
          }
        }
        const auto count = static_cast<sum_t>(offsets[s + 1] - offsets[s]);
        for (int64_t d = 0; d < width; ++d) {
          mean[d] /= count;
        }
      }
    });
  });
  return means;
}

}  // namespace

TORCH_LIBRARY_IMPL(aapa, CPU, m) { m.impl("sentence_means", &sentence_means); }
