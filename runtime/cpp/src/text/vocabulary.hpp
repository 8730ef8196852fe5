// Tokens as they are written in a tokenizer.json, and their ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace ouro::core {

using Id = std::uint32_t;
inline constexpr Id kNoId = 0xFFFFFFFF;  // no vocabulary gives it out

// A vocabulary, filled once. Ids may have gaps, and be large.
class Vocabulary {
 public:
  // Gives a token an id; one that is there already gets the new one.
  void add(std::string_view token, Id id);

  // A token's id, or kNoId.
  Id find(std::string_view token) const;

  // How an id is written; none where it is nobody's.
  std::optional<std::string_view> token(Id id) const;

  std::size_t size() const noexcept { return entries_.size(); }

 private:
  struct Entry {
    std::uint32_t start, size;  // in `letters_`
    Id id;
  };

  std::string_view view(const Entry& entry) const {
    return std::string_view(letters_).substr(entry.start, entry.size);
  }
  std::size_t slot(std::string_view token) const;
  void grow();

  std::string letters_;
  std::vector<Entry> entries_;
  std::vector<std::uint32_t> slots_;           // open addressing: 0, or an entry's number plus one
  std::vector<std::uint32_t> near_;            // by id: an entry's number plus one, or 0
  std::unordered_map<Id, std::uint32_t> far_;  // the same of ids that are too large for it
};

// A map from pairs of ids to what they merge into; open addressing, never shrinks.
class Merges {
 public:
  struct Merge {
    std::uint32_t rank;
    Id id;
  };

  explicit Merges(std::size_t count = 0);

  // A pair that is there already gets the new merge. No more pairs than `count`.
  void set(Id first, Id second, Merge merge);

  // What a pair merges into, or null.
  const Merge* find(Id first, Id second) const {
    const std::uint64_t key = std::uint64_t{first} << 32 | second;
    for (std::size_t place = hash(key);; place = next(place)) {
      if (slots_[place].key == key) return &slots_[place].merge;
      if (slots_[place].key == kFree) return nullptr;
    }
  }

 private:
  static constexpr std::uint64_t kFree = ~std::uint64_t{0};  // of two kNoId
  struct Slot {
    std::uint64_t key = kFree;
    Merge merge{};
  };

  std::size_t hash(std::uint64_t key) const {
    key = (key ^ key >> 32) * 0x9E3779B97F4A7C15U;
    return static_cast<std::size_t>((key >> 32) * slots_.size() >> 32);
  }
  std::size_t next(std::size_t place) const { return place + 1 < slots_.size() ? place + 1 : 0; }

  std::vector<Slot> slots_;  // half as many again as pairs, and never full
};

}  // namespace ouro::core
