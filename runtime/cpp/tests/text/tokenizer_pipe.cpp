// Encodes and decodes what compare_tokenizers.py sends, one tokenizer a process:
//
//     tokenizer_pipe TOKENIZER_JSON encode|decode|time < texts > ids
//
// Everything comes and goes as 32-bit numbers of this machine: a text as its size in bytes and its
// bytes, tokens as their count and themselves. `decode` takes tokens and gives texts without
// special tokens, `time` takes texts and prints how many seconds it took to encode them all.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "error.hpp"
#include "text/codec.hpp"

namespace {

using ouro::core::Codec;
using ouro::core::Token;
using ouro::core::Tokens;

bool read_number(std::uint32_t& number) {
  return static_cast<bool>(std::cin.read(reinterpret_cast<char*>(&number), sizeof number));
}

void write_number(std::uint32_t number) {
  std::cout.write(reinterpret_cast<const char*>(&number), sizeof number);
}

void encode(const Codec& codec) {
  std::string text;
  for (std::uint32_t size = 0; read_number(size);) {
    text.resize(size);
    std::cin.read(text.data(), static_cast<std::streamsize>(size));
    const Tokens ids = codec.encode(text);
    write_number(static_cast<std::uint32_t>(ids.size()));
    for (const Token id : ids) write_number(static_cast<std::uint32_t>(id));
  }
}

void decode(const Codec& codec) {
  for (std::uint32_t count = 0; read_number(count);) {
    Tokens ids(count);
    for (Token& id : ids) {
      std::uint32_t number = 0;
      read_number(number);
      id = number;
    }
    const std::string text = codec.decode(ids);
    write_number(static_cast<std::uint32_t>(text.size()));
    std::cout << text;
  }
}

void time(const Codec& codec) {
  std::vector<std::string> texts;
  for (std::uint32_t size = 0; read_number(size);) {
    texts.emplace_back(size, '\0');
    std::cin.read(texts.back().data(), static_cast<std::streamsize>(size));
  }
  std::size_t tokens = 0;
  const auto start = std::chrono::steady_clock::now();
  for (const std::string& text : texts) tokens += codec.encode(text).size();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::cout << seconds.count() << ' ' << tokens << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    std::ios::sync_with_stdio(false);
    std::ifstream file(argv[1], std::ios::binary);
    const std::string json{std::istreambuf_iterator<char>(file), {}};
    const auto start = std::chrono::steady_clock::now();
    const Codec codec = Codec::from_json(json, {});
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const std::string mode = argv[2];
    if (mode == "time") std::cout << seconds.count() << ' ';
    mode == "encode" ? encode(codec) : mode == "decode" ? decode(codec) : time(codec);
  } catch (const ouro::core::Error& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
