#include "text/bpe.hpp"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <utility>

#include "bundle/json.hpp"
#include "error.hpp"
#include "text/unicode.hpp"

namespace ouro::core {
namespace {

constexpr std::size_t kShort = 48;  // symbols of a word up to which searching beats a heap
constexpr std::uint32_t kNever = 0xFFFFFFFF;

std::array<std::string, 256> make_alphabet() {
  std::array<std::string, 256> letters;
  char32_t other = 256;  // of bytes that have no sign of their own
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool sign = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
    append_utf8(letters[byte], sign ? byte : other++);
  }
  return letters;
}

// A symbol of a long word: part of a linked list.
struct Symbol {
  Id id;
  std::uint32_t previous, next;  // kNever: none
  bool gone;
};

// A merge that may be made; the lowest rank comes first, then the leftmost.
struct Candidate {
  std::uint64_t order;  // rank, place
  Id id;

  bool operator>(const Candidate& other) const { return order > other.order; }
};

}  // namespace

const std::array<std::string, 256>& byte_alphabet() {
  static const std::array<std::string, 256> letters = make_alphabet();
  return letters;
}

Bpe::Bpe(const Vocabulary& vocabulary, Merges merges, BpeOptions options, bool byte_level)
    : vocabulary_(&vocabulary),
      merges_(std::move(merges)),
      options_(std::move(options)),
      byte_level_(byte_level) {
  if (options_.unk_token) unknown_ = vocabulary.find(*options_.unk_token);
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const std::string ascii(byte < 0x80 ? 1 : 0, static_cast<char>(byte));
    letters_[byte] = byte_level    ? vocabulary.find(byte_alphabet()[byte])
                     : byte < 0x80 ? vocabulary.find(ascii)
                                   : kNoId;
    char code[8];
    std::snprintf(code, sizeof code, "<0x%02X>", static_cast<unsigned>(byte));
    fallbacks_[byte] = options_.byte_fallback ? vocabulary.find(code) : kNoId;
  }
}

void Bpe::encode(std::string_view word, std::vector<Id>& ids) const {
  if (options_.ignore_merges) {
    std::string written;
    if (byte_level_) {
      for (const char byte : word) written += byte_alphabet()[static_cast<unsigned char>(byte)];
    }
    const Id id = vocabulary_->find(byte_level_ ? std::string_view(written) : word);
    if (id != kNoId) return ids.push_back(id);
  }
  const std::size_t first = ids.size();
  start(word, ids);
  if (ids.size() - first <= kShort) {
    merge_short(ids, first);
  } else {
    merge_long(ids, first);
  }
}

// Appends the symbols that a word begins with: its letters, or what stands for unknown ones.
void Bpe::start(std::string_view word, std::vector<Id>& symbols) const {
  bool held = false;  // an unknown letter, which may be fused with the next
  for (std::size_t place = 0; place < word.size();) {
    const auto byte = static_cast<unsigned char>(word[place]);
    const bool single = byte_level_ || byte < 0x80;
    const std::size_t size = single ? 1 : character_at(word, place).size;
    const std::string_view letter = word.substr(place, size);
    const Id id = single ? letters_[byte] : vocabulary_->find(letter);
    place += size;
    if (id != kNoId) {
      if (std::exchange(held, false)) symbols.push_back(unknown_);
      symbols.push_back(id);
    } else if (!fall_back(byte_level_ ? std::string_view(byte_alphabet()[byte]) : letter,
                          symbols) &&
               options_.unk_token) {
      if (unknown_ == kNoId) {
        throw bundle_error("the tokenizer can't turn the text into tokens: Unk token `" +
                               *options_.unk_token + "` not found in the vocabulary",
                           kOwnTokenizer);
      }
      if (held && !options_.fuse_unk) symbols.push_back(unknown_);
      held = true;
    }
  }
  if (held) symbols.push_back(unknown_);
}

// Appends the tokens of an unknown letter's bytes, if it has them all. What is held back stays so:
// tokenizers has it like this.
bool Bpe::fall_back(std::string_view letter, std::vector<Id>& symbols) const {
  const auto token = [&](char byte) { return fallbacks_[static_cast<unsigned char>(byte)]; };
  if (!options_.byte_fallback ||
      std::any_of(letter.begin(), letter.end(), [&](char byte) { return token(byte) == kNoId; })) {
    return false;
  }
  std::transform(letter.begin(), letter.end(), std::back_inserter(symbols), token);
  return true;
}

void Bpe::merge_short(std::vector<Id>& symbols, std::size_t first) const {
  struct Pair {
    std::uint32_t rank;
    Id id;
  };
  std::array<Pair, kShort> pairs;  // of each symbol with the next
  std::size_t count = symbols.size() - first;
  if (count < 2) return;
  Id* const ids = symbols.data() + first;
  const auto look = [&](std::size_t place) {
    const Merges::Merge* merge =
        place + 1 < count ? merges_.find(ids[place], ids[place + 1]) : nullptr;
    pairs[place] = merge ? Pair{merge->rank, merge->id} : Pair{kNever, kNoId};
  };
  for (std::size_t place = 0; place < count; ++place) look(place);
  while (true) {
    std::size_t best = 0;
    for (std::size_t place = 1; place + 1 < count; ++place) {
      if (pairs[place].rank < pairs[best].rank) best = place;
    }
    if (pairs[best].rank == kNever) break;
    ids[best] = pairs[best].id;
    --count;
    for (std::size_t place = best + 1; place < count; ++place) {
      ids[place] = ids[place + 1];
      pairs[place] = pairs[place + 1];
    }
    look(best);
    if (best > 0) look(best - 1);
  }
  symbols.resize(first + count);
}

void Bpe::merge_long(std::vector<Id>& symbols, std::size_t first) const {
  const auto count = static_cast<std::uint32_t>(symbols.size() - first);
  std::vector<Symbol> list(count);
  std::vector<Candidate> heap;
  for (std::uint32_t place = 0; place < count; ++place) {
    list[place] = {symbols[first + place], place - 1, place + 1 < count ? place + 1 : kNever,
                   false};
  }
  const auto candidate = [&](std::uint32_t place) {
    const Merges::Merge* merge = merges_.find(list[place].id, list[list[place].next].id);
    if (merge) heap.push_back({std::uint64_t{merge->rank} << 32 | place, merge->id});
    return merge != nullptr;
  };
  for (std::uint32_t place = 0; place + 1 < count; ++place) candidate(place);
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const Candidate best = heap.back();
    heap.pop_back();
    const auto place = static_cast<std::uint32_t>(best.order);
    Symbol& left = list[place];
    if (left.gone || left.next == kNever) continue;
    Symbol& right = list[left.next];
    const Merges::Merge* merge = merges_.find(left.id, right.id);
    if (!merge || merge->id != best.id) continue;  // one of the two has merged otherwise
    left.id = best.id;
    right.gone = true;
    left.next = right.next;
    if (left.next != kNever) list[left.next].previous = place;
    for (const std::uint32_t at : {left.previous, place}) {
      if (at != kNever && list[at].next != kNever && candidate(at)) {
        std::push_heap(heap.begin(), heap.end(), std::greater<>());
      }
    }
  }
  std::size_t kept = first;
  for (const Symbol& symbol : list) {
    if (!symbol.gone) symbols[kept++] = symbol.id;
  }
  symbols.resize(kept);
}

}  // namespace ouro::core
