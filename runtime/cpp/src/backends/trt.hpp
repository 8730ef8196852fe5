// Runs a TensorRT plan on this machine's GPU, its cache in GPU memory. Port of
// runtime/backends/trt.py and machine.py; built with -DOURO_TENSORRT=ON only. Never run on a GPU so
// far: it is compiled and linked against NVIDIA's headers and libraries.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/backend.hpp"
#include "bundle/reader.hpp"
#include "error.hpp"

namespace ouro::core {

// The first of a bundle's plans that fits this machine, by its number; or why the first does not.
struct FittingPlan {
  std::optional<std::size_t> number;
  std::optional<Error> refused;
};
FittingPlan find_plan(const std::vector<PlanSpec>& plans);

// Loads a plan onto the GPU: its hash is compared before TensorRT sees it. Throws bundle_error
// where it is not the one that the manifest lists, engine_error where TensorRT refuses it.
std::shared_ptr<Backend> open_trt(const Bundle& bundle, std::size_t number);

// The number of the first profile which takes these shapes and values; `by_value` are the tensors
// of the host that are read as numbers. Throws engine_error, naming what is outside the last one.
std::size_t choose_profile(const std::vector<ProfileSpec>& profiles,
                           const std::map<std::string, Shape>& shapes,
                           const std::map<std::string, Shape>& by_value);

}  // namespace ouro::core
