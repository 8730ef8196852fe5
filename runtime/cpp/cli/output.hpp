// What commands print and write: tables, and files that are whole or not there.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace ouro::cli {

// A text by the format of printf.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

// A column of a table; lines of its name are parted by '\n'.
struct Column {
  std::string name;
  bool right = true;  // of its cells, which stand at the right edge then
};

// A table as `ouro` prints it to a pipe. Every row has a cell a column.
std::string make_table(const std::string& title, const std::vector<Column>& columns,
                       const std::vector<std::vector<std::string>>& rows);

// Refuses a file that can't be written, or lies in `bundle`, before the work whose outcome it would
// hold. Throws an error of kCommand.
void require_writable(const std::filesystem::path& file, const std::filesystem::path& bundle);

// Writes a file beside its place and renames it there. Throws an error of kCommand; what was there
// is then unchanged.
void write_whole(const std::filesystem::path& file, const std::string& text);

}  // namespace ouro::cli
