#include "text/normalizer.hpp"

#include <nlohmann/json.hpp>

#include "error.hpp"
#include "text/unicode.hpp"

namespace ouro::core {
namespace {

using nlohmann::json;

constexpr int kDeepest = 100;

void flatten_into(const json& value, const char* key, int depth, std::vector<const json*>& parts) {
  if (value.at("type") != "Sequence") return parts.push_back(&value);
  if (depth > kDeepest) throw bundle_error("its sequences nest too deep");
  for (const json& one : value.at(key).get_ref<const json::array_t&>()) {
    flatten_into(one, key, depth + 1, parts);
  }
}

}  // namespace

std::vector<const json*> flatten(const json& value, const char* key) {
  std::vector<const json*> parts;
  flatten_into(value, key, 0, parts);
  return parts;
}

std::optional<Normalizer> Normalizer::read(const json& value) {
  Normalizer made;
  if (value.is_null()) return made;
  for (const json* part : flatten(value, "normalizers")) {
    const std::string type = part->at("type");
    if (type == "NFC") {
      made.steps_.push_back({Kind::kNfc, {}, {}});
    } else if (type == "Prepend") {
      made.steps_.push_back({Kind::kPrepend, {}, part->at("prepend")});
    } else if (type == "Replace") {
      const json& pattern = part->at("pattern");
      const json& content = part->at("content");
      if (!pattern.count("String") || pattern.at("String") == "") return std::nullopt;
      made.steps_.push_back({Kind::kReplace, pattern.at("String"), content});
    } else {
      return std::nullopt;
    }
  }
  return made;
}

std::string Normalizer::apply(std::string_view text) const {
  std::string made(text);
  for (const Step& step : steps_) {
    if (step.kind == Kind::kNfc) {
      made = nfc(made);
    } else if (step.kind == Kind::kReplace) {
      made = replace_all(made, step.from, step.to);
    } else if (!made.empty()) {
      made.insert(0, step.to);
    }
  }
  return made;
}

}  // namespace ouro::core
