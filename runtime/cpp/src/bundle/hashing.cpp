#include "bundle/hashing.hpp"

#include <openssl/evp.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <system_error>
#include <vector>

namespace ouro::core {
namespace {

std::system_error last_error() { return {errno, std::generic_category()}; }

// The hash of all that `read` puts into a buffer of a size, until it puts nothing there.
template <class Read>
std::string hash_pieces(Read&& read) {
  constexpr std::size_t kPiece = 1 << 18;
  std::vector<char> piece(kPiece);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                        &EVP_MD_CTX_free);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  bool done = context && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
  while (const std::size_t bytes = done ? read(piece.data(), kPiece) : 0) {
    done = EVP_DigestUpdate(context.get(), piece.data(), bytes) == 1;
  }
  if (!done || EVP_DigestFinal_ex(context.get(), digest, &size) != 1) {
    throw std::system_error(ENOSYS, std::generic_category());  // a libcrypto without SHA-256
  }
  std::string text;
  for (unsigned int i = 0; i < size * 2; ++i) {
    text += "0123456789abcdef"[digest[i / 2] >> (i % 2 ? 0 : 4) & 15];
  }
  return text;
}

}  // namespace

std::string hash_text(std::string_view text) {
  return hash_pieces([&](char* piece, std::size_t most) {
    const std::size_t bytes = text.copy(piece, most);
    text.remove_prefix(bytes);
    return bytes;
  });
}

std::string hash_file(const std::filesystem::path& file) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> opened(std::fopen(file.c_str(), "rb"),
                                                               &std::fclose);
  if (!opened) throw last_error();
  std::setvbuf(opened.get(), nullptr, _IONBF, 0);
  return hash_pieces([&](char* piece, std::size_t most) {
    const std::size_t bytes = std::fread(piece, 1, most, opened.get());
    if (std::ferror(opened.get())) throw last_error();
    return bytes;
  });
}

}  // namespace ouro::core
