#include "text/added_tokens.hpp"

#include <algorithm>

#include "error.hpp"
#include "text/unicode.hpp"

namespace ouro::core {
namespace {

bool has(std::string_view text, std::size_t place, std::uint8_t kind) {
  return classes(character_at(text, place).code) & kind;
}

bool ends_with_word(std::string_view text) {
  return !text.empty() && has(text, start_before(text, text.size()), kWord);
}

bool starts_with_word(std::string_view text) { return !text.empty() && has(text, 0, kWord); }

}  // namespace

void Trie::add(std::string_view text, Id id) {
  std::uint32_t node = 0;
  for (const char letter : text) {
    if (const std::uint32_t* next = step(node, letter)) {
      node = *next;
      continue;
    }
    const auto made = static_cast<std::uint32_t>(nodes_.size());
    auto& edges = nodes_[node].next;
    edges.insert(std::lower_bound(edges.begin(), edges.end(), std::make_pair(letter, 0U)),
                 {letter, made});
    nodes_.emplace_back();
    node = made;
  }
  if (node == 0 || nodes_[node].id != kNoId) {
    throw bundle_error("an added token is normalized to nothing, or to another's text");
  }
  nodes_[node].id = id;
}

const std::uint32_t* Trie::step(std::uint32_t node, char letter) const {
  const auto& edges = nodes_[node].next;
  const auto found = std::lower_bound(edges.begin(), edges.end(), std::make_pair(letter, 0U));
  return found != edges.end() && found->first == letter ? &found->second : nullptr;
}

Trie::Match Trie::find(std::string_view text, std::size_t start) const {
  if (nodes_.size() == 1) return {text.size(), 0, kNoId};
  for (; start < text.size(); ++start) {
    Match match{start, 0, kNoId};
    const std::uint32_t* node = step(0, text[start]);
    for (std::size_t place = start + 1; node; ++place) {
      if (nodes_[*node].id != kNoId) match = {start, place - start, nodes_[*node].id};
      node = place < text.size() ? step(*node, text[place]) : nullptr;
    }
    if (match.size > 0) return match;
  }
  return {text.size(), 0, kNoId};
}

// As tokenizers: the id that tokenizer.json gives is not looked at.
void AddedTokens::add(AddedToken token, Id known, std::size_t size) {
  if (token.content.empty()) return;
  next_ = std::max(next_, static_cast<Id>(size));
  const Id added = find(token.content);
  const Id id = added != kNoId ? added : known != kNoId ? known : next_++;
  ids_[token.content] = id;
  if (token.special) specials_.insert(token.content);
  // tokenizers keeps what a normalizer has made of a token that is added again without one.
  if (const AddedToken* before = find(id); before && !token.normalized) {
    token.written = before->written;
  }
  tokens_[id] = std::move(token);
}

void AddedTokens::finish() {
  for (const auto& [id, token] : tokens_) {
    token.normalized ? normalized_.add(token.written, id) : plain_.add(token.content, id);
  }
}

void AddedTokens::split(std::string_view text, bool normalized, std::vector<Part>& parts) const {
  const Trie& trie = normalized ? normalized_ : plain_;
  std::size_t start = 0;  // of what is not in a part yet
  for (Trie::Match match = trie.find(text, 0); match.size > 0;
       match = trie.find(text, match.start + match.size)) {
    const AddedToken& token = tokens_.at(match.id);
    std::size_t from = match.start, to = match.start + match.size;
    if (token.single_word &&
        (ends_with_word(text.substr(0, from)) || starts_with_word(text.substr(to)))) {
      continue;
    }
    if (token.lstrip) {
      while (from > 0 && has(text, start_before(text, from), kWhite))
        from = start_before(text, from);
      from = std::max(from, start);
    }
    if (token.rstrip) {
      while (to < text.size() && has(text, to, kWhite)) to += character_at(text, to).size;
    }
    if (start < from) parts.push_back({text.substr(start, from - start), kNoId});
    // The one before may have taken the white space that this one consists of.
    if (from < to) parts.push_back({text.substr(from, to - from), match.id});
    start = to;
  }
  if (start < text.size()) parts.push_back({text.substr(start), kNoId});
}

const AddedToken* AddedTokens::find(Id id) const {
  const auto found = tokens_.find(id);
  return found == tokens_.end() ? nullptr : &found->second;
}

bool AddedTokens::stays_special(const std::string& text) const {
  const AddedToken* token = find(find(text));
  return token && token->special;
}

Id AddedTokens::find(const std::string& content) const {
  const auto found = ids_.find(content);
  return found == ids_.end() ? kNoId : found->second;
}

}  // namespace ouro::core
