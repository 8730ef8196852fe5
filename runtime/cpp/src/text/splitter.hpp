// What divides a text into words, each of which the model encodes by itself: the pre-tokenizers of
// the families that are converted, each chosen by its JSON.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace ouro::core {

// A pre-tokenizer. Immutable.
class Splitter {
 public:
  // Where the word that begins at a place of a text ends, as a regular expression has it.
  using Ends = std::size_t (*)(std::string_view text, std::size_t start);

  // Takes the `pre_tokenizer` of a tokenizer.json, checked, null included; none where it is of a
  // kind that is not known here.
  static std::optional<Splitter> read(const nlohmann::json& value);

  // The words of a text; `opening`: it stands at the very beginning of what is encoded. They are
  // parts of the text, or of `changed`, which holds what had to be written otherwise.
  void split(std::string_view text, bool opening, std::string& changed,
             std::vector<std::string_view>& words) const;

  // Words are bytes, each of which stands for a character of the byte-level alphabet.
  bool byte_level() const noexcept { return ends_ != nullptr; }

  // Whether what it does depends on the place in the text.
  bool minds_opening() const noexcept { return prepend_ == Prepend::kFirst; }

 private:
  enum class Prepend { kNever, kFirst, kAlways };

  void split_bytes(std::string_view text, std::vector<std::string_view>& words) const;
  void read_metaspace(const nlohmann::json& value);

  Ends ends_ = nullptr;   // of byte-level kinds
  bool digits_ = false;   // each numeric character is taken out first
  bool divides_ = false;  // Metaspace: at each mark
  Prepend prepend_ = Prepend::kNever;
  std::string mark_;  // of Metaspace, in the place of a space; else what is prepended
};

}  // namespace ouro::core
