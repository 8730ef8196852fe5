#include "comparison.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "bundle/contract.hpp"
#include "bundle/say.hpp"

namespace ouro::cli {
namespace {

namespace contract = core::contract;

constexpr char kNotFinite[] = "NaN or infinity";

const core::HostArray* find(const Arrays& arrays, const std::string& name) {
  const auto found = arrays.find(name);
  return found == arrays.end() ? nullptr : &found->second;
}

Measurement describe(const Case& reference, const std::string& output) {
  Measurement one;
  one.name = reference.name;
  one.kind = reference.kind;
  one.depth = reference.depth;
  one.output = output;
  const auto known = reference.reference_error.find(output);
  one.reference_error = known == reference.reference_error.end() ? 0 : known->second;
  return one;
}

Measurement unmeasured(const Case& reference, const std::string& output, const std::string& note) {
  Measurement one = describe(reference, output);
  one.note = note;
  return one;
}

// A mask of a tensor's shape from one that numpy would broadcast to it; none where it would not.
std::optional<Mask> broadcast(const core::HostArray* valid, const core::Shape& shape) {
  Mask mask(core::count_elements(shape), 1);
  if (valid == nullptr) return mask;
  const std::size_t rank = shape.size(), missing = rank - valid->shape.size();
  if (valid->shape.size() > rank) return std::nullopt;
  std::vector<std::size_t> strides(rank, 0);
  std::size_t stride = 1;
  for (std::size_t axis = rank; axis-- > missing;) {
    const std::int64_t own = valid->shape[axis - missing];
    if (own != 1 && own != shape[axis]) return std::nullopt;
    strides[axis] = own == 1 ? 0 : stride;
    stride *= static_cast<std::size_t>(own);
  }
  const std::vector<double> values = doubles_of(*valid);
  for (std::size_t place = 0; place < mask.size(); ++place) {
    std::size_t rest = place, source = 0;
    for (std::size_t axis = rank; axis-- > 0;) {
      const auto size = static_cast<std::size_t>(shape[axis]);
      source += rest % size * strides[axis];
      rest /= size;
    }
    mask[place] = values[source] != 0;
  }
  return mask;
}

// Logits of positions that are finite, expected and found, each [n, size].
Measurement measure_logits(const Case& reference, const Difference& difference,
                           const std::vector<double>& expected, const std::vector<double>& found,
                           std::size_t size) {
  const LogitDifference details = compare_logits(expected, found, size);
  Measurement one = describe(reference, contract::kLogits);
  one.difference = difference;
  const auto most = [](const std::vector<double>& values) {
    return *std::max_element(values.begin(), values.end());
  };
  const auto count = static_cast<double>(details.kl.size());
  one.worst_relative_l2 = most(details.relative_l2);
  one.kl = most(details.kl);
  double total = 0;
  for (const double kl : details.kl) total += kl;
  one.mean_kl = total / count;
  for (std::size_t place = 0; place < details.agrees.size(); ++place) {
    if (!details.agrees[place]) {
      one.divergences.emplace_back(static_cast<std::int64_t>(place), details.margin[place]);
    }
  }
  one.argmax_agreement = 1 - static_cast<double>(one.divergences.size()) / count;
  return one;
}

// Rows of `width` of which any entry is chosen.
std::vector<double> chosen_rows(const std::vector<double>& values, const Mask& mask,
                                std::size_t width) {
  std::vector<double> rows;
  for (std::size_t start = 0; start + width <= values.size(); start += width) {
    const auto first = mask.begin() + static_cast<std::ptrdiff_t>(start);
    const auto last = first + static_cast<std::ptrdiff_t>(width);
    if (std::any_of(first, last, [](char one) { return one != 0; })) {
      const auto from = values.begin() + static_cast<std::ptrdiff_t>(start);
      rows.insert(rows.end(), from, from + static_cast<std::ptrdiff_t>(width));
    }
  }
  return rows;
}

// One output of the graph. `left_out`: rows of the batch that are not compared.
Measurement measure_output(const Result& result, const Case& reference, const std::string& output,
                           const std::set<std::int64_t>& left_out = {}) {
  const auto *expected = find(reference.outputs, output), *actual = find(result.outputs, output);
  if (expected == nullptr) {
    return unmeasured(reference, output, "the reference holds no such output");
  }
  if (actual == nullptr) return unmeasured(reference, output, "the result holds no such output");
  if (expected->shape != actual->shape) {
    const std::string shapes = "shape " + core::show_shape(actual->shape) + ", the reference's " +
                               core::show_shape(expected->shape);
    return unmeasured(reference, output, shapes);
  }
  std::optional<Mask> mask = broadcast(find(reference.valid, output), expected->shape);
  if (!mask) {
    return unmeasured(reference, output, "its mask of valid entries has the wrong shape");
  }
  for (const std::int64_t row : left_out) {
    const auto size = static_cast<std::ptrdiff_t>(mask->size()) / expected->shape[0];
    std::fill_n(mask->begin() + row * size, size, char{0});
  }
  if (std::none_of(mask->begin(), mask->end(), [](char one) { return one != 0; })) {
    return unmeasured(reference, output, "no entry is compared");
  }
  const std::vector<double> one = doubles_of(*expected), other = doubles_of(*actual);
  const Difference difference = compare_arrays(one, other, &*mask);
  if (!difference.finite) return unmeasured(reference, output, kNotFinite);
  if (output == contract::kLogits) {
    const auto size = static_cast<std::size_t>(expected->shape.back());
    return measure_logits(reference, difference, chosen_rows(one, *mask, size),
                          chosen_rows(other, *mask, size), size);
  }
  Measurement measured = describe(reference, output);
  measured.difference = difference;
  measured.worst_relative_l2 = channel_error(one, other, expected->shape, *mask);
  return measured;
}

std::vector<Measurement> measure_plain(const Result& result, const Case& reference,
                                       const std::set<std::int64_t>& left_out = {}) {
  std::vector<Measurement> measured;
  for (const char* output : contract::kComparedOutputs) {
    measured.push_back(measure_output(result, reference, output, left_out));
  }
  return measured;
}

// The depths that rows have used, and the other outputs of those that agree: a row that halted at
// another step gives other states, and is judged by its depth alone.
std::vector<Measurement> measure_halting(const Result& result, const Case& reference) {
  const auto* given = find(result.outputs, contract::kDepthUsed);
  const auto& wanted = require(reference.outputs, contract::kDepthUsed);
  if (given == nullptr || given->shape != wanted.shape) {
    return {unmeasured(reference, contract::kDepthUsed, "the result has not a depth for each row")};
  }
  if (wanted.dtype != "int64") {
    return {unmeasured(reference, contract::kDepthUsed,
                       "its recorded depths are " + wanted.dtype + ", not int64")};
  }
  const std::vector<double> expected = doubles_of(wanted), actual = doubles_of(*given);
  const auto *stored = find(reference.outputs, kHaltScores),
             *limit = find(reference.inputs, contract::kHaltThreshold);
  if (stored != nullptr &&
      (stored->shape.size() != 2 || stored->shape[0] != wanted.shape[0] || stored->shape[1] < 1)) {
    return {unmeasured(reference, contract::kDepthUsed,
                       "its recorded halting scores do not fit its depths")};
  }
  const std::vector<double> scores =
      stored == nullptr ? std::vector<double>{} : doubles_of(*stored);
  const std::size_t steps = stored == nullptr ? 0 : static_cast<std::size_t>(stored->shape.back());
  Measurement halting = describe(reference, contract::kDepthUsed);
  halting.difference = compare_arrays(expected, actual);
  halting.worst_relative_l2 = 0;  // an engine gives no scores to hold against PyTorch's
  std::set<std::int64_t> differ;
  for (std::size_t row = 0; row < expected.size(); ++row) {
    if (expected[row] == actual[row]) continue;
    differ.insert(static_cast<std::int64_t>(row));
    const double where = std::min(expected[row], actual[row]) - 1;
    double margin = kInfinite;
    if (limit != nullptr && !limit->bytes.empty() && where >= 0 &&
        where < static_cast<double>(steps)) {
      const double score = scores[row * steps + static_cast<std::size_t>(where)];
      margin = std::abs(score - doubles_of(*limit).at(0));
    }
    halting.divergences.emplace_back(static_cast<std::int64_t>(row), margin);
  }
  std::vector<Measurement> measured{halting};
  if (differ.size() < expected.size()) {
    const std::vector<Measurement> rest = measure_plain(result, reference, differ);
    measured.insert(measured.end(), rest.begin(), rest.end());
  }
  return measured;
}

// A greedy text, of which each position has its token's logit and the best other.
Measurement measure_tokens(const Result& result, const Case& reference) {
  const auto *tokens = find(reference.outputs, "tokens"), *found = find(result.outputs, "tokens");
  const auto *expected = find(reference.outputs, "top2"), *actual = find(result.outputs, "top2");
  const std::size_t count = tokens == nullptr ? 0 : core::count_elements(tokens->shape);
  const core::Shape pairs{static_cast<std::int64_t>(count), 2};
  if (count == 0 || expected == nullptr || expected->shape != pairs) {
    return unmeasured(reference, contract::kLogits, kUnfit);
  }
  if (found == nullptr || actual == nullptr || core::count_elements(found->shape) != count) {
    const std::string wanted = std::to_string(count) + " tokens";
    return unmeasured(reference, "tokens", "the result has not its " + wanted);
  }
  if (actual->shape != pairs) {
    return unmeasured(reference, "tokens", "the result has not two logits for each token");
  }
  const std::vector<double> one = doubles_of(*expected), other = doubles_of(*actual);
  for (std::size_t place = 0; place < other.size(); ++place) {
    if (!std::isfinite(other[place])) {
      const std::string where = std::to_string(place / 2);
      return unmeasured(reference, "tokens", std::string(kNotFinite) + " at token " + where);
    }
  }
  Measurement measured = describe(reference, "tokens");
  measured.difference = compare_arrays(one, other);
  measured.worst_relative_l2 = measured.difference.relative_l2;
  const std::vector<std::int64_t> wanted = integers_of(*tokens), got = integers_of(*found);
  for (std::size_t place = 0; place < count; ++place) {
    if (wanted[place] != got[place]) {
      const double margin = one[2 * place] - one[2 * place + 1];
      measured.divergences.emplace_back(static_cast<std::int64_t>(place), margin);
    }
  }
  measured.argmax_agreement =
      1 - static_cast<double>(measured.divergences.size()) / static_cast<double>(count);
  return measured;
}

// The logits of a text at the places that the result has, each as often as it has.
Measurement measure_long(const Result& result, const Case& reference) {
  const auto* expected = find(reference.outputs, contract::kLogits);
  const auto places = static_cast<std::int64_t>(reference.positions.size());
  if (expected == nullptr || expected->shape.size() != 3 || expected->shape[0] != 1 ||
      expected->shape[1] != places) {
    return unmeasured(reference, contract::kLogits, kUnfit);
  }
  const auto& actual = require(result.outputs, contract::kLogits);
  const auto size = static_cast<std::size_t>(expected->shape[2]);
  const auto asked = static_cast<std::int64_t>(result.positions.size());
  if (actual.shape != core::Shape{1, asked, expected->shape[2]}) {
    return unmeasured(
        reference, contract::kLogits,
        "the result has no logits for the " + std::to_string(asked) + " positions it names");
  }
  std::map<std::int64_t, std::size_t> row_of;
  for (std::size_t row = 0; row < reference.positions.size(); ++row) {
    row_of[reference.positions[row]] = row;
  }
  const std::vector<double> all = doubles_of(*expected), found = doubles_of(actual);
  std::vector<double> rows;
  for (const std::int64_t place : std::set(result.positions.begin(), result.positions.end())) {
    if (row_of.count(place) == 0) {
      return unmeasured(reference, contract::kLogits,
                        "the reference has no logits at " + std::to_string(place));
    }
  }
  for (const std::int64_t place : result.positions) {
    const auto start = all.begin() + static_cast<std::ptrdiff_t>(row_of[place] * size);
    rows.insert(rows.end(), start, start + static_cast<std::ptrdiff_t>(size));
  }
  const Difference difference = compare_arrays(rows, found);
  if (!difference.finite) return unmeasured(reference, contract::kLogits, kNotFinite);
  return measure_logits(reference, difference, rows, found, size);
}

}  // namespace

std::vector<Measurement> measure_all(const std::vector<Result>& results,
                                     const std::vector<Case>& cases) {
  std::vector<Measurement> measured;
  for (std::size_t place = 0; place < cases.size(); ++place) {
    const Case& reference = cases[place];
    const Result& result = results[place];
    std::vector<Measurement> own;
    if (!result.failure.empty()) {
      own = {unmeasured(reference, contract::kLogits, result.failure)};
    } else if (reference.kind == "greedy") {
      own = {measure_tokens(result, reference)};
    } else if (reference.kind == "long") {
      own = {measure_long(result, reference)};
    } else if (reference.outputs.count(contract::kDepthUsed) != 0) {
      own = measure_halting(result, reference);
    } else {
      own = measure_plain(result, reference);
    }
    measured.insert(measured.end(), own.begin(), own.end());
  }
  return measured;
}

}  // namespace ouro::cli
