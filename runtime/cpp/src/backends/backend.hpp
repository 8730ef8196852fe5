// What runs a graph: the protocol of runtime/backends/memory.py, and how one is chosen.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/memory.hpp"

namespace ouro::core {

class Bundle;

// Seconds since it was made.
class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

// A tensor of the host by value.
struct HostArray {
  std::string dtype;  // a name of the contract's element types
  Shape shape;
  std::vector<std::byte> bytes;
};

// The array in the element type of a graph's input. Throws engine_error for types that are no
// floats.
HostArray cast_array(const HostArray& array, DType wanted);

// A tensor of the host that its owner keeps and may change between runs.
struct HostView {
  DType dtype;
  Shape shape;
  void* data;
};

// What a call reads and writes, by the graph's names. Host tensors are read anew by every run;
// buffers are of the memory given beside.
struct Bindings {
  std::map<std::string, HostView> host_inputs;
  std::map<std::string, Buffer> inputs;
  std::map<std::string, Buffer> outputs;
};

// A graph with the buffers it reads and writes.
class Bound {
 public:
  virtual ~Bound() = default;
  // Runs it once; returns the seconds inside the library that runs it. Throws engine_error.
  virtual double run() = 0;
};

// Limits of one call; 0 where there is none.
struct Limits {
  std::int64_t max_slots = 0;
  std::int64_t max_batch = 0;
  std::int64_t max_new_tokens = 0;
  std::int64_t max_logits = 0;
  std::int64_t call_tokens = 32;  // so many more tokens cost about as much as one call more
};

// A graph loaded for one kind of device. Safe to use from several threads; shared by the batches
// that are in progress.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;  // "cpu", "cuda" or "trt"
  virtual const Limits& limits() const = 0;
  virtual std::shared_ptr<Memory> new_memory() const = 0;
  // Binds every input and output. What is bound must outlive the result.
  virtual std::unique_ptr<Bound> bind(std::shared_ptr<Memory> memory, Bindings bindings) const = 0;
  // Runs the graph on arrays, cast to its types; returns every output. Throws engine_error.
  virtual std::map<std::string, HostArray> run(
      const std::map<std::string, HostArray>& inputs) const = 0;
};

struct Opened {
  std::shared_ptr<Backend> backend;
  std::string reason;  // why this one
};

// Refuses what no bundle can be opened with: before all of one is read. Throws engine_error.
void check_choice(const std::string& backend, std::optional<std::int64_t> threads,
                  std::optional<std::int64_t> accuracy_level = std::nullopt);

// Loads a verified bundle. `backend` is "auto", "cpu", "cuda" or "trt"; `threads` those inside an
// operator; `accuracy_level` the arithmetic of int8 and int4 weights on the CPU, 1 or 4.
// Throws engine_error for what is not known or can't run here, bundle_error for a graph that does
// not load or is not the one its manifest describes.
Opened open_backend_with_reason(const Bundle& bundle, const std::string& backend,
                                std::optional<std::int64_t> threads,
                                std::optional<std::int64_t> accuracy_level);

inline std::shared_ptr<Backend> open_backend(const Bundle& bundle, const std::string& backend,
                                             std::optional<std::int64_t> threads = std::nullopt,
                                             std::optional<std::int64_t> level = std::nullopt) {
  return open_backend_with_reason(bundle, backend, threads, level).backend;
}

}  // namespace ouro::core
