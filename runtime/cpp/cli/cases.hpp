// Cases and results of the parity check: what is run, and what came of it.
// Port of runtime/parity/cases.py.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "backends/backend.hpp"

namespace ouro::cli {

inline constexpr char kHaltScores[] = "halt_scores";  // no output of the graph
// What is said of a greedy or a long case that can't be run or compared.
inline constexpr char kUnfit[] = "its recorded tokens and logits do not fit together";

// Arrays of the host by name; beside the graph's types "bool" and "float64".
using Arrays = std::map<std::string, core::HostArray>;

// One recorded call of the graph, or a greedy continuation; see docs/bundle.md.
struct Case {
  std::string name, kind;
  std::int64_t depth = 0;
  std::vector<std::int64_t> positions;  // of each position asked for; may be empty
  std::optional<std::string> after;     // the case whose new keys and values are this one's past
  Arrays inputs, outputs, valid;
  std::map<std::string, double> reference_error;  // of PyTorch, by output; may be infinite
};

// What one case gave. Of a greedy case `tokens` int64 [n], the best token after each of the text's
// before, and `top2` float64 [n, 2], the logits of the text's own token and of the best other one.
struct Result {
  Arrays outputs;
  std::vector<std::int64_t> positions;  // of the logits; may repeat in a long case
  std::string failure;                  // why there are no outputs; empty where there are
};

// Something that a case lacks or that does not fit: its result says so.
class CaseError : public std::exception {
 public:
  explicit CaseError(std::string problem) : problem_(std::move(problem)) {}
  const char* what() const noexcept override { return problem_.c_str(); }

 private:
  std::string problem_;
};

// Reads recorded cases. Throws bundle_error: not such a file, or its list is not understood.
std::vector<Case> load_cases(const std::filesystem::path& file);

// Lines naming the kinds and depths that a recording lacks; each of `depths` needs some kinds.
std::vector<std::string> missing_cases(const std::vector<Case>& cases,
                                       const std::vector<std::int64_t>& depths, bool halting);

// The array's elements; float16 and bfloat16 become the numbers that they stand for.
std::vector<double> doubles_of(const core::HostArray& array);
// The elements of an array of int64.
std::vector<std::int64_t> integers_of(const core::HostArray& array);
core::HostArray make_array(core::Shape shape, const std::vector<std::int64_t>& values);
core::HostArray make_array(core::Shape shape, const std::vector<double>& values);
core::HostArray make_array(core::Shape shape, const std::vector<float>& values);

// The array of that name. Throws CaseError where there is none.
const core::HostArray& require(const Arrays& arrays, const std::string& name);

}  // namespace ouro::cli
