// Row kernels for any processor: four floats at a time, which every 64-bit one has; and doubles one by one.
#include "head_rows.h"

#include <cmath>
#include <limits>

#define LANES 4
#define HEAD_ROWS head_rows_baseline
#define INSTRUCTION_SET "baseline"
#include "head_rows.inc"

namespace {

void statistics_double(const HeadChunk& chunk, int64_t begin, int64_t end, void* out, int64_t rows) {
  double* found = static_cast<double*>(out);
  for (int64_t row = begin; row < end; ++row) {
    const double* x = static_cast<const double*>(chunk.logits) + row * chunk.stride;
    const double scale = chunk.scale == nullptr ? 1.0 : static_cast<const double*>(chunk.scale)[row];
    double maximum = std::numeric_limits<double>::lowest(), sum = 0.0, product = 0.0;
    for (int64_t i = 0; i < chunk.columns; ++i) {
      const double z = x[i] * scale;
      maximum = z > maximum || z != z ? z : maximum;
    }
    for (int64_t i = 0; i < chunk.columns; ++i) {
      const double z = x[i] * scale - maximum, e = std::exp(z);
      sum += e;
      product += e == 0.0 ? 0.0 : e * z;
    }
    const int64_t column = chunk.column[row];
    found[row] = maximum;
    found[rows + row] = sum;
    found[2 * rows + row] = product;
    found[3 * rows + row] = column >= 0 ? x[column] * scale : 0.0;
  }
}

void gradient_double(const HeadChunk& chunk, const HeadTerms& terms, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    double* x = static_cast<double*>(chunk.logits) + row * chunk.stride;
    const double scale = chunk.scale == nullptr ? 1.0 : static_cast<const double*>(chunk.scale)[row];
    const double lse = static_cast<const double*>(terms.lse)[row];
    const double g = static_cast<const double*>(terms.logprob_grad)[row] * scale;
    const bool spread = terms.entropy_grad != nullptr;
    const double e = spread ? static_cast<const double*>(terms.entropy_grad)[row] * scale : 0.0;
    const double entropy = spread ? static_cast<const double*>(terms.entropy)[row] : 0.0;
    for (int64_t i = 0; i < chunk.columns; ++i) {
      const double log_p = x[i] * scale - lse;
      x[i] = std::exp(log_p) * -(spread ? e * (log_p + entropy) + g : g);
    }
    if (chunk.column[row] >= 0) {
      x[chunk.column[row]] += g;
    }
  }
}

}  // namespace

const HeadRows head_rows_double = {&statistics_double, &gradient_double, "double"};
