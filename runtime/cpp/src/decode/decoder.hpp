// Feeds a batch of sequences through the graph, in chunks or a token at a time.
// Port of runtime/decode/decoder.py.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "backends/backend.hpp"
#include "decode/kv_cache.hpp"
#include "tokens.hpp"

namespace ouro::core {

struct Manifest;

// A batch that advances through the graph together, with its cache. Used from one thread. Rows
// that are fed different numbers of tokens in one call are padded on the left; the padding never
// enters the cache.
class Decoder {
 public:
  // A batch of empty rows. `memory` is of the backend; none makes one. The manifest must outlive
  // the decoder.
  Decoder(std::shared_ptr<const Backend> backend, const Manifest& manifest,
          std::vector<std::int64_t> row_depth, std::shared_ptr<Memory> memory = nullptr);
  ~Decoder();
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  const KVCache& cache() const { return *cache_; }
  const std::vector<std::int64_t>& row_depth() const { return cache_->row_depth(); }
  // Seconds spent inside the library that runs the graph so far.
  double run_s() const { return run_s_; }

  // Feeds new tokens, as many a row as it has, and returns the last logits of each row, float32
  // [batch, V]. Above 0, `halt_threshold` lets each row of a new batch choose its depth; row_depth
  // tells it. No row may be empty. Throws engine_error where rows that choose hold tokens already.
  std::vector<float> prefill(const std::vector<Tokens>& rows, double halt_threshold = 0.0);
  // Feeds new tokens to the only row and hands over the logits of all their positions, a chunk at a
  // time: its tokens, and float32 [tokens, V].
  using Scored = std::function<void(std::int64_t, const float*)>;
  void score(const Tokens& row, const Scored& scored);
  // Feeds one token a row; returns float32 [batch, V], which the next step overwrites.
  const float* step(const Tokens& tokens);
  // Takes a row out of the batch; the last row takes its place.
  void evict(std::int64_t row);

 private:
  struct Padded;
  struct Call;
  struct Step;

  std::unique_ptr<Decoder> beside(std::vector<std::int64_t> row_depth) const;
  void admit(std::int64_t row, const Decoder& prefilled, std::int64_t source);
  std::vector<float> choose(const std::vector<Tokens>& rows, double threshold);
  std::vector<float> prefill_together(const std::vector<Tokens>& rows);
  // One call with its own buffers; returns the logits on the host, float32 [batch, K, V].
  const float* run(const Padded& fed, const std::vector<std::int64_t>& logit_index,
                   double halt_threshold = 0.0);
  std::int64_t chunk_size(std::int64_t most, std::int64_t total) const;
  std::unique_ptr<Bound> bind(Call& call);

  std::shared_ptr<const Backend> backend_;
  const Manifest& manifest_;
  std::shared_ptr<Memory> memory_;
  std::unique_ptr<KVCache> cache_;
  std::unique_ptr<Step> step_;
  Buffer logits_;  // of the last call, which keeps what `run` returned
  double run_s_ = 0.0;
};

// Which sequences are fed in one call: such that padding never costs more than a call would.
// `call_tokens`: tokens that cost as much as a call more. Their numbers, those of a group in order.
std::vector<std::vector<std::size_t>> group_lengths(const std::vector<std::int64_t>& lengths,
                                                    std::int64_t call_tokens);

}  // namespace ouro::core
