// Encodings of JSON, and values as Python writes them.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <stdexcept>

#include "bundle/json.hpp"
#include "bundle/say.hpp"
#include "utf8.hpp"

namespace ouro::core {
namespace {

// First and last of the code points that `repr` escapes: controls, formats, surrogates, private use
// and separators, of Unicode 14. What Unicode has not assigned yet is written as it is.
constexpr std::uint32_t kEscaped[][2] = {
    {0, 0x1F},          {0x7F, 0xA0},       {0xAD, 0xAD},       {0x600, 0x605},
    {0x61C, 0x61C},     {0x6DD, 0x6DD},     {0x70F, 0x70F},     {0x890, 0x891},
    {0x8E2, 0x8E2},     {0x1680, 0x1680},   {0x180E, 0x180E},   {0x2000, 0x200F},
    {0x2028, 0x202F},   {0x205F, 0x206F},   {0x3000, 0x3000},   {0xD800, 0xF8FF},
    {0xFEFF, 0xFEFF},   {0xFFF0, 0xFFFB},   {0xFFFE, 0xFFFF},   {0x110BD, 0x110BD},
    {0x110CD, 0x110CD}, {0x13430, 0x13438}, {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A},
    {0xE0000, 0xE00FF}, {0xE01F0, 0x10FFFF}};

std::uint32_t byte_at(std::string_view text, std::size_t place) {
  return static_cast<unsigned char>(text[place]);
}

// How many bytes the code point has that begins with that one.
std::size_t size_of(std::uint32_t lead) {
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

std::string hexadecimal(std::uint32_t value, std::size_t digits) {
  std::string text(digits, '0');
  for (; digits-- > 0; value >>= 4) text[digits] = "0123456789abcdef"[value & 15];
  return text;
}

[[noreturn]] void fail(const std::string& codec, std::string_view bytes, std::size_t start,
                       std::size_t end, const char* reason) {
  const std::string where = end - start == 1 ? say("byte 0x{} in position {}",
                                                   hexadecimal(byte_at(bytes, start), 2), start)
                                             : say("bytes in position {}-{}", start, end - 1);
  throw std::invalid_argument(say("'{}' codec can't decode {}: {}", codec, where, reason));
}

// UTF-16 or -32 from a place on, of `width` bytes a unit, as UTF-8; halves of pairs pass.
std::string decode_wide(std::string_view bytes, std::size_t place, std::size_t width, bool big) {
  const std::string codec = say("utf-{}-{}", width * 8, big ? "be" : "le");
  const auto unit_at = [&](std::size_t at) {
    std::uint32_t unit = 0;
    for (std::size_t i = 0; i < width; ++i)
      unit = unit << 8 | byte_at(bytes, at + (big ? i : width - 1 - i));
    return unit;
  };
  std::string text;
  for (; place + width <= bytes.size(); place += width) {
    std::uint32_t point = unit_at(place);
    if (point > 0x10FFFF) fail(codec, bytes, place, place + 4, "code point not in range(0x110000)");
    if (width == 2 && point >> 10 == 0xD800 >> 10 && place + 4 <= bytes.size()) {
      const std::uint32_t low = unit_at(place + 2);
      const bool pair = low >> 10 == 0xDC00 >> 10;
      if (pair) point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
      place += pair ? 2 : 0;
    }
    append_utf8(text, point);
  }
  if (place < bytes.size()) fail(codec, bytes, place, bytes.size(), "truncated data");
  return text;
}

// Adds a value to `text`, no more of it than is sure to be over 60 code points.
void append_repr(std::string& text, const Json& value) {
  constexpr std::size_t kEnough = 240;
  if (value.is_null()) text += "None";
  if (const auto* truth = value.get<bool>()) text += *truth ? "True" : "False";
  if (const auto* number = value.get<std::int64_t>()) text += std::to_string(*number);
  if (const auto* number = value.get<LargeInteger>()) text += number->digits;
  if (const auto* number = value.get<double>()) text += repr(*number);
  if (const auto* string = value.get<std::string>()) text += repr(*string);
  if (const auto* items = value.get<Json::List>()) {
    text += '[';
    for (std::size_t i = 0; i < items->size() && text.size() <= kEnough; ++i) {
      text += i ? ", " : "";
      append_repr(text, (*items)[i]);
    }
    text += ']';
  }
  if (const auto* members = value.get<Json::Object>()) {
    text += '{';
    for (std::size_t i = 0; i < members->size() && text.size() <= kEnough; ++i) {
      text += say("{}{}: ", i ? ", " : "", repr((*members)[i].first));
      append_repr(text, (*members)[i].second);
    }
    text += '}';
  }
}

}  // namespace

void check_utf8(std::string_view bytes, bool surrogates) {
  for (std::size_t at = 0; at < bytes.size(); at += size_of(byte_at(bytes, at))) {
    const std::uint32_t lead = byte_at(bytes, at);
    if (lead >= 0x80 && (lead < 0xC2 || lead > 0xF4)) {
      fail("utf-8", bytes, at, at + 1, "invalid start byte");
    }
    for (std::size_t i = 1; i < size_of(lead); ++i) {
      if (at + i >= bytes.size()) fail("utf-8", bytes, at, bytes.size(), "unexpected end of data");
      std::uint32_t least = 0x80, most = 0xBF;
      if (i == 1 && lead == 0xE0) least = 0xA0;
      if (i == 1 && lead == 0xF0) least = 0x90;
      if (i == 1 && lead == 0xF4) most = 0x8F;
      const bool half = surrogates && at + 2 < bytes.size() && byte_at(bytes, at + 2) >> 6 == 2;
      if (i == 1 && lead == 0xED && !half) most = 0x9F;
      if (byte_at(bytes, at + i) < least || byte_at(bytes, at + i) > most) {
        fail("utf-8", bytes, at, at + i, "invalid continuation byte");
      }
    }
  }
}

std::string decode_json(std::string_view bytes) {
  const auto zero = [&](std::size_t place) { return bytes[place] == 0; };
  for (const bool big : {true, false}) {
    const std::string mark = big ? std::string("\0\0\xFE\xFF", 4) : std::string("\xFF\xFE\0\0", 4);
    if (bytes.substr(0, 4) == mark) return decode_wide(bytes, 4, 4, big);
  }
  if (bytes.substr(0, 2) == "\xFE\xFF") return decode_wide(bytes, 2, 2, true);
  if (bytes.substr(0, 2) == "\xFF\xFE") return decode_wide(bytes, 2, 2, false);
  if (bytes.substr(0, 3) == "\xEF\xBB\xBF") {
    bytes.remove_prefix(3);
  } else if (bytes.size() == 2 && (zero(0) || zero(1))) {
    return decode_wide(bytes, 0, 2, zero(0));
  } else if (bytes.size() >= 4 && (zero(0) || zero(1))) {
    const bool four = zero(0) ? zero(1) : zero(2) && zero(3);
    return decode_wide(bytes, 0, four ? 4 : 2, zero(0));
  }
  check_utf8(bytes, true);
  return std::string(bytes);
}

std::string first_points(std::string_view text, std::size_t count) {
  std::size_t at = 0;
  for (; count > 0 && at < text.size(); --count) at += character_at(text, at).size;
  return std::string(text.substr(0, at));
}

std::string repr(std::string_view text) {
  const bool single = text.find('\'') == text.npos || text.find('"') != text.npos;
  const char quote = single ? '\'' : '"';
  std::string shown(1, quote);
  for (std::size_t at = 0; at < text.size();) {
    const auto [point, size] = character_at(text, at);
    const bool escaped = std::any_of(
        std::begin(kEscaped), std::end(kEscaped),
        [&, &one = point](const auto& range) { return range[0] <= one && one <= range[1]; });
    if (point == '\n' || point == '\r' || point == '\t') {
      shown += point == '\n' ? "\\n" : point == '\r' ? "\\r" : "\\t";
    } else if (escaped) {
      shown += point < 0x100 ? "\\x" : point < 0x10000 ? "\\u" : "\\U";
      shown += hexadecimal(point, point < 0x100 ? 2 : point < 0x10000 ? 4 : 8);
    } else {
      if (text[at] == '\\' || text[at] == quote) shown += '\\';
      shown += text.substr(at, size);
    }
    at += size;
  }
  return shown + quote;
}

std::string repr(double value) {
  if (std::isnan(value)) return "nan";  // of either sign
  char buffer[64];
  const auto write = [&](std::chars_format format) {
    return std::string(buffer, std::to_chars(buffer, std::end(buffer), value, format).ptr);
  };
  std::string text = write(std::chars_format::scientific);
  const std::size_t e = text.find('e');
  if (e == text.npos) return text;  // inf
  const int exponent = std::stoi(text.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return text;
  const std::string fixed = write(std::chars_format::fixed);
  return fixed.find('.') == fixed.npos ? fixed + ".0" : fixed;
}

std::string shorten(const Json& value) {
  std::string shown;
  append_repr(shown, value);
  return shorten(shown);
}

std::string shorten(const std::string& shown) {
  return first_points(shown, 60) == shown ? shown : first_points(shown, 57) + "...";
}

}  // namespace ouro::core
