#include "output.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <system_error>

#include "error.hpp"

namespace ouro::cli {
namespace {

namespace fs = std::filesystem;

constexpr char kRule[] = "─";

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream parts(text);
  for (std::string line; std::getline(parts, line);) lines.push_back(line);
  return lines;
}

core::Error command_error(const fs::path& file, const std::string& problem,
                          const std::string& cure) {
  return core::Error(core::Code::kCommand, file.string() + problem, cure);
}

std::string aligned(const std::string& cell, std::size_t width, bool right) {
  const std::string space(width - cell.size(), ' ');
  return right ? space + cell : cell + space;
}

bool lies_in(const fs::path& inner, const fs::path& outer) {
  const auto [end, place] = std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end());
  static_cast<void>(place);
  return end == outer.end();
}

}  // namespace

std::string format(const char* pattern, ...) {
  va_list values, again;
  va_start(values, pattern);
  va_copy(again, values);
  const int size = std::vsnprintf(nullptr, 0, pattern, values);
  va_end(values);
  std::string text(static_cast<std::size_t>(std::max(size, 0)), '\0');
  std::vsnprintf(text.data(), text.size() + 1, pattern, again);
  va_end(again);
  return text;
}

std::string make_table(const std::string& title, const std::vector<Column>& columns,
                       const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  std::vector<std::vector<std::string>> names;
  std::size_t height = 1;
  for (std::size_t place = 0; place < columns.size(); ++place) {
    names.push_back(lines_of(columns[place].name));
    height = std::max(height, names.back().size());
    std::size_t width = 0;
    for (const auto& line : names.back()) width = std::max(width, line.size());
    for (const auto& row : rows) width = std::max(width, row[place].size());
    widths.push_back(width);
  }
  const auto line = [&](const auto& cell_of) {
    std::string text;
    for (std::size_t place = 0; place < columns.size(); ++place) {
      text +=
          (place == 0 ? " " : "  ") + aligned(cell_of(place), widths[place], columns[place].right);
    }
    return text + " \n";
  };
  std::string text;
  for (std::size_t row = 0; row < height; ++row) {
    text += line([&](std::size_t place) {
      const auto& own = names[place];
      const std::size_t above = height - own.size();
      return row < above ? std::string() : own[row - above];
    });
  }
  const std::size_t width = text.find('\n');
  std::string rule = " ";
  for (std::size_t place = 2; place < width; ++place) rule += kRule;
  text += rule + " \n";
  for (const auto& row : rows) text += line([&](std::size_t place) { return row[place]; });
  const std::string blank = std::string(width, ' ') + "\n";
  const std::size_t left = width > title.size() ? (width - title.size()) / 2 : 0;
  const std::string head = title.empty() ? "" : std::string(left, ' ') + title + "\n";
  return head + blank + text + blank;
}

void require_writable(const fs::path& file, const fs::path& bundle) {
  std::error_code ignored;
  const fs::path real = fs::weakly_canonical(file, ignored);
  const fs::path whole = fs::weakly_canonical(bundle, ignored);
  if (lies_in(real, whole)) {
    throw command_error(
        file,
        (real == whole ? " is " : " lies in ") + bundle.string() + ", which this command uses",
        "give a file elsewhere");
  }
  if (fs::is_directory(file, ignored)) {
    throw command_error(file, " is a directory", "give a file to write to");
  }
  const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
  if (!fs::is_directory(folder, ignored)) {
    throw command_error(file, ": its directory is not there", "make it, or give another file");
  }
  if (access((fs::exists(file, ignored) ? file : folder).c_str(), W_OK) != 0) {
    throw command_error(file, ": may not be written", "give another file");
  }
}

void write_whole(const fs::path& file, const std::string& text) {
  std::error_code failed;
  const fs::path target = fs::weakly_canonical(file, failed);
  const bool device = fs::exists(target, failed) && !fs::is_regular_file(target, failed);
  fs::path staged = target;
  if (!device) {
    staged.replace_filename("." + target.stem().string() + "." + std::to_string(getpid()) +
                            target.extension().string());
  }
  errno = 0;
  std::ofstream out(staged, std::ios::binary);
  out << text;
  out.close();
  if (!out) failed = std::error_code(errno == 0 ? EIO : errno, std::generic_category());
  if (!failed && !device) fs::rename(staged, target, failed);
  if (failed) {
    std::error_code ignored;
    if (!device) fs::remove(staged, ignored);
    throw command_error(file, ": can't be written: " + failed.message(), "it is as it was");
  }
}

}  // namespace ouro::cli
