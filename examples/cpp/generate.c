/* generate.cpp in C: every call returns a status, and every handle is given back. */
#include <ouro/ouro.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(ouro_error* error) {
  fprintf(stderr, "error: %s\n", ouro_error_message(error));
  ouro_error_release(error);
  return 1;
}

int main(int argc, char** argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: generate_c BUNDLE PROMPT [DEPTH]\n");
    return 2;
  }
  ouro_error* error = NULL;
  ouro_engine* engine = NULL;
  if (ouro_engine_open(argv[1], NULL, &engine, &error) != OURO_OK) return fail(error);

  ouro_prompt prompt;
  ouro_prompt_init(&prompt);
  prompt.text.data = argv[2];
  prompt.text.bytes = strlen(argv[2]);
  ouro_options options;
  ouro_options_init(&options);
  options.max_new_tokens = 40;
  ouro_request request;
  ouro_request_init(&request);
  request.prompt = &prompt;
  request.options = &options;
  if (argc > 3) request.depth = atoi(argv[3]);

  ouro_stream* stream = NULL;
  ouro_status status = ouro_stream_open(engine, &request, &stream, &error);
  ouro_engine_release(engine); /* the stream keeps what it needs */
  if (status != OURO_OK) return fail(error);

  ouro_piece piece = {.size = sizeof piece};
  int more = 0;
  while ((status = ouro_stream_next(stream, &piece, &more, &error)) == OURO_OK && more) {
    fwrite(piece.text.data, 1, piece.text.bytes, stdout);
    fflush(stdout);
  }
  ouro_stream_release(stream);
  if (status != OURO_OK) return fail(error);
  putchar('\n');
  return 0;
}
