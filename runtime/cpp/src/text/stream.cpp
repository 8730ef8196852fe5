#include "text/stream.hpp"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include "text/unicode.hpp"

namespace ouro::core {
namespace {

constexpr std::size_t kWindow = 16;
constexpr std::size_t kContext = 4;

// How many bytes of whole characters two texts begin with alike.
std::size_t count_alike(std::string_view left, std::string_view right) {
  const std::size_t most = std::min(left.size(), right.size());
  std::size_t place = 0;
  while (place < most && left[place] == right[place]) ++place;
  while (place > 0 && place < left.size() && continues(left[place])) --place;
  return place;
}

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

std::size_t count_characters(std::string_view text) {
  return text.size() - static_cast<std::size_t>(std::count_if(text.begin(), text.end(), continues));
}

Tokens last(const Tokens& tokens, std::size_t size) {
  return Tokens(tokens.end() - static_cast<std::ptrdiff_t>(std::min(size, tokens.size())),
                tokens.end());
}

}  // namespace

TextStream::TextStream(const Codec& codec, const Tokens& prompt) : codec_(codec), before_("") {
  if (codec_.decodes()) start_after(prompt);
}

std::string TextStream::push(Token token) {
  if (!codec_.decodes() || codec_.skips(token)) return {};
  window_.push_back(token);
  if (codec_.unsettled().everything) return {};
  const std::string last = std::exchange(text_, codec_.decode(window_));
  const std::size_t end = settled(window_, text_), from = start(text_);
  std::string piece = end > from ? text_.substr(from, end - from) : std::string();
  if (!piece.empty()) {
    shown_ = end;
    before_.reset();
  }
  if (window_.size() >= kWindow && may_cut(last, end)) {
    cut(count_characters(std::string_view(text_).substr(end)));
  }
  return piece;
}

std::string TextStream::pending() const {
  const std::string text = window_text();
  return text.substr(start(text));
}

std::string TextStream::flush() {
  text_ = window_text();
  std::string piece = text_.substr(start(text_));
  shown_ = text_.size();
  before_.reset();
  return piece;
}

// The text of the window, decoded only now where all of it may change with every token.
std::string TextStream::window_text() const {
  return codec_.decodes() && codec_.unsettled().everything ? codec_.decode(window_) : text_;
}

void TextStream::start_after(const Tokens& prompt) {
  Tokens tokens;
  std::copy_if(prompt.begin(), prompt.end(), std::back_inserter(tokens),
               [&](Token token) { return !codec_.skips(token); });
  for (std::size_t size = 2 * kContext;; size *= 2) {
    window_ = last(tokens, size);
    text_ = codec_.decode(window_);
    before_ = text_;
    if (size >= tokens.size() || settled(window_, text_) > 0) return;
    // All of it may change yet: a run of bytes, or tokens without a text.
  }
}

// Where in the window's text begins what is not out yet.
std::size_t TextStream::start(const std::string& text) const {
  return before_ ? count_alike(*before_, text) : std::min(shown_, text.size());
}

// How many bytes of the tokens' text no later token can change.
std::size_t TextStream::settled(const Tokens& tokens, const std::string& text) const {
  const Unsettled& rules = codec_.unsettled();
  if (rules.everything) return 0;
  std::size_t size = text.size();
  for (const Token probe : rules.probes) {
    Tokens probed = tokens;
    probed.push_back(probe);
    size = std::min(size, count_alike(text, codec_.decode(probed)));
  }
  if (!rules.probes.empty()) {
    while (ends_with(std::string_view(text).substr(0, size), kUnknown)) size -= kUnknown.size();
  } else if (ends_with(text, kUnknown)) {
    size -= kUnknown.size();  // bytes that are cut off show as one of these, however many they are
  }
  const std::string_view pattern = rules.pattern;
  for (std::size_t length = std::min(pattern.empty() ? 0 : pattern.size() - 1, size); length > 0;
       --length) {
    if (ends_with(std::string_view(text).substr(0, size), pattern.substr(0, length))) {
      return size - length;
    }
  }
  return size;
}

// Whether what comes can be decoded without the beginning of the window.
bool TextStream::may_cut(const std::string& last, std::size_t settled) const {
  if (settled == text_.size()) return true;
  // In a long run of invalid bytes nothing is ever settled to the end. A token whose text stands
  // beside the text before it has joined with none of its bytes.
  return codec_.unsettled().empty() && text_ == last + codec_.decode({window_.back()});
}

// Forgets the window's beginning; the tokens kept must have a text of their own, beyond the `held`
// characters that are not out. One token before is enough for every decoder, but it must not count
// as a text's first.
void TextStream::cut(std::size_t held) {
  for (std::size_t size = kContext + 1; size < window_.size(); size *= 2) {
    Tokens tokens = last(window_, size);
    std::string text = codec_.decode(tokens);
    if (count_characters(text) <= held) continue;
    shown_ = text.size();
    for (std::size_t left = held; left > 0; --left) shown_ = start_before(text, shown_);
    window_ = std::move(tokens);
    text_ = std::move(text);
    before_.reset();
    return;
  }
}

}  // namespace ouro::core
