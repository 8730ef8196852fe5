// Added tokens: found in a text before anything else looks at it, special ones among them.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "text/vocabulary.hpp"

namespace ouro::core {

// The fields of tokenizer.json.
struct AddedToken {
  std::string content;
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
  std::string written;  // its content as the normalizer writes it, where it is `normalized`
};

// A part of a text: an added token with its id, or what stands between them (kNoId).
struct Part {
  std::string_view text;
  Id id;
};

// Texts, of which the leftmost, then the longest, is found.
class Trie {
 public:
  // Throws bundle_error where the text is empty or there already.
  void add(std::string_view text, Id id);

  // The first text found at or after a place, and its size; a size of 0: none.
  struct Match {
    std::size_t start, size;
    Id id;
  };
  Match find(std::string_view text, std::size_t start) const;

 private:
  struct Node {
    std::vector<std::pair<char, std::uint32_t>> next;
    Id id = kNoId;
  };

  const std::uint32_t* step(std::uint32_t node, char letter) const;

  std::vector<Node> nodes_{1};
};

// The added tokens of a tokenizer.json. Filled once, in its order, and then made ready.
class AddedTokens {
 public:
  // Adds a token, with the id that it has, or the one that the model knows it by, or a new one
  // after `size` tokens of the model and all added before.
  void add(AddedToken token, Id known, std::size_t size);

  // Once all are in: makes what finds them. Throws bundle_error where two can't be told apart.
  void finish();

  // The parts of a text before it is normalized, or (`normalized`) after.
  void split(std::string_view text, bool normalized, std::vector<Part>& parts) const;

  // A token by its id, or null.
  const AddedToken* find(Id id) const;

  // A token's id, or kNoId.
  Id find(const std::string& content) const;

  // Whether a text is that of a special token, which decoding may leave out.
  bool is_special(const std::string& text) const { return specials_.count(text) > 0; }

  // The same where one that is added twice is what it is the last time.
  bool stays_special(const std::string& text) const;

 private:
  std::unordered_map<std::string, Id> ids_;
  std::unordered_map<Id, AddedToken> tokens_;
  std::unordered_set<std::string> specials_;
  Trie plain_, normalized_;
  Id next_ = 0;
};

}  // namespace ouro::core
