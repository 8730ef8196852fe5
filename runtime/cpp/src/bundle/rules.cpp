#include "bundle/rules.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "bundle/hashing.hpp"
#include "bundle/json.hpp"
#include "bundle/say.hpp"
#include "error.hpp"

namespace ouro::core {
namespace {

template <class... Parts>
void require(bool condition, std::string_view pattern, const Parts&... parts) {
  if (condition) return;
  throw bundle_error(say("{}: ", kManifestName) + say(pattern, parts...), kExportAgain);
}

bool has(Texts allowed, std::string_view value) {
  return std::find(allowed.begin(), allowed.end(), value) != allowed.end();
}

std::string join(Texts texts, bool quoted) {
  std::string joined;
  for (const char* one : texts) joined += (joined.empty() ? "" : ", ") + (quoted ? repr(one) : one);
  return joined;
}

void allow(const char* where, const std::string& value, Texts allowed) {
  require(has(allowed, value), "{} is {}, allowed: ({})", where, repr(value), join(allowed, true));
}

void allow_in_chat(const std::string& where, const std::string& value, Texts allowed) {
  if (has(allowed, value)) return;
  throw bundle_error(say("the compiled chat template's {} is {}, allowed: {}", where,
                         first_points(repr(value), 60), join(allowed, false)),
                     kExportAgain);
}

void check_sha256(const std::string& text, const std::string& where, const char* why = "") {
  const bool whole = text.size() == 64 && text.find_first_not_of("0123456789abcdef") == text.npos;
  require(whole, "{} is not 64 lower-case hexadecimal digits{}", where, why);
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
    throw bundle_error(say("the compiled chat template has no role {}", repr(name)), kExportAgain);
  }
  if (!chat.fold) return;
  allow_in_chat("fold.into", chat.fold->into, kFolds);
  allow_in_chat("fold.strip", chat.fold->strip, kStrips);
  if (chat.order == "alternating" && names.count("system") == 0) return;
  throw bundle_error(
      "the compiled chat template folds the system message, which needs the order "
      "'alternating' and no role 'system'",
      kExportAgain);
}

// The rules over one manifest. Integers are named by their place, so that those beyond 64 bits are
// written and compared as what they are.
class Rules {
 public:
  Rules(const Manifest& manifest, const LargeNumbers& large)
      : manifest_(manifest), model_(manifest.model), large_(large) {
    for (const auto& [name, file] : manifest.files) hashes_[name] = file.sha256;
  }

  void check() const {
    const GraphSpec& graph = manifest_.graphs.onnx;
    check_model();
    check_depth();
    check_files();
    if (manifest_.tokenizer.chat) check_chat(*manifest_.tokenizer.chat);
    check_numbers();
    check_plans();
    if (manifest_.quantization) check_quantization(*manifest_.quantization);
    check_range("graphs.onnx.opset", graph.opset, 1, kMaxOpset);
    check_tensors("input", graph.inputs, contract::input_tensors(model_));
    check_tensors("output", graph.outputs, contract::output_tensors(model_));
    check_tokens();
  }

 private:
  using Ranks = std::unordered_map<std::string, std::size_t>;

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

  void check_range(const std::string& where, std::int64_t value, std::int64_t least,
                   std::int64_t most, const std::string& name = "") const {
    if (within(where, value, least, most)) return;
    require(false, "{} is {}, allowed: {}..{}", name.empty() ? where : name, shown(where, value),
            least, most);
  }

  void check_model() const {
    for (const ModelBound& bound : kModelBounds) {
      const std::string where = say("model.{}", bound.name);
      const std::int64_t value = model_.*bound.field;
      if (within(where, value, bound.least, bound.most)) continue;
      const std::string opening = say("{} is {}, allowed: ", where, shown(where, value));
      require(value >= bound.least, "{}{} or more", opening, bound.least);
      require(false, "{}at most {}", opening, bound.most);
    }
    require(model_.num_layers == model_.prelude + model_.coda,
            "model.num_layers is {}, not prelude + coda = {} + {}", model_.num_layers,
            model_.prelude, model_.coda);
    allow("model.pooling", model_.pooling, kPoolings);
    allow("model.bridge", model_.bridge, kBridges);
  }

  void check_depth() const {
    const DepthSpec& depth = manifest_.depth;
    const std::string best = digits("depth.default", depth.default_depth);
    const std::string most = digits("depth.max", depth.max);
    // Of two beyond 64 bits the longer, or else the later in the alphabet, is more.
    const bool both = is_large("depth.default") && is_large("depth.max");
    const bool ordered = both ? std::pair(best.size(), best) <= std::pair(most.size(), most)
                              : depth.default_depth <= depth.max;
    require(depth.min == 1 && depth.default_depth >= 1 && depth.max >= 1 && ordered,
            "depth range {}..{} with default {} is not 1 <= default <= max",
            shown("depth.min", depth.min), shorten(most), shorten(best));
    require(depth.max <= kMaxDepth, "depth.max is {}, allowed: at most {}", shorten(most),
            kMaxDepth);
    for (const std::int64_t value : depth.trained) {
      require(value >= 1, "depth.trained holds a depth below 1");
      require(value <= kMaxDepth, "depth.trained holds a depth above {}", kMaxDepth);
    }
    if (const auto& halting = depth.halting) {
      require(has(kHalters, halting->kind), "depth.halting.kind is {}, allowed: ({})",
              shorten(repr(halting->kind)), join(kHalters, true));
      require(halting->threshold > 0 && halting->threshold <= 1,
              "depth.halting.threshold is {}, allowed: above 0 and at most 1",
              repr(halting->threshold));
      check_range("depth.halting.max", halting->max, 1, depth.max);
    }
    require(model_.halting == depth.halting.has_value(),
            "model.halting is {}, and depth.halting {}", model_.halting ? "true" : "false",
            model_.halting ? "is missing" : "is there all the same");
  }

  void require_listed(const std::string& name) const {
    require(hashes_.count(name) > 0, "{} is used but not listed under files", repr(name));
  }

  void check_files() const {
    for (const auto& [name, file] : manifest_.files) {
      check_file_name(name);
      require(name != kManifestName && name != kHashName, "files lists {} itself", name);
      check_sha256(file.sha256, say("files.{}.sha256", name));
      check_range(say("files.{}.bytes", name), file.bytes, 0, kInt64);
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
    require(sampling.temperature >= 0 && std::isfinite(sampling.temperature) &&
                within("sampling.top_k", sampling.top_k, 0, kInt32) && sampling.top_p > 0 &&
                sampling.top_p <= 1 && sampling.min_p >= 0 && sampling.min_p <= 1 &&
                sampling.repetition_penalty > 0 && std::isfinite(sampling.repetition_penalty),
            "sampling needs a finite temperature >= 0, top_k in 0..{}, 0 < top_p <= 1, "
            "0 <= min_p <= 1 and a finite repetition_penalty > 0",
            kInt32);
    const double bound = manifest_.parity.relative_l2, kl = manifest_.parity.kl.value_or(0.5);
    require(bound > 0 && bound < 1, "parity.relative_l2 is {}, allowed: above 0 and below 1",
            repr(bound));
    require(kl > 0 && kl < 1, "parity.kl is {}, allowed: above 0 and below 1, or null", repr(kl));
    const contract::PrecisionSpec* precision = contract::find_precision(manifest_.precision);
    if (precision == nullptr) allow("precision", manifest_.precision, contract::kPrecisionNames);
    const auto& quantization = manifest_.quantization;
    const std::string bits =
        quantization ? digits("quantization.bits", quantization->bits) : "None";
    require(bits == (precision->bits ? std::to_string(precision->bits) : "None"),
            "precision {} with quantization of {} bits", manifest_.precision, bits);
    check_sha256(manifest_.checkpoint.sha256, "checkpoint.sha256");
  }

  void check_quantization(const QuantizationSpec& spec) const {
    const auto allow_one = [](const char* name, const std::string& value, Texts allowed,
                              bool text) {
      require(has(allowed, value), "quantization.{} is {}, allowed: {}", name,
              shorten(text ? repr(value) : value), join(allowed, false));
    };
    const auto allow_number = [&](const char* name, std::int64_t value, Texts allowed) {
      allow_one(name, digits(say("quantization.{}", name), value), allowed, false);
    };
    allow_number("bits", spec.bits, {"4", "8"});
    allow_number("sensitive_bits", spec.sensitive_bits, {"4", "8"});
    allow_number("block", spec.block, {"32", "64", "128"});
    allow_one("method", spec.method, {"rtn", "gptq"}, true);
    allow_number("accuracy_level", spec.accuracy_level, {"1", "4"});
    const bool gptq = spec.method == "gptq";
    require(gptq || !spec.calibration, "quantization.calibration is given, method rtn has none");
    if (gptq) {
      check_sha256(spec.calibration.value_or(""), "quantization.calibration", ", as gptq needs");
    }
  }

  void check_plans() const {
    const GraphSpec& graph = manifest_.graphs.onnx;
    std::set<std::string> names(graph.data.begin(), graph.data.end());
    names.insert(graph.file);
    std::string lines;
    for (const std::string& name : names) lines += say("{}  {}\n", hashes_.at(name), name);
    const std::string found = hash_text(lines);
    for (std::size_t i = 0; i < manifest_.plans.size(); ++i) {
      const PlanSpec& plan = manifest_.plans[i];
      require_listed(plan.file);
      if (plan.graph_sha256 != found) {
        throw bundle_error(say("{} was built from the graph {}..., the bundle holds {}...: they "
                               "come from different checkpoints",
                               plan.file, first_points(plan.graph_sha256, 12), found.substr(0, 12)),
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
    require(others.count(plan.file) == 0, "the plan {} is another file of the bundle's",
            repr(plan.file));
    require(plan.precision == manifest_.precision, "{} has the precision {}, the bundle {}",
            plan.file, repr(plan.precision), repr(manifest_.precision));
    check_range(place + ".max_new_tokens", plan.max_new_tokens, 1, kInt32,
                say("{}: max_new_tokens", plan.file));
    check_range(place + ".max_logits", plan.max_logits, 1, kInt32,
                say("{}: max_logits", plan.file));
    require(!plan.profiles.empty(), "{} has no profile", plan.file);
    Ranks ranks;
    for (const TensorSpec& tensor : graph.inputs) ranks[tensor.name] = tensor.shape.size();
    for (std::size_t i = 0; i < plan.profiles.size(); ++i) {
      const ProfileSpec& profile = plan.profiles[i];
      const std::string where = say("{}, profile {}", plan.file, repr(profile.name));
      check_ranges(profile.shapes, where, say("{}.profiles[{}].shapes", place, i), ranks);
      check_ranges(profile.values, where, say("{}.profiles[{}].values", place, i), ranks);
      for (const RangeSpec& one : profile.shapes) {
        const std::size_t rank = ranks.at(one.name);
        require(one.max.size() == rank, "{}: {} has {} dimensions, the graph's has {}", where,
                one.name, one.max.size(), rank);
      }
    }
  }

  void check_ranges(const std::vector<RangeSpec>& ranges, const std::string& where,
                    const std::string& place, const Ranks& ranks) const {
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      const RangeSpec& one = ranges[i];
      require(ranks.count(one.name) > 0, "{}: the graph has no input {}", where, repr(one.name));
      require(one.min.size() == one.opt.size() && one.opt.size() == one.max.size(),
              "{}: min, opt and max of {} differ in length", where, one.name);
      for (std::size_t n = 0; n < one.min.size(); ++n) {
        const std::string low = say("{}[{}].min[{}]", place, i, n);
        const std::string best = say("{}[{}].opt[{}]", place, i, n);
        const std::string high = say("{}[{}].max[{}]", place, i, n);
        require(within(low, one.min[n], 0, one.opt[n]) && within(best, one.opt[n], 0, one.max[n]) &&
                    within(high, one.max[n], 0, kInt64),
                "{}: {} goes from {} by {} to {}, not 0 <= min <= opt <= max", where, one.name,
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
      require(found != missing.end(), "the graph's {} {} is unknown here, or listed twice", side,
              shorten(repr(specs[i].name)));
      check_tensor(specs[i], *found->second, say("graphs.onnx.{}s[{}].shape", side, i));
      missing.erase(found);
    }
    for (const contract::NamedTensor& one : wanted) {
      require(missing.count(one.name) == 0, "the graph lacks the {} {}", side, one.name);
    }
  }

  void check_tensor(const TensorSpec& spec, const contract::NamedTensor& named,
                    const std::string& place) const {
    const TensorSpec wanted = contract::resolve(named, model_, manifest_.precision);
    if (spec.dtype != wanted.dtype) {
      const bool cache = std::strcmp(named.tensor->dtype, contract::kCache) == 0;
      const std::string found = say("the graph's {} is {}", spec.name, shorten(repr(spec.dtype)));
      require(cache, "{}, not {}", found, repr(wanted.dtype));
      require(false, "precision {} keeps keys and values in {}, {}", manifest_.precision,
              wanted.dtype, found);
    }
    require(spec.shape.size() == wanted.shape.size(), "the graph's {} has {} dimensions, not {}",
            spec.name, spec.shape.size(), wanted.shape.size());
    const auto show = [&](const Dimension& size, const std::string& where) {
      const auto* text = std::get_if<std::string>(&size);
      return text ? repr(*text) : digits(where, std::get<std::int64_t>(size));
    };
    for (std::size_t i = 0; i < spec.shape.size(); ++i) {
      if (spec.shape[i] == wanted.shape[i]) continue;
      const std::string size = shorten(show(spec.shape[i], say("{}[{}]", place, i)));
      const std::string should = show(wanted.shape[i], "");
      const contract::Size& any = named.tensor->shape[i];
      require(any.kind != contract::Size::kModel, "model.{} is {}, the graph's {} has {}", any.name,
              should, spec.name, size);
      require(false, "the graph's {} has {} in the place of {}", spec.name, size, should);
    }
  }

  void check_tokens() const {
    const TokenizerSpec& tokenizer = manifest_.tokenizer;
    const auto check_one = [&](std::int64_t id, const std::string& where) {
      if (within(where, id, 0, model_.vocab_size - 1)) return;
      require(false, "tokenizer: token id {} is outside 0..{}", shown(where, id),
              model_.vocab_size - 1);
    };
    const auto check_all = [&](const std::vector<std::int64_t>& ids, const char* where) {
      for (std::size_t i = 0; i < ids.size(); ++i) check_one(ids[i], say("{}[{}]", where, i));
    };
    check_all(tokenizer.eos_token_ids, "tokenizer.eos_token_ids");
    check_all(tokenizer.prefix_token_ids, "tokenizer.prefix_token_ids");
    check_one(tokenizer.bos_token_id.value_or(0), "tokenizer.bos_token_id");
    check_one(tokenizer.pad_token_id.value_or(0), "tokenizer.pad_token_id");
  }

  const Manifest& manifest_;
  const ModelSpec& model_;
  const LargeNumbers& large_;
  std::unordered_map<std::string, std::string> hashes_;
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
  throw bundle_error(say("{} names the file {}, outside the bundle", kManifestName, repr(name)),
                     kExportAgain);
}

void check_manifest(const Manifest& manifest, const LargeNumbers& large) {
  Rules(manifest, large).check();
}

}  // namespace ouro::core
