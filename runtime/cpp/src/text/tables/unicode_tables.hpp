// The tables of unicode_tables.cpp, which tools/make_unicode_tables.py writes; text/unicode.hpp
// reads them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ouro::core::tables {

inline constexpr std::size_t kBlockSize = 128;

// A character's full canonical decomposition: `size` code points of kDecomposed.
struct Decomposition {
  char32_t from;
  std::uint16_t start;
  std::uint8_t size;
};

// A combining mark and the rank of its combining class, from 1.
struct Mark {
  char32_t code;
  std::uint8_t rank;
};

// Two characters that NFC writes as one.
struct Composition {
  char32_t first, second, composed;
};

extern const std::uint16_t kBlockOf[];         // of a code point's hundred and twenty-eight
extern const std::uint8_t kClasses[];          // bits of text/unicode.hpp, block by block
extern const Decomposition kDecompositions[];  // sorted; no Hangul syllables
extern const char32_t kDecomposed[];
extern const Mark kMarks[];                // sorted
extern const Composition kCompositions[];  // sorted; no Hangul syllables
extern const std::size_t kDecompositionCount, kMarkCount, kCompositionCount;

}  // namespace ouro::core::tables
