// SHA-256 by OpenSSL, in lower-case hexadecimal.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace ouro::core {

std::string hash_text(std::string_view text);

// Of a file, read in a stream. Throws std::system_error where it can't be read.
std::string hash_file(const std::filesystem::path& file);

}  // namespace ouro::core
