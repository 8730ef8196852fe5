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

// A whole number of any size: its value, cut to 64 bits, and where it was cut its digits.
struct Integer {
  std::int64_t value = 0;
  std::string digits;
};

// A JSON value. Objects keep their order; their keys differ. Strings are UTF-8, where half of a
// surrogate pair stands as its three bytes.
struct Json {
  using List = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;
  std::variant<std::monostate, bool, std::int64_t, Integer, double, std::string, List, Object> value;

  template <class Kind>
  const Kind* get() const {
    return std::get_if<Kind>(&value);
  }
  bool is_null() const { return value.index() == 0; }
  // The member of that key; null where there is none, or the value is no object.
  const Json* find(std::string_view key) const;
};

// Bytes of JSON in UTF-8, -16 or -32 as UTF-8. Throws std::invalid_argument.
std::string decode_json(std::string_view bytes);

// Reads JSON from UTF-8 as `decode_json` gives it. Throws std::invalid_argument: not JSON, a key
// twice in an object, NaN or an infinity, more than 4,300 digits, or nested deeper than 980.
Json parse_json(std::string_view text);

// Throws std::invalid_argument, in Python's words, where the bytes are not UTF-8. `surrogates` lets
// halves of pairs pass.
void check_utf8(std::string_view bytes, bool surrogates = false);

// The name of a value's type in Python.
const char* type_name(const Json& value);

// Values as Python's `repr` writes them; `shorten` cuts them to 60 characters.
std::string repr(std::string_view text);
std::string repr(double value);
std::string shorten(const Json& value);
std::string shorten(const std::string& shown);

// The first `count` characters of UTF-8.
std::string_view first_characters(std::string_view text, std::size_t count);

// Adds a code point to UTF-8.
void append_utf8(std::string& text, std::uint32_t point);

// The code point that begins at `place` of UTF-8 with or without halves of pairs, and its bytes.
std::pair<std::uint32_t, std::size_t> code_point_at(std::string_view text, std::size_t place);

}  // namespace ouro::core
