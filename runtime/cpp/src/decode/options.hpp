// What a caller may ask of a generation beside its prompt. Port of runtime/decode/options.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "defaults.hpp"

namespace ouro::core {

struct SamplingSpec;

// How one sequence is generated; docs/sampling.md says exactly how a token is chosen. What is not
// given takes the bundle's default, but for `seed`, where the system draws one, and `logprobs`,
// where none are kept.
struct Options {
  std::int64_t max_new_tokens = kMaxNewTokens;
  std::optional<double> temperature;
  std::optional<std::int64_t> top_k;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<std::uint64_t> seed;
  std::vector<std::string> stop;
  std::optional<std::int64_t> logprobs;
};

// The options with nothing left open but `logprobs`. Throws engine_error where one is outside its
// range.
Options check_options(Options options, const SamplingSpec& defaults);

}  // namespace ouro::core
