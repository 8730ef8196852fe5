// Written by runtime/cpp/tools/make_contract.py from runtime/bundle: do not edit.
//
// What a bundle's manifest says (bundle/manifest.hpp reads it), and the graph's tensors: the one
// place in C++ that spells their names, order, types and dimensions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace ouro::core {

// A dimension: a number, or the name of one that differs from call to call.
using Dimension = std::variant<std::int64_t, std::string>;

// A JSON object of values of one kind, in the order of the file; its keys differ.
template <class Value>
using Named = std::vector<std::pair<std::string, Value>>;

using Texts = std::initializer_list<const char*>;

inline constexpr std::int64_t kFormatVersion = 4;
inline constexpr std::int64_t kMaxDepth = 4096;
inline constexpr std::int64_t kMaxOpset = 1000;
inline constexpr std::int64_t kInt32 = 2147483647;
inline constexpr std::int64_t kInt64 = 9223372036854775807;
inline constexpr std::int64_t kManifestBytesLimit = 16777216;
inline constexpr std::int64_t kHashBytesLimit = 4096;
inline constexpr char kManifestName[] = "manifest.json";
inline constexpr char kHashName[] = "manifest.sha256";
inline constexpr char kCasesName[] = "cases.safetensors";
inline constexpr Texts kPoolings = {"causal", "mean", "token"};
inline constexpr Texts kBridges = {"none", "entry", "exit"};
inline constexpr Texts kHalters = {"trained", "confidence", "distance"};
inline constexpr Texts kRoles = {"system", "user", "assistant"};
inline constexpr Texts kOrders = {"any", "system_first", "alternating"};
inline constexpr Texts kStrips = {"none", "left", "right", "both"};
inline constexpr Texts kFolds = {"first", "last"};

// Dimensions of the model.
struct ModelSpec {
  std::string source{};
  std::string model_type{};
  std::int64_t hidden_size{};
  std::int64_t num_layers{};
  std::int64_t prelude{};
  std::int64_t coda{};
  std::int64_t recurrent_layers{};
  std::string bridge{};
  bool halting{};
  std::int64_t num_attention_heads{};
  std::int64_t num_key_value_heads{};
  std::int64_t head_dim{};
  std::int64_t vocab_size{};
  std::int64_t max_position_embeddings{};
  std::string pooling{};
  std::int64_t parameters{};
  std::int64_t step_bytes{};
  std::int64_t once_bytes{};
};

// How the graph chooses a depth.
struct HaltingSpec {
  std::string kind{};
  double threshold{};
  std::int64_t max{};
};

// The depths a bundle accepts, its default, and those the model was trained at.
struct DepthSpec {
  std::int64_t min{};
  std::int64_t max{};
  std::int64_t default_depth{};
  std::vector<std::int64_t> trained{};
  std::optional<HaltingSpec> halting{};
};

// How integer weights were made, and the arithmetic that the engine runs them in.
struct QuantizationSpec {
  std::int64_t bits{};
  std::int64_t sensitive_bits{};
  std::int64_t block{};
  bool symmetric{};
  std::string method{};
  std::optional<std::string> calibration{};
  std::int64_t accuracy_level{};
};

// One input or output of the graph; a dimension is a number or a name.
struct TensorSpec {
  std::string name{};
  std::string dtype{};
  std::vector<Dimension> shape{};
};

// The ONNX file, the files that hold its large weights, and its tensors.
struct GraphSpec {
  std::string file{};
  std::vector<std::string> data{};
  std::int64_t opset{};
  std::vector<TensorSpec> inputs{};
  std::vector<TensorSpec> outputs{};
};

// The graphs of a bundle by flavour.
struct GraphsSpec {
  GraphSpec onnx{};
};

// What stands around the content of a role's messages.
struct RoleSpec {
  std::string before{};
  std::string strip{};
  std::string after{};
  std::optional<std::string> last{};
  std::optional<std::string> answer{};
  bool skip_empty{};
};

// How a system message becomes part of the content of a user's message.
struct FoldSpec {
  std::string into{};
  std::string before{};
  std::string strip{};
  std::string after{};
  bool skip_empty{};
  bool joined{};
};

// A compiled chat template.
struct ChatSpec {
  std::string begin{};
  std::string default_system{};
  std::string order{};
  Named<RoleSpec> roles{};
  std::optional<FoldSpec> fold{};
};

// Tokenizer file, chat template and special tokens.
struct TokenizerSpec {
  std::string file{};
  std::optional<std::string> chat_template{};
  std::optional<ChatSpec> chat{};
  std::optional<std::string> bos_token{};
  std::optional<std::string> eos_token{};
  std::optional<std::int64_t> bos_token_id{};
  std::vector<std::int64_t> eos_token_ids{};
  std::optional<std::int64_t> pad_token_id{};
  std::vector<std::int64_t> prefix_token_ids{};
};

// Sampling used where a request names none.
struct SamplingSpec {
  double temperature{};
  std::int64_t top_k{};
  double top_p{};
  double min_p{};
  double repetition_penalty{};
};

// The bounds of the parity check, and the type of PyTorch's recorded outputs.
struct ParitySpec {
  double relative_l2{};
  std::optional<double> kl{};
  std::string float_type{};
};

// Hash and size of one file.
struct FileSpec {
  std::string sha256{};
  std::int64_t bytes{};
};

// What one input may be: the least, the best served and the most of each number.
struct RangeSpec {
  std::string name{};
  std::vector<std::int64_t> min{};
  std::vector<std::int64_t> opt{};
  std::vector<std::int64_t> max{};
};

// One optimisation profile.
struct ProfileSpec {
  std::string name{};
  std::vector<RangeSpec> shapes{};
  std::vector<RangeSpec> values{};
};

// One plan of a bundle.
struct PlanSpec {
  std::string file{};
  std::string flavour{};
  std::string version{};
  std::string cuda{};
  std::vector<std::string> compute_capabilities{};
  std::string precision{};
  bool refittable{};
  std::string graph_sha256{};
  std::vector<ProfileSpec> profiles{};
  std::int64_t max_new_tokens{};
  std::int64_t max_logits{};
};

// The checkpoint a bundle was exported from.
struct CheckpointSpec {
  std::string sha256{};
  std::string name{};
};

// Everything a bundle says about itself.
struct Manifest {
  std::int64_t format_version{};
  ModelSpec model{};
  DepthSpec depth{};
  std::string precision{};
  std::optional<QuantizationSpec> quantization{};
  GraphsSpec graphs{};
  TokenizerSpec tokenizer{};
  SamplingSpec sampling{};
  ParitySpec parity{};
  Named<FileSpec> files{};
  std::vector<PlanSpec> plans{};
  CheckpointSpec checkpoint{};
  Named<std::string> tools{};

  // The type of keys and values, such as float32.
  const char* cache_dtype() const;
};

// What errors call a kind of value.
inline const char* kind_name(const std::string&) { return "a string"; }
inline const char* kind_name(const std::int64_t&) { return "an integer"; }
inline const char* kind_name(const double&) { return "a number"; }
inline const char* kind_name(const ModelSpec&) { return "ModelSpec"; }
inline const char* kind_name(const HaltingSpec&) { return "HaltingSpec"; }
inline const char* kind_name(const DepthSpec&) { return "DepthSpec"; }
inline const char* kind_name(const QuantizationSpec&) { return "QuantizationSpec"; }
inline const char* kind_name(const TensorSpec&) { return "TensorSpec"; }
inline const char* kind_name(const GraphSpec&) { return "GraphSpec"; }
inline const char* kind_name(const GraphsSpec&) { return "GraphsSpec"; }
inline const char* kind_name(const RoleSpec&) { return "RoleSpec"; }
inline const char* kind_name(const FoldSpec&) { return "FoldSpec"; }
inline const char* kind_name(const ChatSpec&) { return "ChatSpec"; }
inline const char* kind_name(const TokenizerSpec&) { return "TokenizerSpec"; }
inline const char* kind_name(const SamplingSpec&) { return "SamplingSpec"; }
inline const char* kind_name(const ParitySpec&) { return "ParitySpec"; }
inline const char* kind_name(const FileSpec&) { return "FileSpec"; }
inline const char* kind_name(const RangeSpec&) { return "RangeSpec"; }
inline const char* kind_name(const ProfileSpec&) { return "ProfileSpec"; }
inline const char* kind_name(const PlanSpec&) { return "PlanSpec"; }
inline const char* kind_name(const CheckpointSpec&) { return "CheckpointSpec"; }
inline const char* kind_name(const Manifest&) { return "Manifest"; }

// The keys of each part and its fields: `add(key, field)` for one after another.
template <class Add>
void list_fields(ModelSpec& it, Add&& add) {
  add("source", it.source);
  add("model_type", it.model_type);
  add("hidden_size", it.hidden_size);
  add("num_layers", it.num_layers);
  add("prelude", it.prelude);
  add("coda", it.coda);
  add("recurrent_layers", it.recurrent_layers);
  add("bridge", it.bridge);
  add("halting", it.halting);
  add("num_attention_heads", it.num_attention_heads);
  add("num_key_value_heads", it.num_key_value_heads);
  add("head_dim", it.head_dim);
  add("vocab_size", it.vocab_size);
  add("max_position_embeddings", it.max_position_embeddings);
  add("pooling", it.pooling);
  add("parameters", it.parameters);
  add("step_bytes", it.step_bytes);
  add("once_bytes", it.once_bytes);
}

template <class Add>
void list_fields(HaltingSpec& it, Add&& add) {
  add("kind", it.kind);
  add("threshold", it.threshold);
  add("max", it.max);
}

template <class Add>
void list_fields(DepthSpec& it, Add&& add) {
  add("min", it.min);
  add("max", it.max);
  add("default", it.default_depth);
  add("trained", it.trained);
  add("halting", it.halting);
}

template <class Add>
void list_fields(QuantizationSpec& it, Add&& add) {
  add("bits", it.bits);
  add("sensitive_bits", it.sensitive_bits);
  add("block", it.block);
  add("symmetric", it.symmetric);
  add("method", it.method);
  add("calibration", it.calibration);
  add("accuracy_level", it.accuracy_level);
}

template <class Add>
void list_fields(TensorSpec& it, Add&& add) {
  add("name", it.name);
  add("dtype", it.dtype);
  add("shape", it.shape);
}

template <class Add>
void list_fields(GraphSpec& it, Add&& add) {
  add("file", it.file);
  add("data", it.data);
  add("opset", it.opset);
  add("inputs", it.inputs);
  add("outputs", it.outputs);
}

template <class Add>
void list_fields(GraphsSpec& it, Add&& add) {
  add("onnx", it.onnx);
}

template <class Add>
void list_fields(RoleSpec& it, Add&& add) {
  add("before", it.before);
  add("strip", it.strip);
  add("after", it.after);
  add("last", it.last);
  add("answer", it.answer);
  add("skip_empty", it.skip_empty);
}

template <class Add>
void list_fields(FoldSpec& it, Add&& add) {
  add("into", it.into);
  add("before", it.before);
  add("strip", it.strip);
  add("after", it.after);
  add("skip_empty", it.skip_empty);
  add("joined", it.joined);
}

template <class Add>
void list_fields(ChatSpec& it, Add&& add) {
  add("begin", it.begin);
  add("default_system", it.default_system);
  add("order", it.order);
  add("roles", it.roles);
  add("fold", it.fold);
}

template <class Add>
void list_fields(TokenizerSpec& it, Add&& add) {
  add("file", it.file);
  add("chat_template", it.chat_template);
  add("chat", it.chat);
  add("bos_token", it.bos_token);
  add("eos_token", it.eos_token);
  add("bos_token_id", it.bos_token_id);
  add("eos_token_ids", it.eos_token_ids);
  add("pad_token_id", it.pad_token_id);
  add("prefix_token_ids", it.prefix_token_ids);
}

template <class Add>
void list_fields(SamplingSpec& it, Add&& add) {
  add("temperature", it.temperature);
  add("top_k", it.top_k);
  add("top_p", it.top_p);
  add("min_p", it.min_p);
  add("repetition_penalty", it.repetition_penalty);
}

template <class Add>
void list_fields(ParitySpec& it, Add&& add) {
  add("relative_l2", it.relative_l2);
  add("kl", it.kl);
  add("float", it.float_type);
}

template <class Add>
void list_fields(FileSpec& it, Add&& add) {
  add("sha256", it.sha256);
  add("bytes", it.bytes);
}

template <class Add>
void list_fields(RangeSpec& it, Add&& add) {
  add("name", it.name);
  add("min", it.min);
  add("opt", it.opt);
  add("max", it.max);
}

template <class Add>
void list_fields(ProfileSpec& it, Add&& add) {
  add("name", it.name);
  add("shapes", it.shapes);
  add("values", it.values);
}

template <class Add>
void list_fields(PlanSpec& it, Add&& add) {
  add("file", it.file);
  add("flavour", it.flavour);
  add("version", it.version);
  add("cuda", it.cuda);
  add("compute_capabilities", it.compute_capabilities);
  add("precision", it.precision);
  add("refittable", it.refittable);
  add("graph_sha256", it.graph_sha256);
  add("profiles", it.profiles);
  add("max_new_tokens", it.max_new_tokens);
  add("max_logits", it.max_logits);
}

template <class Add>
void list_fields(CheckpointSpec& it, Add&& add) {
  add("sha256", it.sha256);
  add("name", it.name);
}

template <class Add>
void list_fields(Manifest& it, Add&& add) {
  add("format_version", it.format_version);
  add("model", it.model);
  add("depth", it.depth);
  add("precision", it.precision);
  add("quantization", it.quantization);
  add("graphs", it.graphs);
  add("tokenizer", it.tokenizer);
  add("sampling", it.sampling);
  add("parity", it.parity);
  add("files", it.files);
  add("plans", it.plans);
  add("checkpoint", it.checkpoint);
  add("tools", it.tools);
}

// The least and most that a number of the model may be.
struct ModelBound {
  const char* name;
  std::int64_t ModelSpec::*field;
  std::int64_t least, most;
};
inline constexpr ModelBound kModelBounds[] = {
    {"hidden_size", &ModelSpec::hidden_size, 1, 1048576},
    {"num_layers", &ModelSpec::num_layers, 0, 65536},
    {"prelude", &ModelSpec::prelude, 0, 65536},
    {"coda", &ModelSpec::coda, 0, 65536},
    {"recurrent_layers", &ModelSpec::recurrent_layers, 1, 65536},
    {"num_attention_heads", &ModelSpec::num_attention_heads, 1, 65536},
    {"num_key_value_heads", &ModelSpec::num_key_value_heads, 1, 65536},
    {"head_dim", &ModelSpec::head_dim, 1, 65536},
    {"vocab_size", &ModelSpec::vocab_size, 1, 16777216},
    {"max_position_embeddings", &ModelSpec::max_position_embeddings, 1, 2147483647},
    {"parameters", &ModelSpec::parameters, 1, 9223372036854775807},
    {"step_bytes", &ModelSpec::step_bytes, 1, 9223372036854775807},
    {"once_bytes", &ModelSpec::once_bytes, 1, 9223372036854775807},
};

namespace contract {

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

// A dimension of any bundle's tensor: a number, a name, a name times k where the loop runs k,
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
inline constexpr Texts kPrecisionNames = {"fp32", "fp16", "bf16", "int8", "int4"};

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

// What any bundle says of an input or output of its own name, as kDepth or kLogits.
TensorSpec input(std::string_view name, const ModelSpec& model, std::string_view precision);
TensorSpec output(std::string_view name, const ModelSpec& model, std::string_view precision);

// What holds the keys, and like them the values, of a kept layer and of the loop. A kept layer's is
// the first one's, even of a model that keeps none.
std::pair<TensorSpec, TensorSpec> past_specs(const ModelSpec& model, std::string_view precision);

// What the names of dimensions stand for in one call.
using Sizes = std::map<std::string, std::int64_t>;

// The number that a dimension is in one call, from what its names stand for ("4 * slots" is four
// times "slots"). Throws engine_error where a name is not among `sizes`.
std::int64_t resolve_size(const Dimension& size, const Sizes& sizes);

// The numbers that a tensor's dimensions are in one call, as resolve_size gives them.
std::vector<std::int64_t> resolve_shape(const TensorSpec& one, const Sizes& sizes);

}  // namespace contract
}  // namespace ouro::core
