// The error tree of runtime/errors.py: one exception, told apart by its code.
#pragma once

#include <exception>
#include <string>
#include <utility>

namespace ouro::core {

// The numbers are those of runtime/errors.py and of ouro_code in ouro.h; they never change.
enum class Code {
  kOuro = 0,
  kConfig = 1,
  kSource = 2,
  kCheckpoint = 3,
  kData = 4,
  kTraining = 5,
  kExport = 6,
  kBundle = 7,
  kEngine = 8,
  kCommand = 9,
};

// Anything a user can be told about in one line: what was given and is allowed, and what to do
// next.
class Error : public std::exception {
 public:
  Error(Code code, std::string problem, std::string cure = {})
      : code_(code), problem_(std::move(problem)), cure_(std::move(cure)) {
    text_ = cure_.empty() ? problem_ : problem_ + "; " + cure_;
  }

  const char* what() const noexcept override { return text_.c_str(); }
  Code code() const noexcept { return code_; }
  const std::string& problem() const noexcept { return problem_; }
  const std::string& cure() const noexcept { return cure_; }

 private:
  Code code_;
  std::string problem_, cure_, text_;
};

// A bundle is missing, damaged, of an unknown version, or not a bundle.
inline Error bundle_error(std::string problem, std::string cure = {}) {
  return Error(Code::kBundle, std::move(problem), std::move(cure));
}

// What to do about a bundle, as in runtime/bundle/cures.py.
inline constexpr char kExportAgain[] = "export the bundle again";
inline constexpr char kCopyOrExport[] = "copy or export the bundle again";
inline constexpr char kUnreadable[] = "make it readable, or give another copy of the bundle";

// What to do about a tokenizer that fails in use.
inline constexpr char kOwnTokenizer[] = "export the bundle again, with the model's own tokenizer";

// A request that an engine can't serve: depth, prompt, options, backend.
inline Error engine_error(std::string problem, std::string cure = {}) {
  return Error(Code::kEngine, std::move(problem), std::move(cure));
}

}  // namespace ouro::core
