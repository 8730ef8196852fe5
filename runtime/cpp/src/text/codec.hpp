// Text to tokens and back: the bundle's tokenizer.json, read without any tokenizer library.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "bundle/reader.hpp"
#include "text/unsettled.hpp"
#include "tokens.hpp"

namespace ouro::core {

class Tokenizer;

// The bundle's tokenizer, equal to Hugging Face `tokenizers` token for token. Immutable, cheap to
// copy (copies share its tables) and safe to use from several threads.
//
// A tokenizer.json may name a part that is not read here. Then the way that needs the part is
// refused: encoding (normalizer, pre_tokenizer, model) or decoding (decoder); ids still work.
class Codec {
 public:
  // Reads the bundle's tokenizer.json. Throws bundle_error where it is not a tokenizer.
  explicit Codec(const Bundle& bundle);

  // Reads the text of a tokenizer.json; `prefix` goes before every text that begins a sequence.
  // Throws bundle_error.
  static Codec from_json(const std::string& json, Tokens prefix);

  // Token ids of a text; special tokens written out in it become their ids. Bytes that are not
  // UTF-8 count as U+FFFD. Where it begins a sequence (`first`), the prefix goes before it.
  // Throws engine_error where a part that it needs is not read here, naming the part.
  Tokens encode(std::string_view text, bool first = true) const;

  // Token ids of a text that continues a sequence, `before`, not empty. Where the sequence and the
  // text, encoded as one, begin with the sequence's own tokens, the rest of them; else the tokens
  // that the text has in the middle of another, so that no space or begin-of-word mark comes in
  // between. Throws as `encode` and `decode`.
  Tokens encode_after(const Tokens& before, std::string_view text) const;

  // The text of token ids, UTF-8; ids that the tokenizer lacks are left out. Throws engine_error
  // where the decoder is of a kind that is not read here.
  std::string decode(const Tokens& ids, bool skip_special = true) const;

  // How a special token that `decode` leaves out is written; none for any other token.
  std::optional<std::string> special(Token token) const;

  // Whether `decode` leaves a token out: a special one, or one that the tokenizer lacks.
  bool skips(Token token) const;

  // Whether encoding and decoding both work.
  bool readable() const noexcept;

  // Whether decoding works, as TextStream needs it; a stream gives no text where it does not.
  bool decodes() const noexcept;

  // What of a decoded text later tokens may still change. Of no use where `decodes` is false.
  const Unsettled& unsettled() const noexcept;

 private:
  Codec(const std::string& json, const std::string& name, Tokens prefix);

  std::shared_ptr<const Tokenizer> tokenizer_;
  Tokens prefix_;
};

}  // namespace ouro::core
