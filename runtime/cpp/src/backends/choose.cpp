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
FittingPlan choose_plan(const std::vector<PlanSpec>& plans) {
  if (plans.empty()) {
    return {std::nullopt, engine_error("backend 'trt' needs a TensorRT plan and the bundle holds "
                                       "none",
                                       "export it with --format trt, or take backend cuda or cpu")};
  }
#ifdef OURO_TENSORRT
  return find_plan(plans);
#else
  return {std::nullopt,
          engine_error("backend 'trt' is not built into this library",
                       "build it with -DOURO_TENSORRT=ON, or take backend cuda or cpu")};
#endif
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

Choice choose_backend(const Manifest& manifest, const std::string& backend) {
  std::string passed;  // why better ones were not taken
  if (backend == "auto" || backend == "trt") {
    const FittingPlan plan = choose_plan(manifest.plans);
    if (plan.number) return {"trt", "a plan of the bundle fits this GPU", plan.number};
    if (backend == "trt") throw *plan.refused;
    passed = "trt: " + plan.refused->problem();
  }
  if (backend != "cpu") {
    const std::optional<Error> refused = refuse_cuda();
    if (!refused) return {"cuda", passed.empty() ? "asked for" : passed, std::nullopt};
    if (backend == "cuda") throw *refused;
    passed += "; cuda: " + refused->problem();
  }
  if (manifest.precision == "bf16") {
    throw engine_error(
        "the cpu engine has no bfloat16 arithmetic",
        "run this bundle on a GPU, or export with --precision fp32, fp16, int8 or int4");
  }
  return {"cpu", passed.empty() ? "asked for" : passed, std::nullopt};
}

std::shared_ptr<Backend> open_backend(const Bundle& bundle, const Choice& choice,
                                      std::optional<std::int64_t> threads,
                                      std::optional<std::int64_t> accuracy_level) {
#ifdef OURO_TENSORRT
  if (choice.plan) return open_trt(bundle, *choice.plan);
#endif
  const auto open = choice.backend == "cuda" ? open_cuda : open_cpu;
  return open(bundle, threads, accuracy_level);
}

}  // namespace ouro::core
