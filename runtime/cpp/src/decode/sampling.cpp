#include "decode/sampling.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>

#include "bundle/json.hpp"
#include "error.hpp"

namespace ouro::core {
namespace {

constexpr int kRounds = 10;
constexpr std::size_t kFirst = 512;  // enough for nearly every draw: sorting all costs more

using Weights = std::vector<double>;
using Indices = std::vector<std::size_t>;

// The first of the largest; in blocks of independent lanes, which compilers turn into vectors: this
// runs for every token over the whole vocabulary. With `nan` tells whether one is none.
template <typename Number>
std::size_t find_largest(const Number* values, std::size_t size, bool* nan = nullptr) {
  constexpr std::size_t kLanes = 16, kBlock = 256;
  Number best = values[0];
  std::size_t found = 0, start = 0;
  Number odd[kLanes] = {};
  for (; start + kBlock <= size; start += kBlock) {
    Number lanes[kLanes];
    std::copy(values + start, values + start + kLanes, lanes);
    for (std::size_t at = start; at < start + kBlock; at += kLanes) {
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        const Number value = values[at + lane];
        lanes[lane] = value > lanes[lane] ? value : lanes[lane];
        odd[lane] += value - value;  // 0, but NaN for NaN and infinities
      }
    }
    const Number most = *std::max_element(lanes, lanes + kLanes);
    if (most > best) {
      best = most;
      found = start;
    }
  }
  if (start > 0) {
    const std::size_t end = std::min(found + kBlock, size);
    found = static_cast<std::size_t>(std::find(values + found, values + end, best) - values);
  }
  for (; start < size; ++start) {
    if (values[start] > best) best = values[found = start];
    odd[0] += values[start] - values[start];
  }
  if (nan != nullptr && std::any_of(odd, odd + kLanes, [](Number one) { return one != one; })) {
    *nan = std::any_of(values, values + size, [](Number one) { return one != one; });
  }
  return found;
}

// The `count` largest of the indices, in falling order; equal ones in the order of the ids.
Indices falling(const Weights& weights, Indices order, std::size_t count) {
  const auto heavier = [&weights](std::size_t one, std::size_t other) {
    return weights[one] > weights[other] || (weights[one] == weights[other] && one < other);
  };
  count = std::min(count, order.size());
  const auto end = order.begin() + static_cast<std::ptrdiff_t>(count);
  if (count < order.size()) std::nth_element(order.begin(), end, order.end(), heavier);
  order.resize(count);
  std::sort(order.begin(), order.end(), heavier);
  return order;
}

// The same of all tokens.
Indices largest(const Weights& weights, std::size_t count) {
  Indices all(weights.size());
  std::iota(all.begin(), all.end(), std::size_t{0});
  return falling(weights, std::move(all), count);
}

// The first whose running sum passes the drawn share of the whole.
std::size_t pick(const Weights& weights, double drawn) {
  double sum = 0.0;
  Weights running(weights.size());
  for (std::size_t place = 0; place < weights.size(); ++place)
    running[place] = sum += weights[place];
  const auto found = std::upper_bound(running.begin(), running.end(), drawn * sum);
  return std::min(static_cast<std::size_t>(found - running.begin()), weights.size() - 1);
}

// Indices of the tokens that top-k and top-p keep, the most likely first.
Indices keep_top(const Weights& weights, std::size_t top_k, double top_p) {
  const std::size_t count = std::min(top_k == 0 ? weights.size() : top_k, weights.size());
  if (top_p == 1.0) return largest(weights, count);
  Indices kept = count == weights.size() ? Indices{} : largest(weights, count);
  std::sort(kept.begin(), kept.end());  // the whole is added up in the order of the ids
  double whole = 0.0;
  if (kept.empty()) {
    for (double weight : weights) whole += weight;
  }
  for (std::size_t index : kept) whole += weights[index];
  const double needed = top_p * whole;
  Indices order;
  for (const std::size_t first : {std::min(count, kFirst), count}) {
    order = largest(weights, first);
    double sum = 0.0;
    for (std::size_t place = 0; place < first; ++place) {
      sum += weights[order[place]];
      if (sum >= needed) {
        order.resize(place + 1);
        return order;
      }
    }
  }
  return order;
}

// Draws a token by temperature, top-k, top-p and min-p, in this order. `best` is the largest.
template <typename Number>
std::size_t draw(const Number* logits, std::size_t size, std::size_t best, const Options& options,
                 double drawn) {
  Weights weights(size);
  const double most = static_cast<double>(logits[best]);
  for (std::size_t index = 0; index < size; ++index) {
    weights[index] = std::exp((static_cast<double>(logits[index]) - most) / *options.temperature);
  }
  if (*options.top_k == 0 && *options.top_p == 1.0 && *options.min_p == 0.0) {
    return pick(weights, drawn);
  }
  Indices kept;
  // The best weighs exactly 1, so that this is min_p of the best.
  const auto heavy = [&](std::size_t index) { return weights[index] >= *options.min_p; };
  if (*options.top_k == 0 && *options.top_p == 1.0) {  // few are left to be sorted
    for (std::size_t index = 0; index < size; ++index) {
      if (heavy(index)) kept.push_back(index);
    }
    kept = falling(weights, std::move(kept), size);
  } else {
    kept = keep_top(weights, static_cast<std::size_t>(*options.top_k), *options.top_p);
    kept.erase(std::find_if_not(kept.begin(), kept.end(), heavy), kept.end());
  }
  Weights rest(kept.size());
  std::transform(kept.begin(), kept.end(), rest.begin(),
                 [&weights](std::size_t index) { return weights[index]; });
  return kept[pick(rest, drawn)];
}

}  // namespace

double uniform(std::uint64_t seed, std::uint64_t number) {
  auto low_word = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
  std::uint32_t c0 = low_word(number), c1 = low_word(number >> 32), c2 = 0, c3 = 0;
  std::uint32_t k0 = low_word(seed), k1 = low_word(seed >> 32);
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t first = std::uint64_t{0xD2511F53} * c0;
    const std::uint64_t second = std::uint64_t{0xCD9E8D57} * c2;
    c0 = low_word(second >> 32) ^ c1 ^ k0;
    c1 = low_word(second);
    c2 = low_word(first >> 32) ^ c3 ^ k1;
    c3 = low_word(first);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return static_cast<double>((std::uint64_t{c0} << 32 | c1) >> 11) * 0x1p-53;
}

Sampler::Sampler(const Options& options, const Tokens& prompt)
    : options_(options), penalty_(options.repetition_penalty.value_or(1.0)) {
  if (penalty_ != 1.0) seen_.insert(prompt.begin(), prompt.end());
}

Token Sampler::choose(const float* logits, std::size_t size) {
  bool nan = false;  // one anywhere fails, as numpy's argmax finds it before any number
  std::size_t best = find_largest(logits, size, &nan);
  if (nan || !std::isfinite(logits[best])) {
    throw engine_error("the model's logits are not finite", "run `ouro check` on the bundle");
  }
  const bool greedy = *options_.temperature == 0.0 || *options_.top_k == 1;
  const auto next = [this] { return uniform(*options_.seed, drawn_++); };
  if (penalty_ == 1.0) {
    return static_cast<Token>(greedy ? best : draw(logits, size, best, options_, next()));
  }
  // Source: Keskar et al., CTRL, arXiv 1909.05858, section 4.1; as Hugging Face has it.
  Weights wide(logits, logits + size);
  for (const Token token : seen_) {
    double& logit = wide[static_cast<std::size_t>(token)];
    logit = logit > 0 ? logit / penalty_ : logit * penalty_;
  }
  best = find_largest(wide.data(), size);
  if (!std::isfinite(wide[best])) {
    throw engine_error("repetition_penalty=" + repr(penalty_) + " makes logits infinite",
                       "give one nearer to 1");
  }
  const auto token =
      static_cast<Token>(greedy ? best : draw(wide.data(), size, best, options_, next()));
  seen_.insert(token);
  return token;
}

std::optional<TokenLogprob> Sampler::describe(const float* logits, std::size_t size,
                                              Token token) const {
  if (!options_.logprobs) return std::nullopt;
  Weights wide(logits, logits + size);
  const double most = *std::max_element(wide.begin(), wide.end());
  double sum = 0.0;
  for (double& one : wide) sum += std::exp(one -= most);
  const double whole = std::log(sum);
  for (double& one : wide) one -= whole;
  TokenLogprob result{token, wide[static_cast<std::size_t>(token)], {}};
  for (std::size_t index : largest(wide, static_cast<std::size_t>(*options_.logprobs))) {
    result.best.emplace_back(static_cast<Token>(index), wide[index]);
  }
  return result;
}

}  // namespace ouro::core
