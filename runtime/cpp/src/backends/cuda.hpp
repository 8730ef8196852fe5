// The cache in GPU memory, for ONNX Runtime's CUDA provider. The CUDA runtime is loaded when a GPU
// is asked for: a program that never does needs none. Port of runtime/backends/cuda.py,
// ort_cuda.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "backends/memory.hpp"

namespace ouro::core {

// Tokens that cost a GPU as much as a call more, as in runtime/backends/cuda.py.
inline constexpr std::int64_t kCallTokens = 256;

// The functions of the CUDA runtime that are called here; cudaError_t is an int, streams are
// opaque.
struct CudaRuntime {
  std::shared_ptr<void> library;
  int (*get_device_count)(int*);
  int (*device_get_attribute)(int*, int, int);
  int (*driver_get_version)(int*);
  int (*malloc)(void**, std::size_t);
  int (*free)(void*);
  int (*memset_async)(void*, int, std::size_t, void*);
  int (*memset_2d_async)(void*, std::size_t, int, std::size_t, std::size_t, void*);
  int (*memcpy_async)(void*, const void*, std::size_t, int, void*);
  int (*memcpy_2d_async)(void*, std::size_t, const void*, std::size_t, std::size_t, std::size_t,
                         int, void*);
  int (*stream_create)(void**);
  int (*stream_synchronize)(void*);
  int (*stream_destroy)(void*);
  const char* (*get_error_name)(int);

  // Throws engine_error where the call named so failed.
  void check(int error, const char* call) const;
};

// Loads it, by `file` where that is not empty, else by the names it has. Throws engine_error.
std::shared_ptr<const CudaRuntime> load_cuda(const std::string& file = {});
// Why no GPU can be used here; empty where one can.
std::string find_cuda_problem();

// The first GPU, as a TensorRT plan asks for it.
struct GpuFacts {
  std::string compute_capability;  // such as "8.9"
  int cuda_major;                  // of the newest CUDA that its driver runs
};
GpuFacts describe_gpu(const CudaRuntime& cuda);

// Memory on the first GPU, with a stream of its own that every copy is started on.
class CudaMemory : public Memory {
 public:
  explicit CudaMemory(std::shared_ptr<const CudaRuntime> cuda);
  ~CudaMemory() override;
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;

  Buffer zeros(Shape shape, DType dtype) override;
  void copy(const Buffer& target, const Buffer& source, const Span& span) override;
  void clear(const Buffer& target, std::int64_t row, std::int64_t first,
             std::int64_t count) override;
  const std::byte* read(const Buffer& buffer) override;
  std::uint64_t host_bytes() const override { return host_bytes_; }

  // Starts the copy of bytes of the host, which must live until `wait`.
  void write(const Buffer& target, const std::byte* source);
  // Waits for everything that was started.
  void wait();
  void* stream() const { return stream_; }
  void count_host_bytes(std::uint64_t bytes) { host_bytes_ += bytes; }

 private:
  std::shared_ptr<const CudaRuntime> cuda_;
  void* stream_ = nullptr;
  std::uint64_t host_bytes_ = 0;
  // What `read` returned, by the buffer's address; of buffers that are still there.
  struct Host {
    std::weak_ptr<void> owner;
    std::unique_ptr<std::byte[]> bytes;
    std::size_t size;
  };
  std::map<const std::byte*, Host> host_;
};

}  // namespace ouro::core
