// Encodings of JSON, and values as Python writes them; declared in json.hpp.
#include <charconv>
#include <stdexcept>

#include "bundle/json.hpp"

namespace ouro::core {
namespace {

// First and last of the code points that `repr` escapes: controls, formats, surrogates, private use
// and separators, of Unicode 14. What Unicode has not assigned yet is written as it is.
constexpr std::uint32_t kEscaped[][2] = {
    {0, 0x1F},           {0x7F, 0xA0},         {0xAD, 0xAD},         {0x600, 0x605},
    {0x61C, 0x61C},      {0x6DD, 0x6DD},       {0x70F, 0x70F},       {0x890, 0x891},
    {0x8E2, 0x8E2},      {0x1680, 0x1680},     {0x180E, 0x180E},     {0x2000, 0x200F},
    {0x2028, 0x202F},    {0x205F, 0x206F},     {0x3000, 0x3000},     {0xD800, 0xF8FF},
    {0xFEFF, 0xFEFF},    {0xFFF0, 0xFFFB},     {0xFFFE, 0xFFFF},     {0x110BD, 0x110BD},
    {0x110CD, 0x110CD},  {0x13430, 0x13438},   {0x1BCA0, 0x1BCA3},   {0x1D173, 0x1D17A},
    {0xE0000, 0xE00FF},  {0xE01F0, 0x10FFFF}};

std::size_t byte_at(std::string_view text, std::size_t place) {
  return static_cast<unsigned char>(text[place]);
}

[[noreturn]] void fail_decoding(const char* codec, std::string_view bytes, std::size_t start,
                                std::size_t end, const char* reason) {
  std::string where = "bytes in position " + std::to_string(start) + "-" + std::to_string(end - 1);
  if (end - start == 1) {
    char digits[3] = "00";
    const std::size_t byte = byte_at(bytes, start);
    std::to_chars(digits + (byte < 16), digits + 2, byte, 16);
    where = "byte 0x" + std::string(digits) + " in position " + std::to_string(start);
  }
  throw std::invalid_argument("'" + std::string(codec) + "' codec can't decode " + where + ": " +
                              reason);
}

// UTF-16 or -32, of `width` bytes a unit, as UTF-8; halves of pairs pass.
std::string decode_wide(std::string_view bytes, std::size_t width, bool big, const char* codec) {
  std::string text;
  const auto unit_at = [&](std::size_t place) {
    std::uint32_t unit = 0;
    for (std::size_t i = 0; i < width; ++i) {
      unit = unit << 8 | static_cast<std::uint32_t>(byte_at(bytes, place + (big ? i : width - 1 - i)));
    }
    return unit;
  };
  std::size_t place = 0;
  for (; place + width <= bytes.size(); place += width) {
    std::uint32_t point = unit_at(place);
    if (width == 4 && point > 0x10FFFF) {
      fail_decoding(codec, bytes, place, place + 4, "code point not in range(0x110000)");
    }
    if (width == 2 && point >> 10 == 0xD800 >> 10 && place + 4 <= bytes.size()) {
      const std::uint32_t low = unit_at(place + 2);
      if (low >> 10 == 0xDC00 >> 10) {
        point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
        place += 2;
      }
    }
    append_utf8(text, point);
  }
  if (place < bytes.size()) fail_decoding(codec, bytes, place, bytes.size(), "truncated data");
  return text;
}

// Adds the escaped or plain form of one code point, as `repr` has it.
void append_shown(std::string& text, std::uint32_t point, char quote) {
  bool escaped = false;
  for (const auto& range : kEscaped) escaped = escaped || (range[0] <= point && point <= range[1]);
  if (point == '\n' || point == '\r' || point == '\t') {
    text += point == '\n' ? "\\n" : point == '\r' ? "\\r" : "\\t";
  } else if (escaped) {
    constexpr char kDigits[] = "0123456789abcdef";
    text += point < 0x100 ? "\\x" : point < 0x10000 ? "\\u" : "\\U";
    for (int shift = point < 0x100 ? 4 : point < 0x10000 ? 12 : 28; shift >= 0; shift -= 4) {
      text += kDigits[point >> shift & 15];
    }
  } else {
    if (point == '\\' || point == static_cast<std::uint32_t>(quote)) text += '\\';
    append_utf8(text, point);
  }
}

// Writes a value until `text` is longer than any 60 characters are.
void write_repr(const Json& value, std::string& text) {
  constexpr std::size_t kEnough = 60 * 10;
  if (value.is_null()) text += "None";
  if (const auto* truth = value.get<bool>()) text += *truth ? "True" : "False";
  if (const auto* number = value.get<std::int64_t>()) text += std::to_string(*number);
  if (const auto* number = value.get<Integer>()) text += number->digits;
  if (const auto* number = value.get<double>()) text += repr(*number);
  if (const auto* string = value.get<std::string>()) text += repr(*string);
  if (const auto* items = value.get<Json::List>()) {
    text += '[';
    for (std::size_t i = 0; i < items->size() && text.size() < kEnough; ++i) {
      text += i ? ", " : "";
      write_repr((*items)[i], text);
    }
    text += ']';
  }
  if (const auto* members = value.get<Json::Object>()) {
    text += '{';
    for (std::size_t i = 0; i < members->size() && text.size() < kEnough; ++i) {
      text += (i ? ", " : "") + repr((*members)[i].first) + ": ";
      write_repr((*members)[i].second, text);
    }
    text += '}';
  }
}

}  // namespace

void append_utf8(std::string& text, std::uint32_t point) {
  const auto add = [&](std::uint32_t byte) { text += static_cast<char>(byte); };
  if (point < 0x80) return add(point);
  if (point < 0x800) {
    add(0xC0 | point >> 6);
  } else {
    if (point < 0x10000) {
      add(0xE0 | point >> 12);
    } else {
      add(0xF0 | point >> 18);
      add(0x80 | (point >> 12 & 63));
    }
    add(0x80 | (point >> 6 & 63));
  }
  add(0x80 | (point & 63));
}

std::pair<std::uint32_t, std::size_t> code_point_at(std::string_view text, std::size_t place) {
  const std::size_t lead = byte_at(text, place);
  const std::size_t size = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  std::size_t point = size == 1 ? lead : lead & (0x7Fu >> size);
  for (std::size_t i = 1; i < size; ++i) point = point << 6 | (byte_at(text, place + i) & 63);
  return {static_cast<std::uint32_t>(point), size};
}

void check_utf8(std::string_view bytes, bool surrogates) {
  const auto fail = [&](std::size_t start, std::size_t end, const char* reason) {
    fail_decoding("utf-8", bytes, start, end, reason);
  };
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t lead = byte_at(bytes, at);
    if (lead >= 0x80 && (lead < 0xC2 || lead > 0xF4)) fail(at, at + 1, "invalid start byte");
    const std::size_t size = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    for (std::size_t i = 1; i < size; ++i) {
      if (at + i >= bytes.size()) fail(at, bytes.size(), "unexpected end of data");
      std::size_t least = 0x80, most = 0xBF;
      if (i == 1 && lead == 0xE0) least = 0xA0;
      if (i == 1 && lead == 0xF0) least = 0x90;
      if (i == 1 && lead == 0xF4) most = 0x8F;
      if (i == 1 && lead == 0xED) {
        const bool whole = at + 2 < bytes.size() && byte_at(bytes, at + 2) >> 6 == 2;
        most = surrogates && whole ? 0xBF : 0x9F;
      }
      const std::size_t byte = byte_at(bytes, at + i);
      if (byte < least || byte > most) fail(at, at + i, "invalid continuation byte");
    }
    at += size;
  }
}

std::string decode_json(std::string_view bytes) {
  const auto starts = [&](std::string_view with) { return bytes.substr(0, with.size()) == with; };
  if (starts({"\0\0\xFE\xFF", 4})) return decode_wide(bytes.substr(4), 4, true, "utf-32");
  if (starts({"\xFF\xFE\0\0", 4})) return decode_wide(bytes.substr(4), 4, false, "utf-32");
  if (starts("\xFE\xFF")) return decode_wide(bytes.substr(2), 2, true, "utf-16");
  if (starts("\xFF\xFE")) return decode_wide(bytes.substr(2), 2, false, "utf-16");
  if (starts("\xEF\xBB\xBF")) bytes.remove_prefix(3);
  if (bytes.size() >= 4 || bytes.size() == 2) {
    const bool pair = bytes.size() == 2;
    if (bytes[0] == 0) {
      if (pair || bytes[1] != 0) return decode_wide(bytes, 2, true, "utf-16-be");
      return decode_wide(bytes, 4, true, "utf-32-be");
    }
    if (bytes[1] == 0) {
      if (pair || bytes[2] != 0 || bytes[3] != 0) return decode_wide(bytes, 2, false, "utf-16-le");
      return decode_wide(bytes, 4, false, "utf-32-le");
    }
  }
  check_utf8(bytes, true);
  return std::string(bytes);
}

const char* type_name(const Json& value) {
  constexpr const char* kNames[] = {"NoneType", "bool", "int", "int", "float", "str", "list", "dict"};
  return kNames[value.value.index()];
}

std::string repr(std::string_view text) {
  const bool single = text.find('\'') == text.npos || text.find('"') != text.npos;
  const char quote = single ? '\'' : '"';
  std::string shown(1, quote);
  for (std::size_t at = 0; at < text.size();) {
    const auto [point, size] = code_point_at(text, at);
    append_shown(shown, point, quote);
    at += size;
  }
  return shown + quote;
}

std::string repr(double value) {
  char buffer[400];
  auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string text(buffer, end);
  const std::size_t e = text.find('e');
  if (e == text.npos) return text;  // inf
  int exponent = 0;
  std::from_chars(text.data() + e + (text[e + 1] == '+' ? 2 : 1), text.data() + text.size(), exponent);
  if (exponent < -4 || exponent >= 16) return text;
  end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed).ptr;
  std::string fixed(buffer, end);
  return fixed.find('.') == fixed.npos ? fixed + ".0" : fixed;
}

std::string_view first_characters(std::string_view text, std::size_t count) {
  std::size_t at = 0;
  for (; count > 0 && at < text.size(); --count) at += code_point_at(text, at).second;
  return text.substr(0, at);
}

std::string shorten(const Json& value) {
  std::string shown;
  write_repr(value, shown);
  return shorten(shown);
}

std::string shorten(const std::string& shown) {
  if (first_characters(shown, 60).size() == shown.size()) return shown;
  return std::string(first_characters(shown, 57)) + "...";
}

}  // namespace ouro::core
