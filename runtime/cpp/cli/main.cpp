// ouro-cli: runs, checks and measures bundles, where no Python is.

#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "bundle/say.hpp"
#include "commands.hpp"
#include "error.hpp"
#include "output.hpp"

namespace {

namespace cli = ouro::cli;

struct Entry {
  cli::Command command;
  int (*body)(const cli::Given&);
};

std::vector<Entry> entries() {
  return {{cli::run_command(), cli::run},
          {cli::check_command(), cli::check},
          {cli::bench_command(), cli::bench}};
}

void print_help(std::FILE* to) {
  std::fputs("usage: ouro-cli COMMAND [OPTIONS]\n\n", to);
  for (const Entry& one : entries()) {
    const std::string help = one.command.help;
    std::fprintf(to, "  %-8s%s\n", one.command.name, help.substr(0, help.find('\n')).c_str());
  }
  std::fputs("\n`ouro-cli COMMAND --help` says more; `ouro-cli --version` the version.\n", to);
}

int start(const std::vector<std::string>& words) {
  if (words.empty()) {
    print_help(stderr);
    return 2;
  }
  if (words[0] == "--help" || words[0] == "-h") {
    print_help(stdout);
    return 0;
  }
  if (words[0] == "--version") {
    std::puts("ouro-cli " OURO_VERSION);
    return 0;
  }
  for (const Entry& one : entries()) {
    if (words[0] != one.command.name) continue;
    const std::vector<std::string> rest(words.begin() + 1, words.end());
    const bool asks = !rest.empty() && (rest[0] == "--help" || rest[0] == "-h");
    if (rest.empty() || asks) {
      std::fputs(cli::help_of(one.command).c_str(), asks ? stdout : stderr);
      return asks ? 0 : 2;
    }
    return one.body(cli::Given(one.command, rest));
  }
  const bool option = words[0][0] == '-';
  throw cli::UsageError(
      (option ? "No such option: " + words[0] : "No such command '" + words[0] + "'") +
          "; see `ouro-cli --help`",
      2);
}

// A text with its control characters written out, which would steer a terminal.
std::string visible(const std::string& text) {
  std::string shown;
  for (std::size_t place = 0; place < text.size(); ++place) {
    auto byte = static_cast<unsigned char>(text[place]);
    const auto next = static_cast<unsigned char>(place + 1 < text.size() ? text[place + 1] : 0);
    const bool high = byte == 0xC2 && next >= 0x80 && next < 0xA0;  // U+0080 to U+009F in UTF-8
    if (byte >= 0x20 && byte != 0x7F && !high) {
      shown += text[place];
      continue;
    }
    if (high) byte = static_cast<unsigned char>(text[++place]);
    char code[5];
    std::snprintf(code, sizeof code, "\\x%02x", static_cast<unsigned>(byte));
    shown += code;
  }
  return shown;
}

}  // namespace

int main(int count, char** words) {
  int status = 1;
  std::string problem;
  try {
    return start({words + 1, words + count});
  } catch (const cli::UsageError& error) {
    status = error.status();
    problem = error.what();
  } catch (const ouro::core::Error& error) {
    problem = error.what();
  } catch (const std::bad_alloc&) {
    problem = "out of memory; close other programs or use a smaller model";
  } catch (const std::exception& error) {
    problem = std::string("a fault of ouro-cli: ") + error.what();
  }
  std::fprintf(stderr, "error: %s\n", visible(ouro::core::one_line(problem)).c_str());
  return status;
}
