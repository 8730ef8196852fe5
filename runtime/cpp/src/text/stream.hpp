// Text out of a growing list of tokens, in pieces that never need to be taken back.
//
// What a list of tokens adds to the text before it depends on that text: a SentencePiece decoder
// drops the space of a token that begins a text, a byte-fallback decoder decides about a run of
// byte tokens only where the run ends. So the text of new tokens is defined by decoding them
// together with what was before: it is decode(before + new) without what decode(before) and
// decode(before + new) begin with alike. A character that the new tokens complete, or turn into
// U+FFFD, belongs to them whole.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include "text/codec.hpp"
#include "tokens.hpp"

namespace ouro::core {

// Turns a growing list of tokens into pieces of text which never need to be taken back.
//
// Joined, the pieces and the flush are what decoding all tokens at once gives, in their context.
// A character whose bytes are spread over several tokens comes out whole; with a tokenizer that
// falls back to bytes, once its run of byte tokens has ended, which may be the next token.
// Every text is empty where the codec can't decode. Used from one thread.
class TextStream {
 public:
  // Starts after a prompt, the tokens before the first one pushed. Keeps a copy of the codec.
  TextStream(const Codec& codec, const Tokens& prompt);

  // Adds a token and returns the text that is settled with it, possibly empty.
  std::string push(Token token);

  // Text that later tokens may change yet; the rest, where none come.
  std::string pending() const;

  // The rest, once no more tokens come; it may end in the middle of a character.
  std::string flush();

 private:
  void start_after(const Tokens& prompt);
  std::size_t start(const std::string& text) const;
  std::size_t settled(const Tokens& tokens, const std::string& text) const;
  bool may_cut(const std::string& last, std::size_t settled) const;
  void cut(std::size_t held);
  std::string window_text() const;

  Codec codec_;
  Tokens window_;
  std::string text_;                   // of the window
  std::size_t shown_ = 0;              // how many of its bytes are out
  std::optional<std::string> before_;  // the context's text, until a first piece is out
};

}  // namespace ouro::core
