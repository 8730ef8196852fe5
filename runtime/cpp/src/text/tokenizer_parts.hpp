// What the parts of a tokenizer.json must hold, be they read here or not: what Hugging Face
// `tokenizers` refuses is refused, and not taken for a kind that this engine merely lacks.
#pragma once

#include <nlohmann/json_fwd.hpp>

namespace ouro::core {

// Throws bundle_error where a `normalizer`, `pre_tokenizer` or `decoder` (`part` is its key), or
// one within its sequences, is of no kind that there is, or lacks what its kind has. Null is none.
// Regular expressions and Precompiled tables are not looked into.
void check_part(const char* part, const nlohmann::json& value);

// The same for the `model`, but for what is in its vocabulary and its merges.
void check_model(const nlohmann::json& model);

}  // namespace ouro::core
