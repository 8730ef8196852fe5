#include "cases.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <stdexcept>
#include <utility>

#include "bundle/json.hpp"
#include "bundle/manifest.hpp"
#include "bundle/safetensors.hpp"
#include "error.hpp"

namespace ouro::cli {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Kinds that a recording needs, those that every depth needs first; and the one of a halter.
constexpr const char* kRequired[] = {"prefill", "decode", "padded", "mixed",
                                     "greedy",  "far",    "long"};
constexpr std::size_t kEveryDepth = 3;
constexpr char kHalting[] = "halting";
// Element types that a recorded tensor may have: those that doubles_of reads.
constexpr const char* kTypes[] = {"float32", "float64", "float16", "bfloat16", "int64", "bool"};

using Parts = std::map<std::string, std::map<std::string, Arrays>>;  // by case, then part

bool is_kind(const std::string* kind) {
  if (kind == nullptr) return false;
  const auto* end = std::end(kRequired);
  return *kind == kHalting || std::find(std::begin(kRequired), end, *kind) != end;
}

void add_tensor(const std::string& name, const core::StoredTensor& tensor, Parts& parts) {
  for (const char* part : {"in", "out", "valid"}) {
    const std::string dotted = std::string(".") + part + ".";
    const std::size_t place = name.find(dotted);
    if (place == std::string::npos) continue;
    if (std::find(std::begin(kTypes), std::end(kTypes), tensor.dtype) == std::end(kTypes)) {
      throw core::bundle_error("the recorded tensor " + name + " is " + tensor.dtype,
                               core::kExportAgain);
    }
    auto& own = parts[name.substr(0, place)];
    core::HostArray& array = own[part][name.substr(place + dotted.size())];
    array = {tensor.dtype, tensor.shape, std::vector<std::byte>(tensor.bytes)};
    if (tensor.bytes != 0) std::memcpy(array.bytes.data(), tensor.data, tensor.bytes);
    return;
  }
  throw core::bundle_error("the recorded tensor " + name + " belongs to no case",
                           core::kExportAgain);
}

std::string shown(const core::Json* value) {
  return value == nullptr ? "None" : core::shorten(*value);
}

std::vector<std::int64_t> read_positions(const std::string& name, const core::Json* given) {
  std::vector<std::int64_t> positions;
  if (given == nullptr || given->is_null()) return positions;
  const auto* list = given->get<core::Json::List>();
  for (std::size_t place = 0; list != nullptr && place < list->size(); ++place) {
    const auto* one = (*list)[place].get<std::int64_t>();
    positions.push_back(one == nullptr ? -1 : *one);
  }
  if (list == nullptr ||
      std::any_of(positions.begin(), positions.end(), [](std::int64_t one) { return one < 0; })) {
    throw core::bundle_error("the recorded case " + name + " has no list of positions",
                             core::kExportAgain);
  }
  return positions;
}

std::map<std::string, double> read_errors(const std::string& name, const core::Json* given) {
  std::map<std::string, double> errors;
  if (given == nullptr || given->is_null()) return errors;
  const auto* object = given->get<core::Json::Object>();
  bool right = object != nullptr;
  for (std::size_t place = 0; right && place < object->size(); ++place) {
    const auto& [output, value] = (*object)[place];
    const auto* error = value.get<double>();
    right = value.is_null() || (error != nullptr && *error >= 0 && *error < kInfinity);
    errors[output] = error == nullptr ? kInfinity : *error;
  }
  if (!right) {
    throw core::bundle_error(
        "the recorded case " + name + " has errors that are no numbers above 0",
        core::kExportAgain);
  }
  return errors;
}

Case read_case(const core::Json& entry, Parts& parts, const std::set<std::string>& before) {
  const core::Json* named = entry.find("name");
  const auto* name = named == nullptr ? nullptr : named->get<std::string>();
  if (name == nullptr) throw core::bundle_error("a recorded case has no name", core::kExportAgain);
  const core::Json *kind = entry.find("kind"), *depth = entry.find("depth");
  const auto* known = kind == nullptr ? nullptr : kind->get<std::string>();
  const auto* steps = depth == nullptr ? nullptr : depth->get<std::int64_t>();
  if (!is_kind(known) || steps == nullptr || *steps < 1 || *steps > core::kMaxDepth) {
    throw core::bundle_error(
        "the recorded case " + *name + " has kind " + shown(kind) + " and depth " + shown(depth),
        core::kExportAgain);
  }
  const auto own = parts.find(*name);
  if (own == parts.end()) {
    throw core::bundle_error("the recorded case " + *name + " is listed twice or has no tensors",
                             core::kExportAgain);
  }
  Case one;
  one.name = *name;
  one.kind = *known;
  one.depth = *steps;
  one.positions = read_positions(*name, entry.find("positions"));
  if (const core::Json* after = entry.find("after"); after != nullptr && !after->is_null()) {
    const auto* text = after->get<std::string>();
    if (text == nullptr || before.count(*text) == 0) {
      throw core::bundle_error(
          "the recorded case " + *name + " follows " + shown(after) + ", which is not before it",
          core::kExportAgain);
    }
    one.after = *text;
  }
  one.reference_error = read_errors(*name, entry.find("reference_error"));
  one.inputs = std::move(own->second["in"]);
  one.outputs = std::move(own->second["out"]);
  one.valid = std::move(own->second["valid"]);
  parts.erase(own);
  return one;
}

double from_half(std::uint16_t bits) {
  const auto exponent = static_cast<int>(bits >> 10U & 31U);
  const auto fraction = static_cast<int>(bits & 1023U);
  double size =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25);
  if (exponent == 31) size = fraction == 0 ? kInfinity : std::nan("");
  return (bits >> 15U) != 0 ? -size : size;
}

double from_bfloat(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16U;
  float value = 0;
  std::memcpy(&value, &wide, sizeof value);
  return static_cast<double>(value);
}

template <class Stored, class Convert>
std::vector<double> read_as(const core::HostArray& array, const Convert& convert) {
  std::vector<double> values(array.bytes.size() / sizeof(Stored));
  for (std::size_t place = 0; place < values.size(); ++place) {
    Stored one{};
    std::memcpy(&one, array.bytes.data() + place * sizeof(Stored), sizeof(Stored));
    values[place] = convert(one);
  }
  return values;
}

template <class Value>
core::HostArray array_of(const char* dtype, core::Shape shape, const std::vector<Value>& values) {
  core::HostArray array{dtype, std::move(shape),
                        std::vector<std::byte>(values.size() * sizeof(Value))};
  if (!values.empty()) std::memcpy(array.bytes.data(), values.data(), array.bytes.size());
  return array;
}

}  // namespace

std::vector<Case> load_cases(const std::filesystem::path& file) {
  const core::Safetensors stored(file);
  core::Json entries;
  const auto listed = stored.metadata().find("cases");
  try {
    if (listed == stored.metadata().end()) throw std::invalid_argument("no cases");
    entries = core::read_json(listed->second);
  } catch (const std::invalid_argument&) {
    throw core::bundle_error(file.string() + " holds no list of cases", core::kExportAgain);
  }
  const auto* list = entries.get<core::Json::List>();
  if (list == nullptr) {
    throw core::bundle_error("the list of recorded cases is not a list", core::kExportAgain);
  }
  Parts parts;
  for (const auto& [name, tensor] : stored.tensors()) add_tensor(name, tensor, parts);
  std::vector<Case> cases;
  std::set<std::string> before;
  for (const core::Json& entry : *list) {
    cases.push_back(read_case(entry, parts, before));
    before.insert(cases.back().name);
  }
  if (!parts.empty()) {
    throw core::bundle_error(
        "the recorded case " + parts.begin()->first + " has tensors but is not in the list",
        core::kExportAgain);
  }
  return cases;
}

std::vector<std::string> missing_cases(const std::vector<Case>& cases,
                                       const std::vector<std::int64_t>& depths, bool halting) {
  std::map<std::string, std::set<std::int64_t>> found;
  for (const Case& one : cases) found[one.kind].insert(one.depth);
  std::vector<std::string> kinds(std::begin(kRequired), std::end(kRequired)), lines;
  if (halting) kinds.emplace_back(kHalting);
  for (std::size_t place = 0; place < kinds.size(); ++place) {
    const std::string& kind = kinds[place];
    if (found.count(kind) == 0) {
      lines.push_back("no " + kind + " case is recorded");
      continue;
    }
    std::string lacking;
    for (const std::int64_t depth : depths) {
      if (place < kEveryDepth && found[kind].count(depth) == 0) {
        lacking += (lacking.empty() ? "" : ", ") + std::to_string(depth);
      }
    }
    if (!lacking.empty()) lines.push_back("no " + kind + " case at depth " + lacking);
  }
  return lines;
}

std::vector<double> doubles_of(const core::HostArray& array) {
  const auto as_double = [](auto value) { return static_cast<double>(value); };
  if (array.dtype == "float32") return read_as<float>(array, as_double);
  if (array.dtype == "float64") return read_as<double>(array, as_double);
  if (array.dtype == "int64") return read_as<std::int64_t>(array, as_double);
  if (array.dtype == "bool") return read_as<unsigned char>(array, as_double);
  if (array.dtype == "float16") return read_as<std::uint16_t>(array, from_half);
  if (array.dtype == "bfloat16") return read_as<std::uint16_t>(array, from_bfloat);
  throw CaseError("an array of " + array.dtype + " is not known here");
}

std::vector<std::int64_t> integers_of(const core::HostArray& array) {
  if (array.dtype != "int64") throw CaseError("an array of " + array.dtype + " holds no int64");
  std::vector<std::int64_t> integers(array.bytes.size() / sizeof(std::int64_t));
  if (!integers.empty()) std::memcpy(integers.data(), array.bytes.data(), array.bytes.size());
  return integers;
}

core::HostArray make_array(core::Shape shape, const std::vector<std::int64_t>& values) {
  return array_of("int64", std::move(shape), values);
}
core::HostArray make_array(core::Shape shape, const std::vector<double>& values) {
  return array_of("float64", std::move(shape), values);
}
core::HostArray make_array(core::Shape shape, const std::vector<float>& values) {
  return array_of("float32", std::move(shape), values);
}

const core::HostArray& require(const Arrays& arrays, const std::string& name) {
  const auto found = arrays.find(name);
  if (found == arrays.end()) throw CaseError("'" + name + "' is missing");
  return found->second;
}

}  // namespace ouro::cli
