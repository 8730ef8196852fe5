#include "parity.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "backends/backend.hpp"
#include "bundle/contract.hpp"
#include "bundle/reader.hpp"
#include "output.hpp"
#include "replay.hpp"

namespace ouro::cli {
namespace {

namespace contract = core::contract;

constexpr double kRelativeL2 = 1e-5;
// An engine may be so many times as far off as PyTorch is known to be.
constexpr double kFloat32Errors = 3.0, kHalfErrors = 2.0;
constexpr double kFastKl = 1e-3;         // nats, mean over the recorded logits
constexpr std::int64_t kExactLevel = 1;  // MatMulNBits in float32

using Like = std::pair<std::string, std::string>;

Like like(const Measurement& one, bool half) { return {half ? one.kind : "", one.output}; }

// The bound of each measurement, by the worst that PyTorch makes of its like: the error of one case
// is one draw.
std::vector<double> bounds_of(const std::vector<Measurement>& measured, double bound, bool half) {
  const double factor = half ? kHalfErrors : kFloat32Errors;
  std::map<Like, double> worst;
  for (const Measurement& one : measured) {
    if (one.reference_error < kInfinite) {
      double& known = worst[like(one, half)];
      known = std::max(known, one.reference_error);
    }
  }
  std::vector<double> bounds;
  for (const Measurement& one : measured) {
    bounds.push_back(one.reference_error < kInfinite
                         ? std::max(bound, factor * worst[like(one, half)])
                         : one.reference_error);
  }
  return bounds;
}

ParityRow judge_one(const Measurement& one, double bound, double tie_margin) {
  ParityRow row{one, bound, kPass, "", 0};
  const Divergence* beyond = nullptr;
  for (const Divergence& divergence : one.divergences) {
    if (divergence.second < tie_margin) {
      ++row.ties;
    } else if (beyond == nullptr) {
      beyond = &divergence;
    }
  }
  if (!one.note.empty()) {
    row.verdict = kFail;
    row.reason = one.note;
  } else if (!(one.worst_relative_l2 <= bound)) {  // also catches a NaN
    row.verdict = kFail;
    row.reason = format("relative L2 %.3e > %.3e", one.worst_relative_l2, bound);
  } else if (bound == kInfinite) {
    row.verdict = kAmbiguous;
    row.reason = "finite, but PyTorch itself overflows here: nothing to compare";
  } else if (beyond != nullptr) {
    const bool halting = one.output == contract::kDepthUsed;
    row.verdict = kFail;
    row.reason =
        format("%s %lld, margin %.2e", halting ? "another depth in row" : "another token at",
               static_cast<long long>(beyond->first), beyond->second);
  } else if (row.ties != 0) {
    row.verdict = kAmbiguous;
    row.reason = std::to_string(row.ties) + " tied";
  }
  return row;
}

// Turns measurements into rows, and gives the margin below which two best logits tie: twice the
// largest absolute error of any logit that is within its bound, if it has one.
std::vector<ParityRow> judge(const std::vector<Measurement>& measured, double bound, bool half,
                             double& tie_margin) {
  const std::vector<double> bounds = bounds_of(measured, bound, half);
  tie_margin = 0;
  for (std::size_t place = 0; place < measured.size(); ++place) {
    const Measurement& one = measured[place];
    const bool of_logits = one.output == contract::kLogits || one.output == "tokens";
    const bool bounded = bounds[place] < kInfinite;
    if (of_logits && bounded && one.worst_relative_l2 <= bounds[place]) {
      tie_margin = std::max(tie_margin, 2 * one.difference.max_abs);
    }
  }
  std::vector<ParityRow> rows;
  for (std::size_t place = 0; place < measured.size(); ++place) {
    // A depth ties where the halting score is as near to the threshold as it may be off.
    const bool halting = measured[place].output == contract::kDepthUsed;
    rows.push_back(judge_one(measured[place], bounds[place], halting ? bounds[place] : tie_margin));
  }
  return rows;
}

FastReport judge_fast(const std::vector<Measurement>& measured, const core::Manifest& manifest) {
  FastReport fast;
  if (manifest.quantization) fast.accuracy_level = manifest.quantization->accuracy_level;
  fast.bound =
      std::min(manifest.parity.kl.value_or(0) > 0 ? *manifest.parity.kl : kFastKl, kFastKl);
  double total = 0, worst = -kInfinite, agreement = kInfinite;
  std::size_t known = 0, logits = 0;
  for (const Measurement& one : measured) {
    if (one.output != contract::kLogits) continue;
    ++logits;
    if (!one.mean_kl || !one.argmax_agreement) continue;
    ++known;
    total += *one.mean_kl;
    worst = std::max(worst, one.kl.value_or(0));
    agreement = std::min(agreement, *one.argmax_agreement);
  }
  if (known == 0) return fast;
  fast.worst_kl = worst;
  fast.argmax_agreement = agreement;
  if (known == logits) fast.mean_kl = total / static_cast<double>(known);
  return fast;
}

template <class Value>
double most_of_logits(const std::vector<ParityRow>& rows, double none, const Value& value_of) {
  double most = -1;
  for (const ParityRow& row : rows) {
    if (row.measurement.output == contract::kLogits) most = std::max(most, value_of(row));
  }
  return most < 0 ? none : most;
}

// What JSON takes for a number that may be infinite or missing.
nlohmann::ordered_json finite_or_null(std::optional<double> value) {
  if (value && std::abs(*value) < kInfinite) return *value;
  return nullptr;
}

nlohmann::ordered_json row_json(const ParityRow& row) {
  const Measurement& one = row.measurement;
  nlohmann::ordered_json json{{"case", one.name}, {"kind", one.kind}, {"depth", one.depth}};
  json["output"] = one.output;
  json["max_abs"] = finite_or_null(one.difference.max_abs);
  json["mean_abs"] = finite_or_null(one.difference.mean_abs);
  json["relative_l2"] = finite_or_null(one.worst_relative_l2);
  json["reference_error"] = finite_or_null(one.reference_error);
  json["bound"] = finite_or_null(row.bound);
  json["cosine"] = finite_or_null(one.difference.cosine);
  json["kl"] = finite_or_null(one.kl);
  json["argmax_agreement"] = finite_or_null(one.argmax_agreement);
  json["first_divergence"] = nullptr;
  json["margin"] = nullptr;
  if (!one.divergences.empty()) {
    json["first_divergence"] = one.divergences.front().first;
    json["margin"] = finite_or_null(one.divergences.front().second);
  }
  json["ties"] = row.ties;
  json["verdict"] = row.verdict;
  json["reason"] = row.reason;
  return json;
}

// Whether PyTorch overflows in every case, so that no number of the engine's is bounded.
bool nothing_bounded(const std::vector<ParityRow>& rows) {
  bool logits = false;
  for (const ParityRow& row : rows) {
    if (row.measurement.output != contract::kLogits) continue;
    if (row.bound < kInfinite) return false;
    logits = true;
  }
  return logits;
}

}  // namespace

std::string worst_verdict(const std::vector<std::string>& verdicts) {
  const auto has = [&](const char* one) {
    return std::find(verdicts.begin(), verdicts.end(), one) != verdicts.end();
  };
  return has(kFail) || verdicts.empty() ? kFail : has(kAmbiguous) ? kAmbiguous : kPass;
}

double ParityReport::worst_relative_l2() const {
  return most_of_logits(rows, kInfinite,
                        [](const ParityRow& row) { return row.measurement.worst_relative_l2; });
}

double ParityReport::reference_error() const {
  return most_of_logits(rows, kInfinite,
                        [](const ParityRow& row) { return row.measurement.reference_error; });
}

double ParityReport::allowed() const {
  return most_of_logits(rows, 0, [](const ParityRow& row) { return row.bound; });
}

std::size_t ParityReport::ambiguous() const {
  std::size_t ties = 0;
  for (const ParityRow& row : rows) ties += row.ties;
  return ties;
}

ParityReport check_bundle(const std::filesystem::path& path, const std::string& backend,
                          std::optional<std::int64_t> threads) {
  core::check_choice(backend, threads);
  core::Choice choice;
  const core::Bundle bundle = core::open_bundle(
      path, [&](const core::Manifest& found) { choice = core::choose_backend(found, backend); });
  const core::Manifest& manifest = bundle.manifest();
  ParityReport report;
  report.bundle = path.string();
  for (std::int64_t depth = manifest.depth.min; depth <= manifest.depth.max; ++depth) {
    report.depths.push_back(depth);
  }
  std::vector<Case> cases;
  if (core::find(manifest.files, core::kCasesName) != nullptr) {
    cases = load_cases(bundle.file(core::kCasesName));
  } else {
    report.problems.push_back(std::string("the bundle holds no ") + core::kCasesName);
  }
  for (std::string& line : missing_cases(cases, report.depths, manifest.model.halting)) {
    report.problems.push_back(std::move(line));
  }
  auto opened = core::open_backend(bundle, choice, threads, kExactLevel);
  report.backend = opened->name();
  report.bound = std::min(manifest.parity.relative_l2, kRelativeL2);
  const bool half = std::string(manifest.cache_dtype()) != "float32";
  report.rows = judge(measure_all(run_cases(cases, opened, manifest), cases), report.bound, half,
                      report.tie_margin);
  if (nothing_bounded(report.rows)) {
    report.problems.emplace_back(
        "a case in which PyTorch itself does not overflow: nothing was compared");
  }
  const std::int64_t level =
      manifest.quantization ? manifest.quantization->accuracy_level : kExactLevel;
  if (report.backend == "cpu" && level != kExactLevel) {  // a GPU has no levels
    opened.reset();                                       // its weights would be there twice
    opened = core::open_backend(bundle, choice, threads);
    report.fast = judge_fast(measure_all(run_cases(cases, opened, manifest), cases), manifest);
  }
  std::vector<std::string> verdicts;
  for (const ParityRow& row : report.rows) verdicts.push_back(row.verdict);
  verdicts = {worst_verdict(verdicts)};
  if (report.fast) verdicts.push_back(report.fast->verdict());
  if (!report.problems.empty()) verdicts.emplace_back(kFail);
  report.verdict = worst_verdict(verdicts);
  return report;
}

nlohmann::ordered_json report_json(const ParityReport& report) {
  nlohmann::ordered_json json{{"verdict", report.verdict}, {"bound", report.bound}};
  json["worst_relative_l2"] = finite_or_null(report.worst_relative_l2());
  json["reference_error"] = finite_or_null(report.reference_error());
  json["allowed"] = finite_or_null(report.allowed());
  json["depths"] = report.depths;
  json["ambiguous"] = report.ambiguous();
  json["tie_margin"] = finite_or_null(report.tie_margin);
  json["problems"] = report.problems;
  json["bundle"] = report.bundle;
  json["backend"] = report.backend;
  json["fast"] = nullptr;
  if (report.fast) {
    const FastReport& fast = *report.fast;
    json["fast"] = {{"accuracy_level", fast.accuracy_level},
                    {"mean_kl", finite_or_null(fast.mean_kl)},
                    {"worst_kl", finite_or_null(fast.worst_kl)},
                    {"bound", fast.bound},
                    {"argmax_agreement", fast.argmax_agreement}};
  }
  json["rows"] = nlohmann::ordered_json::array();
  for (const ParityRow& row : report.rows) json["rows"].push_back(row_json(row));
  return json;
}

}  // namespace ouro::cli
