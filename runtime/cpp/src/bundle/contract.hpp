// The graph's tensors: the one place in C++ that spells their names, order, types and dimensions.
// Written by runtime/cpp/tools/make_contract.py from runtime/bundle/contract.py: do not edit.
// clang-format off
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/specs.hpp"

namespace ouro::core::contract {

inline constexpr char kInputIds[] = "input_ids";
inline constexpr char kPositionIds[] = "position_ids";
inline constexpr char kAttentionMask[] = "attention_mask";
inline constexpr char kDepth[] = "depth";
inline constexpr char kRowDepth[] = "row_depth";
inline constexpr char kLogitIndex[] = "logit_index";
inline constexpr char kPastPoolSum[] = "past_pool_sum";
inline constexpr char kHaltThreshold[] = "halt_threshold";
inline constexpr char kDepthUsed[] = "depth_used";
inline constexpr char kLogits[] = "logits";
inline constexpr char kPoolSum[] = "pool_sum";
inline constexpr char kPastPrefix[] = "past_key_values.";
inline constexpr char kNewPrefix[] = "new_key_values.";
inline constexpr char kRecurrent[] = "recurrent";
inline constexpr char kBatch[] = "batch";
inline constexpr char kNew[] = "sequence";
inline constexpr char kPast[] = "past_sequence";
inline constexpr char kTotal[] = "past_sequence + sequence";
inline constexpr char kPicked[] = "logits";
inline constexpr char kSlots[] = "slots";
inline constexpr char kCache[] = "cache";
inline constexpr std::int64_t kBucket = 64;
inline constexpr std::int64_t kPrefillChunk = 512;
inline constexpr std::int64_t kScoreChunk = 128;
inline constexpr const char* kParts[] = {
    "key",
    "value",
};
inline constexpr const char* kComparedOutputs[] = {
    "logits",
    "pool_sum",
    "new_key_values.recurrent.key",
    "new_key_values.recurrent.value",
};
inline constexpr const char* kRowless[] = {
    "depth",
    "halt_threshold",
};

// An element type by its names: in manifests, ONNX's number, ONNX Runtime's, Triton's.
struct ElementType {
  const char* name;
  std::int64_t item_bytes;
  int onnx_number;
  const char* ort;
  const char* triton;
};

// What a bundle computes in and stores; bits 0 where weights are floats of `compute`.
struct PrecisionSpec {
  const char* name;
  const char* compute;
  std::int64_t bits;
};

// A dimension of any bundle's tensor: a number, a name, a name times k where the loop runs k layers,
// or the number of the model that `field` is.
struct Size {
  enum Kind { kNumber, kName, kStacked, kModel } kind;
  std::int64_t number;
  const char* name;
  std::int64_t ModelSpec::*field;
};

// A tensor of any bundle, or the keys and values of every kept layer, or of the looped ones, whose
// name is then a prefix: the layer and one of kParts follow. dtype kCache is the type that the
// bundle's precision computes in.
struct Tensor {
  enum Kind { kPlain, kKept, kLooped, kHalting } kind;
  const char* name;
  const char* dtype;
  std::size_t rank;
  Size shape[5];
};

// A field of an ONNX message that leads to an external tensor, and the message it holds.
struct Lead {
  const char* message;
  int field;
  const char* holds;
};

inline constexpr ElementType kElementTypes[] = {
    {"float32", 4, 1, "tensor(float)", "TYPE_FP32"},
    {"float16", 2, 10, "tensor(float16)", "TYPE_FP16"},
    {"bfloat16", 2, 16, "tensor(bfloat16)", "TYPE_BF16"},
    {"int64", 8, 7, "tensor(int64)", "TYPE_INT64"},
};
inline constexpr PrecisionSpec kPrecisions[] = {
    {"fp32", "float32", 0},
    {"fp16", "float16", 0},
    {"bf16", "bfloat16", 0},
    {"int8", "float32", 8},
    {"int4", "float32", 4},
};

// Every input and output, in order.
inline constexpr Tensor kInputs[] = {
    {Tensor::kPlain, "input_ids", "int64", 2,
     {{Size::kName, 0, "batch", nullptr},
      {Size::kName, 0, "sequence", nullptr}}},
    {Tensor::kPlain, "position_ids", "int64", 2,
     {{Size::kName, 0, "batch", nullptr},
      {Size::kName, 0, "sequence", nullptr}}},
    {Tensor::kPlain, "attention_mask", "int64", 2,
     {{Size::kName, 0, "batch", nullptr},
      {Size::kName, 0, "past_sequence + sequence", nullptr}}},
    {Tensor::kPlain, "depth", "int64", 1,
     {{Size::kNumber, 1, nullptr, nullptr}}},
    {Tensor::kPlain, "row_depth", "int64", 1,
     {{Size::kName, 0, "batch", nullptr}}},
    {Tensor::kPlain, "logit_index", "int64", 2,
     {{Size::kName, 0, "batch", nullptr},
      {Size::kName, 0, "logits", nullptr}}},
    {Tensor::kKept, "past_key_values.", "cache", 4,
     {{Size::kName, 0, "batch", nullptr},
      {Size::kModel, 0, "num_key_value_heads", &ModelSpec::num_key_value_heads},
      {Size::kName, 0, "past_sequence", nullptr},
      {Size::kModel, 0, "head_dim", &ModelSpec::head_dim}}},
    {Tensor::kLooped, "past_key_values.", "cache", 5,
     {{Size::kName, 0, "batch", nullptr},
      {Size::kStacked, 0, "slots", nullptr},
      {Size::kModel, 0, "num_key_value_heads", &ModelSpec::num_key_value_heads},
      {Size::kName, 0, "past_sequence", nullptr},
      {Size::kModel, 0, "head_dim", &ModelSpec::head_dim}}},
    {Tensor::kPlain, "past_pool_sum", "float32", 3,
     {{Size::kName, 0, "batch", nullptr},
      {Size::kName, 0, "slots", nullptr},
      {Size::kModel, 0, "hidden_size", &ModelSpec::hidden_size}}},
    {Tensor::kHalting, "halt_threshold", "float32", 1,
     {{Size::kNumber, 1, nullptr, nullptr}}},
};
inline constexpr Tensor kOutputs[] = {
    {Tensor::kPlain, "logits", "float32", 3,
     {{Size::kName, 0, "batch", nullptr},
      {Size::kName, 0, "logits", nullptr},
      {Size::kModel, 0, "vocab_size", &ModelSpec::vocab_size}}},
    {Tensor::kKept, "new_key_values.", "cache", 4,
     {{Size::kName, 0, "batch", nullptr},
      {Size::kModel, 0, "num_key_value_heads", &ModelSpec::num_key_value_heads},
      {Size::kName, 0, "sequence", nullptr},
      {Size::kModel, 0, "head_dim", &ModelSpec::head_dim}}},
    {Tensor::kLooped, "new_key_values.", "cache", 5,
     {{Size::kName, 0, "batch", nullptr},
      {Size::kStacked, 0, "depth", nullptr},
      {Size::kModel, 0, "num_key_value_heads", &ModelSpec::num_key_value_heads},
      {Size::kName, 0, "sequence", nullptr},
      {Size::kModel, 0, "head_dim", &ModelSpec::head_dim}}},
    {Tensor::kPlain, "pool_sum", "float32", 4,
     {{Size::kName, 0, "batch", nullptr},
      {Size::kName, 0, "depth", nullptr},
      {Size::kName, 0, "logits", nullptr},
      {Size::kModel, 0, "hidden_size", &ModelSpec::hidden_size}}},
    {Tensor::kHalting, "depth_used", "int64", 1,
     {{Size::kName, 0, "batch", nullptr}}},
};
inline constexpr Lead kLeads[] = {
    {"Model", 7, "Graph"},
    {"Model", 20, "TrainingInfo"},
    {"Model", 25, "Function"},
    {"TrainingInfo", 1, "Graph"},
    {"TrainingInfo", 2, "Graph"},
    {"Function", 7, "Node"},
    {"Function", 11, "Attribute"},
    {"Graph", 1, "Node"},
    {"Graph", 5, "Tensor"},
    {"Graph", 15, "SparseTensor"},
    {"Node", 5, "Attribute"},
    {"Attribute", 5, "Tensor"},
    {"Attribute", 6, "Graph"},
    {"Attribute", 10, "Tensor"},
    {"Attribute", 11, "Graph"},
    {"Attribute", 22, "SparseTensor"},
    {"Attribute", 23, "SparseTensor"},
    {"SparseTensor", 1, "Tensor"},
    {"SparseTensor", 2, "Tensor"},
    {"Tensor", 13, "Entry"},
};

// The element type or precision of that name; null where there is none.
const ElementType* find_type(std::string_view name);
const PrecisionSpec* find_precision(std::string_view name);

// The input that holds the past keys or values ("key", "value") of a kept layer ("0") or of
// kRecurrent, and the output that holds the new ones.
std::string past_name(std::string_view layer, std::string_view part);
std::string new_name(std::string_view layer, std::string_view part);

// A tensor of a model's graph by its full name.
struct NamedTensor {
  std::string name;
  const Tensor* tensor;
};

// Every input and output of a model's graph, in order.
std::vector<NamedTensor> input_tensors(const ModelSpec& model);
std::vector<NamedTensor> output_tensors(const ModelSpec& model);

// The tensor of one bundle; `precision` is a name of kPrecisions.
TensorSpec resolve(const NamedTensor& one, const ModelSpec& model, std::string_view precision);

// The inputs and outputs of a bundle's graph, in order; `precision` is a name of kPrecisions.
std::vector<TensorSpec> inputs(const ModelSpec& model, std::string_view precision);
std::vector<TensorSpec> outputs(const ModelSpec& model, std::string_view precision);

// The number that a dimension is in one call, from what its names stand for ("4 * slots" is four
// times "slots"). Throws engine_error where a name is not among `sizes`.
std::int64_t resolve_size(const Dimension& size, const std::map<std::string, std::int64_t>& sizes);

}  // namespace ouro::core::contract
