#include "backends/trt.hpp"

#include <NvInfer.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <mutex>
#include <utility>

#include "backends/cuda.hpp"
#include "bundle/contract.hpp"

namespace ouro::core {
namespace {

#ifdef TRT_MAJOR_RTX
constexpr char kFlavour[] = "tensorrt_rtx";
constexpr char kTitle[] = "TensorRT for RTX";
constexpr int kVersion[] = {TRT_MAJOR_RTX, TRT_MINOR_RTX, TRT_PATCH_RTX};
#else
constexpr char kFlavour[] = "tensorrt";
constexpr char kTitle[] = "TensorRT";
constexpr int kVersion[] = {NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH};
#endif

std::string built_version() {
  return std::to_string(kVersion[0]) + "." + std::to_string(kVersion[1]) + "." +
         std::to_string(kVersion[2]);
}

// Keeps TensorRT's last error for a message of ours.
class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    std::strncpy(last_, message, sizeof last_ - 1);
    std::replace(last_, last_ + std::strlen(last_), '\n', ' ');
  }
  std::string last() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return last_;
  }

 private:
  mutable std::mutex mutex_;
  char last_[301] = "it gave no reason";
};

// The major number of a CUDA version, 0 where there is none.
int read_number(const std::string& version) {
  int number = 0;
  std::from_chars(version.data(), version.data() + version.size(), number);
  return number;
}

std::string list(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : " or ") + name;
  return text.empty() ? "none" : text;
}

// Why this machine can't run a plan; nothing where it can.
std::optional<Error> refuse_plan(const PlanSpec& plan) {
  if (plan.flavour != "tensorrt" && plan.flavour != "tensorrt_rtx") {
    return bundle_error(
        plan.file + " is for '" + plan.flavour + "', known here: tensorrt, tensorrt_rtx",
        "update ouroboros");
  }
  if (plan.flavour != kFlavour) {
    return engine_error(plan.file + " needs " + plan.flavour + " " + plan.version +
                            ", this library was built with " + kFlavour,
                        "build it against that one");
  }
  const std::string own = built_version();
  if (plan.version != own && plan.version.compare(0, own.size() + 1, own + ".") != 0) {
    return engine_error(
        plan.file + " was built with " + kTitle + " " + plan.version + ", installed here is " + own,
        "install that version or export again with --format trt");
  }
  if (const std::string problem = find_cuda_problem(); !problem.empty()) {
    return engine_error(plan.file + " needs an NVIDIA GPU of compute capability " +
                            list(plan.compute_capabilities) + ": " + problem,
                        "take backend cpu");
  }
  const GpuFacts gpu = describe_gpu(*load_cuda());
  const auto& fitting = plan.compute_capabilities;
  if (std::find(fitting.begin(), fitting.end(), gpu.compute_capability) == fitting.end()) {
    return engine_error(plan.file + " was built for compute capability " + list(fitting) +
                            ", the GPU here has " + gpu.compute_capability,
                        "export again with --compute-capability " + gpu.compute_capability);
  }
  if (gpu.cuda_major < read_number(plan.cuda)) {
    return engine_error(plan.file + " needs CUDA " + plan.cuda +
                            ", the driver here runs CUDA up to " + std::to_string(gpu.cuda_major),
                        "update the NVIDIA driver");
  }
  return std::nullopt;
}

nvinfer1::Dims to_dims(const Shape& shape) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

// A loaded plan. Runs from several threads take turns.
struct LoadedPlan {
  PlanSpec spec;
  GraphSpec graph;
  Logger logger;
  std::unique_ptr<nvinfer1::IRuntime> runtime;
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
  std::mutex mutex;
  std::map<std::size_t, std::unique_ptr<nvinfer1::IExecutionContext>> contexts;
  std::map<std::size_t, const void*> set_by;  // which binding a context's addresses are of

  void must(bool done) const {
    if (done) return;
    throw engine_error(spec.file + ": TensorRT failed: " + logger.last(),
                       "free memory on the GPU, or run `ouro check` on the bundle");
  }

  nvinfer1::IExecutionContext& context(std::size_t number, CudaMemory& memory) {
    auto& context = contexts[number];
    if (!context) {
      std::unique_ptr<nvinfer1::IExecutionContext> made(engine->createExecutionContext());
      const auto stream = static_cast<cudaStream_t>(memory.stream());
      if (!made || !made->setOptimizationProfileAsync(static_cast<std::int32_t>(number), stream)) {
        throw engine_error(spec.file + ": TensorRT has no memory for the profile " +
                               spec.profiles[number].name + ": " + logger.last(),
                           "free memory on the GPU, or export again with a smaller --max-batch or "
                           "--max-seq");
      }
      memory.wait();  // runs are on streams of their own
      context = std::move(made);
    }
    return *context;
  }
};

// Buffers for one profile of a plan; tensors of the host are copied to the GPU by every run, but
// for those that TensorRT reads as numbers.
class TrtBound : public Bound {
 public:
  TrtBound(std::shared_ptr<LoadedPlan> plan, std::shared_ptr<CudaMemory> memory, Bindings bindings)
      : plan_(std::move(plan)), memory_(std::move(memory)), bindings_(std::move(bindings)) {
    std::map<std::string, Shape> shapes, values;
    for (const auto& [name, one] : bindings_.inputs) shapes[name] = one.shape;
    for (const auto& [name, view] : bindings_.host_inputs) {
      shapes[name] = view.shape;
      if (view.dtype != DType::kInt64) continue;
      const auto* numbers = static_cast<const std::int64_t*>(view.data);
      values[name] = Shape(numbers, numbers + count_elements(view.shape));
    }
    number_ = choose_profile(plan_->spec.profiles, shapes, values);
    for (const RangeSpec& one : plan_->spec.profiles[number_].values) by_value_.push_back(one.name);
    for (const auto& [name, view] : bindings_.host_inputs) {
      if (std::find(by_value_.begin(), by_value_.end(), name) != by_value_.end()) continue;
      bindings_.inputs[name] = memory_->zeros(view.shape, view.dtype);
    }
  }
  ~TrtBound() override {
    const std::lock_guard<std::mutex> lock(plan_->mutex);
    if (plan_->set_by[number_] == this) plan_->set_by.erase(number_);
  }
  TrtBound(const TrtBound&) = delete;
  TrtBound& operator=(const TrtBound&) = delete;

  double run() override {
    const Stopwatch watch;
    for (const auto& [name, view] : bindings_.host_inputs) {
      const auto held = bindings_.inputs.find(name);
      if (held != bindings_.inputs.end()) {
        memory_->write(held->second, static_cast<const std::byte*>(view.data));
      }
    }
    const std::lock_guard<std::mutex> lock(plan_->mutex);
    nvinfer1::IExecutionContext& context = plan_->context(number_, *memory_);
    if (plan_->set_by[number_] != this) set_addresses(context);
    plan_->must(context.enqueueV3(static_cast<cudaStream_t>(memory_->stream())));
    memory_->wait();
    return watch.seconds();
  }

 private:
  void set_addresses(nvinfer1::IExecutionContext& context) {
    plan_->set_by.erase(number_);
    for (const auto& [name, one] : bindings_.inputs) {
      plan_->must(context.setInputShape(name.c_str(), to_dims(one.shape)));
      plan_->must(context.setTensorAddress(name.c_str(), one.data));
    }
    for (const std::string& name : by_value_) {
      plan_->must(context.setTensorAddress(name.c_str(), bindings_.host_inputs.at(name).data));
    }
    for (const auto& [name, one] : bindings_.outputs) {
      plan_->must(context.setTensorAddress(name.c_str(), one.data));
    }
    plan_->set_by[number_] = this;
  }

  std::shared_ptr<LoadedPlan> plan_;
  std::shared_ptr<CudaMemory> memory_;
  Bindings bindings_;
  std::size_t number_ = 0;
  std::vector<std::string> by_value_;
};

class TrtBackend : public Backend {
 public:
  TrtBackend(std::shared_ptr<LoadedPlan> plan, std::shared_ptr<const CudaRuntime> cuda)
      : plan_(std::move(plan)), cuda_(std::move(cuda)) {
    limits_ = {0, 0, plan_->spec.max_new_tokens, plan_->spec.max_logits, kCallTokens};
    const auto least = [](std::int64_t& limit, std::int64_t size) {
      limit = limit == 0 ? size : std::min(limit, size);
    };
    const std::string past = contract::kPastPrefix;
    for (const ProfileSpec& profile : plan_->spec.profiles) {
      for (const RangeSpec& one : profile.shapes) {
        if (one.name.compare(0, past.size(), past) == 0) {
          least(limits_.max_slots, one.max[one.max.size() - 2]);
        }
        if (one.name == contract::kInputIds) least(limits_.max_batch, one.max[0]);
      }
    }
  }

  std::string name() const override { return "trt"; }
  const Limits& limits() const override { return limits_; }
  std::shared_ptr<Memory> new_memory() const override {
    return std::make_shared<CudaMemory>(cuda_);
  }
  std::unique_ptr<Bound> bind(std::shared_ptr<Memory> memory, Bindings bindings) const override {
    return std::make_unique<TrtBound>(plan_, std::dynamic_pointer_cast<CudaMemory>(memory),
                                      std::move(bindings));
  }
  std::map<std::string, HostArray> run(
      const std::map<std::string, HostArray>& inputs) const override;

 private:
  std::shared_ptr<LoadedPlan> plan_;
  std::shared_ptr<const CudaRuntime> cuda_;
  Limits limits_;
};

std::map<std::string, HostArray> TrtBackend::run(
    const std::map<std::string, HostArray>& inputs) const {
  std::map<std::string, HostArray> given = inputs;
  std::map<std::string, std::int64_t> sizes;
  Bindings bindings;
  const auto memory = std::make_shared<CudaMemory>(cuda_);
  for (const TensorSpec& spec : plan_->graph.inputs) {
    const auto found = given.find(spec.name);
    if (found == given.end()) {
      throw engine_error("the input " + spec.name + " is missing", "give every input of the graph");
    }
    HostArray& array = found->second;
    array = cast_array(array, parse_dtype(spec.dtype));
    for (std::size_t axis = 0; axis < spec.shape.size() && axis < array.shape.size(); ++axis) {
      const auto* name = std::get_if<std::string>(&spec.shape[axis]);
      if (name != nullptr) sizes.emplace(*name, array.shape[axis]);
    }
    bindings.host_inputs[spec.name] = {parse_dtype(spec.dtype), array.shape, array.bytes.data()};
  }
  std::memcpy(&sizes[contract::kDepth], given.at(contract::kDepth).bytes.data(),
              sizeof(std::int64_t));
  for (const TensorSpec& spec : plan_->graph.outputs) {
    Shape shape;
    for (const Dimension& size : spec.shape) shape.push_back(contract::resolve_size(size, sizes));
    bindings.outputs[spec.name] = memory->zeros(std::move(shape), parse_dtype(spec.dtype));
  }
  const std::map<std::string, Buffer> outputs = bindings.outputs;
  TrtBound(plan_, memory, std::move(bindings)).run();
  std::map<std::string, HostArray> results;
  for (const auto& [name, buffer] : outputs) {
    HostArray array{std::string(dtype_name(buffer.dtype)), buffer.shape, {}};
    const std::byte* bytes = memory->read(buffer);
    array.bytes.assign(bytes, bytes + buffer.bytes());
    results.emplace(name, std::move(array));
  }
  return results;
}

}  // namespace

FittingPlan find_plan(const std::vector<PlanSpec>& plans) {
  FittingPlan found;
  for (std::size_t number = 0; number < plans.size(); ++number) {
    std::optional<Error> refused = refuse_plan(plans[number]);
    if (!refused) {
      found.number = number;
      return found;
    }
    if (!found.refused) found.refused = std::move(refused);
  }
  return found;
}

std::shared_ptr<Backend> open_trt(const Bundle& bundle, std::size_t number) {
  const Manifest& manifest = bundle.manifest();
  auto plan = std::make_shared<LoadedPlan>();
  plan->spec = manifest.plans[number];
  plan->graph = manifest.graphs.onnx;
  const std::string bytes =
      read_plan(bundle.file(plan->spec.file), find(manifest.files, plan->spec.file)->sha256);
  auto cuda = load_cuda();
  plan->runtime.reset(nvinfer1::createInferRuntime(plan->logger));
  if (plan->runtime) {
    plan->engine.reset(plan->runtime->deserializeCudaEngine(bytes.data(), bytes.size()));
  }
  if (!plan->engine) {
    throw engine_error(plan->spec.file + ": TensorRT cannot load it: " + plan->logger.last(),
                       "free memory on the GPU, or export again with --format trt");
  }
  return std::make_shared<TrtBackend>(std::move(plan), std::move(cuda));
}

}  // namespace ouro::core
