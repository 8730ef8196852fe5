#include "text/codec.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "error.hpp"
#include "text/tokenizer.hpp"
#include "text/unicode.hpp"

namespace ouro::core {
namespace {

// Text to put before a continuation: tokenizers join few things to at least one of these.
constexpr std::array<std::string_view, 4> kAnchors = {"\n", "a", ".", "0"};
constexpr std::size_t kContinued = 32;  // tokens before a continuation that are encoded along

bool begins_with(const Tokens& whole, const Tokens& start) {
  return start.size() <= whole.size() && std::equal(start.begin(), start.end(), whole.begin());
}

Tokens rest_after(const Tokens& whole, std::size_t size) {
  return Tokens(whole.begin() + static_cast<std::ptrdiff_t>(size), whole.end());
}

}  // namespace

Codec::Codec(const Bundle& bundle) {
  const TokenizerSpec& spec = bundle.manifest().tokenizer;
  const std::filesystem::path file = bundle.file(spec.file);
  *this = Codec(read_file(file), file.string(), spec.prefix_token_ids);
}

Codec Codec::from_json(const std::string& json, Tokens prefix) {
  return Codec(json, "tokenizer.json", std::move(prefix));
}

Codec::Codec(const std::string& json, const std::string& name, Tokens prefix)
    : prefix_(std::move(prefix)) {
  try {
    tokenizer_ = std::make_shared<const Tokenizer>(json);
  } catch (const Error& error) {
    throw bundle_error(name + " is not a tokenizer: " + error.what(), kOwnTokenizer);
  }
}

Tokens Codec::encode(std::string_view text, bool first) const {
  Tokens ids = is_utf8(text) ? tokenizer_->encode(text) : tokenizer_->encode(to_utf8(text));
  if (first) ids.insert(ids.begin(), prefix_.begin(), prefix_.end());
  return ids;
}

Tokens Codec::encode_after(const Tokens& before, std::string_view given) const {
  const std::string text = to_utf8(given);
  Tokens plain = encode(text, false);
  const std::size_t from = before.size() - std::min(before.size(), kContinued);
  const Tokens last = rest_after(before, from);
  const std::string said = decode(last, false);
  Tokens known = encode(said, false), whole = encode(said + text, false);
  if (!known.empty() && known.back() == last.back() && begins_with(whole, known)) {
    return rest_after(whole, known.size());
  }
  std::optional<Tokens> found;
  for (const std::string_view anchor : kAnchors) {
    known = encode(anchor, false);
    whole = encode(std::string(anchor) + text, false);
    if (known.empty() || !begins_with(whole, known)) continue;
    Tokens rest = rest_after(whole, known.size());
    if (decode(whole, false) == decode(known, false) + text) return rest;
    if (!found) found = std::move(rest);
  }
  return found ? *std::move(found) : plain;
}

std::string Codec::decode(const Tokens& ids, bool skip_special) const {
  return tokenizer_->decode(ids, skip_special);
}

std::optional<std::string> Codec::special(Token token) const { return tokenizer_->special(token); }

bool Codec::skips(Token token) const {
  return !tokenizer_->knows(token) || tokenizer_->special(token);
}

bool Codec::readable() const noexcept { return tokenizer_->encodes() && tokenizer_->decodes(); }

bool Codec::decodes() const noexcept { return tokenizer_->decodes(); }

const Unsettled& Codec::unsettled() const noexcept { return tokenizer_->unsettled(); }

}  // namespace ouro::core
