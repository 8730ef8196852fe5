// Choosing a token from logits, as docs/sampling.md specifies and tests/vectors proves.
// Port of runtime/decode/sampling.py and philox.py.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "decode/options.hpp"
#include "tokens.hpp"

namespace ouro::core {

// The n-th draw of a seed: 53 random bits in [0, 1).
// Source: Salmon et al. (SC 2011), Philox-4x32 with 10 rounds.
double uniform(std::uint64_t seed, std::uint64_t number);

// What the model gave a token that was chosen: natural logarithms of probabilities before any
// option, of it and of the most likely tokens, the most likely first.
struct TokenLogprob {
  Token token;
  double logprob;
  std::vector<std::pair<Token, double>> best;
};

// Chooses the tokens of one sequence.
class Sampler {
 public:
  // Takes checked options, and the tokens before the first new one.
  Sampler(const Options& options, const Tokens& prompt);

  // The next token of float32 [size] logits. Throws engine_error where the best is not finite.
  Token choose(const float* logits, std::size_t size);
  // The log-probabilities that the options ask for; none where they ask for none.
  std::optional<TokenLogprob> describe(const float* logits, std::size_t size, Token token) const;

 private:
  Options options_;
  double penalty_;
  std::set<Token> seen_;
  std::uint64_t drawn_ = 0;
};

}  // namespace ouro::core
