// The command line of ouro-cli, read by hand.
#pragma once

#include <cstdint>
#include <exception>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace ouro::cli {

// A command line that is not understood: what is printed, and the exit status.
class UsageError : public std::exception {
 public:
  UsageError(std::string text, int status) : text_(std::move(text)), status_(status) {}
  const char* what() const noexcept override { return text_.c_str(); }
  // 2 for an unknown option or a missing argument, 1 for a value that is none; as in `ouro`.
  int status() const noexcept { return status_; }

 private:
  std::string text_;
  int status_;
};

// An option of a command; `value` is what its value is called, null where it takes none.
struct Option {
  const char* name;
  const char* value;
  std::string help;
};

// What a command takes.
struct Command {
  const char* name;
  const char* help;
  const char* example;
  std::vector<const char*> arguments;
  std::vector<Option> options;
};

// What was given on a command line.
class Given {
 public:
  // Reads what stands behind the command's name. Throws UsageError.
  Given(const Command& command, const std::vector<std::string>& words);

  // The arguments, in order, as many as the command has.
  const std::vector<std::string>& arguments() const { return arguments_; }
  bool has(const std::string& option) const { return values_.count(option) != 0; }
  // Every value of an option.
  std::vector<std::string> all(const std::string& option) const;
  // The last value of an option; none where it was not given. `integer`, `natural` and `number`
  // throw UsageError for a text that is none.
  std::optional<std::string> text(const std::string& option) const;
  std::optional<std::int64_t> integer(const std::string& option) const;
  std::optional<std::uint64_t> natural(const std::string& option) const;
  std::optional<double> number(const std::string& option) const;

 private:
  void take_option(const std::vector<std::string>& words, std::size_t& place);
  UsageError bad_value(const std::string& option, const char* wanted) const;
  UsageError usage(const std::string& problem) const;

  const Command& command_;
  std::vector<std::string> arguments_;
  std::map<std::string, std::vector<std::string>> values_;
};

// The help of one command.
std::string help_of(const Command& command);

// Numbers from `1,4,8`, `1-16` or a mixture, each once. Throws engine_error where it is no such
// list; `option` is its name.
std::vector<std::int64_t> parse_numbers(const std::string& text, const std::string& option);

}  // namespace ouro::cli
