// Byte-pair encoding: the model of a tokenizer.json.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/vocabulary.hpp"

namespace ouro::core {

// How a BPE model treats what it does not know; the names are those of tokenizer.json.
struct BpeOptions {
  std::optional<std::string> unk_token;
  bool fuse_unk = false, byte_fallback = false, ignore_merges = false;
};

// A BPE model over a vocabulary, which must live as long as it. Immutable.
class Bpe {
 public:
  // `byte_level`: texts are bytes, each of which stands for a character of the alphabet of GPT-2.
  Bpe(const Vocabulary& vocabulary, Merges merges, BpeOptions options, bool byte_level);

  // Appends the tokens of a word. Throws engine_error where it takes a token for what is not known,
  // and the vocabulary lacks it.
  void encode(std::string_view word, std::vector<Id>& ids) const;

 private:
  void start(std::string_view word, std::vector<Id>& symbols) const;
  bool fall_back(std::string_view letter, std::vector<Id>& symbols) const;
  void merge_short(std::vector<Id>& symbols, std::size_t first) const;
  void merge_long(std::vector<Id>& symbols, std::size_t first) const;

  const Vocabulary* vocabulary_;
  Merges merges_;
  BpeOptions options_;
  bool byte_level_;
  Id unknown_ = kNoId;
  std::array<Id, 256> letters_;    // of each byte of a byte-level model, else of ASCII's characters
  std::array<Id, 256> fallbacks_;  // of "<0x00>" and so on
};

// The alphabet of byte-level tokenizers: the character of each byte, as UTF-8.
const std::array<std::string, 256>& byte_alphabet();

}  // namespace ouro::core
