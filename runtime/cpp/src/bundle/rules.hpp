// What a manifest may say, and which of its parts must agree: bounds and contradictions, as
// runtime/bundle/rules.py, plans.py and chat.py have them. Whoever writes a bundle can also write
// its hashes: what is refused here would otherwise end in a graph that is fed what it does not
// take.
#pragma once

#include <map>
#include <string>

#include "bundle/manifest.hpp"

namespace ouro::core {

// The digits of the integers beyond 64 bits, by the dotted name of their place: fields hold them
// cut to the largest or smallest value.
using LargeNumbers = std::map<std::string, std::string>;

// Refuses values that are out of bounds or contradict each other. Throws bundle_error, naming the
// first of them.
void check_manifest(const Manifest& manifest, const LargeNumbers& large);

}  // namespace ouro::core
