// The text of a tokenizer.json, taken apart while it is read: its vocabulary and merges are most of
// it, and would take three times as long as values of JSON.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "text/vocabulary.hpp"

namespace ouro::core {

using MergeList = std::vector<std::pair<std::string, std::string>>;

// Reads a tokenizer.json. What is returned holds, in the places of model.vocab, if it is an object,
// and of model.merges, an empty object and list; they come out in `vocabulary` and `merges`. Throws
// bundle_error where it is not JSON, or those two are malformed.
nlohmann::json read_tokenizer_json(const std::string& text, Vocabulary& vocabulary,
                                   MergeList& merges);

// A token's id from its value. Throws bundle_error where it is none.
Id read_id(const nlohmann::json& value);

}  // namespace ouro::core
