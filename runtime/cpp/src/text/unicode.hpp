// UTF-8, and characters as the regular expressions of `tokenizers` class them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "utf8.hpp"

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
