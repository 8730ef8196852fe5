// Written by runtime/cpp/tools/make_contract.py from runtime/decode/options.py and
// runtime/measure/options.py: do not edit.
//
// What options are where they are not given.
#pragma once

#include <cstdint>

namespace ouro::core {

inline constexpr std::int64_t kMaxNewTokens = 64;
inline constexpr std::int64_t kBenchTokens = 32;
inline constexpr std::int64_t kBenchRepeats = 3;
inline constexpr std::int64_t kBenchContexts[] = {64, 1024};

}  // namespace ouro::core
