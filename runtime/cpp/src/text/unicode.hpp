// UTF-8, and characters as the regular expressions of `tokenizers` class them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ouro::core {

inline constexpr std::string_view kUnknown = "\xEF\xBF\xBD";  // U+FFFD

// Bits of a character's classes. The first three are those of regular expressions in a
// tokenizer.json, at most one a character; the next three those of Rust, for digits and for added
// tokens.
inline constexpr std::uint8_t kLetter = 1;     // \p{L}
inline constexpr std::uint8_t kNumber = 2;     // \p{N}
inline constexpr std::uint8_t kSpace = 4;      // \s
inline constexpr std::uint8_t kNumeric = 8;    // char::is_numeric
inline constexpr std::uint8_t kWord = 16;      // \w
inline constexpr std::uint8_t kWhite = 32;     // \s
inline constexpr std::uint8_t kUnstable = 64;  // NFC may change it, or what stands before it

// A character of a text and its size in bytes.
struct Character {
  char32_t code;
  std::size_t size;
};

// The character at `place`, of valid UTF-8.
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

// The classes of a code point.
std::uint8_t classes(char32_t code);

// Whether bytes are UTF-8, without surrogates.
bool is_utf8(std::string_view bytes);

// Bytes as UTF-8: each longest beginning of a character that does not go on, and each byte that
// begins none, becomes U+FFFD, as in Python's bytes.decode("utf-8", "replace").
std::string to_utf8(std::string_view bytes);

// Canonical composition, as the wheel has it; of valid UTF-8.
std::string nfc(std::string_view text);

// Puts a text in the place of every occurrence of another, which is not empty, from the left.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

}  // namespace ouro::core
