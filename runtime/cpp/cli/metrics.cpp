#include "metrics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ouro::cli {
namespace {

constexpr double kFloor = 0.01;     // of the median channel's norm
constexpr double kSmallest = 1e-6;  // of the mean channel's energy, where most channels are zero

double ratio(double distance, double scale) {
  if (distance == 0) return 0;
  return scale != 0 ? distance / scale : kInfinite;
}

double square(double value) { return value * value; }

// Log-probabilities of a row of logits.
std::vector<double> log_softmax(const double* logits, std::size_t size) {
  const double most = *std::max_element(logits, logits + size);
  std::vector<double> result(logits, logits + size);
  double sum = 0;
  for (double& one : result) sum += std::exp(one -= most);
  for (double& one : result) one -= std::log(sum);
  return result;
}

}  // namespace

double median(std::vector<double> values) {
  const std::size_t half = values.size() / 2;
  std::sort(values.begin(), values.end());
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

Difference compare_arrays(const std::vector<double>& expected, const std::vector<double>& found,
                          const Mask* mask) {
  double distance = 0, scale = 0, other = 0, product = 0, total = 0, most = 0;
  std::size_t count = 0;
  for (std::size_t place = 0; place < expected.size(); ++place) {
    if (mask != nullptr && !(*mask)[place]) continue;
    const double one = expected[place], two = found[place], error = std::abs(two - one);
    if (!std::isfinite(one) || !std::isfinite(two)) return {};
    distance += square(error);
    scale += square(one);
    other += square(two);
    product += one * two;
    total += error;
    most = std::max(most, error);
    ++count;
  }
  const double norms = std::sqrt(scale) * std::sqrt(other);
  Difference difference;
  difference.max_abs = most;
  difference.mean_abs = count != 0 ? total / static_cast<double>(count) : 0;
  difference.relative_l2 = ratio(std::sqrt(distance), std::sqrt(scale));
  difference.cosine = scale != 0 && other != 0 ? product / norms : (distance == 0 ? 1 : 0);
  difference.finite = true;
  return difference;
}

LogitDifference compare_logits(const std::vector<double>& expected,
                               const std::vector<double>& found, std::size_t size) {
  LogitDifference result;
  for (std::size_t start = 0; start + size <= expected.size(); start += size) {
    const double *one = expected.data() + start, *two = found.data() + start;
    double distance = 0, scale = 0, kl = 0;
    for (std::size_t place = 0; place < size; ++place) {
      distance += square(two[place] - one[place]);
      scale += square(one[place]);
    }
    const std::vector<double> log_p = log_softmax(one, size), log_q = log_softmax(two, size);
    for (std::size_t place = 0; place < size; ++place) {
      kl += std::exp(log_p[place]) * (log_p[place] - log_q[place]);
    }
    const double* best = std::max_element(one, one + size);
    double second = -kInfinite;
    for (const double* other = one; other != one + size; ++other) {
      if (other != best) second = std::max(second, *other);
    }
    result.relative_l2.push_back(ratio(std::sqrt(distance), std::sqrt(scale)));
    result.kl.push_back(std::max(kl, 0.0));
    result.agrees.push_back(best - one == std::max_element(two, two + size) - two);
    result.margin.push_back(*best - second);
  }
  return result;
}

double channel_error(const std::vector<double>& expected, const std::vector<double>& found,
                     const core::Shape& shape, const Mask& mask) {
  // Of [B, D, kv, S, hd] the head and its channel count; of any other shape the last dimension.
  const auto last = static_cast<std::size_t>(shape.back());
  const bool heads = shape.size() == 5;
  const auto rows = static_cast<std::size_t>(heads ? shape[3] : 1);
  const auto groups = static_cast<std::size_t>(heads ? shape[2] : 1);
  std::vector<double> scale(groups * last), distance(groups * last);
  for (std::size_t place = 0; place < expected.size(); ++place) {
    if (!mask[place]) continue;
    const std::size_t channel = place / (last * rows) % groups * last + place % last;
    scale[channel] += square(expected[place]);
    distance[channel] += square(found[place] - expected[place]);
  }
  if (std::all_of(distance.begin(), distance.end(), [](double one) { return one == 0; })) return 0;
  const auto count = static_cast<double>(scale.size());
  const double mean = std::accumulate(scale.begin(), scale.end(), 0.0) / count;
  const double floor = std::max(median(scale), mean * kSmallest) * square(kFloor);
  if (floor == 0) return kInfinite;
  double sum = 0;
  for (std::size_t channel = 0; channel < scale.size(); ++channel) {
    sum += distance[channel] / std::max(scale[channel], floor);
  }
  return std::sqrt(sum / count);
}

}  // namespace ouro::cli
