#include "bundle/rules.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <unordered_map>

#include "bundle/hashing.hpp"
#include "bundle/json.hpp"
#include "bundle/say.hpp"
#include "error.hpp"

namespace ouro::core {
namespace {

constexpr char kAgain[] = "export the bundle again";

bool has(Texts allowed, std::string_view value) {
  return std::find(allowed.begin(), allowed.end(), value) != allowed.end();
}

std::string join(Texts texts) {
  std::string joined;
  for (const char* one : texts) joined += (joined.empty() ? "" : ", ") + std::string(one);
  return joined;
}

// A tuple of texts as Python writes it.
std::string show(Texts texts) {
  std::string shown;
  for (const char* one : texts) shown += (shown.empty() ? "(" : ", ") + repr(one);
  return shown + ")";
}

bool is_sha256(std::string_view text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == text.npos;
}

template <class... Parts>
[[noreturn]] void refuse(std::string_view pattern, const Parts&... parts) {
  throw bundle_error(say("{}: ", kManifestName) + say(pattern, parts...));
}

void allow_in_chat(const std::string& where, const std::string& value, Texts allowed) {
  if (has(allowed, value)) return;
  throw bundle_error(say("the compiled chat template's {} is {}, allowed: {}", where,
                         first_characters(repr(value), 60), join(allowed)),
                     kAgain);
}

void check_chat(const ChatSpec& chat) {
  allow_in_chat("order", chat.order, kOrders);
  std::set<std::string> names;
  for (const auto& [name, role] : chat.roles) {
    allow_in_chat("roles", name, kRoles);
    allow_in_chat(say("roles.{}.strip", name), role.strip, kStrips);
    names.insert(name);
  }
  for (const char* name : {"user", "assistant"}) {
    if (names.count(name) > 0) continue;
    throw bundle_error(say("the compiled chat template has no role {}", repr(name)), kAgain);
  }
  if (!chat.fold) return;
  allow_in_chat("fold.into", chat.fold->into, kFolds);
  allow_in_chat("fold.strip", chat.fold->strip, kStrips);
  if (names.count("system") > 0 || chat.order != "alternating") {
    throw bundle_error(
        "the compiled chat template folds the system message, which needs the order 'alternating' "
        "and no role 'system'",
        kAgain);
  }
}

// The rules over one manifest. Integers are named by their place, so that those beyond 64 bits are
// written and compared as what they are.
class Rules {
 public:
  Rules(const Manifest& manifest, const LargeNumbers& large)
      : manifest_(manifest), model_(manifest.model), large_(large) {
    for (const auto& [name, file] : manifest.files) files_[name] = &file;
  }

  void check() const {
    check_model();
    check_depth();
    check_files();
    if (manifest_.tokenizer.chat) check_chat(*manifest_.tokenizer.chat);
    check_numbers();
    check_plans();
    if (manifest_.quantization) check_quantization(*manifest_.quantization);
    const GraphSpec& graph = manifest_.graphs.onnx;
    if (!within("graphs.onnx.opset", graph.opset, 1, kMaxOpset)) {
      refuse("graphs.onnx.opset is {}, allowed: 1..{}", shown("graphs.onnx.opset", graph.opset),
             kMaxOpset);
    }
    check_tensors("input", graph.inputs, contract::input_tensors(model_));
    check_tensors("output", graph.outputs, contract::output_tensors(model_));
    check_tokens();
  }

 private:
  bool is_large(const std::string& where) const { return large_.count(where) > 0; }

  std::string digits(const std::string& where, std::int64_t value) const {
    return is_large(where) ? large_.at(where) : std::to_string(value);
  }

  std::string shown(const std::string& where, std::int64_t value) const {
    return shorten(digits(where, value));
  }

  bool within(const std::string& where, std::int64_t value, std::int64_t least,
              std::int64_t most) const {
    return least <= value && value <= most && !is_large(where);
  }

  void check_model() const {
    for (const ModelBound& bound : kModelBounds) {
      const std::string where = say("model.{}", bound.name);
      const std::int64_t value = model_.*bound.field;
      if (within(where, value, bound.least, bound.most)) continue;
      const std::string opening = say("{} is {}, allowed: ", where, shown(where, value));
      if (value < bound.least) refuse("{}{} or more", opening, bound.least);
      refuse("{}at most {}", opening, bound.most);
    }
    if (model_.num_layers != model_.prelude + model_.coda) {
      refuse("model.num_layers is {}, not prelude + coda = {} + {}", model_.num_layers,
             model_.prelude, model_.coda);
    }
    if (!has(kPoolings, model_.pooling)) {
      refuse("model.pooling is {}, allowed: {}", repr(model_.pooling), show(kPoolings));
    }
    if (!has(kBridges, model_.bridge)) {
      refuse("model.bridge is {}, allowed: {}", repr(model_.bridge), show(kBridges));
    }
  }

  void check_depth() const {
    const DepthSpec& depth = manifest_.depth;
    const std::string best = digits("depth.default", depth.default_depth);
    const std::string most = digits("depth.max", depth.max);
    // Of two beyond 64 bits the longer, or else the later in the alphabet, is more.
    const bool both = is_large("depth.default") && is_large("depth.max");
    const bool ordered = both ? std::pair(best.size(), best) <= std::pair(most.size(), most)
                              : depth.default_depth <= depth.max;
    if (depth.min != 1 || depth.default_depth < 1 || depth.max < 1 || !ordered) {
      refuse("depth range {}..{} with default {} is not 1 <= default <= max",
             shown("depth.min", depth.min), shorten(most), shorten(best));
    }
    if (depth.max > kMaxDepth) refuse("depth.max is {}, allowed: at most {}", shorten(most), kMaxDepth);
    for (const std::int64_t value : depth.trained) {
      if (value < 1) refuse("depth.trained holds a depth below 1");
      if (value > kMaxDepth) refuse("depth.trained holds a depth above {}", kMaxDepth);
    }
    if (const auto& halting = depth.halting) {
      if (!has(kHalters, halting->kind)) {
        refuse("depth.halting.kind is {}, allowed: {}", shorten(repr(halting->kind)), show(kHalters));
      }
      if (!(halting->threshold > 0 && halting->threshold <= 1)) {
        refuse("depth.halting.threshold is {}, allowed: above 0 and at most 1",
               repr(halting->threshold));
      }
      if (!within("depth.halting.max", halting->max, 1, depth.max)) {
        refuse("depth.halting.max is {}, allowed: 1..{}", shown("depth.halting.max", halting->max),
               depth.max);
      }
    }
    if (model_.halting == depth.halting.has_value()) return;
    refuse("model.halting is {}, and depth.halting {}", model_.halting ? "true" : "false",
           model_.halting ? "is missing" : "is there all the same");
  }

  void require_listed(const std::string& name) const {
    if (files_.count(name) == 0) refuse("{} is used but not listed under files", repr(name));
  }

  void check_files() const {
    for (const auto& [name, file] : manifest_.files) {
      check_file_name(name);
      if (name == kManifestName || name == kHashName) refuse("files lists {} itself", name);
      if (!is_sha256(file.sha256)) {
        refuse("files.{}.sha256 is not 64 lower-case hexadecimal digits", name);
      }
      const std::string where = say("files.{}.bytes", name);
      if (within(where, file.bytes, 0, kInt64)) continue;
      refuse("{} is {}, allowed: 0..{}", where, shown(where, file.bytes), kInt64);
    }
    std::vector<std::string> used = manifest_.graphs.onnx.data;
    used.insert(used.begin(), manifest_.graphs.onnx.file);
    used.push_back(manifest_.tokenizer.file);
    if (manifest_.tokenizer.chat_template) used.push_back(*manifest_.tokenizer.chat_template);
    for (const std::string& name : used) {
      check_file_name(name);
      require_listed(name);
    }
  }

  void check_numbers() const {
    const SamplingSpec& sampling = manifest_.sampling;
    if (!(sampling.temperature >= 0 && std::isfinite(sampling.temperature) &&
          within("sampling.top_k", sampling.top_k, 0, kInt32) && sampling.top_p > 0 &&
          sampling.top_p <= 1 && sampling.min_p >= 0 && sampling.min_p <= 1 &&
          sampling.repetition_penalty > 0 && std::isfinite(sampling.repetition_penalty))) {
      refuse("sampling needs a finite temperature >= 0, top_k in 0..{}, 0 < top_p <= 1, "
             "0 <= min_p <= 1 and a finite repetition_penalty > 0",
             kInt32);
    }
    const double bound = manifest_.parity.relative_l2, kl = manifest_.parity.kl.value_or(0.5);
    if (!(bound > 0 && bound < 1)) {
      refuse("parity.relative_l2 is {}, allowed: above 0 and below 1", repr(bound));
    }
    if (!(kl > 0 && kl < 1)) {
      refuse("parity.kl is {}, allowed: above 0 and below 1, or null", repr(kl));
    }
    const contract::PrecisionSpec* precision = contract::find_precision(manifest_.precision);
    if (precision == nullptr) {
      std::string names;
      for (const auto& one : contract::kPrecisions) names += (names.empty() ? "" : ", ") + repr(one.name);
      refuse("precision is {}, allowed: ({})", repr(manifest_.precision), names);
    }
    const auto& quantization = manifest_.quantization;
    if (quantization.has_value() != (precision->bits != 0) ||
        (quantization && quantization->bits != precision->bits)) {
      refuse("precision {} with quantization of {} bits", manifest_.precision,
             quantization ? digits("quantization.bits", quantization->bits) : "None");
    }
    if (!is_sha256(manifest_.checkpoint.sha256)) {
      refuse("checkpoint.sha256 is not 64 lower-case hexadecimal digits");
    }
  }

  void check_quantization(const QuantizationSpec& spec) const {
    const auto allow = [&](const std::string& where, std::int64_t value, Texts allowed) {
      if (has(allowed, digits(where, value))) return;
      refuse("{} is {}, allowed: {}", where, shown(where, value), join(allowed));
    };
    allow("quantization.bits", spec.bits, {"4", "8"});
    allow("quantization.sensitive_bits", spec.sensitive_bits, {"4", "8"});
    allow("quantization.block", spec.block, {"32", "64", "128"});
    if (spec.method != "rtn" && spec.method != "gptq") {
      refuse("quantization.method is {}, allowed: rtn, gptq", shorten(repr(spec.method)));
    }
    allow("quantization.accuracy_level", spec.accuracy_level, {"1", "4"});
    if (spec.method == "rtn" && spec.calibration) {
      refuse("quantization.calibration is given, method rtn has none");
    }
    if (spec.method == "gptq" && !is_sha256(spec.calibration.value_or(""))) {
      refuse("quantization.calibration is not 64 lower-case hexadecimal digits, as gptq needs");
    }
  }

  void check_plans() const {
    if (manifest_.plans.empty()) return;
    const GraphSpec& graph = manifest_.graphs.onnx;
    std::map<std::string, std::string> hashes = {{graph.file, files_.at(graph.file)->sha256}};
    for (const std::string& name : graph.data) hashes[name] = files_.at(name)->sha256;
    std::string lines;
    for (const auto& [name, digest] : hashes) lines += say("{}  {}\n", digest, name);
    const std::string found = hash_text(lines);
    for (std::size_t i = 0; i < manifest_.plans.size(); ++i) {
      const PlanSpec& plan = manifest_.plans[i];
      require_listed(plan.file);
      if (plan.graph_sha256 != found) {
        throw bundle_error(say("{} was built from the graph {}..., the bundle holds {}...: they "
                               "come from different checkpoints",
                               plan.file, first_characters(plan.graph_sha256, 12),
                               found.substr(0, 12)),
                           "export it again");
      }
      check_plan(plan, say("plans[{}]", i));
    }
  }

  void check_plan(const PlanSpec& plan, const std::string& place) const {
    const GraphSpec& graph = manifest_.graphs.onnx;
    const TokenizerSpec& tokenizer = manifest_.tokenizer;
    std::set<std::string> others(graph.data.begin(), graph.data.end());
    others.insert({graph.file, tokenizer.file, tokenizer.chat_template.value_or(tokenizer.file),
                   "tokenizer_config.json", kCasesName, "LICENSE", "ATTRIBUTION"});
    if (others.count(plan.file) > 0) {
      refuse("the plan {} is another file of the bundle's", repr(plan.file));
    }
    if (plan.precision != manifest_.precision) {
      refuse("{} has the precision {}, the bundle {}", plan.file, repr(plan.precision),
             repr(manifest_.precision));
    }
    const auto check_limit = [&](const char* name, std::int64_t value) {
      const std::string where = say("{}.{}", place, name);
      if (within(where, value, 1, kInt32)) return;
      refuse("{}: {} is {}, allowed: 1..{}", plan.file, name, shown(where, value), kInt32);
    };
    check_limit("max_new_tokens", plan.max_new_tokens);
    check_limit("max_logits", plan.max_logits);
    if (plan.profiles.empty()) refuse("{} has no profile", plan.file);
    Ranks ranks;
    for (const TensorSpec& tensor : graph.inputs) ranks[tensor.name] = tensor.shape.size();
    for (std::size_t i = 0; i < plan.profiles.size(); ++i) {
      const ProfileSpec& profile = plan.profiles[i];
      const std::string where = say("{}, profile {}", plan.file, repr(profile.name));
      check_ranges(profile.shapes, where, say("{}.profiles[{}].shapes", place, i), ranks);
      check_ranges(profile.values, where, say("{}.profiles[{}].values", place, i), ranks);
      for (const RangeSpec& one : profile.shapes) {
        if (one.max.size() == ranks.at(one.name)) continue;
        refuse("{}: {} has {} dimensions, the graph's has {}", where, one.name, one.max.size(),
               ranks.at(one.name));
      }
    }
  }

  using Ranks = std::unordered_map<std::string, std::size_t>;

  void check_ranges(const std::vector<RangeSpec>& ranges, const std::string& where,
                    const std::string& place, const Ranks& ranks) const {
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      const RangeSpec& one = ranges[i];
      if (ranks.count(one.name) == 0) {
        refuse("{}: the graph has no input {}", where, repr(one.name));
      }
      if (one.min.size() != one.opt.size() || one.opt.size() != one.max.size()) {
        refuse("{}: min, opt and max of {} differ in length", where, one.name);
      }
      for (std::size_t n = 0; n < one.min.size(); ++n) {
        const std::string low = say("{}[{}].min[{}]", place, i, n);
        const std::string best = say("{}[{}].opt[{}]", place, i, n);
        const std::string high = say("{}[{}].max[{}]", place, i, n);
        if (within(low, one.min[n], 0, one.opt[n]) && within(best, one.opt[n], 0, one.max[n]) &&
            within(high, one.max[n], 0, kInt64)) {
          continue;
        }
        refuse("{}: {} goes from {} by {} to {}, not 0 <= min <= opt <= max", where, one.name,
               shown(low, one.min[n]), shown(best, one.opt[n]), shown(high, one.max[n]));
      }
    }
  }

  void check_tensors(const char* side, const std::vector<TensorSpec>& specs,
                     const std::vector<contract::NamedTensor>& wanted) const {
    std::unordered_map<std::string, const contract::NamedTensor*> missing;
    for (const contract::NamedTensor& one : wanted) missing[one.name] = &one;
    for (std::size_t i = 0; i < specs.size(); ++i) {
      const auto found = missing.find(specs[i].name);
      if (found == missing.end()) {
        refuse("the graph's {} {} is unknown here, or listed twice", side,
               shorten(repr(specs[i].name)));
      }
      check_tensor(specs[i], *found->second, say("graphs.onnx.{}s[{}].shape", side, i));
      missing.erase(found);
    }
    for (const contract::NamedTensor& one : wanted) {
      if (missing.count(one.name) > 0) refuse("the graph lacks the {} {}", side, one.name);
    }
  }

  void check_tensor(const TensorSpec& spec, const contract::NamedTensor& named,
                    const std::string& place) const {
    const TensorSpec wanted = contract::resolve(named, model_, manifest_.precision);
    if (spec.dtype != wanted.dtype) {
      const std::string found = say("the graph's {} is {}", spec.name, shorten(repr(spec.dtype)));
      if (std::strcmp(named.tensor->dtype, contract::kCache) != 0) {
        refuse("{}, not {}", found, repr(wanted.dtype));
      }
      refuse("precision {} keeps keys and values in {}, {}", manifest_.precision, wanted.dtype,
             found);
    }
    if (spec.shape.size() != wanted.shape.size()) {
      refuse("the graph's {} has {} dimensions, not {}", spec.name, spec.shape.size(),
             wanted.shape.size());
    }
    const auto show_size = [&](const Dimension& size, const std::string& where) {
      const auto* text = std::get_if<std::string>(&size);
      return text ? repr(*text) : digits(where, std::get<std::int64_t>(size));
    };
    for (std::size_t i = 0; i < spec.shape.size(); ++i) {
      if (spec.shape[i] == wanted.shape[i]) continue;
      const std::string size = shorten(show_size(spec.shape[i], say("{}[{}]", place, i)));
      const std::string should = show_size(wanted.shape[i], "");
      const contract::Size& any = named.tensor->shape[i];
      if (any.kind == contract::Size::kModel) {
        refuse("model.{} is {}, the graph's {} has {}", any.name, should, spec.name, size);
      }
      refuse("the graph's {} has {} in the place of {}", spec.name, size, should);
    }
  }

  void check_tokens() const {
    const TokenizerSpec& tokenizer = manifest_.tokenizer;
    const auto check = [&](std::int64_t id, const std::string& where) {
      if (within(where, id, 0, model_.vocab_size - 1)) return;
      refuse("tokenizer: token id {} is outside 0..{}", shown(where, id), model_.vocab_size - 1);
    };
    const auto check_all = [&](const std::vector<std::int64_t>& ids, const char* where) {
      for (std::size_t i = 0; i < ids.size(); ++i) check(ids[i], say("{}[{}]", where, i));
    };
    check_all(tokenizer.eos_token_ids, "tokenizer.eos_token_ids");
    check_all(tokenizer.prefix_token_ids, "tokenizer.prefix_token_ids");
    check(tokenizer.bos_token_id.value_or(0), "tokenizer.bos_token_id");
    check(tokenizer.pad_token_id.value_or(0), "tokenizer.pad_token_id");
  }

  const Manifest& manifest_;
  const ModelSpec& model_;
  const LargeNumbers& large_;
  std::unordered_map<std::string, const FileSpec*> files_;
};

}  // namespace

void check_file_name(std::string_view name) {
  bool unsafe = name.empty() || name.front() == '/' || name.find_first_of("\\:*") != name.npos;
  for (const char c : name) unsafe = unsafe || static_cast<unsigned char>(c) < 32;
  for (std::size_t start = 0; start <= name.size();) {
    const std::size_t end = std::min(name.find('/', start), name.size());
    const std::string_view part = name.substr(start, end - start);
    unsafe = unsafe || part.empty() || part == "." || part == "..";
    start = end + 1;
  }
  if (!unsafe) return;
  throw bundle_error(say("{} names the file {}, outside the bundle", kManifestName, repr(name)));
}

void check_manifest(const Manifest& manifest, const LargeNumbers& large) {
  Rules(manifest, large).check();
}

}  // namespace ouro::core
