#include "backends/cuda.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <utility>

#include "backends/backend.hpp"
#include "backends/ort.hpp"
#include "backends/ort_session.hpp"
#include "bundle/contract.hpp"
#include "error.hpp"

namespace ouro::core {
namespace {

constexpr int kHostToDevice = 1, kDeviceToHost = 2, kDeviceToDevice = 3;
constexpr const char* kNames[] = {"libcudart.so.13", "libcudart.so.12", "libcudart.so"};

template <class Function>
void find_function(void* library, const char* name, Function& function) {
  void* found = dlsym(library, name);
  if (found == nullptr) {
    throw engine_error(std::string("the CUDA runtime has no ") + name,
                       "install a newer one, or take backend cpu");
  }
  function = reinterpret_cast<Function>(found);
}

// Buffers bound to a session: those on the GPU once, tensors of the host before every run.
class CudaBound : public Bound {
 public:
  CudaBound(std::shared_ptr<OrtGraph> graph, const std::string& device,
            std::shared_ptr<CudaMemory> memory, Bindings bindings)
      : graph_(std::move(graph)),
        memory_(std::move(memory)),
        binding_(graph_->session),
        bindings_(std::move(bindings)) {
    const Ort::MemoryInfo info(device.c_str(), OrtDeviceAllocator, 0, OrtMemTypeDefault);
    bind_buffers(binding_, info, bindings_);
    for (const auto& [name, view] : bindings_.host_inputs) {
      fed_bytes_ += count_elements(view.shape) * item_bytes(view.dtype);
    }
  }

  double run() override {
    const Stopwatch watch;
    try {
      // Binding a tensor of the host copies it to where its nodes run, then and only then.
      bind_host_inputs(binding_, bindings_);
      // ONNX Runtime has a stream of its own, and waits for it before it returns.
      memory_->wait();
      graph_->session.Run(options_, binding_);
    } catch (const Ort::Exception& error) {
      throw run_error(error);
    }
    memory_->count_host_bytes(fed_bytes_);
    return watch.seconds();
  }

 private:
  std::shared_ptr<OrtGraph> graph_;
  std::shared_ptr<CudaMemory> memory_;
  Ort::IoBinding binding_;
  Ort::RunOptions options_;
  Bindings bindings_;
  std::uint64_t fed_bytes_ = 0;
};

class CudaBackend : public Backend {
 public:
  CudaBackend(std::unique_ptr<OrtGraph> graph, std::shared_ptr<const CudaRuntime> cuda,
              std::int64_t positions)
      : graph_(std::move(graph)), cuda_(std::move(cuda)) {
    limits_.max_slots = positions;
    limits_.call_tokens = kCallTokens;
  }

  std::string name() const override { return "cuda"; }
  const Limits& limits() const override { return limits_; }
  std::shared_ptr<Memory> new_memory() const override {
    return std::make_shared<CudaMemory>(cuda_);
  }
  std::unique_ptr<Bound> bind(std::shared_ptr<Memory> memory, Bindings bindings) const override {
    try {
      return std::make_unique<CudaBound>(
          graph_, "Cuda", std::dynamic_pointer_cast<CudaMemory>(memory), std::move(bindings));
    } catch (const Ort::Exception& error) {
      throw run_error(error);
    }
  }
  std::map<std::string, HostArray> run(
      const std::map<std::string, HostArray>& inputs) const override {
    return run_once(*graph_, inputs);
  }

 private:
  std::shared_ptr<OrtGraph> graph_;
  std::shared_ptr<const CudaRuntime> cuda_;
  Limits limits_;
};

}  // namespace

void CudaRuntime::check(int error, const char* call) const {
  if (error == 0) return;
  throw engine_error(std::string("CUDA: ") + call + " failed with " + get_error_name(error),
                     "is a GPU free?");
}

std::shared_ptr<const CudaRuntime> load_cuda(const std::string& file) {
  void* opened = nullptr;
  if (!file.empty()) opened = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  for (const char* name : kNames) {
    if (file.empty() && opened == nullptr) opened = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (opened == nullptr) {
    throw engine_error("the CUDA runtime (libcudart) can't be loaded",
                       "put it on the loader's path, or take backend cpu");
  }
  auto cuda = std::make_shared<CudaRuntime>();
  cuda->library = std::shared_ptr<void>(opened, dlclose);
  find_function(opened, "cudaGetDeviceCount", cuda->get_device_count);
  find_function(opened, "cudaDeviceGetAttribute", cuda->device_get_attribute);
  find_function(opened, "cudaDriverGetVersion", cuda->driver_get_version);
  find_function(opened, "cudaMalloc", cuda->malloc);
  find_function(opened, "cudaFree", cuda->free);
  find_function(opened, "cudaMemsetAsync", cuda->memset_async);
  find_function(opened, "cudaMemset2DAsync", cuda->memset_2d_async);
  find_function(opened, "cudaMemcpyAsync", cuda->memcpy_async);
  find_function(opened, "cudaMemcpy2DAsync", cuda->memcpy_2d_async);
  find_function(opened, "cudaStreamCreate", cuda->stream_create);
  find_function(opened, "cudaStreamSynchronize", cuda->stream_synchronize);
  find_function(opened, "cudaStreamDestroy", cuda->stream_destroy);
  find_function(opened, "cudaGetErrorName", cuda->get_error_name);
  return cuda;
}

std::string find_cuda_problem() {
  try {
    const auto cuda = load_cuda();
    int count = 0;
    cuda->check(cuda->get_device_count(&count), "cudaGetDeviceCount");
    return count > 0 ? "" : "CUDA shows none here";
  } catch (const Error& error) {
    return error.problem();
  }
}

GpuFacts describe_gpu(const CudaRuntime& cuda) {
  int major = 0, minor = 0, version = 0;
  cuda.check(cuda.device_get_attribute(&major, 75, 0), "cudaDeviceGetAttribute");
  cuda.check(cuda.device_get_attribute(&minor, 76, 0), "cudaDeviceGetAttribute");
  cuda.check(cuda.driver_get_version(&version), "cudaDriverGetVersion");
  return {std::to_string(major) + "." + std::to_string(minor), version / 1000};
}

CudaMemory::CudaMemory(std::shared_ptr<const CudaRuntime> cuda) : cuda_(std::move(cuda)) {
  cuda_->check(cuda_->stream_create(&stream_), "cudaStreamCreate");
}

CudaMemory::~CudaMemory() { cuda_->stream_destroy(stream_); }

Buffer CudaMemory::zeros(Shape shape, DType dtype) {
  Buffer buffer;
  buffer.shape = std::move(shape);
  buffer.dtype = dtype;
  void* memory = nullptr;
  // No library takes the address 0 for an empty tensor.
  const std::size_t bytes = std::max<std::size_t>(buffer.bytes(), 1);
  cuda_->check(cuda_->malloc(&memory, bytes), "cudaMalloc");
  buffer.owner = std::shared_ptr<void>(memory, [cuda = cuda_](void* one) { cuda->free(one); });
  buffer.data = static_cast<std::byte*>(memory);
  cuda_->check(cuda_->memset_async(memory, 0, bytes, stream_), "cudaMemsetAsync");
  return buffer;
}

void CudaMemory::copy(const Buffer& target, const Buffer& source, const Span& span) {
  if (span.slots == 0 || span.rows == 0) return;
  const CopyPlan plan = plan_copy(target, source, span);
  const auto inner = static_cast<std::size_t>(plan.inner);
  // Entries whose inner runs go on evenly are copied as one box.
  const bool merged = plan.entries == 1 || (plan.target[2] == inner * plan.target[3] &&
                                            plan.source[2] == inner * plan.source[3]);
  const auto height = merged ? inner * static_cast<std::size_t>(plan.entries) : inner;
  const auto boxes = static_cast<std::size_t>(merged ? 1 : plan.entries);
  for (std::size_t part = 0; part < static_cast<std::size_t>(plan.parts); ++part) {
    for (std::size_t row = 0; row < static_cast<std::size_t>(plan.rows); ++row) {
      for (std::size_t box = 0; box < boxes; ++box) {
        const auto place = [&](const std::size_t* strides) {
          return part * strides[0] + row * strides[1] + box * strides[2] + strides[4];
        };
        cuda_->check(cuda_->memcpy_2d_async(target.data + place(plan.target), plan.target[3],
                                            source.data + place(plan.source), plan.source[3],
                                            plan.bytes, height, kDeviceToDevice, stream_),
                     "cudaMemcpy2DAsync");
      }
    }
  }
}

void CudaMemory::clear(const Buffer& target, std::int64_t row, std::int64_t first,
                       std::int64_t count) {
  if (count <= 0) return;
  const CopyPlan plan = plan_copy(target, target, {row, row, 1, first, first, count});
  const auto height = static_cast<std::size_t>(plan.entries * plan.inner);
  for (std::size_t part = 0; part < static_cast<std::size_t>(plan.parts); ++part) {
    std::byte* start = target.data + part * plan.target[0] + plan.target[4];
    cuda_->check(cuda_->memset_2d_async(start, plan.target[3], 0, plan.bytes, height, stream_),
                 "cudaMemset2DAsync");
  }
}

const std::byte* CudaMemory::read(const Buffer& buffer) {
  for (auto one = host_.begin(); one != host_.end();) {
    one = one->second.owner.expired() ? host_.erase(one) : std::next(one);
  }
  const std::size_t bytes = buffer.bytes();
  Host& host = host_[buffer.data];
  if (!host.bytes || host.size < bytes) {
    host = {buffer.owner, std::make_unique<std::byte[]>(bytes), bytes};
  }
  cuda_->check(cuda_->memcpy_async(host.bytes.get(), buffer.data, bytes, kDeviceToHost, stream_),
               "cudaMemcpyAsync");
  host_bytes_ += bytes;
  wait();
  return host.bytes.get();
}

void CudaMemory::write(const Buffer& target, const std::byte* source) {
  cuda_->check(cuda_->memcpy_async(target.data, source, target.bytes(), kHostToDevice, stream_),
               "cudaMemcpyAsync");
  host_bytes_ += target.bytes();
}

void CudaMemory::wait() {
  cuda_->check(cuda_->stream_synchronize(stream_), "cudaStreamSynchronize");
}

std::shared_ptr<Backend> open_cuda(const Bundle& bundle, std::optional<std::int64_t> threads,
                                   std::optional<std::int64_t> accuracy_level) {
  auto cuda = load_cuda();
  return std::make_shared<CudaBackend>(open_graph(bundle, true, threads, accuracy_level),
                                       std::move(cuda),
                                       bundle.manifest().model.max_position_embeddings);
}

}  // namespace ouro::core
