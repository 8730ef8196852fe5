// Which profile of a plan takes a call. Apart from TensorRT, so that it is tested without it.
#include <algorithm>

#include "backends/trt.hpp"
#include "bundle/say.hpp"

namespace ouro::core {
namespace {

// What of the inputs a profile does not take; empty where it takes all.
std::string find_outside(const ProfileSpec& profile, const char* kind,
                         const std::vector<RangeSpec>& ranges,
                         const std::map<std::string, Shape>& inputs) {
  for (const RangeSpec& one : ranges) {
    const auto found = inputs.find(one.name);
    if (found == inputs.end()) {
      throw engine_error("the input " + one.name + " is missing", "give every input of the graph");
    }
    const Shape& given = found->second;
    bool fits = given.size() == one.min.size();
    for (std::size_t axis = 0; fits && axis < given.size(); ++axis) {
      fits = one.min[axis] <= given[axis] && given[axis] <= one.max[axis];
    }
    if (!fits) {
      return one.name + " has the " + kind + " " + show_shape(given) + ", the plan's profile " +
             profile.name + " takes " + show_shape(one.min) + " to " + show_shape(one.max);
    }
  }
  return {};
}

}  // namespace

std::size_t choose_profile(const std::vector<ProfileSpec>& profiles,
                           const std::map<std::string, Shape>& shapes,
                           const std::map<std::string, Shape>& by_value) {
  std::string problem = "the plan has no profile";
  for (std::size_t number = 0; number < profiles.size(); ++number) {
    const ProfileSpec& profile = profiles[number];
    problem = find_outside(profile, "shape", profile.shapes, shapes);
    if (problem.empty()) problem = find_outside(profile, "value", profile.values, by_value);
    if (problem.empty()) return number;
  }
  throw engine_error(problem, "export again with a larger --max-batch, --max-seq or --max-depth");
}

}  // namespace ouro::core
