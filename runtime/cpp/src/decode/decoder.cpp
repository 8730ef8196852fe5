#include "decode/decoder.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <set>
#include <utility>

#include "bundle/contract.hpp"
#include "bundle/manifest.hpp"
#include "error.hpp"

namespace ouro::core {
namespace {

using Ints = std::vector<std::int64_t>;

std::int64_t count(const std::vector<Tokens>& rows) {
  return static_cast<std::int64_t>(rows.size());
}
std::int64_t length(const Tokens& row) { return static_cast<std::int64_t>(row.size()); }

std::vector<std::int64_t> lengths_of(const std::vector<Tokens>& rows) {
  Ints lengths(rows.size());
  std::transform(rows.begin(), rows.end(), lengths.begin(), length);
  return lengths;
}

// The least of a chunk's size and a plan's limits, 0 where there is none.
std::int64_t least(std::int64_t size, std::int64_t limit, std::int64_t other = 0) {
  if (limit > 0) size = std::min(size, limit);
  if (other > 0) size = std::min(size, other);
  return size;
}

// Refuses a graph whose tensors are not those that are known here.
template <typename Given>
void check_fed(const std::vector<TensorSpec>& tensors, const Given& given) {
  const char* cure = "update ouroboros, or export the bundle again";
  std::set<std::string> known;
  for (const TensorSpec& tensor : tensors) {
    known.insert(tensor.name);
    if (given.count(tensor.name) == 0) {
      throw engine_error("the graph has " + tensor.name + ", which is not known here", cure);
    }
  }
  for (const std::string& name : given) {
    if (known.count(name) == 0) throw engine_error("the graph has no " + name, cure);
  }
}

}  // namespace

// Token ids of rows behind zeros and which of them are valid, both int64 [batch, tokens].
struct Decoder::Padded {
  std::int64_t batch, tokens;
  Ints ids, valid;

  explicit Padded(const std::vector<Tokens>& rows) : batch(count(rows)), tokens(0) {
    for (const Tokens& row : rows) tokens = std::max(tokens, length(row));
    ids.assign(at(batch * tokens), 0);
    valid.assign(at(batch * tokens), 0);
    for (std::int64_t row = 0; row < batch; ++row) {
      const Tokens& one = rows[at(row)];
      const std::int64_t start = row * tokens + tokens - length(one);
      std::copy(one.begin(), one.end(), ids.begin() + start);
      std::fill_n(valid.begin() + start, one.size(), 1);
    }
  }
  // The columns from `start`, `size` at most.
  Padded(const Padded& whole, std::int64_t start, std::int64_t size)
      : batch(whole.batch), tokens(std::min(size, whole.tokens - start)) {
    for (std::int64_t row = 0; row < batch; ++row) {
      const std::int64_t from = row * whole.tokens + start;
      ids.insert(ids.end(), whole.ids.begin() + from, whole.ids.begin() + from + tokens);
      valid.insert(valid.end(), whole.valid.begin() + from, whole.valid.begin() + from + tokens);
    }
  }
};

// What a call reads and writes. Host inputs are bound by address: a call does not move.
struct Decoder::Call {
  std::int64_t batch, tokens, asked;
  Ints ids, positions, mask, index;
  std::int64_t depth = 1;
  float threshold = 0.0F;
  Buffer logits, pool, used;
  Keys made;
  // Where a decoding step reads them instead: the cache's own, which change with every token.
  std::int64_t* own_positions = nullptr;
  std::int64_t* own_mask = nullptr;

  Call(std::int64_t rows, std::int64_t fed, std::int64_t picked)
      : batch(rows), tokens(fed), asked(picked) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  void allocate(Memory& memory, const KVCache& cache, const Manifest& manifest) {
    const contract::Sizes sizes = {{contract::kBatch, batch}, {contract::kPicked, asked}};
    const auto receive = [&](const char* name) {
      const TensorSpec spec = contract::output(name, manifest.model, manifest.precision);
      return memory.zeros(contract::resolve_shape(spec, sizes), parse_dtype(spec.dtype));
    };
    logits = receive(contract::kLogits);
    made = cache.new_keys(tokens);
    pool = cache.new_sums(asked);
    if (manifest.model.halting) used = receive(contract::kDepthUsed);
  }
};

struct Decoder::Step {
  Call call;
  Ints ones;
  std::unique_ptr<Bound> bound;

  explicit Step(std::int64_t batch) : call(batch, 1, 1), ones(at(batch), 1) {
    call.ids.assign(at(batch), 0);
    call.index.assign(at(batch), 0);
  }
};

Decoder::Decoder(std::shared_ptr<const Backend> backend, const Manifest& manifest, Ints row_depth,
                 std::shared_ptr<Memory> memory)
    : backend_(std::move(backend)),
      manifest_(manifest),
      memory_(memory ? std::move(memory) : backend_->new_memory()),
      cache_(std::make_unique<KVCache>(manifest, memory_, std::move(row_depth),
                                       backend_->limits().max_slots)) {}

Decoder::~Decoder() = default;

std::unique_ptr<Decoder> Decoder::beside(Ints row_depth) const {
  return std::make_unique<Decoder>(backend_, manifest_, std::move(row_depth), memory_);
}

void Decoder::admit(std::int64_t row, const Decoder& prefilled, std::int64_t source) {
  cache_->admit(row, *prefilled.cache_, source);
  step_.reset();
}

void Decoder::evict(std::int64_t row) {
  cache_->evict(row);
  step_.reset();
}

std::vector<float> Decoder::prefill(const std::vector<Tokens>& rows, double halt_threshold) {
  if (halt_threshold > 0.0) return choose(rows, halt_threshold);
  const Ints lengths = lengths_of(rows);
  const auto groups = group_lengths(lengths, backend_->limits().call_tokens);
  if (groups.size() == 1 || cache_->longest() > 0) return prefill_together(rows);
  const Ints depths = cache_->row_depth();
  const std::size_t vocabulary = at(manifest_.model.vocab_size);
  std::vector<float> logits(rows.size() * vocabulary);
  cache_->reserve(*std::max_element(lengths.begin(), lengths.end()));
  for (const auto& group : groups) {
    Ints part_depths;
    std::vector<Tokens> part_rows;
    for (const std::size_t row : group) {
      part_depths.push_back(depths[row]);
      part_rows.push_back(rows[row]);
    }
    const auto part = beside(std::move(part_depths));
    const std::vector<float> found = part->prefill_together(part_rows);
    run_s_ += part->run_s_;
    for (std::size_t source = 0; source < group.size(); ++source) {
      std::copy_n(found.begin() + static_cast<std::ptrdiff_t>(source * vocabulary), vocabulary,
                  logits.begin() + static_cast<std::ptrdiff_t>(group[source] * vocabulary));
      admit(static_cast<std::int64_t>(group[source]), *part, static_cast<std::int64_t>(source));
    }
  }
  return logits;
}

void Decoder::score(const Tokens& row, const Scored& scored) {
  const Limits& limits = backend_->limits();
  const Padded all(std::vector<Tokens>{row});
  const std::int64_t size = chunk_size(
      least(contract::kScoreChunk, limits.max_new_tokens, limits.max_logits), all.tokens);
  for (std::int64_t start = 0; start < all.tokens; start += size) {
    const Padded part(all, start, size);
    Ints index(part.ids.size());
    std::iota(index.begin(), index.end(), std::int64_t{0});
    scored(part.tokens, run(part, index));
  }
}

const float* Decoder::step(const Tokens& tokens) {
  if (length(tokens) != cache_->batch() || tokens.empty()) {
    throw engine_error(std::to_string(tokens.size()) + " tokens for a batch of " +
                           std::to_string(cache_->batch()) + " rows",
                       "give one a row");
  }
  if (cache_->reserve(cache_->longest() + 1) || !step_) {
    if (!step_) {
      step_ = std::make_unique<Step>(cache_->batch());
      step_->call.allocate(*memory_, *cache_, manifest_);
    }
    Call& call = step_->call;
    call.own_positions = cache_->positions().data();
    call.own_mask = cache_->valid().data();
    step_->bound = bind(call);
  }
  std::copy(tokens.begin(), tokens.end(), step_->call.ids.begin());
  run_s_ += step_->bound->run();
  cache_->append(step_->call.made, step_->call.pool, step_->ones);
  return reinterpret_cast<const float*>(memory_->read(step_->call.logits));
}

std::vector<float> Decoder::choose(const std::vector<Tokens>& rows, double threshold) {
  if (cache_->longest() > 0) {
    throw engine_error(
        "these rows hold tokens already: a depth is chosen on a prompt, and stays fixed",
        "choose it with the first tokens");
  }
  Ints lengths = lengths_of(rows);
  const std::int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  // A mean too is of the whole prompt.
  const std::int64_t most = manifest_.model.pooling == "mean"
                                ? longest
                                : least(contract::kPrefillChunk, backend_->limits().max_new_tokens);
  for (std::int64_t& one : lengths) one = std::min(one, most);
  Ints depths = cache_->row_depth();
  const std::size_t vocabulary = at(manifest_.model.vocab_size);
  std::vector<float> logits(rows.size() * vocabulary);
  std::vector<std::pair<std::unique_ptr<Decoder>, std::vector<std::size_t>>> parts;
  for (auto& group : group_lengths(lengths, backend_->limits().call_tokens)) {
    Ints part_depths;
    std::vector<Tokens> heads;
    for (const std::size_t row : group) {
      part_depths.push_back(depths[row]);
      heads.emplace_back(rows[row].begin(), rows[row].begin() + lengths[row]);
    }
    auto part = beside(std::move(part_depths));
    const Padded fed(heads);
    const float* found = part->run(fed, Ints(heads.size(), fed.tokens - 1), threshold);
    for (std::size_t source = 0; source < group.size(); ++source) {
      std::copy_n(found + source * vocabulary, vocabulary,
                  logits.begin() + static_cast<std::ptrdiff_t>(group[source] * vocabulary));
      depths[group[source]] = part->row_depth()[source];
    }
    parts.emplace_back(std::move(part), std::move(group));
  }
  // Empty rows of the depths that were chosen: no room is held for steps that none has.
  cache_ = std::make_unique<KVCache>(manifest_, memory_, depths, backend_->limits().max_slots);
  step_.reset();
  cache_->reserve(longest);
  for (const auto& [part, group] : parts) {
    run_s_ += part->run_s_;
    for (std::size_t source = 0; source < group.size(); ++source) {
      const std::size_t row = group[source];
      const Tokens rest(rows[row].begin() + lengths[row], rows[row].end());
      if (rest.empty()) {
        admit(static_cast<std::int64_t>(row), *part, static_cast<std::int64_t>(source));
        continue;
      }
      const auto alone = beside({part->row_depth()[source]});
      alone->admit(0, *part, static_cast<std::int64_t>(source));
      const std::vector<float> found = alone->prefill_together({rest});
      std::copy(found.begin(), found.end(),
                logits.begin() + static_cast<std::ptrdiff_t>(row * vocabulary));
      run_s_ += alone->run_s_;
      admit(static_cast<std::int64_t>(row), *alone, 0);
    }
  }
  return logits;
}

std::vector<float> Decoder::prefill_together(const std::vector<Tokens>& rows) {
  const Padded all(rows);
  const std::int64_t size =
      chunk_size(least(contract::kPrefillChunk, backend_->limits().max_new_tokens), all.tokens);
  const float* logits = nullptr;
  for (std::int64_t start = 0; start < all.tokens; start += size) {
    const Padded part(all, start, size);
    logits = run(part, Ints(rows.size(), part.tokens - 1));
  }
  return {logits, logits + rows.size() * at(manifest_.model.vocab_size)};
}

std::int64_t Decoder::chunk_size(std::int64_t most, std::int64_t total) const {
  const Ints& held = cache_->lengths();
  const bool fresh = std::find(held.begin(), held.end(), 0) != held.end();
  // The mean is frozen on what the first call holds: all of the prompt.
  return manifest_.model.pooling == "mean" && fresh ? total : most;
}

const float* Decoder::run(const Padded& fed, const Ints& logit_index, double halt_threshold) {
  Call call(fed.batch, fed.tokens, static_cast<std::int64_t>(logit_index.size()) / fed.batch);
  call.allocate(*memory_, *cache_, manifest_);
  call.ids = fed.ids;
  call.index = logit_index;
  call.mask = cache_->mask_with(fed.valid, fed.tokens);
  call.threshold = static_cast<float>(halt_threshold);
  call.positions.resize(fed.ids.size());
  Ints counts(at(fed.batch));
  for (std::int64_t row = 0; row < fed.batch; ++row) {
    std::int64_t valid = 0;
    for (std::int64_t token = row * fed.tokens; token < (row + 1) * fed.tokens; ++token) {
      valid += fed.valid[at(token)];
      const std::int64_t position = cache_->positions()[at(row)] + valid - 1;
      call.positions[at(token)] = std::max<std::int64_t>(position, 0);
    }
    counts[at(row)] = valid;
  }
  run_s_ += bind(call)->run();
  if (halt_threshold > 0.0 && manifest_.model.halting) {
    cache_->settle(reinterpret_cast<const std::int64_t*>(memory_->read(call.used)));
  }
  if (cache_->reserve(cache_->longest() + fed.tokens)) step_.reset();
  cache_->append(call.made, call.pool, counts);
  logits_ = call.logits;
  return reinterpret_cast<const float*>(memory_->read(logits_));
}

std::unique_ptr<Bound> Decoder::bind(Call& call) {
  call.depth = cache_->depth();
  const contract::Sizes sizes = {{contract::kBatch, call.batch},
                                 {contract::kNew, call.tokens},
                                 {contract::kPast, cache_->capacity()},
                                 {contract::kPicked, call.asked}};
  Bindings bindings;
  auto& host = bindings.host_inputs;
  const auto feed = [&](const char* name, void* data) {
    const TensorSpec spec = contract::input(name, manifest_.model, manifest_.precision);
    host[name] = {parse_dtype(spec.dtype), contract::resolve_shape(spec, sizes), data};
  };
  feed(contract::kInputIds, call.ids.data());
  feed(contract::kPositionIds, call.own_positions ? call.own_positions : call.positions.data());
  feed(contract::kAttentionMask, call.own_mask ? call.own_mask : call.mask.data());
  feed(contract::kDepth, &call.depth);
  feed(contract::kRowDepth, cache_->row_depth().data());
  feed(contract::kLogitIndex, call.index.data());
  cache_->name(bindings.inputs);
  bindings.outputs[contract::kLogits] = call.logits;
  bindings.outputs[contract::kPoolSum] = call.pool.part(0);
  call.made.name(call.batch, contract::kNewPrefix, bindings.outputs);
  if (manifest_.model.halting) {
    feed(contract::kHaltThreshold, &call.threshold);
    bindings.outputs[contract::kDepthUsed] = call.used;
  }
  std::set<std::string> fed, read;
  for (const auto& [name, view] : host) fed.insert(name);
  for (const auto& [name, buffer] : bindings.inputs) fed.insert(name);
  for (const auto& [name, buffer] : bindings.outputs) read.insert(name);
  check_fed(manifest_.graphs.onnx.inputs, fed);
  check_fed(manifest_.graphs.onnx.outputs, read);
  return backend_->bind(memory_, std::move(bindings));
}

std::vector<std::vector<std::size_t>> group_lengths(const Ints& lengths, std::int64_t call_tokens) {
  std::vector<std::size_t> order(lengths.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&lengths](std::size_t one, std::size_t other) {
    return lengths[one] > lengths[other];
  });
  std::vector<std::vector<std::size_t>> groups;
  std::int64_t padding = 0;
  for (const std::size_t number : order) {
    if (!groups.empty()) padding += lengths[groups.back().front()] - lengths[number];
    if (groups.empty() || padding > call_tokens) {
      groups.emplace_back();
      padding = 0;
    }
    groups.back().push_back(number);
  }
  for (auto& group : groups) std::sort(group.begin(), group.end());
  return groups;
}

}  // namespace ouro::core
