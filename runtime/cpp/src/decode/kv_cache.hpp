// The cache: buffers that grow by buckets and are bound to the graph as they are.
//
// Every row of a batch has a length of its own: its tokens lie in its first slots, without holes,
// and the slots behind them are zero and masked. New keys and values come out of the graph in
// buffers of their own and are copied into their rows' next slots; nothing else of the cache is
// ever copied, except when it grows, shrinks or a row moves. Port of runtime/decode/kv_cache.py.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backends/memory.hpp"

namespace ouro::core {

struct Manifest;

// Sizes and places are signed, as in the graph; a vector's index is not.
inline std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// The bucket that holds `slots`: multiples of 64, in steps of about an eighth when long; never
// more than `most`, the model's positions, rounded up to a multiple of 64.
std::int64_t capacity_for(std::int64_t slots, std::int64_t most);

// Keys and values: a cache's, or what receives those of new positions.
struct Keys {
  Buffer layers;     // [2 * layers, rows, kv, slots, hd], key and value of layer 0, of layer 1, ...
  Buffer recurrent;  // [2, rows, steps * looped layers, kv, slots, hd]

  // The first rows, under the names of the graph's tensors with this prefix.
  void name(std::int64_t rows, const std::string& prefix,
            std::map<std::string, Buffer>& named) const;
};

// Keys, values and pooled sums of the rows of a batch. Used from one thread.
class KVCache {
 public:
  // A batch of empty rows. `manifest` must outlive it.
  KVCache(const Manifest& manifest, std::shared_ptr<Memory> memory,
          std::vector<std::int64_t> row_depth, std::int64_t max_slots);

  std::int64_t batch() const { return static_cast<std::int64_t>(lengths_.size()); }
  // The most recurrences of a row; 1 where there is none.
  std::int64_t depth() const;
  std::int64_t longest() const { return longest_; }
  std::int64_t capacity() const { return capacity_; }
  const std::vector<std::int64_t>& lengths() const { return lengths_; }
  // Recurrences of each row, int64 [batch], bound as it is.
  std::vector<std::int64_t>& row_depth() { return row_depth_; }
  // The positions of the next tokens, int64 [batch, 1], bound as they are.
  std::vector<std::int64_t>& positions() { return positions_; }
  // int64 [batch, capacity + 1], 1 where a slot holds a token; the last column stands for the one
  // new token of a decoding step and is always 1. Bound as it is.
  std::vector<std::int64_t>& valid() { return valid_; }

  // Makes room for as many slots, rows and steps; true if the buffers are new ones.
  bool reserve(std::int64_t slots, std::int64_t rows = 0, std::int64_t depth = 1);
  // Adds the rows' buffers under the names of the graph's inputs.
  void name(std::map<std::string, Buffer>& inputs) const;
  Keys new_keys(std::int64_t tokens) const;
  // [1, batch, depth, picked, d].
  Buffer new_sums(std::int64_t picked) const;
  // Copies new keys and values into each row's next slots, and keeps the last of the sums.
  // `counts`: how many of the `tokens` new positions hold a token of each row, its last ones.
  void append(const Keys& made, const Buffer& pool, const std::vector<std::int64_t>& counts);
  // Copies a row of another cache of the same memory in: an empty row, or one more.
  void admit(std::int64_t row, const KVCache& prefilled, std::int64_t source);
  // Takes a row out of the batch; the last row takes its place.
  void evict(std::int64_t row);
  // Sets the depth of each row to that which its prompt has chosen.
  void settle(const std::int64_t* row_depth);
  // The graph's attention_mask for new positions: int64 [batch, capacity + tokens].
  std::vector<std::int64_t> mask_with(const std::vector<std::int64_t>& valid,
                                      std::int64_t tokens) const;

 private:
  void measure();
  void copy_row(std::int64_t row, const KVCache& other, std::int64_t source, std::int64_t slots);
  void replace(std::int64_t capacity, std::int64_t rows, std::int64_t steps);
  void allocate(std::int64_t capacity, std::int64_t rows, std::int64_t steps);
  Keys make_keys(std::int64_t slots, std::int64_t rows, std::int64_t steps) const;
  Buffer make_sums(std::int64_t picked, std::int64_t rows, std::int64_t steps) const;

  const Manifest& manifest_;
  std::shared_ptr<Memory> memory_;
  std::int64_t max_slots_;
  std::vector<std::int64_t> lengths_, row_depth_, positions_, valid_;
  std::int64_t longest_ = 0, capacity_ = 0, rows_ = 0, steps_ = 1;
  Keys keys_;
  Buffer pool_;
};

}  // namespace ouro::core
