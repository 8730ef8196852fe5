#include "bundle/json.hpp"

#include <charconv>
#include <limits>
#include <stdexcept>
#include <system_error>
#include <unordered_set>

namespace ouro::core {
namespace {

constexpr std::size_t kMaxDigits = 4300, kMaxNesting = 980;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// A number too large or small for a double: infinity or zero, as its first digit and exponent say.
double round_extreme(std::string_view text) {
  const std::size_t e = text.find_first_of("eE"), first = text.find_first_of("123456789");
  const std::size_t point = std::min(text.find('.'), std::min(e, text.size()));
  const bool exponent_positive = e != std::string_view::npos && text[e + 1] != '-';
  double exponent = 0;
  if (e != std::string_view::npos) {
    for (const char c : text.substr(e + 1)) exponent = is_digit(c) ? exponent * 10 + (c - '0') : exponent;
  }
  const double places = static_cast<double>(point) - static_cast<double>(first);
  const bool large = (exponent_positive ? exponent : -exponent) + places > 0;
  const double size = large ? std::numeric_limits<double>::infinity() : 0.0;
  return text[0] == '-' ? -size : size;
}

// One pass over the text, as the scanner in CPython's Modules/_json.c makes it.
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
  [[noreturn]] void fail(const std::string& problem, std::size_t place) const {
    std::size_t line = 1, column = 1, characters = 0;
    for (const char c : text_.substr(0, place)) {
      if ((c & 0xC0) == 0x80) continue;
      ++characters;
      line += c == '\n';
      column = c == '\n' ? 1 : column + 1;
    }
    throw std::invalid_argument(problem + ": line " + std::to_string(line) + " column " +
                                std::to_string(column) + " (char " + std::to_string(characters) +
                                ")");
  }

  bool next_is(char c) const { return at_ < text_.size() && text_[at_] == c; }

  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\n\r").find(text_[at_]) < 4) ++at_;
  }

  Json read_value(std::size_t depth) {
    const bool list = next_is('['), object = next_is('{');
    if ((list || object) && depth >= kMaxNesting) {
      throw std::invalid_argument("maximum recursion depth exceeded while decoding a JSON " +
                                  std::string(list ? "array" : "object") +
                                  " from a unicode string");
    }
    if (list) return {read_list(depth + 1)};
    if (object) return {read_object(depth + 1)};
    if (next_is('"')) return {read_string()};
    if (take("null")) return {};
    if (take("true")) return {true};
    if (take("false")) return {false};
    for (const char* name : {"NaN", "Infinity", "-Infinity"}) {
      if (take(name)) throw std::invalid_argument(std::string(name) + " is not a JSON number");
    }
    return read_number();
  }

  Json::List read_list(std::size_t depth) {
    Json::List items;
    ++at_;
    skip_space();
    if (take("]")) return items;
    while (true) {
      items.push_back(read_value(depth));
      skip_space();
      if (take("]")) return items;
      if (!take(",")) fail("Expecting ',' delimiter", at_);
      skip_space();
    }
  }

  Json::Object read_object(std::size_t depth) {
    Json::Object members;
    ++at_;
    skip_space();
    if (take("}")) return members;
    while (true) {
      if (!next_is('"')) fail("Expecting property name enclosed in double quotes", at_);
      std::string key = read_string();
      skip_space();
      if (!take(":")) fail("Expecting ':' delimiter", at_);
      skip_space();
      members.emplace_back(std::move(key), read_value(depth));
      skip_space();
      if (take("}")) break;
      if (!take(",")) fail("Expecting ',' delimiter", at_);
      skip_space();
    }
    std::unordered_set<std::string_view> seen;
    for (const auto& [key, value] : members) {
      if (!seen.insert(key).second) {
        throw std::invalid_argument("the key " + repr(key) + " appears twice");
      }
    }
    return members;
  }

  std::string read_string() {
    const std::size_t begin = at_++;
    std::string result;
    while (true) {
      const std::size_t start = at_;
      while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\') {
        if (static_cast<unsigned char>(text_[at_]) < 32) fail("Invalid control character at", at_);
        ++at_;
      }
      result += text_.substr(start, at_ - start);
      if (take("\"")) return result;
      if (at_ + 1 >= text_.size()) fail("Unterminated string starting at", begin);
      read_escape(result);
    }
  }

  void read_escape(std::string& result) {
    constexpr std::string_view kLetters = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    const std::size_t backslash = at_;
    at_ += 2;
    if (text_[at_ - 1] != 'u') {
      const std::size_t which = kLetters.find(text_[at_ - 1]);
      if (which == std::string_view::npos) fail("Invalid \\escape", backslash);
      result += kMeant[which];
      return;
    }
    std::uint32_t point = read_hex();
    if (point >= 0xD800 && point < 0xDC00 && at_ + 6 < text_.size() && take("\\u")) {
      const std::uint32_t low = read_hex();
      if (low >= 0xDC00 && low < 0xE000) {
        point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
      } else {
        at_ -= 6;
      }
    }
    append_utf8(result, point);
  }

  // The four digits of an escape, which are not the text's last characters.
  std::uint32_t read_hex() {
    constexpr const char* kProblem = "Invalid \\uXXXX escape";
    std::uint32_t point = 0;
    if (at_ + 4 >= text_.size()) fail(kProblem, at_ - 1);
    const char* end = text_.data() + at_ + 4;
    const auto parsed = std::from_chars(end - 4, end, point, 16);
    if (parsed.ec != std::errc() || parsed.ptr != end) fail(kProblem, at_ - 1);
    at_ += 4;
    return point;
  }

  void skip_digits() {
    while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
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
    if (next_is('e') || next_is('E')) {
      ++at_;
      if (next_is('-') || next_is('+')) ++at_;
      skip_digits();
      if (!is_digit(text_[at_ - 1])) at_ = fraction;
    }
    const std::string_view text = text_.substr(start, at_ - start);
    return at_ == whole ? read_integer(text) : read_float(text);
  }

  static Json read_integer(std::string_view text) {
    const bool negative = text[0] == '-';
    const std::size_t digits = text.size() - (negative ? 1 : 0);
    if (digits > kMaxDigits) {
      throw std::invalid_argument(
          "Exceeds the limit (4300 digits) for integer string conversion: value has " +
          std::to_string(digits) + " digits; use sys.set_int_max_str_digits() to increase the limit");
    }
    std::int64_t value = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
    if (parsed.ec == std::errc()) return {value};
    using Limits = std::numeric_limits<std::int64_t>;
    return {Integer{negative ? Limits::min() : Limits::max(), std::string(text)}};
  }

  static Json read_float(std::string_view text) {
    double value = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
    return {parsed.ec == std::errc() ? value : round_extreme(text)};
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

Json parse_json(std::string_view text) { return Scanner(text).read_document(); }

}  // namespace ouro::core
