#include "bundle/manifest.hpp"

#include <stdexcept>
#include <type_traits>

#include "bundle/hashing.hpp"
#include "bundle/json.hpp"
#include "bundle/rules.hpp"
#include "bundle/say.hpp"
#include "error.hpp"
#include "utf8.hpp"

namespace ouro::core {
namespace {

Error wrong(const std::string& where, const Json& value, const std::string& wanted) {
  return bundle_error(say("{}: {} is {}, not {}", kManifestName, where, shorten(value), wanted),
                      kExportAgain);
}

// No control characters, which steer a terminal, and no half of a surrogate pair.
bool is_plain(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const auto [point, size] = character_at(text, at);
    if (point < 32 || (point > 126 && point < 160) || point >> 11 == 0xD800 >> 11) return false;
    at += size;
  }
  return true;
}

// Reads a value as what a field holds; `where` is its dotted name for the error message.
class FieldReader {
 public:
  void read(std::string& field, const Json& value, const std::string& where) {
    const auto* text = value.get<std::string>();
    if (text == nullptr) throw wrong(where, value, "a string");
    const bool free = where == "tokenizer.bos_token" || where == "tokenizer.eos_token" ||
                      where.rfind("tokenizer.chat.", 0) == 0;
    if (!free && !is_plain(*text)) throw wrong(where, value, "text without control characters");
    field = *text;
  }

  void read(bool& field, const Json& value, const std::string& where) {
    if (value.get<bool>() == nullptr) throw wrong(where, value, "bool");
    field = *value.get<bool>();
  }

  void read(std::int64_t& field, const Json& value, const std::string& where) {
    if (const auto* number = value.get<std::int64_t>()) {
      field = *number;
    } else if (const auto* large = value.get<LargeInteger>()) {
      field = large->nearest;
      large_[where] = large->digits;
    } else {
      throw wrong(where, value, "an integer");
    }
  }

  void read(double& field, const Json& value, const std::string& where) {
    constexpr std::int64_t kMost = std::int64_t{1} << 53;
    if (const auto* number = value.get<double>()) {
      field = *number;
    } else if (const auto* whole = value.get<std::int64_t>()) {
      if (*whole > kMost || *whole < -kMost) throw wrong(where, value, "a number of that size");
      field = static_cast<double>(*whole);
    } else {
      throw wrong(where, value, value.get<LargeInteger>() ? "a number of that size" : "a number");
    }
  }

  void read(Dimension& field, const Json& value, const std::string& where) {
    const auto* text = value.get<std::string>();
    if (text != nullptr && is_plain(*text)) {
      field = *text;
    } else if (value.get<std::int64_t>() != nullptr || value.get<LargeInteger>() != nullptr) {
      read(field.emplace<std::int64_t>(), value, where);
    } else {
      throw wrong(where, value, "an integer or a string");
    }
  }

  template <class Value>
  void read(std::optional<Value>& field, const Json& value, const std::string& where) {
    if (value.is_null()) return;
    try {
      read(field.emplace(), value, where);
    } catch (const Error&) {
      throw wrong(where, value, say("{} or null", kind_name(Value())));
    }
  }

  template <class Value>
  void read(std::vector<Value>& field, const Json& value, const std::string& where) {
    const auto* items = value.get<Json::List>();
    if (items == nullptr) throw wrong(where, value, "a list");
    field.resize(items->size());
    for (std::size_t i = 0; i < field.size(); ++i) {
      read(field[i], (*items)[i], where + "[" + std::to_string(i) + "]");
    }
  }

  template <class Value>
  void read(Named<Value>& field, const Json& value, const std::string& where) {
    const auto* members = value.get<Json::Object>();
    if (members == nullptr) throw wrong(where, value, "an object");
    for (const auto& [key, member] : *members) {
      if (!is_plain(key)) {
        throw wrong("a key of " + where, Json{key}, "text without control characters");
      }
    }
    for (const auto& [key, member] : *members) {
      field.emplace_back(key, Value());
      read(field.back().second, member, where + "." + key);
    }
  }

  template <class Part, std::enable_if_t<std::is_class_v<Part>, int> = 0>
  void read(Part& part, const Json& value, const std::string& where) {
    const auto* members = value.get<Json::Object>();
    if (members == nullptr) throw wrong(where, value, "an object");
    const std::string prefix = where.empty() ? "" : where + ".";
    for (const auto& [key, member] : *members) {
      bool known = false;
      list_fields(part, [&known, &key = key](std::string_view name, auto&) {
        known = known || name == key;
      });
      if (known) continue;
      const std::string quoted = repr(key), shown = quoted.substr(1, quoted.size() - 2);
      throw bundle_error(say("{} has the unknown key {}{}", kManifestName, prefix, shown),
                         kExportAgain);
    }
    list_fields(part, [&](const std::string& name, auto&) {
      const bool optional = std::is_same_v<Part, DepthSpec> && name == "halting";
      if (optional || value.find(name) != nullptr) return;
      throw bundle_error(say("{} lacks the key {}{}", kManifestName, prefix, name), kExportAgain);
    });
    for (const auto& member : *members) {
      list_fields(part, [&](std::string_view name, auto& field) {
        if (name == member.first) read(field, member.second, prefix + member.first);
      });
    }
  }

  const LargeNumbers& large() const { return large_; }

 private:
  LargeNumbers large_;
};

Json read_text(std::string_view text) {
  try {
    return read_json(text);
  } catch (const std::invalid_argument& error) {
    throw bundle_error(say("{} is not JSON: {}", kManifestName, error.what()), kCopyOrExport);
  }
}

// Refuses what is no manifest of this version.
void check_version(const Json& data) {
  if (data.get<Json::Object>() == nullptr) {
    constexpr const char* kTypes[] = {"NoneType", "bool", "int", "int", "float", "str", "list"};
    throw bundle_error(
        say("{} holds a {}, not an object", kManifestName, kTypes[data.value.index()]),
        "is this an Ouroboros bundle?");
  }
  const Json* version = data.find("format_version");
  if (version == nullptr || version->is_null()) {
    throw bundle_error(say("{} has no format_version", kManifestName),
                       "is this an Ouroboros bundle?");
  }
  const auto* number = version->get<std::int64_t>();
  const auto* large = version->get<LargeInteger>();
  if (number != nullptr && *number == kFormatVersion) return;
  const bool newer = (number != nullptr && *number > kFormatVersion) ||
                     (large != nullptr && large->nearest > kFormatVersion);
  throw bundle_error(say("bundle format_version {} is not the {} that this version reads",
                         shorten(*version), kFormatVersion),
                     newer ? "update ouroboros" : "export the checkpoint again");
}

}  // namespace

Manifest parse_manifest_text(std::string_view text) {
  const Json data = read_text(text);
  check_version(data);
  Manifest manifest;
  FieldReader reader;
  reader.read(manifest, data, "");
  check_manifest(manifest, reader.large());
  return manifest;
}

void check_hash(std::string_view text, const std::string* said) {
  if (said == nullptr) {
    check_version(read_text(text));
    throw bundle_error(say("the bundle has no {} of one line", kHashName),
                       "copy or export it again");
  }
  if (*said != hash_text(text) + "  " + kManifestName + "\n") {
    throw bundle_error(say("{} is damaged or was changed: its sha256 is not the one in {}",
                           kManifestName, kHashName),
                       kCopyOrExport);
  }
}

}  // namespace ouro::core
