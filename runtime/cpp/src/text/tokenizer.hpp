// A tokenizer.json as a whole: its parts, put together.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "text/added_tokens.hpp"
#include "text/bpe.hpp"
#include "text/decoder.hpp"
#include "text/normalizer.hpp"
#include "text/splitter.hpp"
#include "text/tokenizer_json.hpp"
#include "text/vocabulary.hpp"
#include "tokens.hpp"

namespace ouro::core {

// Immutable, not to be moved: its model refers to its vocabulary.
class Tokenizer {
 public:
  // Reads the text of a tokenizer.json. Throws bundle_error, without the file's name, where it is
  // malformed; a part of a kind that is not read here is kept by its name.
  explicit Tokenizer(const std::string& text);
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Token ids of UTF-8 text. Throws engine_error where a part that it needs is not read here.
  Tokens encode(std::string_view text) const;

  // The text of token ids; those that are nobody's are left out. Throws engine_error likewise.
  std::string decode(const Tokens& ids, bool skip_special) const;

  // How a special token is written. Which one is special goes by that, as in `tokenizers`: a
  // `normalized` token that its normalizer writes otherwise, "▁<mask>", is none.
  std::optional<std::string> special(Token token) const;

  // Whether an id is a token's.
  bool knows(Token token) const { return token_text(token).has_value(); }

  bool encodes() const noexcept { return strange_encoding_.empty(); }
  bool decodes() const noexcept { return strange_decoder_.empty(); }
  const Unsettled& unsettled() const noexcept { return unsettled_; }

 private:
  void read(const nlohmann::json& root, const MergeList& merges);
  void read_model(const nlohmann::json& model, const MergeList& merges);
  void read_added(const nlohmann::json& list);
  std::optional<std::string_view> token_text(Token token) const;
  Id find(const std::string& token) const;

  Vocabulary vocabulary_;
  AddedTokens added_;
  std::optional<Normalizer> normalizer_;
  std::optional<Splitter> splitter_;
  std::optional<Bpe> model_;
  std::optional<TokenDecoder> decoder_;
  Unsettled unsettled_;
  std::string strange_encoding_, strange_decoder_;  // the first part that is not read here
};

}  // namespace ouro::core
