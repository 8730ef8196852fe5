#include "replay.hpp"

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "bundle/contract.hpp"
#include "bundle/say.hpp"
#include "decode/decoder.hpp"
#include "error.hpp"
#include "output.hpp"

namespace ouro::cli {
namespace {

namespace contract = core::contract;

bool is_rowless(const std::string& name) {
  const auto* end = std::end(contract::kRowless);
  return std::find_if(std::begin(contract::kRowless), end,
                      [&](const char* one) { return name == one; }) != end;
}

// Whole numbers as they are recorded.
std::vector<std::int64_t> whole_of(const core::HostArray& array, const std::string& name) {
  if (array.dtype != "int64") {
    throw CaseError("its recorded " + name + " are " + array.dtype + ", not int64");
  }
  return integers_of(array);
}

// Some rows of an array that has the batch first.
core::HostArray rows_of(const core::HostArray& array, std::int64_t first, std::int64_t count) {
  const std::size_t row = array.bytes.size() / static_cast<std::size_t>(array.shape[0]);
  const auto start = array.bytes.begin() + first * static_cast<std::ptrdiff_t>(row);
  core::HostArray part{
      array.dtype, array.shape, {start, start + count * static_cast<std::ptrdiff_t>(row)}};
  part.shape[0] = count;
  return part;
}

// Runs the graph on a batch, in several calls where the backend takes fewer rows: a row's outputs
// depend on no other row. `depth` stays the whole batch's.
Arrays run_in_groups(const core::Backend& backend, const Arrays& inputs) {
  const std::int64_t rows = require(inputs, contract::kRowDepth).shape.at(0);
  const std::int64_t most = backend.limits().max_batch;
  if (most == 0 || rows <= most) return backend.run(inputs);
  Arrays joined;
  for (std::int64_t first = 0; first < rows; first += most) {
    const std::int64_t count = std::min(most, rows - first);
    Arrays part;
    for (const auto& [name, one] : inputs) {
      part[name] = is_rowless(name) ? one : rows_of(one, first, count);
    }
    for (auto& [name, one] : backend.run(part)) {
      if (joined.count(name) == 0) {
        joined[name] = one;
      } else {
        core::HostArray& whole = joined[name];
        whole.shape[0] += one.shape[0];
        whole.bytes.insert(whole.bytes.end(), one.bytes.begin(), one.bytes.end());
      }
    }
  }
  return joined;
}

// The sums at the last position: [B, D, K, d] becomes [B, D, d].
core::HostArray last_sums(const core::HostArray& sums) {
  const core::Shape& shape = sums.shape;
  const std::size_t blocks = static_cast<std::size_t>(shape[0] * shape[1]);
  const std::size_t block = sums.bytes.size() / blocks;
  const std::size_t width = block / static_cast<std::size_t>(shape[2]);
  core::HostArray last{sums.dtype, {shape[0], shape[1], shape[3]}, {}};
  for (std::size_t one = 0; one < blocks; ++one) {
    const auto end = sums.bytes.begin() + static_cast<std::ptrdiff_t>((one + 1) * block);
    last.bytes.insert(last.bytes.end(), end - static_cast<std::ptrdiff_t>(width), end);
  }
  return last;
}

class Replay {
 public:
  Replay(const std::shared_ptr<core::Backend>& backend, const core::Manifest& manifest)
      : backend_(backend), manifest_(manifest) {}

  Result run(const Case& one, bool wanted) {
    if (one.kind == "greedy") return run_greedy(one);
    if (one.kind == "long") return run_long(one);
    Arrays outputs = run_in_groups(*backend_, inputs_of(one));
    Result result;
    for (const char* name : contract::kComparedOutputs) {
      result.outputs[name] = require(outputs, name);
    }
    if (outputs.count(contract::kDepthUsed) != 0) {
      result.outputs[contract::kDepthUsed] = outputs[contract::kDepthUsed];
    }
    result.positions = one.positions;
    if (wanted) kept_[one.name] = std::move(outputs);
    return result;
  }

 private:
  Arrays inputs_of(const Case& one) const {
    check_types(one.inputs);
    Arrays inputs = one.inputs;
    if (one.after) {
      const auto kept = kept_.find(*one.after);
      if (kept == kept_.end()) {
        throw CaseError("the case before it, " + *one.after + ", did not run");
      }
      const std::string prefix = contract::kNewPrefix;
      for (const auto& [name, tensor] : kept->second) {
        if (name.rfind(prefix, 0) == 0) {
          inputs.emplace(contract::kPastPrefix + name.substr(prefix.size()), tensor);
        }
      }
      inputs.emplace(contract::kPastPoolSum, last_sums(require(kept->second, contract::kPoolSum)));
    }
    const std::string listed = " is not the " + std::to_string(one.depth) + " it is listed with";
    const auto depth = inputs.find(contract::kDepth), rows = inputs.find(contract::kRowDepth);
    const bool both = depth != inputs.end() && rows != inputs.end();
    if (!both || integers_of(depth->second) != std::vector<std::int64_t>{one.depth}) {
      throw CaseError("its depth input" + listed);
    }
    const std::vector<std::int64_t> depths = integers_of(rows->second);
    const bool same = std::all_of(depths.begin(), depths.end(),
                                  [&](std::int64_t row) { return row == one.depth; });
    if (one.kind != "mixed" && one.kind != "halting" && !same) {
      throw CaseError("its row_depth input" + listed);
    }
    if (one.depth > manifest_.depth.max) {
      throw CaseError("its depth is above the bundle's " + std::to_string(manifest_.depth.max));
    }
    for (const core::TensorSpec& spec : manifest_.graphs.onnx.inputs) {
      if (inputs.count(spec.name) == 0) throw CaseError("its input " + spec.name + " is missing");
    }
    return inputs;
  }

  // Refuses recorded inputs that are of no kind that the graph's are of: what is recorded is a
  // fact, which no backend makes fit but in one way. Of a graph that takes 16 bits an input may be
  // recorded in float32.
  void check_types(const Arrays& inputs) const {
    const std::vector<core::TensorSpec>& specs = manifest_.graphs.onnx.inputs;
    for (const auto& [name, array] : inputs) {
      const auto spec = std::find_if(
          specs.begin(), specs.end(),
          [&sought = name](const core::TensorSpec& each) { return each.name == sought; });
      if (spec == specs.end()) throw CaseError("the graph has no " + name);
      const bool half = spec->dtype == "float16" || spec->dtype == "bfloat16";
      if (array.dtype != spec->dtype && !(half && array.dtype == "float32")) {
        throw CaseError("its input " + name + " is " + array.dtype + ", the graph's is " +
                        spec->dtype);
      }
      if (array.shape.size() != spec->shape.size()) {
        throw CaseError("its input " + name + " has " + std::to_string(array.shape.size()) +
                        " dimensions, not those it needs");
      }
    }
  }

  // Recorded tokens, possibly none, checked.
  core::Tokens tokens_of(const core::HostArray& array) const {
    core::Tokens tokens = whole_of(array, "tokens");
    for (const core::Token token : tokens) {
      if (token < 0 || token >= manifest_.model.vocab_size) {
        throw CaseError("its recorded tokens are outside the vocabulary");
      }
    }
    return tokens;
  }

  // PyTorch's greedy continuation, fed token by token through the engine's own cache.
  Result run_greedy(const Case& one) const {
    const core::Tokens prompt = tokens_of(require(one.inputs, "prompt"));
    const core::Tokens tokens = tokens_of(require(one.outputs, "tokens"));
    if (tokens.empty() || prompt.empty()) {
      throw CaseError(kUnfit);
    }
    core::Decoder decoder(backend_, manifest_, {one.depth});
    const std::vector<float> first = decoder.prefill({prompt});
    const float* logits = first.data();
    const auto size = static_cast<std::size_t>(manifest_.model.vocab_size);
    Result result;
    core::Tokens best;
    std::vector<double> top2;
    for (std::size_t index = 0; index < tokens.size(); ++index) {
      if (index != 0) logits = decoder.step({tokens[index - 1]});
      best.push_back(std::max_element(logits, logits + size) - logits);
      bool finite = true;
      float other = -std::numeric_limits<float>::infinity();
      for (std::size_t place = 0; place < size; ++place) {
        finite = finite && std::isfinite(logits[place]);
        if (static_cast<core::Token>(place) != tokens[index])
          other = std::max(other, logits[place]);
      }
      const double nan = std::nan("");
      const auto own = static_cast<std::size_t>(tokens[index]);
      top2.push_back(finite ? static_cast<double>(logits[own]) : nan);
      top2.push_back(finite ? static_cast<double>(other) : nan);
      result.positions.push_back(static_cast<std::int64_t>(prompt.size() - 1 + index));
    }
    const auto count = static_cast<std::int64_t>(tokens.size());
    result.outputs["tokens"] = make_array({count}, best);
    result.outputs["top2"] = make_array({count, 2}, top2);
    return result;
  }

  // A long text, fed through the engine's own cache from prompts of several lengths; the tokens
  // after a prompt come one by one. Prompts that a plan can't hold are left out.
  Result run_long(const Case& one) const {
    const core::Tokens tokens = tokens_of(require(one.inputs, "tokens"));
    const core::HostArray& listed = require(one.inputs, "spans");
    const std::vector<std::int64_t> spans = whole_of(listed, "spans");
    if (listed.shape.size() != 2 || listed.shape[1] != 2) throw CaseError(kUnfit);
    const std::int64_t slots = backend_->limits().max_slots;
    const auto size = static_cast<std::size_t>(manifest_.model.vocab_size);
    Result result;
    std::vector<float> found;
    for (std::size_t place = 0; place + 1 < spans.size(); place += 2) {
      const std::int64_t prompt = spans[place], end = spans[place + 1];
      if (slots != 0 && end > slots) continue;
      if (prompt < 1 || prompt > end || end > static_cast<std::int64_t>(tokens.size())) {
        throw CaseError(kUnfit);
      }
      core::Decoder decoder(backend_, manifest_, {one.depth});
      const std::vector<float> last = decoder.prefill({{tokens.begin(), tokens.begin() + prompt}});
      found.insert(found.end(), last.begin(), last.end());
      for (std::int64_t next = prompt; next < end; ++next) {
        const float* logits = decoder.step({tokens[static_cast<std::size_t>(next)]});
        found.insert(found.end(), logits, logits + size);
      }
      for (std::int64_t asked = prompt - 1; asked < end; ++asked) result.positions.push_back(asked);
    }
    if (result.positions.empty()) {
      throw CaseError("none of its prompts fits the " + std::to_string(slots) + " slots there are");
    }
    const auto rows = static_cast<std::int64_t>(result.positions.size());
    result.outputs[contract::kLogits] =
        make_array({1, rows, static_cast<std::int64_t>(size)}, found);
    return result;
  }

  std::shared_ptr<core::Backend> backend_;
  const core::Manifest& manifest_;
  std::map<std::string, Arrays> kept_;  // outputs of cases that others follow
};

}  // namespace

std::vector<Result> run_cases(const std::vector<Case>& cases,
                              const std::shared_ptr<core::Backend>& backend,
                              const core::Manifest& manifest) {
  std::set<std::string> wanted;
  for (const Case& one : cases) {
    if (one.after) wanted.insert(*one.after);
  }
  Replay replay(backend, manifest);
  std::vector<Result> results;
  for (const Case& one : cases) {
    std::string failure = "failed";
    try {
      results.push_back(replay.run(one, wanted.count(one.name) != 0));
      continue;
    } catch (const core::Error& error) {
      failure = core::one_line(error.what());
    } catch (const CaseError& error) {
      failure = core::one_line(error.what());
    }
    Result failed;
    failed.failure = failure.empty() ? "failed" : failure.substr(0, 200);
    results.push_back(failed);
  }
  return results;
}

}  // namespace ouro::cli
