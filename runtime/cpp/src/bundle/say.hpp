// What messages are made of.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace ouro::core {

// The pattern with each {} replaced in turn by a text or a whole number.
template <class... Parts>
std::string say(std::string_view pattern, const Parts&... parts) {
  std::string text;
  [[maybe_unused]] const auto add = [&](const auto& part) {
    const std::size_t place = pattern.find("{}");
    text += pattern.substr(0, place);
    pattern.remove_prefix(place + 2);
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>) {
      text += std::to_string(part);
    } else {
      text += part;
    }
  };
  (add(parts), ...);
  return text.append(pattern);
}

// Whole numbers as a list: "1, 2, 3".
inline std::string list_numbers(const std::vector<std::int64_t>& numbers) {
  std::string text;
  for (const std::int64_t one : numbers) text += (text.empty() ? "" : ", ") + std::to_string(one);
  return text;
}

// A tensor's shape: "[1, 2, 3]".
inline std::string show_shape(const std::vector<std::int64_t>& shape) {
  return "[" + list_numbers(shape) + "]";
}

// A text's words with one space between them.
inline std::string one_line(const std::string& text) {
  std::istringstream words(text);
  std::string line;
  for (std::string word; words >> word;) line += (line.empty() ? "" : " ") + word;
  return line;
}

}  // namespace ouro::core
