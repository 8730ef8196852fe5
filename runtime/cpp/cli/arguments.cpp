#include "arguments.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <sstream>

#include "error.hpp"

namespace ouro::cli {
namespace {

constexpr std::int64_t kLargest = 1'000'000;

// A whole number that the text is, all of it.
template <class Number>
std::optional<Number> parse_whole(const std::string& text) {
  const std::size_t start = text.size() > 1 && text[0] == '+' && text[1] != '-' ? 1 : 0;
  Number number{};
  const char* end = text.data() + text.size();
  const auto [stopped, failed] = std::from_chars(text.data() + start, end, number);
  return failed == std::errc{} && stopped == end ? std::optional(number) : std::nullopt;
}

std::string padded(const std::string& text, std::size_t width) {
  return text + std::string(width > text.size() ? width - text.size() : 1, ' ');
}

}  // namespace

Given::Given(const Command& command, const std::vector<std::string>& words) : command_(command) {
  bool plain = false;
  for (std::size_t place = 0; place < words.size(); ++place) {
    if (!plain && words[place] == "--") {
      plain = true;
    } else if (!plain && words[place].size() > 1 && words[place][0] == '-') {
      take_option(words, place);
    } else {
      arguments_.push_back(words[place]);
    }
  }
  const std::size_t wanted = command.arguments.size();
  if (arguments_.size() < wanted) {
    throw usage(std::string("Missing argument '") + command.arguments[arguments_.size()] + "'");
  }
  if (arguments_.size() > wanted) {
    throw usage("Got unexpected extra argument(s) (" + arguments_[wanted] + ")");
  }
}

void Given::take_option(const std::vector<std::string>& words, std::size_t& place) {
  const std::size_t equals = words[place].find('=');
  const std::string name = words[place].substr(0, equals);
  const auto known = std::find_if(command_.options.begin(), command_.options.end(),
                                  [&](const Option& one) { return one.name == name; });
  if (known == command_.options.end()) {
    throw usage("No such option: " + name + "; put -- before a text that begins with a dash");
  }
  std::string value;
  if (known->value == nullptr) {
    if (equals != std::string::npos) throw usage("Option '" + name + "' does not take a value");
  } else if (equals != std::string::npos) {
    value = words[place].substr(equals + 1);
  } else if (place + 1 < words.size()) {
    value = words[++place];
  } else {
    throw usage("Option '" + name + "' requires an argument");
  }
  values_[name].push_back(value);
}

std::vector<std::string> Given::all(const std::string& option) const {
  const auto found = values_.find(option);
  return found == values_.end() ? std::vector<std::string>{} : found->second;
}

std::optional<std::string> Given::text(const std::string& option) const {
  const auto found = values_.find(option);
  return found == values_.end() ? std::nullopt : std::optional(found->second.back());
}

std::optional<std::int64_t> Given::integer(const std::string& option) const {
  const auto given = text(option);
  if (!given) return std::nullopt;
  const auto number = parse_whole<std::int64_t>(*given);
  if (!number) throw bad_value(option, "a whole number");
  return number;
}

std::optional<std::uint64_t> Given::natural(const std::string& option) const {
  const auto given = text(option);
  if (!given) return std::nullopt;
  const auto number = parse_whole<std::uint64_t>(*given);
  if (!number) throw bad_value(option, "a whole number in 0..18446744073709551615");
  return number;
}

std::optional<double> Given::number(const std::string& option) const {
  const auto given = text(option);
  if (!given) return std::nullopt;
  char* end = nullptr;
  const double number = std::strtod(given->c_str(), &end);
  if (given->empty() || *end != '\0') throw bad_value(option, "a number");
  return number;
}

UsageError Given::bad_value(const std::string& option, const char* wanted) const {
  const std::string given = "'" + *text(option) + "'";
  return UsageError("Invalid value for '" + option + "': " + wanted + " is wanted; given: " +
                        given + "; see `ouro-cli " + command_.name + " --help`",
                    1);
}

UsageError Given::usage(const std::string& problem) const {
  return UsageError(problem + "; see `ouro-cli " + command_.name + " --help`", 2);
}

std::string help_of(const Command& command) {
  std::string usage = std::string("usage: ouro-cli ") + command.name + " [OPTIONS]";
  for (const char* argument : command.arguments) usage += std::string(" {") + argument + "}";
  std::string text = usage + "\n\n" + command.help + "\n\nexample: " + command.example + "\n\n";
  for (const Option& one : command.options) {
    const std::string value = one.value == nullptr ? "" : std::string(" <") + one.value + ">";
    text += "  " + padded(one.name + value, 32) + one.help + "\n";
  }
  return text;
}

std::vector<std::int64_t> parse_numbers(const std::string& text, const std::string& option) {
  std::vector<std::int64_t> numbers;
  std::istringstream parts(text + ",");
  bool understood = true;
  for (std::string part; understood && std::getline(parts, part, ',');) {
    part.erase(0, part.find_first_not_of(' '));
    part.erase(part.find_last_not_of(' ') + 1);
    const std::size_t dash = part.find('-');
    const auto first = parse_whole<std::int64_t>(part.substr(0, dash));
    const bool alone = dash == std::string::npos || dash + 1 == part.size();
    const auto last = alone ? first : parse_whole<std::int64_t>(part.substr(dash + 1));
    understood = first && last && *first >= 1 && *first <= *last && *last < kLargest;
    for (std::int64_t one = 0; understood && one <= *last - *first; ++one) {
      if (std::find(numbers.begin(), numbers.end(), *first + one) == numbers.end()) {
        numbers.push_back(*first + one);
      }
    }
  }
  if (!understood || numbers.empty()) {
    throw core::engine_error(option + " " + text +
                             " is not a list of numbers such as 1,4,8 or 1-16");
  }
  return numbers;
}

}  // namespace ouro::cli
