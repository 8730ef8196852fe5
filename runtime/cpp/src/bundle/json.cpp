#include "bundle/json.hpp"

#include <algorithm>
#include <charconv>
#include <limits>
#include <stdexcept>
#include <system_error>
#include <unordered_set>

#include "bundle/say.hpp"
#include "utf8.hpp"

namespace ouro::core {
namespace {

constexpr std::size_t kMaxDigits = 4300, kMaxNesting = 980;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// A number that no double is near to: infinity or zero, as its exponent and first digit say.
double round_extreme(std::string_view text) {
  const std::size_t e = std::min(text.find_first_of("eE"), text.size());
  const std::size_t point = std::min(text.find('.'), e), first = text.find_first_of("123456789");
  const bool negative = e + 1 < text.size() && text[e + 1] == '-';
  double exponent = 0;
  for (const char c : text.substr(e)) {
    if (is_digit(c)) exponent = exponent * 10 + (c - '0');
  }
  exponent =
      (negative ? -exponent : exponent) + static_cast<double>(point) - static_cast<double>(first);
  const double size = exponent > 0 ? std::numeric_limits<double>::infinity() : 0.0;
  return text[0] == '-' ? -size : size;
}

// One pass over UTF-8, as the scanner in CPython's Modules/_json.c makes it.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  Json read_document() {
    skip_space();
    Json value = read_value(0);
    skip_space();
    if (at_ < text_.size()) fail("Extra data", at_);
    return value;
  }

 private:
  [[noreturn]] void fail(const char* problem, std::size_t place) const {
    std::size_t line = 1, column = 1, points = 0;
    for (const char c : text_.substr(0, place)) {
      if ((c & 0xC0) == 0x80) continue;  // not the first byte of a code point
      ++points;
      line += c == '\n';
      column = c == '\n' ? 1 : column + 1;
    }
    throw std::invalid_argument(
        say("{}: line {} column {} (char {})", problem, line, column, points));
  }

  bool next_is(char c) const { return at_ < text_.size() && text_[at_] == c; }

  bool take(std::string_view word) {
    const bool found = text_.substr(at_, word.size()) == word;
    at_ += found ? word.size() : 0;
    return found;
  }

  void skip_space() { at_ = std::min(text_.find_first_not_of(" \t\n\r", at_), text_.size()); }

  void skip_digits() { at_ = std::min(text_.find_first_not_of("0123456789", at_), text_.size()); }

  Json read_value(std::size_t depth) {
    if ((next_is('[') || next_is('{')) && depth >= kMaxNesting) {
      throw std::invalid_argument(
          say("maximum recursion depth exceeded while decoding a JSON {} "
              "from a unicode string",
              next_is('[') ? "array" : "object"));
    }
    if (take("[")) return read_list(depth + 1);
    if (take("{")) return read_object(depth + 1);
    if (next_is('"')) return {read_string()};
    if (take("null")) return {};
    if (take("true")) return {true};
    if (take("false")) return {false};
    for (const char* name : {"NaN", "Infinity", "-Infinity"}) {
      if (take(name)) throw std::invalid_argument(say("{} is not a JSON number", name));
    }
    return read_number();
  }

  // Reads what stands between commas, up to the closing bracket.
  template <class ReadItem>
  void read_items(const char* closing, ReadItem&& read_item) {
    skip_space();
    if (take(closing)) return;
    while (true) {
      read_item();
      skip_space();
      if (take(closing)) return;
      if (!take(",")) fail("Expecting ',' delimiter", at_);
      skip_space();
    }
  }

  Json read_list(std::size_t depth) {
    Json::List items;
    read_items("]", [&] { items.push_back(read_value(depth)); });
    return {std::move(items)};
  }

  Json read_object(std::size_t depth) {
    Json::Object members;
    read_items("}", [&] {
      if (!next_is('"')) fail("Expecting property name enclosed in double quotes", at_);
      std::string key = read_string();
      skip_space();
      if (!take(":")) fail("Expecting ':' delimiter", at_);
      skip_space();
      members.emplace_back(std::move(key), read_value(depth));
    });
    std::unordered_set<std::string_view> seen;
    for (const auto& [key, value] : members) {
      if (seen.insert(key).second) continue;
      throw std::invalid_argument(say("the key {} appears twice", repr(key)));
    }
    return {std::move(members)};
  }

  std::string read_string() {
    const std::size_t begin = at_++;
    std::string result;
    while (true) {
      const std::size_t start = at_;
      for (; at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\'; ++at_) {
        if (static_cast<unsigned char>(text_[at_]) < 32) fail("Invalid control character at", at_);
      }
      result += text_.substr(start, at_ - start);
      if (take("\"")) return result;
      if (at_ + 1 >= text_.size()) fail("Unterminated string starting at", begin);
      read_escape(result);
    }
  }

  void read_escape(std::string& result) {
    constexpr std::string_view kLetters = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    at_ += 2;
    if (text_[at_ - 1] != 'u') {
      const std::size_t which = kLetters.find(text_[at_ - 1]);
      if (which == kLetters.npos) fail("Invalid \\escape", at_ - 2);
      result += kMeant[which];
      return;
    }
    std::uint32_t point = read_hex();
    if (point >> 10 == 0xD800 >> 10 && at_ + 6 < text_.size() && take("\\u")) {
      const std::uint32_t low = read_hex();
      const bool pair = low >> 10 == 0xDC00 >> 10;
      if (pair) point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
      if (!pair) at_ -= 6;
    }
    append_utf8(result, point);
  }

  // The four digits of an escape, which are not the text's last characters.
  std::uint32_t read_hex() {
    std::uint32_t point = 0;
    const char* start = text_.data() + at_;
    if (at_ + 4 >= text_.size() || std::from_chars(start, start + 4, point, 16).ptr != start + 4) {
      fail("Invalid \\uXXXX escape", at_ - 1);
    }
    at_ += 4;
    return point;
  }

  Json read_number() {
    const std::size_t start = at_;
    take("-");
    if (at_ >= text_.size() || !is_digit(text_[at_])) fail("Expecting value", start);
    if (!take("0")) skip_digits();
    const std::size_t whole = at_;
    if (next_is('.') && at_ + 1 < text_.size() && is_digit(text_[at_ + 1])) {
      ++at_;
      skip_digits();
    }
    const std::size_t fraction = at_;
    if (take("e") || take("E")) {
      if (!take("-")) take("+");
      skip_digits();
      if (!is_digit(text_[at_ - 1])) at_ = fraction;
    }
    const std::string_view text = text_.substr(start, at_ - start);
    const char *first = text.data(), *last = first + text.size();
    if (at_ != whole) {
      double real = 0;
      return {std::from_chars(first, last, real).ec == std::errc() ? real : round_extreme(text)};
    }
    const std::size_t digits = text.size() - (text[0] == '-');
    if (digits > kMaxDigits) {
      throw std::invalid_argument(
          say("Exceeds the limit ({} digits) for integer string conversion: value has {} digits; "
              "use sys.set_int_max_str_digits() to increase the limit",
              kMaxDigits, digits));
    }
    std::int64_t value = 0;
    if (std::from_chars(first, last, value).ec == std::errc()) return {value};
    using Limits = std::numeric_limits<std::int64_t>;
    return {LargeInteger{text[0] == '-' ? Limits::min() : Limits::max(), std::string(text)}};
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

const Json* Json::find(std::string_view key) const {
  if (const auto* members = get<Object>()) {
    for (const auto& [name, member] : *members) {
      if (name == key) return &member;
    }
  }
  return nullptr;
}

Json read_json(std::string_view bytes) {
  const std::string text = decode_json(bytes);
  return Scanner(text).read_document();
}

}  // namespace ouro::core
