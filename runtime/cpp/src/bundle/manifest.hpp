// What a manifest says, read strictly from JSON. The fields are those of runtime/bundle/specs.py,
// chat.py and plans.py, under the same names; `default` and `float` are no names in C++.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bundle/contract.hpp"

namespace ouro::core {

inline constexpr std::int64_t kFormatVersion = 4;
inline constexpr char kManifestName[] = "manifest.json";
inline constexpr char kHashName[] = "manifest.sha256";
inline constexpr char kCasesName[] = "cases.safetensors";
inline constexpr std::int64_t kMaxDepth = 4096;

// A JSON object of values of one kind, in the order of the file; its keys differ.
template <class Value>
using Named = std::vector<std::pair<std::string, Value>>;

struct ModelSpec {
  std::string source, model_type;
  std::int64_t hidden_size = 0, num_layers = 0, prelude = 0, coda = 0, recurrent_layers = 0;
  std::string bridge;
  bool halting = false;
  std::int64_t num_attention_heads = 0, num_key_value_heads = 0, head_dim = 0, vocab_size = 0;
  std::int64_t max_position_embeddings = 0;
  std::string pooling;
  std::int64_t parameters = 0, step_bytes = 0, once_bytes = 0;
};

struct HaltingSpec {
  std::string kind;
  double threshold = 0;
  std::int64_t max = 0;
};

struct DepthSpec {
  std::int64_t min = 0, max = 0, default_depth = 0;
  std::vector<std::int64_t> trained;
  std::optional<HaltingSpec> halting;  // where model.halting, and only there
};

struct GraphSpec {
  std::string file;
  std::vector<std::string> data;
  std::int64_t opset = 0;
  std::vector<TensorSpec> inputs, outputs;
};

struct GraphsSpec {
  GraphSpec onnx;
};

// A compiled chat template: see docs/bundle.md.
struct RoleSpec {
  std::string before, strip, after;
  std::optional<std::string> last, answer;
  bool skip_empty = false;
};

struct FoldSpec {
  std::string into, before, strip, after;
  bool skip_empty = false, joined = false;
};

struct ChatSpec {
  std::string begin, default_system, order;
  Named<RoleSpec> roles;
  std::optional<FoldSpec> fold;
};

struct TokenizerSpec {
  std::string file;
  std::optional<std::string> chat_template;
  std::optional<ChatSpec> chat;
  std::optional<std::string> bos_token, eos_token;
  std::optional<std::int64_t> bos_token_id;
  std::vector<std::int64_t> eos_token_ids;
  std::optional<std::int64_t> pad_token_id;
  std::vector<std::int64_t> prefix_token_ids;
};

struct SamplingSpec {
  double temperature = 0;
  std::int64_t top_k = 0;
  double top_p = 1, min_p = 0, repetition_penalty = 1;
};

struct QuantizationSpec {
  std::int64_t bits = 0, sensitive_bits = 0, block = 0;
  bool symmetric = false;
  std::string method;
  std::optional<std::string> calibration;
  std::int64_t accuracy_level = 0;
};

struct ParitySpec {
  double relative_l2 = 0;
  std::optional<double> kl;
  std::string float_type;
};

struct FileSpec {
  std::string sha256;
  std::int64_t bytes = 0;
};

struct RangeSpec {
  std::string name;
  std::vector<std::int64_t> min, opt, max;
};

struct ProfileSpec {
  std::string name;
  std::vector<RangeSpec> shapes, values;
};

struct PlanSpec {
  std::string file, flavour, version, cuda;
  std::vector<std::string> compute_capabilities;
  std::string precision;
  bool refittable = false;
  std::string graph_sha256;
  std::vector<ProfileSpec> profiles;
  std::int64_t max_new_tokens = 0, max_logits = 0;
};

struct CheckpointSpec {
  std::string sha256, name;
};

struct Manifest {
  std::int64_t format_version = 0;
  ModelSpec model;
  DepthSpec depth;
  std::string precision;
  std::optional<QuantizationSpec> quantization;
  GraphsSpec graphs;
  TokenizerSpec tokenizer;
  SamplingSpec sampling;
  ParitySpec parity;
  Named<FileSpec> files;
  std::vector<PlanSpec> plans;
  CheckpointSpec checkpoint;
  Named<std::string> tools;

  // The type of keys and values, such as "float32".
  const char* cache_dtype() const { return contract::find_precision(precision)->compute; }
};

// Reads a manifest from the bytes of manifest.json and proves its rules. Strings are UTF-8; half of
// a surrogate pair, which pieces of a chat template may hold, stands as its three bytes. Throws
// bundle_error with the text that Python gives.
Manifest parse_manifest_text(std::string_view text);

// Compares the bytes of manifest.json with the content of manifest.sha256, null where there is none.
// Throws bundle_error: an older bundle, or they differ.
void check_hash(std::string_view text, const std::string* said);

// Refuses a file name that could lead out of the bundle. Throws bundle_error.
void check_file_name(std::string_view name);

}  // namespace ouro::core
