// How far numbers are from their reference: the figures of the parity report.
// Port of runtime/parity/metrics.py.
#pragma once

#include <cstddef>
#include <limits>
#include <vector>

#include "backends/memory.hpp"

namespace ouro::cli {

inline constexpr double kInfinite = std::numeric_limits<double>::infinity();

// The median of values, of which there is one at least.
double median(std::vector<double> values);

// Errors of one tensor against its reference, over the entries that are compared. `finite` is false
// where either side holds a NaN or an infinity; every error is then infinite.
struct Difference {
  double max_abs = kInfinite, mean_abs = kInfinite, relative_l2 = kInfinite, cosine = 0;
  bool finite = false;
};

// What logits add, an entry a position: relative L2, the divergence of the reference to the other
// in nats, whether the best token is the same, the margin of the reference's two best logits.
struct LogitDifference {
  std::vector<double> relative_l2, kl, margin;
  std::vector<bool> agrees;
};

// Which entries of a tensor are compared; as many as it has.
using Mask = std::vector<char>;

// Compares two tensors of one shape; without a mask every entry.
Difference compare_arrays(const std::vector<double>& expected, const std::vector<double>& found,
                          const Mask* mask = nullptr);

// Compares finite logits [n, size] position by position.
LogitDifference compare_logits(const std::vector<double>& expected,
                               const std::vector<double>& found, std::size_t size);

// The root mean square, over channels, of each channel's relative L2 error: of pooled sums
// [B, D, K, d] a channel each of d, of keys or values [B, D, kv, S, hd] one each of kv x hd. A
// channel below a hundredth of the median one is measured by that.
double channel_error(const std::vector<double>& expected, const std::vector<double>& found,
                     const core::Shape& shape, const Mask& mask);

}  // namespace ouro::cli
