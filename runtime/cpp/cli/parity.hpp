// The parity check: does a bundle compute what PyTorch computed? Bounds, ties and the verdict.
// Port of runtime/parity/verdict.py and check.py.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "comparison.hpp"

namespace ouro::cli {

inline constexpr char kPass[] = "PASS", kFail[] = "FAIL", kAmbiguous[] = "AMBIGUOUS";

// One case x depth x output, judged.
struct ParityRow {
  Measurement measurement;
  double bound = 0;  // on its relative L2 error
  std::string verdict, reason;
  std::size_t ties = 0;  // positions whose best token differs within a tie
};

// What the arithmetic that a quantised bundle ships with adds to its exact arithmetic: in nats, of
// PyTorch's distribution to the engine's, over all recorded logits.
struct FastReport {
  std::int64_t accuracy_level = 0;
  double mean_kl = kInfinite, worst_kl = kInfinite, bound = 0, argmax_agreement = 0;

  std::string verdict() const { return mean_kl <= bound ? kPass : kFail; }
};

// The outcome of a parity check.
struct ParityReport {
  std::string verdict;
  double bound = 0;  // on the relative L2 error, where PyTorch's own does not ask for more
  std::vector<ParityRow> rows;
  double tie_margin = 0;  // two best logits closer than this count as a tie
  std::vector<std::int64_t> depths;
  std::vector<std::string> problems;  // what is missing from the recording; any is a FAIL
  std::string bundle, backend;
  std::optional<FastReport> fast;  // of a bundle that ships with faster arithmetic

  // Of the logits: the worst error, PyTorch's own, and the largest that passes.
  double worst_relative_l2() const;
  double reference_error() const;
  double allowed() const;
  std::size_t ambiguous() const;
};

// FAIL where there is one or no verdict at all, else AMBIGUOUS where there is one, else PASS.
std::string worst_verdict(const std::vector<std::string>& verdicts);

// Runs a bundle's recorded cases and compares with what PyTorch gave. A quantised bundle is
// compared in exact arithmetic; what its faster arithmetic adds is measured apart. Throws
// bundle_error where the bundle is not whole, engine_error for an unknown backend.
ParityReport check_bundle(const std::filesystem::path& path, const std::string& backend,
                          std::optional<std::int64_t> threads);

// The report as `ouro check --json` writes it.
nlohmann::ordered_json report_json(const ParityReport& report);

}  // namespace ouro::cli
