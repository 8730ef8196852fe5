// Measures the results of a backend against recorded cases, output by output.
// Port of runtime/parity/comparison.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cases.hpp"
#include "metrics.hpp"

namespace ouro::cli {

// Index of a position whose best token differs, and the margin of the reference's two best.
using Divergence = std::pair<std::int64_t, double>;

// One output of one case, measured but not judged.
struct Measurement {
  std::string name, kind;  // of the case
  std::int64_t depth = 0;
  std::string output;
  Difference difference;
  double worst_relative_l2 = kInfinite;  // of the worst position of logits, else of all channels
  std::optional<double> kl, mean_kl;     // of the worst position, of all; of logits alone
  std::optional<double> argmax_agreement;
  std::vector<Divergence> divergences;
  double reference_error = 0;  // that PyTorch is known to make in the bundle's precision
  std::string note;            // why nothing could be measured; empty where it could
};

// Measures every output of every case, in order, against its result. What can't be compared gives a
// measurement with infinite errors and a note: it is never skipped.
std::vector<Measurement> measure_all(const std::vector<Result>& results,
                                     const std::vector<Case>& cases);

}  // namespace ouro::cli
