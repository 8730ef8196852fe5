#include "text/vocabulary.hpp"

#include <functional>
#include <limits>

#include "error.hpp"

namespace ouro::core {
namespace {

std::uint32_t narrow(std::size_t size) {
  if (size > std::numeric_limits<std::uint32_t>::max()) {
    throw bundle_error("the tokens of its tokenizer.json take more than 4 GB");
  }
  return static_cast<std::uint32_t>(size);
}

}  // namespace

void Vocabulary::add(std::string_view token, Id id) {
  if (2 * (entries_.size() + 1) > slots_.size()) grow();
  std::uint32_t& known = slots_[slot(token)];
  if (known == 0) {
    entries_.push_back({narrow(letters_.size()), narrow(token.size()), id});
    letters_ += token;
    known = static_cast<std::uint32_t>(entries_.size());
  } else {
    entries_[known - 1].id = id;
  }
  if (id >= near_.size() && id < 2 * entries_.size() + 1024)
    near_.resize(2 * (std::size_t{id} + 1));
  (id < near_.size() ? near_[id] : far_[id]) = known;
}

Id Vocabulary::find(std::string_view token) const {
  const std::uint32_t known = slots_.empty() ? 0 : slots_[slot(token)];
  return known == 0 ? kNoId : entries_[known - 1].id;
}

std::optional<std::string_view> Vocabulary::token(Id id) const {
  std::uint32_t known = 0;
  if (id < near_.size() && near_[id] != 0) {
    known = near_[id];
  } else if (const auto found = far_.find(id); found != far_.end()) {
    known = found->second;
  }
  if (known == 0) return std::nullopt;
  return view(entries_[known - 1]);
}

std::size_t Vocabulary::slot(std::string_view token) const {
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t place = std::hash<std::string_view>{}(token)&mask;; place = (place + 1) & mask) {
    const std::uint32_t known = slots_[place];
    if (known == 0 || view(entries_[known - 1]) == token) return place;
  }
}

void Vocabulary::grow() {
  slots_.assign(slots_.empty() ? 16 : 2 * slots_.size(), 0);
  for (std::size_t number = 0; number < entries_.size(); ++number) {
    slots_[slot(view(entries_[number]))] = static_cast<std::uint32_t>(number + 1);
  }
}

Merges::Merges(std::size_t count) : slots_(count + count / 2 + 1) {}

void Merges::set(Id first, Id second, Merge merge) {
  const std::uint64_t key = std::uint64_t{first} << 32 | second;
  std::size_t place = hash(key);
  while (slots_[place].key != key && slots_[place].key != kFree) place = next(place);
  slots_[place] = {key, merge};
}

}  // namespace ouro::core
