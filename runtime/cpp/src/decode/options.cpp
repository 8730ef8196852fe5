#include "decode/options.hpp"

#include <limits>
#include <random>

#include "bundle/json.hpp"
#include "bundle/manifest.hpp"
#include "error.hpp"

namespace ouro::core {
namespace {

constexpr double kLeast = 5e-324;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

void check_count(const char* name, std::int64_t value, std::int64_t least, const char* allowed) {
  if (value < least) {
    throw engine_error(std::string(name) + "=" + std::to_string(value) + " is not allowed",
                       allowed);
  }
}

void check_number(const char* name, double value, double least, double most, const char* allowed) {
  if (!(value >= least && value <= most) || value == kInfinity) {
    throw engine_error(std::string(name) + "=" + repr(value) + " is not allowed", allowed);
  }
}

}  // namespace

Options check_options(Options options, const SamplingSpec& defaults) {
  if (!options.temperature) options.temperature = defaults.temperature;
  if (!options.top_k) options.top_k = defaults.top_k;
  if (!options.top_p) options.top_p = defaults.top_p;
  if (!options.min_p) options.min_p = defaults.min_p;
  if (!options.repetition_penalty) options.repetition_penalty = defaults.repetition_penalty;
  check_count("max_new_tokens", options.max_new_tokens, 1, "a whole number of 1 or more");
  check_number("temperature", *options.temperature, 0.0, kInfinity, "0 is greedy, else above 0");
  check_count("top_k", *options.top_k, 0, "a whole number, 0 keeps every token");
  check_number("top_p", *options.top_p, kLeast, 1.0, "above 0 and at most 1");
  check_number("min_p", *options.min_p, 0.0, 1.0, "0 keeps every token, at most 1");
  check_number("repetition_penalty", *options.repetition_penalty, kLeast, kInfinity,
               "above 0, 1 changes nothing");
  if (options.logprobs) {
    check_count("logprobs", *options.logprobs, 0, "how many of the best tokens, 0 or more");
  }
  if (!options.seed) {
    std::random_device system;
    options.seed = static_cast<std::uint64_t>(system()) << 32 | system();
  }
  for (const std::string& text : options.stop) {
    if (text.empty()) throw engine_error("stop='' is not allowed", "a text that is not empty");
  }
  return options;
}

}  // namespace ouro::core
