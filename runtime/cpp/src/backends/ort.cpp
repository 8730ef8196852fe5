#include "backends/ort.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <mutex>
#include <set>
#include <utility>

#include "backends/ort_library.hpp"
#include "backends/ort_session.hpp"
#include "bundle/contract.hpp"
#include "bundle/external_data.hpp"
#include "bundle/say.hpp"
#include "error.hpp"

namespace ouro::core {
namespace {

constexpr std::uint32_t kLeastApi = 17;  // the oldest that has every function called here

std::string describe(const std::exception& error) {
  return leave_out_source(one_line(error.what()).substr(0, 4000)).substr(0, 300);
}

ONNXTensorElementDataType element_of(DType dtype) {
  const auto& type = contract::kElementTypes[static_cast<std::size_t>(dtype)];
  return static_cast<ONNXTensorElementDataType>(type.onnx_number);
}

std::string show_spec(const std::string& dtype, const std::vector<Dimension>& shape) {
  std::string text = dtype + " [";
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (axis > 0) text += ", ";
    const auto* number = std::get_if<std::int64_t>(&shape[axis]);
    text += number ? std::to_string(*number) : std::get<std::string>(shape[axis]);
  }
  return text + "]";
}

// A tensor of the session as the manifest would say it.
TensorSpec describe_tensor(std::string name, const Ort::TypeInfo& type) {
  TensorSpec spec{std::move(name), "unknown", {}};
  if (type.GetONNXType() != ONNX_TYPE_TENSOR) return spec;
  const auto tensor = type.GetTensorTypeAndShapeInfo();
  for (const auto& one : contract::kElementTypes) {
    if (one.onnx_number == static_cast<int>(tensor.GetElementType())) spec.dtype = one.name;
  }
  const std::vector<std::int64_t> sizes = tensor.GetShape();
  std::vector<const char*> names(sizes.size());
  tensor.GetSymbolicDimensions(names.data(), names.size());
  for (std::size_t axis = 0; axis < sizes.size(); ++axis) {
    if (sizes[axis] >= 0) {
      spec.shape.emplace_back(sizes[axis]);
    } else {
      spec.shape.emplace_back(std::string(names[axis]));
    }
  }
  return spec;
}

// The graph's tensors must be the manifest's, which are the contract's.
void check_tensors(const std::string& side, const std::vector<TensorSpec>& actual,
                   const std::vector<TensorSpec>& listed) {
  std::map<std::string, std::pair<const TensorSpec*, const TensorSpec*>> pairs;
  for (const TensorSpec& one : actual) pairs[one.name].first = &one;
  for (const TensorSpec& one : listed) pairs[one.name].second = &one;
  const auto shown = [](bool value) { return value ? "True" : "False"; };
  for (const auto& [name, pair] : pairs) {
    const auto [found, said] = pair;
    if (found == nullptr || said == nullptr) {
      throw bundle_error("the graph's " + side + " " + name +
                             " is in the graph: " + shown(found != nullptr) +
                             ", in the manifest: " + shown(said != nullptr),
                         "export it again");
    }
    bool same = found->dtype == said->dtype && found->shape.size() == said->shape.size();
    for (std::size_t axis = 0; same && axis < said->shape.size(); ++axis) {
      // Shapes of outputs are inferred: a named dimension may come back a number.
      const bool inferred =
          side == "output" && std::holds_alternative<std::string>(said->shape[axis]);
      same = found->shape[axis] == said->shape[axis] || inferred;
    }
    if (!same) {
      throw bundle_error("the graph's " + side + " " + name + " is " +
                             show_spec(found->dtype, found->shape) + ", its manifest says " +
                             show_spec(said->dtype, said->shape),
                         "export it again");
    }
  }
}

void check_graph(OrtGraph& graph, const GraphSpec& spec) {
  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<TensorSpec> inputs, outputs;
  for (std::size_t index = 0; index < graph.session.GetInputCount(); ++index) {
    inputs.push_back(describe_tensor(graph.session.GetInputNameAllocated(index, allocator).get(),
                                     graph.session.GetInputTypeInfo(index)));
  }
  for (std::size_t index = 0; index < graph.session.GetOutputCount(); ++index) {
    outputs.push_back(describe_tensor(graph.session.GetOutputNameAllocated(index, allocator).get(),
                                      graph.session.GetOutputTypeInfo(index)));
  }
  check_tensors("input", inputs, spec.inputs);
  check_tensors("output", outputs, spec.outputs);
  for (const TensorSpec& one : inputs) graph.input_types[one.name] = parse_dtype(one.dtype);
  for (const TensorSpec& one : outputs) graph.output_names.push_back(one.name);
}

// Buffers of the host bound to a session; `run` reads and writes them in place.
class CpuBound : public Bound {
 public:
  CpuBound(std::shared_ptr<OrtGraph> graph, Bindings bindings)
      : graph_(std::move(graph)), binding_(graph_->session), bindings_(std::move(bindings)) {
    const auto info = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    bind_host_inputs(binding_, bindings_);
    bind_buffers(binding_, info, bindings_);
  }

  double run() override {
    const Stopwatch watch;
    try {
      graph_->session.Run(options_, binding_);
    } catch (const Ort::Exception& error) {
      throw run_error(error);
    }
    return watch.seconds();
  }

 private:
  std::shared_ptr<OrtGraph> graph_;
  Ort::IoBinding binding_;
  Ort::RunOptions options_;
  Bindings bindings_;  // ONNX Runtime knows only their addresses
};

class CpuBackend : public Backend {
 public:
  CpuBackend(std::unique_ptr<OrtGraph> graph, std::int64_t positions) : graph_(std::move(graph)) {
    limits_.max_slots = positions;
  }

  std::string name() const override { return "cpu"; }
  const Limits& limits() const override { return limits_; }
  std::shared_ptr<Memory> new_memory() const override { return std::make_shared<HostMemory>(); }
  std::unique_ptr<Bound> bind(std::shared_ptr<Memory>, Bindings bindings) const override {
    try {
      return std::make_unique<CpuBound>(graph_, std::move(bindings));
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
  Limits limits_;
};

}  // namespace

std::string leave_out_source(std::string text) {
  const std::string root = "/onnxruntime_src/";
  const auto digit = [](char one) { return one >= '0' && one <= '9'; };
  for (std::size_t start = 0; (start = text.find(root, start)) != text.npos;) {
    const std::size_t file = start + root.size(), space = text.find(' ', file);
    if (space == text.npos) break;
    std::size_t line = space;
    while (line > file && digit(text[line - 1])) --line;
    // The file has a name, the line a number, and the function an argument list.
    const std::size_t open = text.find_first_of("()", space);
    const bool place = line < space && line > file + 1 && text[line - 1] == ':';
    const bool called = place && open != text.npos && text[open] == '(';
    std::size_t close = called ? text.find(')', open) : text.npos;
    while (close != text.npos && text.compare(close + 1, 1, " ") != 0) {
      close = text.find(')', close + 1);
    }
    if (close == text.npos) {
      start = file;
      continue;
    }
    const bool constant = text.compare(close + 1, 7, " const ") == 0;
    text.erase(start, close + (constant ? 8 : 2) - start);
  }
  return text;
}

void load_ort() {
  static std::once_flag once;
  std::call_once(once, [] {
    const OrtApiBase& base = find_onnxruntime();
    const std::string version = base.GetVersionString();
    std::uint32_t minor = 0;  // stays 0 where the version is no such number: too old
    const char* const point = version.c_str() + version.find('.') + 1;
    std::from_chars(point, version.c_str() + version.size(), minor);
    // A program may hold an ONNX Runtime of another version than the headers: its API has the
    // older functions at the same places.
    const std::uint32_t wanted = std::min<std::uint32_t>(ORT_API_VERSION, minor);
    const OrtApi* api = wanted < kLeastApi ? nullptr : base.GetApi(wanted);
    if (api == nullptr) {
      throw engine_error("the ONNX Runtime that is loaded here is " + version + ", too old",
                         "link or load 1." + std::to_string(kLeastApi) + " or newer");
    }
    Ort::InitApi(api);
  });
}

std::vector<std::string> list_providers() {
  load_ort();
  return Ort::GetAvailableProviders();
}

Error run_error(const std::exception& error) {
  return engine_error(
      "ONNX Runtime failed: " + describe(error),
      "where memory was short, give fewer or shorter prompts; else run `ouro check` "
      "on the bundle");
}

Ort::Value wrap_tensor(const OrtMemoryInfo* info, void* data, const Shape& shape, DType dtype) {
  return Ort::Value::CreateTensor(info, data, count_elements(shape) * item_bytes(dtype),
                                  shape.data(), shape.size(), element_of(dtype));
}

void bind_host_inputs(Ort::IoBinding& binding, const Bindings& bindings) {
  const auto info = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  for (const auto& [name, view] : bindings.host_inputs) {
    binding.BindInput(name.c_str(), wrap_tensor(info, view.data, view.shape, view.dtype));
  }
}

void bind_buffers(Ort::IoBinding& binding, const OrtMemoryInfo* info, const Bindings& bindings) {
  for (const auto& [name, one] : bindings.inputs) {
    binding.BindInput(name.c_str(), wrap_tensor(info, one.data, one.shape, one.dtype));
  }
  for (const auto& [name, one] : bindings.outputs) {
    binding.BindOutput(name.c_str(), wrap_tensor(info, one.data, one.shape, one.dtype));
  }
}

std::unique_ptr<OrtGraph> open_graph(const Bundle& bundle, bool cuda,
                                     std::optional<std::int64_t> threads,
                                     std::optional<std::int64_t> accuracy_level) {
  load_ort();
  const Manifest& manifest = bundle.manifest();
  Ort::SessionOptions options;
  options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);  // what fails is said once, by our error
  // Whatever the file's name: check_external_data looked at an ONNX file.
  options.AddConfigEntry("session.load_model_format", "ONNX");
  options.SetGraphOptimizationLevel(ORT_ENABLE_ALL);
  if (threads) options.SetIntraOpNumThreads(static_cast<int>(*threads));
  if (manifest.quantization) {
    const std::int64_t level = accuracy_level.value_or(manifest.quantization->accuracy_level);
    options.AddConfigEntry("session.qdq_matmulnbits_accuracy_level", std::to_string(level).c_str());
  }
  if (cuda) {
    // The default, TF32, rounds float32 factors to 10 bits: a float32 bundle would fail its check.
    OrtCUDAProviderOptionsV2* raw = nullptr;
    Ort::ThrowOnError(Ort::GetApi().CreateCUDAProviderOptions(&raw));
    const std::unique_ptr<OrtCUDAProviderOptionsV2, void (*)(OrtCUDAProviderOptionsV2*)> chosen(
        raw, [](OrtCUDAProviderOptionsV2* one) { Ort::GetApi().ReleaseCUDAProviderOptions(one); });
    const char* const keys[] = {"device_id", "use_tf32"};
    const char* const values[] = {"0", "0"};
    Ort::ThrowOnError(Ort::GetApi().UpdateCUDAProviderOptions(raw, keys, values, 2));
    try {
      options.AppendExecutionProvider_CUDA_V2(*chosen);
    } catch (const Ort::Exception& error) {
      throw engine_error("ONNX Runtime could not load its CUDA provider: " + describe(error),
                         "put CUDA's and cuDNN's libraries on the loader's path, or take backend "
                         "cpu");
    }
  }
  check_external_data(bundle);
  const auto file = bundle.file(manifest.graphs.onnx.file);
  try {
    Ort::Env env(ORT_LOGGING_LEVEL_FATAL, "ouro");
    env.DisableTelemetryEvents();  // the program may have made it before, see find_onnxruntime
    Ort::Session session(env, file.c_str(), options);
    auto graph = std::make_unique<OrtGraph>(OrtGraph{std::move(env), std::move(session), {}, {}});
    check_graph(*graph, manifest.graphs.onnx);
    return graph;
  } catch (const Ort::Exception& error) {
    throw bundle_error("ONNX Runtime cannot load " + file.string() + ": " + describe(error),
                       "update ONNX Runtime, or export the bundle again");
  }
}

std::shared_ptr<Backend> open_cpu(const Bundle& bundle, std::optional<std::int64_t> threads,
                                  std::optional<std::int64_t> accuracy_level) {
  return std::make_shared<CpuBackend>(open_graph(bundle, false, threads, accuracy_level),
                                      bundle.manifest().model.max_position_embeddings);
}

HostArray cast_array(const HostArray& array, DType wanted) {
  if (array.dtype == dtype_name(wanted)) return array;
  if (array.dtype != "float32" || wanted == DType::kInt64 || wanted == DType::kFloat32) {
    throw engine_error("an array of " + array.dtype + " was given where the graph has " +
                           std::string(dtype_name(wanted)),
                       "give " + std::string(dtype_name(wanted)));
  }
  HostArray cast{std::string(dtype_name(wanted)), array.shape, {}};
  const std::size_t count = count_elements(array.shape);
  cast.bytes.resize(count * item_bytes(wanted));
  for (std::size_t index = 0; index < count; ++index) {
    float value;
    std::memcpy(&value, array.bytes.data() + index * sizeof value, sizeof value);
    const std::uint16_t bits =
        wanted == DType::kFloat16 ? Ort::Float16_t(value).val : Ort::BFloat16_t(value).val;
    std::memcpy(cast.bytes.data() + index * sizeof bits, &bits, sizeof bits);
  }
  return cast;
}

std::map<std::string, HostArray> run_once(OrtGraph& graph,
                                          const std::map<std::string, HostArray>& inputs) {
  try {
    const auto info = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<HostArray> arrays;
    std::vector<Ort::Value> values;
    std::vector<const char*> names, wanted;
    arrays.reserve(inputs.size());
    for (const auto& [name, array] : inputs) {
      const auto type = graph.input_types.find(name);
      if (type == graph.input_types.end()) {
        throw engine_error("the graph has no " + name, "give the inputs of the graph");
      }
      arrays.push_back(cast_array(array, type->second));
      HostArray& cast = arrays.back();
      names.push_back(name.c_str());
      values.push_back(wrap_tensor(info, cast.bytes.data(), cast.shape, type->second));
    }
    for (const std::string& name : graph.output_names) wanted.push_back(name.c_str());
    Ort::RunOptions options;
    const std::vector<Ort::Value> found = graph.session.Run(
        options, names.data(), values.data(), values.size(), wanted.data(), wanted.size());
    std::map<std::string, HostArray> outputs;
    for (std::size_t index = 0; index < found.size(); ++index) {
      const TensorSpec spec = describe_tensor(wanted[index], found[index].GetTypeInfo());
      HostArray array{spec.dtype, found[index].GetTensorTypeAndShapeInfo().GetShape(), {}};
      array.bytes.resize(count_elements(array.shape) * item_bytes(parse_dtype(spec.dtype)));
      std::memcpy(array.bytes.data(), found[index].GetTensorRawData(), array.bytes.size());
      outputs.emplace(wanted[index], std::move(array));
    }
    return outputs;
  } catch (const Ort::Exception& error) {
    throw run_error(error);
  }
}

}  // namespace ouro::core
