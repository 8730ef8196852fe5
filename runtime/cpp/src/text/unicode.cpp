#include "text/unicode.hpp"

#include <algorithm>
#include <iterator>
#include <vector>

#include "bundle/json.hpp"
#include "text/tables/unicode_tables.hpp"

namespace ouro::core {
namespace {

constexpr char32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11A7;
constexpr char32_t kLeadCount = 19, kVowelCount = 21, kTailCount = 28;
constexpr char32_t kSyllableCount = kLeadCount * kVowelCount * kTailCount;

// How many bytes at the start of `bytes` are a whole character (`whole`) or a beginning of one.
std::size_t measure(std::string_view bytes, bool& whole) {
  const auto byte = [&](std::size_t place) { return static_cast<unsigned char>(bytes[place]); };
  const unsigned char first = byte(0);
  whole = first < 0x80;
  if (whole) return 1;
  const std::size_t size = first < 0xC2   ? 0
                           : first < 0xE0 ? 2
                           : first < 0xF0 ? 3
                           : first < 0xF5 ? 4
                                          : 0;
  if (size == 0) return 1;
  // The second byte rules out overlong forms, surrogates and what is beyond U+10FFFF.
  const unsigned char low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  if (bytes.size() < 2 || byte(1) < low || byte(1) > high) return 1;
  std::size_t place = 2;
  while (place < size && place < bytes.size() && continues(bytes[place])) ++place;
  whole = place == size;
  return place;
}

// A code point and its canonical combining class.
struct Ranked {
  char32_t code;
  std::uint8_t rank;
};

std::uint8_t rank_of(char32_t code) {
  const tables::Mark* end = tables::kMarks + tables::kMarkCount;
  const tables::Mark* found =
      std::lower_bound(tables::kMarks, end, code,
                       [](const tables::Mark& mark, char32_t one) { return mark.code < one; });
  return found != end && found->code == code ? found->rank : std::uint8_t{0};
}

void decompose(char32_t code, std::vector<Ranked>& parts) {
  if (code >= kSyllables && code < kSyllables + kSyllableCount) {
    const char32_t place = code - kSyllables;
    parts.push_back({kLeads + place / (kVowelCount * kTailCount), 0});
    parts.push_back({kVowels + place / kTailCount % kVowelCount, 0});
    if (place % kTailCount) parts.push_back({kTails + place % kTailCount, 0});
    return;
  }
  const tables::Decomposition* end = tables::kDecompositions + tables::kDecompositionCount;
  const tables::Decomposition* found = std::lower_bound(
      tables::kDecompositions, end, code,
      [](const tables::Decomposition& one, char32_t sought) { return one.from < sought; });
  if (found == end || found->from != code) {
    parts.push_back({code, rank_of(code)});
    return;
  }
  for (std::size_t place = found->start; place < found->start + std::size_t{found->size}; ++place) {
    parts.push_back({tables::kDecomposed[place], rank_of(tables::kDecomposed[place])});
  }
}

// The character that NFC writes for two, or 0.
char32_t compose(char32_t first, char32_t second) {
  if (first >= kLeads && first < kLeads + kLeadCount) {
    if (second < kVowels || second >= kVowels + kVowelCount) return 0;
    return kSyllables + ((first - kLeads) * kVowelCount + (second - kVowels)) * kTailCount;
  }
  if (first >= kSyllables && first < kSyllables + kSyllableCount) {
    const bool open = (first - kSyllables) % kTailCount == 0;
    return open && second > kTails && second < kTails + kTailCount ? first + (second - kTails) : 0;
  }
  const tables::Composition* end = tables::kCompositions + tables::kCompositionCount;
  const tables::Composition* found = std::lower_bound(
      tables::kCompositions, end, first, [&](const tables::Composition& one, char32_t) {
        return one.first != first ? one.first < first : one.second < second;
      });
  const bool same = found != end && found->first == first && found->second == second;
  return same ? found->composed : 0;
}

// Sorts runs of marks, composes, and appends to `text`.
void recompose(std::vector<Ranked>& parts, std::string& text) {
  for (auto at = parts.begin(); at != parts.end();) {
    const auto end =
        std::find_if(at, parts.end(), [](const Ranked& part) { return part.rank == 0; });
    std::stable_sort(at, end,
                     [](const Ranked& one, const Ranked& other) { return one.rank < other.rank; });
    at = end == parts.end() ? end : std::next(end);
  }
  std::size_t kept = 0, starter = parts.size();
  for (std::size_t place = 0; place < parts.size(); ++place) {
    const Ranked part = parts[place];
    // What stands between a starter and a mark blocks it, unless of a lower class.
    const bool open =
        starter < kept &&
        (kept == starter + 1 || (parts[kept - 1].rank < part.rank && parts[kept - 1].rank != 0));
    if (const char32_t both = open ? compose(parts[starter].code, part.code) : 0) {
      parts[starter].code = both;
      continue;
    }
    if (part.rank == 0) starter = kept;
    parts[kept++] = part;
  }
  for (std::size_t place = 0; place < kept; ++place) append_utf8(text, parts[place].code);
  parts.clear();
}

}  // namespace

std::uint8_t classes(char32_t code) {
  const std::size_t block = tables::kBlockOf[code / tables::kBlockSize];
  return tables::kClasses[block * tables::kBlockSize + code % tables::kBlockSize];
}

bool is_utf8(std::string_view bytes) {
  bool whole = true;
  for (std::size_t place = 0; place < bytes.size() && whole;) {
    if (static_cast<unsigned char>(bytes[place]) < 0x80) {
      ++place;
    } else {
      place += measure(bytes.substr(place), whole);
    }
  }
  return whole;
}

std::string to_utf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  for (std::size_t place = 0; place < bytes.size();) {
    bool whole = false;
    const std::size_t size = measure(bytes.substr(place), whole);
    text.append(whole ? bytes.substr(place, size) : kUnknown);
    place += size;
  }
  return text;
}

std::string nfc(std::string_view text) {
  std::string made;
  std::vector<Ranked> parts;
  std::size_t copied = 0, last = 0;  // `last`: where the last character begins
  for (std::size_t place = 0; place < text.size();) {
    Character one = character_at(text, place);
    if (one.code < 0x300 || !(classes(one.code) & kUnstable)) {
      last = place;
      place += one.size;
      continue;
    }
    // From the character before, to the next one that nothing before it can change.
    std::size_t end = place;
    do {
      end += one.size;
      if (end < text.size()) one = character_at(text, end);
    } while (end < text.size() && one.code >= 0x300 && (classes(one.code) & kUnstable));
    made.append(text.substr(copied, last - copied));
    for (std::size_t at = last; at < end;) {
      const Character next = character_at(text, at);
      decompose(next.code, parts);
      at += next.size;
    }
    recompose(parts, made);
    copied = place = last = end;
  }
  made.append(text.substr(copied));
  return made;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string made;
  std::size_t place = 0;
  for (std::size_t found = text.find(from); found != std::string_view::npos;
       found = text.find(from, place)) {
    made.append(text.substr(place, found - place)).append(to);
    place = found + from.size();
  }
  return made.append(text.substr(place));
}

}  // namespace ouro::core
