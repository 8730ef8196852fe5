// Reads a bundle's manifest strictly from JSON; what it holds is in contract.hpp, under the
// names of runtime/bundle/specs.py (`default` is default_depth, `float` is float_type).
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include "bundle/contract.hpp"

namespace ouro::core {

// The value of a key; null where there is none.
template <class Value>
const Value* find(const Named<Value>& object, std::string_view key) {
  const auto found = std::find_if(object.begin(), object.end(),
                                  [&](const auto& member) { return member.first == key; });
  return found == object.end() ? nullptr : &found->second;
}

// Reads a manifest from the bytes of manifest.json and proves its rules. Strings are UTF-8; half of
// a surrogate pair, which pieces of a chat template may hold, stands as its three bytes. Throws
// bundle_error with the text that Python gives.
Manifest parse_manifest_text(std::string_view text);

// Compares the bytes of manifest.json with the content of manifest.sha256, null where there is
// none. Throws bundle_error: an older bundle, or they differ.
void check_hash(std::string_view text, const std::string* said);

// Refuses a file name that could lead out of the bundle. Throws bundle_error.
void check_file_name(std::string_view name);

}  // namespace ouro::core
