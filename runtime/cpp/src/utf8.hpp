// Characters of UTF-8, read and written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ouro::core {

// A character of a text and its size in bytes.
struct Character {
  char32_t code;
  std::size_t size;
};

// The character at `place`, of valid UTF-8, where halves of surrogate pairs may stand too.
inline Character character_at(std::string_view text, std::size_t place) {
  const auto byte = [&](std::size_t offset) {
    return static_cast<char32_t>(static_cast<unsigned char>(text[place + offset]));
  };
  const char32_t first = byte(0);
  if (first < 0x80) return {first, 1};
  if (first < 0xE0) return {((first & 0x1F) << 6) | (byte(1) & 0x3F), 2};
  if (first < 0xF0) {
    return {((first & 0x0F) << 12) | ((byte(1) & 0x3F) << 6) | (byte(2) & 0x3F), 3};
  }
  return {((first & 0x07) << 18) | ((byte(1) & 0x3F) << 12) | ((byte(2) & 0x3F) << 6) |
              (byte(3) & 0x3F),
          4};
}

// Whether a byte goes on with a character that began before it.
inline bool continues(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

// The start of the character that ends before `place`, of valid UTF-8; place > 0.
inline std::size_t start_before(std::string_view text, std::size_t place) {
  do --place;
  while (place > 0 && continues(text[place]));
  return place;
}

// Appends a code point.
inline void append_utf8(std::string& text, std::uint32_t point) {
  if (point < 0x80) {
    text += static_cast<char>(point);
    return;
  }
  const int more = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
  text += static_cast<char>((0xFF << (7 - more) & 0xFF) | static_cast<int>(point >> 6 * more));
  for (int i = more; i-- > 0;) text += static_cast<char>(0x80 | (point >> 6 * i & 63));
}

}  // namespace ouro::core
