#include "bundle/hashing.hpp"

#include <openssl/evp.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <new>
#include <system_error>
#include <vector>

namespace ouro::core {
namespace {

class Hash {
 public:
  Hash() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free) {
    if (!context_) throw std::bad_alloc();
    check(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr));
  }

  void add(const void* data, std::size_t bytes) {
    check(EVP_DigestUpdate(context_.get(), data, bytes));
  }

  std::string digits() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int bytes = 0;
    check(EVP_DigestFinal_ex(context_.get(), digest, &bytes));
    std::string text;
    for (unsigned int i = 0; i < bytes; ++i) {
      text += "0123456789abcdef"[digest[i] >> 4];
      text += "0123456789abcdef"[digest[i] & 15];
    }
    return text;
  }

 private:
  static void check(int done) {
    if (done != 1)
      throw std::system_error(ENOSYS, std::generic_category(), "OpenSSL has no SHA-256");
  }

  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string hash_text(std::string_view text) {
  Hash hash;
  hash.add(text.data(), text.size());
  return hash.digits();
}

std::string hash_file(const std::filesystem::path& file) {
  constexpr std::size_t kPiece = 1 << 18;
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> opened(std::fopen(file.c_str(), "rb"),
                                                               &std::fclose);
  if (!opened) throw std::system_error(errno, std::generic_category());
  std::setvbuf(opened.get(), nullptr, _IONBF, 0);
  std::vector<char> piece(kPiece);
  Hash hash;
  while (const std::size_t bytes = std::fread(piece.data(), 1, kPiece, opened.get())) {
    hash.add(piece.data(), bytes);
  }
  if (std::ferror(opened.get())) throw std::system_error(errno, std::generic_category());
  return hash.digits();
}

}  // namespace ouro::core
