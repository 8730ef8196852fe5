#include "decode/kv_cache.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "bundle/contract.hpp"
#include "bundle/manifest.hpp"
#include "error.hpp"

namespace ouro::core {
namespace {

// KVCache::valid of empty rows.
std::vector<std::int64_t> masked(std::int64_t rows, std::int64_t capacity) {
  std::vector<std::int64_t> valid(at(rows * (capacity + 1)), 0);
  for (std::int64_t row = 1; row <= rows; ++row) valid[at(row * (capacity + 1) - 1)] = 1;
  return valid;
}

Buffer make_stack(Memory& memory, std::int64_t count, const TensorSpec& spec,
                  const contract::Sizes& sizes) {
  Shape shape = contract::resolve_shape(spec, sizes);
  shape.insert(shape.begin(), count);
  return memory.zeros(std::move(shape), parse_dtype(spec.dtype));
}

}  // namespace

std::int64_t capacity_for(std::int64_t slots, std::int64_t most) {
  if (slots == 0) return 0;
  constexpr std::int64_t bucket = contract::kBucket;
  std::int64_t capacity = bucket;
  while (capacity < slots) capacity += std::max(bucket, capacity / 8 / bucket * bucket);
  return std::min(capacity, (std::max(most, slots) + bucket - 1) / bucket * bucket);
}

void Keys::name(std::int64_t rows, const std::string& prefix,
                std::map<std::string, Buffer>& named) const {
  const std::size_t kept = at(layers.shape[0]);
  for (std::size_t index = 0; index < kept + 2; ++index) {
    const bool looped = index >= kept;
    const std::string layer = looped ? contract::kRecurrent : std::to_string(index / 2);
    const Buffer part = looped ? recurrent.part(index - kept) : layers.part(index);
    named[prefix + layer + "." + contract::kParts[index % 2]] = part.first(rows);
  }
}

KVCache::KVCache(const Manifest& manifest, std::shared_ptr<Memory> memory,
                 std::vector<std::int64_t> row_depth, std::int64_t max_slots)
    : manifest_(manifest),
      memory_(std::move(memory)),
      max_slots_(max_slots),
      lengths_(row_depth.size(), 0),
      row_depth_(std::move(row_depth)) {
  allocate(0, batch(), depth());
}

std::int64_t KVCache::depth() const {
  const auto most = std::max_element(row_depth_.begin(), row_depth_.end());
  return most == row_depth_.end() ? 1 : std::max<std::int64_t>(1, *most);
}

bool KVCache::reserve(std::int64_t slots, std::int64_t rows, std::int64_t depth) {
  const bool grows = slots > capacity_;
  if (!grows && rows <= rows_ && depth <= steps_) return false;
  replace(grows ? capacity_for(slots, max_slots_) : capacity_, std::max(rows, rows_),
          std::max(depth, steps_));
  return true;
}

void KVCache::name(std::map<std::string, Buffer>& inputs) const {
  inputs[contract::kPastPoolSum] =
      pool_.part(0).first(batch()).reshaped({batch(), steps_, manifest_.model.hidden_size});
  keys_.name(batch(), contract::kPastPrefix, inputs);
}

Keys KVCache::new_keys(std::int64_t tokens) const { return make_keys(tokens, batch(), depth()); }

Buffer KVCache::new_sums(std::int64_t picked) const { return make_sums(picked, batch(), depth()); }

void KVCache::append(const Keys& made, const Buffer& pool,
                     const std::vector<std::int64_t>& counts) {
  const std::int64_t tokens = made.layers.shape[3], picked = pool.shape[3];
  // Neighbours of one length are copied together.
  for (std::int64_t row = 0; row < batch();) {
    std::int64_t end = row + 1;
    while (end < batch() && lengths_[at(end)] == lengths_[at(row)] &&
           counts[at(end)] == counts[at(row)]) {
      ++end;
    }
    const std::int64_t count = counts[at(row)];
    if (count > 0) {
      const Span span{row, row, end - row, lengths_[at(row)], tokens - count, count};
      memory_->copy(keys_.layers, made.layers, span);
      memory_->copy(keys_.recurrent, made.recurrent, span);
    }
    row = end;
  }
  memory_->copy(pool_, pool, {0, 0, batch(), 0, picked - 1, 1});
  for (std::int64_t row = 0; row < batch(); ++row) {
    const auto start = valid_.begin() + row * (capacity_ + 1) + lengths_[at(row)];
    std::fill_n(start, counts[at(row)], 1);
    lengths_[at(row)] += counts[at(row)];
  }
  measure();
}

void KVCache::admit(std::int64_t row, const KVCache& prefilled, std::int64_t source) {
  const std::int64_t length = prefilled.lengths_[at(source)];
  const std::int64_t depth = prefilled.row_depth_[at(source)];
  reserve(length, row + 1, depth);
  if (row == batch()) {
    lengths_.push_back(0);
    row_depth_.push_back(1);
    positions_.push_back(0);
    const std::vector<std::int64_t> more = masked(1, capacity_);
    valid_.insert(valid_.end(), more.begin(), more.end());
  }
  row_depth_[at(row)] = depth;
  copy_row(row, prefilled, source, length);
  lengths_[at(row)] = length;
  std::fill_n(valid_.begin() + row * (capacity_ + 1), length, 1);
  measure();
}

void KVCache::evict(std::int64_t row) {
  const std::int64_t last = batch() - 1, width = capacity_ + 1;
  if (row != last) {
    // What the row held beyond the last row's tokens becomes zero with the copy.
    copy_row(row, *this, last, std::max(lengths_[at(row)], lengths_[at(last)]));
    lengths_[at(row)] = lengths_[at(last)];
    row_depth_[at(row)] = row_depth_[at(last)];
    std::copy_n(valid_.begin() + last * width, width, valid_.begin() + row * width);
  }
  memory_->clear(keys_.layers, last, 0, lengths_[at(last)]);
  memory_->clear(keys_.recurrent, last, 0, lengths_[at(last)]);
  lengths_.pop_back();
  row_depth_.pop_back();
  positions_.pop_back();
  valid_.resize(at(last * width));
  measure();
  const std::int64_t fitting = capacity_for(longest_, max_slots_);
  if (last == 0) {
    replace(0, 0, 1);
  } else if (2 * fitting <= capacity_) {
    replace(fitting, rows_, steps_);
  }
}

void KVCache::settle(const std::int64_t* row_depth) {
  for (std::size_t row = 0; row < row_depth_.size(); ++row) {
    if (row_depth[row] < 1 || row_depth[row] > row_depth_[row]) {
      throw engine_error("the graph says that a row took " + std::to_string(row_depth[row]) +
                             " steps, allowed are 1 to " + std::to_string(row_depth_[row]),
                         "export the bundle again");
    }
  }
  std::copy_n(row_depth, row_depth_.size(), row_depth_.begin());
}

std::vector<std::int64_t> KVCache::mask_with(const std::vector<std::int64_t>& valid,
                                             std::int64_t tokens) const {
  std::vector<std::int64_t> mask;
  mask.reserve(at(batch() * (capacity_ + tokens)));
  for (std::int64_t row = 0; row < batch(); ++row) {
    const auto held = valid_.begin() + row * (capacity_ + 1);
    const auto fresh = valid.begin() + row * tokens;
    mask.insert(mask.end(), held, held + capacity_);
    mask.insert(mask.end(), fresh, fresh + tokens);
  }
  return mask;
}

void KVCache::measure() {
  longest_ = lengths_.empty() ? 0 : *std::max_element(lengths_.begin(), lengths_.end());
  std::copy(lengths_.begin(), lengths_.end(), positions_.begin());
}

void KVCache::copy_row(std::int64_t row, const KVCache& other, std::int64_t source,
                       std::int64_t slots) {
  const Span span{row, source, 1, 0, 0, slots};
  memory_->copy(keys_.layers, other.keys_.layers, span);
  memory_->copy(keys_.recurrent, other.keys_.recurrent, span);
  memory_->copy(pool_, other.pool_, {row, source, 1, 0, 0, 1});
}

void KVCache::replace(std::int64_t capacity, std::int64_t rows, std::int64_t steps) {
  const Keys keys = keys_;
  const Buffer pool = pool_;
  const std::vector<std::int64_t> valid = valid_;
  const std::int64_t width = capacity_ + 1;
  allocate(capacity, rows, steps);
  memory_->copy(keys_.layers, keys.layers, {0, 0, batch(), 0, 0, longest_});
  memory_->copy(keys_.recurrent, keys.recurrent, {0, 0, batch(), 0, 0, longest_});
  memory_->copy(pool_, pool, {0, 0, batch(), 0, 0, 1});
  for (std::int64_t row = 0; row < batch(); ++row) {
    std::copy_n(valid.begin() + row * width, longest_, valid_.begin() + row * (capacity_ + 1));
  }
  measure();
}

void KVCache::allocate(std::int64_t capacity, std::int64_t rows, std::int64_t steps) {
  capacity_ = capacity;
  rows_ = rows;
  steps_ = steps;
  keys_ = make_keys(capacity, rows, steps);
  pool_ = make_sums(1, rows, steps);
  valid_ = masked(batch(), capacity);
  positions_.assign(at(batch()), 0);
}

Keys KVCache::make_keys(std::int64_t slots, std::int64_t rows, std::int64_t steps) const {
  const contract::Sizes sizes = {
      {contract::kBatch, rows}, {contract::kPast, slots}, {contract::kSlots, steps}};
  const auto [kept, looped] = contract::past_specs(manifest_.model, manifest_.precision);
  return {make_stack(*memory_, 2 * manifest_.model.num_layers, kept, sizes),
          make_stack(*memory_, 2, looped, sizes)};
}

Buffer KVCache::make_sums(std::int64_t picked, std::int64_t rows, std::int64_t steps) const {
  const contract::Sizes sizes = {
      {contract::kBatch, rows}, {contract::kDepth, steps}, {contract::kPicked, picked}};
  return make_stack(*memory_, 1,
                    contract::output(contract::kPoolSum, manifest_.model, manifest_.precision),
                    sizes);
}

}  // namespace ouro::core
