// The types that all rooms share.
#pragma once

#include <cstdint>
#include <vector>

namespace ouro::core {

using Token = std::int64_t;
using Tokens = std::vector<Token>;

}  // namespace ouro::core
