#include "text/splitter.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include <nlohmann/json.hpp>

#include "error.hpp"
#include "text/unicode.hpp"

namespace ouro::core {
namespace {

using nlohmann::json;

constexpr std::uint8_t kKinds = kLetter | kNumber | kSpace;

// The pre-tokenizers known here, without `trim_offsets`, which changes no token.
constexpr char kDigits[] = R"json({"type": "Sequence", "pretokenizers": [
    {"type": "Digits", "individual_digits": true},
    {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}]})json";
constexpr char kLlama3[] = R"json({"type": "Sequence", "pretokenizers": [
    {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex":
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
    {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})json";
constexpr char kQwen2[] = R"json({"type": "Sequence", "pretokenizers": [
    {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex":
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
    {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})json";

// A character and its kind: kLetter, kNumber, kSpace or 0. Past the end of the text, kSpace.
struct Kind {
  std::uint8_t kind;
  std::size_t size;
  char32_t code;
};

Kind kind_at(std::string_view text, std::size_t place) {
  if (place >= text.size()) return {kSpace, 0, 0};
  const Character one = character_at(text, place);
  return {static_cast<std::uint8_t>(classes(one.code) & kKinds), one.size, one.code};
}

// The end of the run of characters of a kind that begins at a place.
std::size_t run(std::string_view text, std::size_t place, std::uint8_t kind) {
  for (Kind one = kind_at(text, place); one.size > 0 && one.kind == kind;
       one = kind_at(text, place)) {
    place += one.size;
  }
  return place;
}

bool is_line(char32_t code) { return code == '\r' || code == '\n'; }

// The end of 's, 't, 're, 've, 'm, 'll or 'd, which begins at a place; or 0. Where case does not
// matter, U+017F is an s.
std::size_t contraction(std::string_view text, std::size_t place, bool any_case) {
  const auto letter = [&](std::size_t at) {
    const char one = at < text.size() ? text[at] : '\0';
    return any_case && one >= 'A' && one <= 'Z' ? static_cast<char>(one - 'A' + 'a') : one;
  };
  const char first = letter(place + 1), second = letter(place + 2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return place + 2;
  if (any_case && text.substr(place + 1, 2) == "\xC5\xBF") return place + 3;
  const bool two =
      ((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l');
  return two ? place + 3 : 0;
}

// The end of \s+(?!\S)|\s+ where a run of spaces begins at `start`.
std::size_t spaces(std::string_view text, std::size_t start, std::size_t end) {
  if (end == text.size()) return end;
  const std::size_t last = start_before(text, end);
  return last > start ? last : end;
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
std::size_t end_gpt2(std::string_view text, std::size_t start) {
  const Kind first = kind_at(text, start);
  if (first.code == '\'') {
    if (const std::size_t end = contraction(text, start, false)) return end;
  }
  if (first.kind != kSpace) return run(text, start + first.size, first.kind);
  if (first.code == ' ') {
    const Kind next = kind_at(text, start + 1);
    if (next.kind != kSpace) return run(text, start + 1 + next.size, next.kind);
  }
  return spaces(text, start, run(text, start, kSpace));
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|
// \s*[\r\n]+|\s+(?!\S)|\s+
template <int digits>
std::size_t end_lines(std::string_view text, std::size_t start) {
  const Kind first = kind_at(text, start);
  if (first.code == '\'') {
    if (const std::size_t end = contraction(text, start, true)) return end;
  }
  if (first.kind == kLetter) return run(text, start + first.size, kLetter);
  std::size_t place = start + first.size;
  if (first.kind == kNumber) {
    Kind next = kind_at(text, place);
    for (int more = 1; more < digits && next.kind == kNumber; ++more, next = kind_at(text, place)) {
      place += next.size;
    }
    return place;
  }
  const Kind next = kind_at(text, place);
  if (next.kind == kLetter && !is_line(first.code)) return run(text, place + next.size, kLetter);
  if (first.kind == 0 || (first.code == ' ' && next.kind == 0)) {
    place = run(text, place, 0);
    while (place < text.size() && is_line(static_cast<unsigned char>(text[place]))) ++place;
    return place;
  }
  const std::size_t end = run(text, start, kSpace);
  const std::size_t line = text.substr(start, end - start).find_last_of("\r\n");
  return line != std::string_view::npos ? start + line + 1 : spaces(text, start, end);
}

// Leaves out what changes no token, and writes what may be left out.
json plain(json value) {
  if (value.is_object() && value.value("type", json()) == "ByteLevel") {
    value.erase("trim_offsets");
    value.emplace("use_regex", true);
  }
  if (value.is_object() && value.count("pretokenizers") && value["pretokenizers"].is_array()) {
    for (json& one : value["pretokenizers"]) one = plain(std::move(one));
  }
  return value;
}

}  // namespace

std::optional<Splitter> Splitter::read(const json& value) {
  Splitter made;
  if (value.is_null()) return made;
  if (value.at("type") == "Metaspace") {
    made.read_metaspace(value);
    return made;
  }
  json kind = plain(value);
  if (kind == json::parse(kLlama3)) {
    made.ends_ = end_lines<3>;
  } else if (kind == json::parse(kQwen2)) {
    made.ends_ = end_lines<1>;
  } else if (kind == json::parse(kDigits)) {
    made.ends_ = end_gpt2;
    made.digits_ = true;
  } else if (kind.at("type") == "ByteLevel" && kind.at("use_regex") == true) {
    made.ends_ = end_gpt2;
    if (kind.at("add_prefix_space").get<bool>()) made.prepend_ = Prepend::kAlways;
    made.mark_ = " ";
  } else {
    return std::nullopt;
  }
  return made;
}

void Splitter::read_metaspace(const json& value) {
  const std::string scheme = value.value("prepend_scheme", "always");
  mark_ = value.at("replacement").get_ref<const std::string&>();
  divides_ = value.value("split", json()) != false;
  prepend_ = scheme == "always"  ? Prepend::kAlways
             : scheme == "first" ? Prepend::kFirst
                                 : Prepend::kNever;
}

void Splitter::split(std::string_view text, bool opening, std::string& changed,
                     std::vector<std::string_view>& words) const {
  if (text.empty()) return;
  if (mark_.empty()) {
    return byte_level() ? split_bytes(text, words) : words.push_back(text);
  }
  if (!byte_level()) {
    changed = replace_all(text, " ", mark_);
    text = changed;
  }
  const bool prepend = prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && opening);
  if (prepend && text.substr(0, mark_.size()) != mark_) {
    changed = mark_ + std::string(text);
    text = changed;
  }
  if (byte_level()) return split_bytes(text, words);
  if (!divides_) return words.push_back(text);
  for (std::size_t start = 0; start < text.size();) {
    const std::size_t end = std::min(text.find(mark_, start + 1), text.size());
    words.push_back(text.substr(start, end - start));
    start = end;
  }
}

void Splitter::split_bytes(std::string_view text, std::vector<std::string_view>& words) const {
  for (std::size_t start = 0; start < text.size();) {
    std::size_t end = text.size();
    if (digits_) {  // up to the next digit, or that digit
      for (end = start; end < text.size();) {
        const Character one = character_at(text, end);
        if (classes(one.code) & kNumeric) {
          if (end == start) end += one.size;
          break;
        }
        end += one.size;
      }
    }
    const std::string_view part = text.substr(0, end);
    for (std::size_t place = start; place < end;) {
      const std::size_t stop = ends_(part, place);
      words.push_back(part.substr(place, stop - place));
      place = stop;
    }
    start = end;
  }
}

}  // namespace ouro::core
