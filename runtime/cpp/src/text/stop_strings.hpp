// Stop strings: found in a stream of text, special tokens included, and never shown.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace ouro::core {

// Places in a text, in bytes and in order, and what stands there.
using Specials = std::vector<std::pair<std::size_t, std::string>>;

// A text with special tokens in it.
std::string write_specials(const std::string& text, const Specials& specials);

// Finds stop strings in a stream of text, holding back what may be the start of one.
//
// The text that is searched holds the special tokens, each as it is written, at their places; the
// text that is shown does not.
class StopScanner {
 public:
  explicit StopScanner(std::vector<std::string> stops);

  // Adds text and returns what is safe to show; `found` turns true at a stop string.
  //   piece: text that can't change any more.
  //   pending: text after it which may; a stop string is found there too, and ends it.
  //   special: a special token after both.
  std::string push(const std::string& piece, const std::string& pending = {},
                   const std::optional<std::string>& special = std::nullopt);
  bool found() const noexcept { return found_; }

  // What was held back, once no more text comes.
  std::string flush();

 private:
  std::size_t place_of(std::size_t index) const;
  std::size_t begun(const std::string& scanned) const;
  std::string release(std::size_t keep);

  std::vector<std::string> stops_;
  std::string text_;   // settled, not shown yet
  Specials specials_;  // place in `text_`, and what stands there
  bool found_ = false;
};

}  // namespace ouro::core
