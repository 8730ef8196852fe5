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
struct Manifest;

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

// What a bundle runs on: "cpu", "cuda" or "trt".
struct Choice {
  std::string backend;
  std::string reason;               // why this one
  std::optional<std::size_t> plan;  // of "trt": the number of the bundle's plan
};

// Refuses what no bundle can be opened with: before any of one is read. Throws engine_error.
void check_choice(const std::string& backend, std::optional<std::int64_t> threads,
                  std::optional<std::int64_t> accuracy_level = std::nullopt);

// Chooses for a bundle, before its files are read. `backend` is "auto", "cpu", "cuda" or "trt",
// checked. Throws engine_error for what can't run here.
Choice choose_backend(const Manifest& manifest, const std::string& backend);

// Loads a verified bundle. `threads` are those inside an operator; `accuracy_level` is the
// arithmetic of int8 and int4 weights on the CPU, 1 or 4.
// Throws engine_error for what can't run here, bundle_error for a graph that does not load or is
// not the one its manifest describes.
std::shared_ptr<Backend> open_backend(const Bundle& bundle, const Choice& choice,
                                      std::optional<std::int64_t> threads = std::nullopt,
                                      std::optional<std::int64_t> accuracy_level = std::nullopt);

}  // namespace ouro::core
