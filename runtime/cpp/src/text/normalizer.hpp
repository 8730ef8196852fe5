// What a tokenizer.json does to a text before it is divided.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace ouro::core {

// Any of NFC, Prepend and Replace of a fixed text, in a sequence. Immutable.
class Normalizer {
 public:
  // Takes the `normalizer` of a tokenizer.json, null included; none where it is of a kind that is
  // not known here. Throws nlohmann's exceptions where it is malformed.
  static std::optional<Normalizer> read(const nlohmann::json& value);

  // Whether it changes nothing.
  bool empty() const noexcept { return steps_.empty(); }

  std::string apply(std::string_view text) const;

 private:
  enum class Kind { kNfc, kPrepend, kReplace };
  struct Step {
    Kind kind;
    std::string from, to;
  };

  std::vector<Step> steps_;
};

// The parts of a sequence, in order, those of sequences within it in their place; `key` is what it
// calls them. One that is none is its own only part. Throws bundle_error where they nest too deep.
std::vector<const nlohmann::json*> flatten(const nlohmann::json& value, const char* key);

}  // namespace ouro::core
