// Answers as JSON, the way tests/conformance/recorder.py writes them, and how two are compared.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ouro/ouro.hpp"

namespace conformance {

using Json = nlohmann::json;

inline constexpr double kRelativeL2 = 1e-6;  // of logits
// Of rows that were recorded as a batch and are asked for one by one: kernels of some processors
// add up a row in another order where others lie beside it.
inline constexpr double kAloneL2 = 1e-5;
inline constexpr double kLogprob = 1e-6;  // absolute

inline std::string base64(const std::vector<float>& values) {
  constexpr char kLetters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::vector<unsigned char> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  std::string text;
  for (std::size_t place = 0; place < bytes.size(); place += 3) {
    std::uint32_t word = 0;
    for (std::size_t one = 0; one < 3; ++one) {
      word = word << 8U | (place + one < bytes.size() ? bytes[place + one] : 0U);
    }
    for (std::size_t one = 0; one < 4; ++one) {
      const bool filled = place + one <= bytes.size();
      text += filled ? kLetters[word >> (18U - 6U * static_cast<unsigned>(one)) & 63U] : '=';
    }
  }
  return text;
}

inline std::vector<float> floats_of(const std::string& text) {
  const auto value = [](char letter) -> std::uint32_t {
    if (letter >= 'A' && letter <= 'Z') return static_cast<std::uint32_t>(letter - 'A');
    if (letter >= 'a' && letter <= 'z') return static_cast<std::uint32_t>(letter - 'a' + 26);
    if (letter >= '0' && letter <= '9') return static_cast<std::uint32_t>(letter - '0' + 52);
    return letter == '+' ? 62 : 63;
  };
  std::vector<unsigned char> bytes;
  for (std::size_t place = 0; place + 4 <= text.size(); place += 4) {
    std::uint32_t word = 0;
    for (std::size_t one = 0; one < 4; ++one) word = word << 6U | (value(text[place + one]) & 63U);
    for (std::size_t one = 0; one < 3; ++one) {
      if (text[place + one + 1] != '=') {
        bytes.push_back(static_cast<unsigned char>(word >> (16U - 8U * one) & 255U));
      }
    }
  }
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

inline Json finish_json(ouro::Finish finish) {
  switch (finish) {
    case ouro::Finish::kNone:
      return nullptr;
    case ouro::Finish::kStop:
      return "stop";
    case ouro::Finish::kLength:
      return "length";
    case ouro::Finish::kEos:
      return "eos";
    case ouro::Finish::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

inline Json logprob_json(const ouro::Logprob& one) {
  Json best = Json::array();
  for (const auto& [token, logprob] : one.best) best.push_back({token, logprob});
  return {{"token", one.token}, {"logprob", one.logprob}, {"best", best}};
}

inline Json generation_json(const ouro::Generation& one) {
  Json logprobs = Json::array();
  for (const ouro::Logprob& each : one.logprobs) logprobs.push_back(logprob_json(each));
  return {{"text", one.text},     {"tokens", one.ids},
          {"depth", one.depth},   {"prompt_tokens", one.prompt_tokens},
          {"logprobs", logprobs}, {"finish_reason", finish_json(one.finish)}};
}

inline std::string shown(const Json& value) {
  return value.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 300);
}

inline void compare_logits(const Json& found, const Json& expected, const std::string& where,
                           std::vector<std::string>& lines, double allowed) {
  const std::vector<float> one = floats_of(found.at("float32"));
  const std::vector<float> other = floats_of(expected.at("float32"));
  if (found.at("shape") != expected.at("shape") || one.size() != other.size()) {
    lines.push_back(where + ": another shape");
    return;
  }
  double distance = 0, scale = 0;
  for (std::size_t place = 0; place < one.size(); ++place) {
    distance += std::pow(static_cast<double>(one[place]) - static_cast<double>(other[place]), 2);
    scale += std::pow(static_cast<double>(other[place]), 2);
  }
  const double error = std::sqrt(distance / scale);
  if (!(error <= allowed)) {
    lines.push_back(where + ": logits differ by a relative L2 of " + std::to_string(error));
  }
}

// Adds lines that say where an answer is another than the recorded one; `allowed` is of logits.
inline void compare(const Json& found, const Json& expected, const std::string& where,
                    std::vector<std::string>& lines, double allowed = kRelativeL2) {
  if (expected.is_object() && found.is_object() && expected.size() == found.size()) {
    if (expected.contains("float32") && found.contains("float32")) {
      compare_logits(found, expected, where, lines, allowed);
      return;
    }
    for (const auto& [key, value] : expected.items()) {
      const std::string place = where + "." + key;
      found.contains(key) ? compare(found.at(key), value, place, lines, allowed)
                          : lines.push_back(place + " is missing");
    }
  } else if (expected.is_array() && found.is_array() && expected.size() == found.size()) {
    for (std::size_t place = 0; place < expected.size(); ++place) {
      compare(found[place], expected[place], where + "[" + std::to_string(place) + "]", lines,
              allowed);
    }
  } else if (expected.is_number_float() && found.is_number_float()) {
    if (!(std::abs(expected.get<double>() - found.get<double>()) <= kLogprob)) {
      lines.push_back(where + ": " + shown(found) + ", recorded " + shown(expected));
    }
  } else if (found != expected) {
    lines.push_back(where + ": " + shown(found) + ", recorded " + shown(expected));
  }
}

}  // namespace conformance
