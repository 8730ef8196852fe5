// What later tokens may still change at the end of a decoded text.
#pragma once

#include <string>

#include "tokens.hpp"

namespace ouro::core {

struct Unsettled {
  // A token each of the kinds that change what stands before them: what a text and the same text
  // with the probe begin with alike is settled.
  Tokens probes;
  // A text that the decoder replaces in the joined text, so over several tokens too.
  std::string pattern;
  // The decoder may change all of it.
  bool everything = false;

  bool empty() const noexcept { return probes.empty() && pattern.empty() && !everything; }
};

}  // namespace ouro::core
