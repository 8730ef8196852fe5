// `ouro-cli check`: compare a bundle with PyTorch.

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>

#include "backends/memory.hpp"
#include "bundle/contract.hpp"
#include "commands.hpp"
#include "output.hpp"
#include "parity.hpp"

namespace ouro::cli {
namespace {

namespace contract = core::contract;

std::string largest(const std::vector<double>& values) {
  if (values.empty()) return "";
  return format("%.1e", *std::max_element(values.begin(), values.end()));
}

std::string smallest(const std::vector<double>& shares) {
  if (shares.empty()) return "";
  const double least = *std::min_element(shares.begin(), shares.end());
  return least == 1 ? "100%" : format("%.1f%%", least * 100);
}

std::vector<double> some(std::optional<double> value) {
  return value ? std::vector<double>{*value} : std::vector<double>{};
}

// One row a depth: the worst of its cases.
std::string depth_table(const ParityReport& report) {
  std::set<std::int64_t> depths;
  for (const ParityRow& row : report.rows) depths.insert(row.measurement.depth);
  std::vector<std::vector<std::string>> lines;
  for (const std::int64_t depth : depths) {
    std::set<std::string> cases;
    std::vector<std::string> verdicts;
    std::vector<double> max_abs, relative, kl, best, others, greedy;
    for (const ParityRow& row : report.rows) {
      const Measurement& one = row.measurement;
      if (one.depth != depth) continue;
      cases.insert(one.name);
      verdicts.push_back(row.verdict);
      if (one.output == contract::kLogits) {
        max_abs.push_back(one.difference.max_abs);
        relative.push_back(one.worst_relative_l2);
        if (one.kl) kl.push_back(*one.kl);
        if (one.argmax_agreement) best.push_back(*one.argmax_agreement);
      } else if (one.output == "tokens") {
        if (one.argmax_agreement) greedy.push_back(*one.argmax_agreement);
      } else {
        others.push_back(one.worst_relative_l2);
      }
    }
    lines.push_back({std::to_string(depth), std::to_string(cases.size()), largest(max_abs),
                     largest(relative), largest(kl), smallest(best), largest(others),
                     smallest(greedy), worst_verdict(verdicts)});
  }
  return make_table("engine against PyTorch, the worst case of each depth",
                    {{"depth"},
                     {"cases"},
                     {"max abs"},
                     {"rel. L2"},
                     {"KL"},
                     {"best"},
                     {"caches"},
                     {"greedy"},
                     {"verdict", false}},
                    lines);
}

// One row a case x depth x output; wide.
std::string full_table(const ParityReport& report) {
  const std::string prefix = contract::kNewPrefix;
  std::vector<std::vector<std::string>> lines;
  for (const ParityRow& row : report.rows) {
    const Measurement& one = row.measurement;
    const bool cache = one.output.rfind(prefix, 0) == 0;
    const bool differs = !one.divergences.empty();
    lines.push_back(
        {std::to_string(one.depth), one.name, cache ? one.output.substr(prefix.size()) : one.output,
         format("%.1e", one.difference.max_abs), format("%.1e", one.difference.mean_abs),
         format("%.1e", one.worst_relative_l2), format("%.1e", 1 - one.difference.cosine),
         largest(some(one.kl)), smallest(some(one.argmax_agreement)),
         differs ? std::to_string(one.divergences.front().first) : "",
         differs ? format("%.1e", one.divergences.front().second) : "", row.verdict});
  }
  return make_table("engine against PyTorch",
                    {{"depth", false},
                     {"case", false},
                     {"output", false},
                     {"max abs", false},
                     {"mean abs", false},
                     {"rel. L2", false},
                     {"1-cosine", false},
                     {"KL", false},
                     {"best token", false},
                     {"first other", false},
                     {"margin", false},
                     {"verdict", false}},
                    lines);
}

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

void print_report(const ParityReport& report, bool every) {
  print(every ? full_table(report) : depth_table(report));
  for (const std::string& problem : report.problems) print("missing: " + problem + "\n");
  std::size_t failed = 0, unbounded = 0;
  for (const ParityRow& row : report.rows) {
    unbounded += row.measurement.reference_error == kInfinite ? 1 : 0;
    if (row.verdict != kFail || ++failed > 10) continue;
    print("FAIL " + row.measurement.name + ", " + row.measurement.output + ": " + row.reason +
          "\n");
  }
  if (failed > 10) {
    print(format("... and %zu more; --all or --json shows them\n", failed - 10));
  }
  if (unbounded != 0) {
    print(
        format("no bound for %zu comparisons: PyTorch itself overflows there at this precision, "
               "so the engine is only asked for finite numbers\n",
               unbounded));
  }
  print(format("%zu comparisons with PyTorch in float64, %zu tied tokens\n", report.rows.size(),
               report.ambiguous()));
  if (report.fast) {
    const FastReport& fast = *report.fast;
    print(
        format("%s with 8-bit activations, as it ships: mean KL %.1e (bound %.0e), worst %.1e, "
               "best token %.0f%%\n",
               fast.verdict().c_str(), fast.mean_kl, fast.bound, fast.worst_kl,
               fast.argmax_agreement * 100));
  }
  print(
      format("%s the logits err by %.2e at most (PyTorch itself by %.2e, allowed %.2e), depths "
             "%lld..%lld\n",
             report.verdict.c_str(), report.worst_relative_l2(), report.reference_error(),
             report.allowed(), static_cast<long long>(report.depths.front()),
             static_cast<long long>(report.depths.back())));
}

}  // namespace

Command check_command() {
  return {"check",
          "Replay a bundle's recorded cases and compare with what PyTorch computed.\n\n"
          "Exit status 0: PASS or AMBIGUOUS (differs only where PyTorch's two best tokens tie, or "
          "PyTorch\nitself overflows in 16 bits, though not everywhere); 1: FAIL.",
          "ouro-cli check bundle --json parity.json",
          {"bundle"},
          {{"--backend", "name", "auto, cpu, cuda or trt; default: auto"},
           {"--json", "file", "write the whole report to this file"},
           {"--threads", "int", "CPU threads; default: every core"},
           {"--all", nullptr, "print every case and output, not one row a depth"}}};
}

int check(const Given& given) {
  const auto json = given.text("--json");
  if (json) require_writable(*json, given.arguments()[0]);
  const ParityReport report = check_bundle(
      given.arguments()[0], given.text("--backend").value_or("auto"), given.integer("--threads"));
  print_report(report, given.has("--all"));
  if (json) write_whole(*json, report_json(report).dump(2) + "\n");
  return report.verdict == kFail ? 1 : 0;
}

}  // namespace ouro::cli
