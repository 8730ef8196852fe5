// JSON as Python's `json` reads it, with Python's words for what is wrong, so that both languages
// take and refuse the same manifests: integers of any size, halves of surrogate pairs, UTF-16.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace ouro::core {

// An integer beyond 64 bits: its digits, and the nearest that has 64.
struct LargeInteger {
  std::int64_t nearest;
  std::string digits;
};

// A JSON value. Objects keep their order; their keys differ. Strings are UTF-8, where half of a
// surrogate pair stands as its three bytes.
struct Json {
  using List = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;
  std::variant<std::monostate, bool, std::int64_t, LargeInteger, double, std::string, List, Object>
      value;

  bool is_null() const { return value.index() == 0; }
  // The value, where it is of that kind, else null.
  template <class Kind>
  const Kind* get() const {
    return std::get_if<Kind>(&value);
  }
  // The member of that key; null where there is none, or the value is no object.
  const Json* find(std::string_view key) const;
};

// Reads JSON from bytes in UTF-8, -16 or -32. Throws std::invalid_argument: not JSON, a key twice
// in an object, NaN or an infinity, an integer of over 4,300 digits, or nested deeper than 980.
Json read_json(std::string_view bytes);

// Throws std::invalid_argument, in Python's words, where the bytes are not UTF-8. `surrogates` lets
// halves of pairs pass.
void check_utf8(std::string_view bytes, bool surrogates = false);

// Bytes of JSON in any of its encodings as UTF-8. Throws std::invalid_argument.
std::string decode_json(std::string_view bytes);

// The first `count` code points of UTF-8.
std::string first_points(std::string_view text, std::size_t count);

// Values as Python's `repr` writes them, and the same cut to 60 code points.
std::string repr(std::string_view text);
std::string repr(double value);
std::string shorten(const Json& value);
std::string shorten(const std::string& shown);

}  // namespace ouro::core
