#include "bundle/contract.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <sstream>

#include "error.hpp"

namespace ouro::core {

const char* Manifest::cache_dtype() const { return contract::find_precision(precision)->compute; }

namespace contract {
namespace {

template <std::size_t count>
std::vector<NamedTensor> list_tensors(const Tensor (&table)[count], const ModelSpec& model) {
  std::vector<NamedTensor> found;
  const auto add_parts = [&](const Tensor& one, const std::string& layer) {
    for (const char* part : kParts) found.push_back({one.name + layer + "." + part, &one});
  };
  for (const Tensor& one : table) {
    if (one.kind == Tensor::kPlain || (one.kind == Tensor::kHalting && model.halting)) {
      found.push_back({one.name, &one});
    }
    if (one.kind == Tensor::kLooped) add_parts(one, kRecurrent);
    for (std::int64_t i = 0; one.kind == Tensor::kKept && i < model.num_layers; ++i) {
      add_parts(one, std::to_string(i));
    }
  }
  return found;
}

Dimension resolve_dimension(const Size& size, const ModelSpec& model) {
  if (size.kind == Size::kNumber) return size.number;
  if (size.kind == Size::kModel) return model.*size.field;
  std::string name = size.name;
  if (size.kind == Size::kName || model.recurrent_layers == 1) return name;
  return std::to_string(model.recurrent_layers) + " * " + name;
}

std::vector<TensorSpec> resolve_all(const std::vector<NamedTensor>& tensors, const ModelSpec& model,
                                    std::string_view precision) {
  std::vector<TensorSpec> specs;
  for (const NamedTensor& one : tensors) specs.push_back(resolve(one, model, precision));
  return specs;
}

template <class Row, std::size_t count>
const Row* find_row(const Row (&table)[count], std::string_view name) {
  const Row* found =
      std::find_if(table, table + count, [&](const Row& one) { return name == one.name; });
  return found == table + count ? nullptr : found;
}

// The keys of a kept layer or of the loop.
TensorSpec past_spec(Tensor::Kind kind, const std::string& layer, const ModelSpec& model,
                     std::string_view precision) {
  const Tensor* one = std::find_if(std::begin(kInputs), std::end(kInputs),
                                   [&](const Tensor& row) { return row.kind == kind; });
  return resolve({one->name + layer + "." + kParts[0], one}, model, precision);
}

}  // namespace

const ElementType* find_type(std::string_view name) { return find_row(kElementTypes, name); }

const PrecisionSpec* find_precision(std::string_view name) { return find_row(kPrecisions, name); }

std::vector<NamedTensor> input_tensors(const ModelSpec& model) {
  return list_tensors(kInputs, model);
}

std::vector<NamedTensor> output_tensors(const ModelSpec& model) {
  return list_tensors(kOutputs, model);
}

TensorSpec resolve(const NamedTensor& one, const ModelSpec& model, std::string_view precision) {
  const bool cache = std::strcmp(one.tensor->dtype, kCache) == 0;
  TensorSpec spec{one.name, cache ? find_precision(precision)->compute : one.tensor->dtype, {}};
  for (std::size_t i = 0; i < one.tensor->rank; ++i) {
    spec.shape.push_back(resolve_dimension(one.tensor->shape[i], model));
  }
  return spec;
}

std::vector<TensorSpec> inputs(const ModelSpec& model, std::string_view precision) {
  return resolve_all(input_tensors(model), model, precision);
}

std::vector<TensorSpec> outputs(const ModelSpec& model, std::string_view precision) {
  return resolve_all(output_tensors(model), model, precision);
}

TensorSpec input(std::string_view name, const ModelSpec& model, std::string_view precision) {
  return resolve({std::string(name), find_row(kInputs, name)}, model, precision);
}

TensorSpec output(std::string_view name, const ModelSpec& model, std::string_view precision) {
  return resolve({std::string(name), find_row(kOutputs, name)}, model, precision);
}

std::pair<TensorSpec, TensorSpec> past_specs(const ModelSpec& model, std::string_view precision) {
  return {past_spec(Tensor::kKept, "0", model, precision),
          past_spec(Tensor::kLooped, kRecurrent, model, precision)};
}

std::int64_t resolve_size(const Dimension& size, const Sizes& sizes) {
  if (const auto* number = std::get_if<std::int64_t>(&size)) return *number;
  std::istringstream words(std::get<std::string>(size));
  std::int64_t sum = 0, factor = 1;
  for (std::string word; words >> word;) {
    if (word == "+" || word == "*") continue;
    if (word.find_first_not_of("0123456789") == word.npos) {
      factor = std::stoll(word);
      continue;
    }
    const auto found = sizes.find(word);
    if (found == sizes.end()) {
      throw engine_error("no number is given for the dimension " + word, kExportAgain);
    }
    sum += factor * found->second;
    factor = 1;
  }
  return sum;
}

std::vector<std::int64_t> resolve_shape(const TensorSpec& one, const Sizes& sizes) {
  std::vector<std::int64_t> shape;
  for (const Dimension& size : one.shape) shape.push_back(resolve_size(size, sizes));
  return shape;
}

}  // namespace contract
}  // namespace ouro::core
