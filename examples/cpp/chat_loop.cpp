// A chat in the terminal: chat_loop BUNDLE [DEPTH]. Each line you type is a turn of one
// conversation, whose cache is kept between turns. An empty line or the end of the input ends it,
// Ctrl-C an answer.
#include <csignal>
#include <iostream>
#include <ouro/ouro.hpp>
#include <string>

namespace {

volatile std::sig_atomic_t interrupted = 0;

void interrupt(int) { interrupted = 1; }

void chat(ouro::Engine& engine, const ouro::Depth& depth) {
  ouro::Session session = engine.session(depth);
  ouro::Options options;
  options.max_new_tokens = 128;
  std::string line;
  while (std::cout << "> " << std::flush && std::getline(std::cin, line) && !line.empty()) {
    ouro::Stream stream = session.stream(std::vector<ouro::Message>{{"user", line}}, options);
    interrupted = 0;
    const auto before = std::signal(SIGINT, interrupt);
    for (const ouro::Piece& piece : stream) {
      std::cout << piece.text << std::flush;
      if (interrupted == 0) continue;
      std::cout << " ...";  // the session keeps what was said
      break;
    }
    std::signal(SIGINT, before);
    std::cout << '\n';
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: chat_loop BUNDLE [DEPTH]\n";
    return 2;
  }
  try {
    ouro::Engine engine(argv[1]);
    ouro::Depth depth;
    if (argc > 2) depth = std::stoll(argv[2]);
    std::cout << "on " << engine.info().backend << "; an empty line ends the chat\n";
    chat(engine, depth);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
