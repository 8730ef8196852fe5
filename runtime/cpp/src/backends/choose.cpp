// Which backend a bundle runs on. Port of runtime/backends/choose.py.
#include <algorithm>
#include <string>

#include "backends/backend.hpp"
#include "backends/cuda.hpp"
#include "backends/ort.hpp"
#include "backends/trt.hpp"
#include "bundle/json.hpp"
#include "decode/options.hpp"
#include "error.hpp"
#include "text/unicode.hpp"

namespace ouro::core {
namespace {

constexpr char kProvider[] = "CUDAExecutionProvider";

// Why the bundle can't run on CUDA here; nothing where it can.
std::optional<Error> refuse_cuda() {
  std::string shown;
  bool provided = false;
  for (const std::string& one : list_providers()) {
    provided = provided || one == kProvider;
    shown += (shown.empty() ? "" : ", ") + one;
  }
  if (!provided) {
    return engine_error("backend 'cuda' needs ONNX Runtime's CUDA provider, here are " + shown,
                        "load a GPU build of ONNX Runtime, or take backend cpu");
  }
  if (const std::string problem = find_cuda_problem(); !problem.empty()) {
    return engine_error("backend 'cuda' needs an NVIDIA GPU: " + problem,
                        "check nvidia-smi, or take backend cpu");
  }
  return std::nullopt;
}

// The plan to run, or why none of the bundle's can run here.
FittingPlan choose_plan(const Bundle& bundle) {
  FittingPlan found;
  if (bundle.manifest().plans.empty()) {
    found.refused = engine_error("backend 'trt' needs a TensorRT plan and the bundle holds none",
                                 "export it with --format trt, or take backend cuda or cpu");
    return found;
  }
#ifdef OURO_TENSORRT
  found = find_plan(bundle);
#else
  found.refused = engine_error("backend 'trt' is not built into this library",
                               "build it with -DOURO_TENSORRT=ON, or take backend cuda or cpu");
#endif
  return found;
}

}  // namespace

void check_choice(const std::string& backend, std::optional<std::int64_t> threads,
                  std::optional<std::int64_t> accuracy_level) {
  const std::string known[] = {"auto", "cpu", "cuda", "trt"};
  if (std::find(std::begin(known), std::end(known), backend) == std::end(known)) {
    throw engine_error("backend=" + repr(to_utf8(backend)) + " is not known",
                       "allowed: auto, cpu, cuda, trt");
  }
  if (threads && (*threads < 1 || *threads > 1024)) {
    throw engine_error("threads=" + std::to_string(*threads) + " is not a number of threads",
                       "allowed: 1..1024");
  }
  if (accuracy_level && *accuracy_level != 1 && *accuracy_level != 4) {
    throw engine_error("accuracy_level=" + std::to_string(*accuracy_level) + " is not known",
                       "allowed: 1, 4 or None");
  }
}

Opened open_backend_with_reason(const Bundle& bundle, const std::string& backend,
                                std::optional<std::int64_t> threads,
                                std::optional<std::int64_t> accuracy_level) {
  check_choice(backend, threads, accuracy_level);
  if (backend == "cpu") return {open_cpu(bundle, threads, accuracy_level), "asked for"};
  std::string passed;  // why better ones were not taken
  if (backend != "cuda") {
    const FittingPlan plan = choose_plan(bundle);
#ifdef OURO_TENSORRT
    if (plan.number) return {open_trt(bundle, *plan.number), "a plan of the bundle fits this GPU"};
#endif
    if (backend == "trt") throw *plan.refused;
    passed = "trt: " + plan.refused->problem();
  }
  const std::optional<Error> refused = refuse_cuda();
  if (!refused) {
    return {open_cuda(bundle, threads, accuracy_level), passed.empty() ? "asked for" : passed};
  }
  if (backend == "cuda") throw *refused;
  return {open_cpu(bundle, threads, accuracy_level), passed + "; cuda: " + refused->problem()};
}

}  // namespace ouro::core
