// Messages from a pattern and what fills it.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>

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

}  // namespace ouro::core
