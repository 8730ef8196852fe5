// Generates from a prompt, printing each piece of text as it is made.
#include <iostream>
#include <ouro/ouro.hpp>
#include <string>

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: generate BUNDLE PROMPT [DEPTH]\n";
    return 2;
  }
  try {
    ouro::Engine engine(argv[1]);

    ouro::Depth depth;  // the bundle's own, unless another is given
    if (argc > 3) depth = std::stoll(argv[3]);
    ouro::Options options;
    options.max_new_tokens = 40;

    ouro::Stream stream = engine.stream(argv[2], depth, options);
    for (const ouro::Piece& piece : stream) {
      std::cout << piece.text << std::flush;
    }
    std::cout << '\n';
  } catch (const std::exception& error) {  // ouro::Error, or a depth that is no number
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
