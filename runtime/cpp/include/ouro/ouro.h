/**
 * @file ouro.h
 * @brief The C interface of Ouroboros: opens a bundle and generates from it, at any depth.
 *
 * Errors. Every call that can fail returns an ouro_status and takes an `ouro_error**` as its last
 * argument, which may be null. After anything but OURO_OK it holds an error that the caller
 * releases, or null where there was no memory for one; outputs are then untouched. No exception
 * crosses this interface.
 *
 * Ownership. Handles that a call gives out are the caller's: each has a release function, which
 * takes null too. Pointers that a handle gives out live as long as the handle, or until the next
 * call named beside them. What the caller passes in is only read during the call.
 * Handles keep what they need: releasing an engine before its sessions and streams is allowed.
 *
 * Threads. An engine may be used from several threads at once. A session, a stream and a result
 * belong to one thread at a time; a second one that comes in between gets a status.
 *
 * Versions. Structures begin with their size, which the `_init` functions set: a program compiled
 * against an older header keeps working with a newer library of the same ABI version.
 */
#ifndef OURO_H
#define OURO_H

#include <stddef.h>
#include <stdint.h>

/** Marks what the library shows of itself; a program that links it statically defines OURO_STATIC.
 */
#if defined(__GNUC__) && !defined(OURO_STATIC)
#define OURO_API __attribute__((visibility("default")))
#else
#define OURO_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** The version of this interface; raised by changes that break compiled programs. */
#define OURO_ABI_VERSION 1

/** What became of a call. */
typedef enum ouro_status {
  OURO_OK = 0,
  OURO_FAILED = 1,           /**< it can't be done as asked; see ouro_error_code */
  OURO_INVALID_ARGUMENT = 2, /**< a null or released handle, or one of another kind */
  OURO_OUT_OF_MEMORY = 3,
  OURO_INTERNAL = 4 /**< a fault of this library, or of one below it */
} ouro_status;

/** Kinds of errors; the numbers are those of the Python package and never change. */
typedef enum ouro_code {
  OURO_CODE_OTHER = 0,
  OURO_CODE_CONFIG = 1,
  OURO_CODE_BUNDLE = 7, /**< a bundle is missing, damaged, of an unknown version, or none */
  OURO_CODE_ENGINE = 8  /**< a request that the engine can't serve: depth, prompt, options */
} ouro_code;

/** Why a sequence ended. */
typedef enum ouro_finish {
  OURO_FINISH_NONE = 0, /**< it goes on */
  OURO_FINISH_STOP = 1, /**< at a stop string */
  OURO_FINISH_LENGTH = 2,
  OURO_FINISH_EOS = 3,
  OURO_FINISH_CANCELLED = 4
} ouro_finish;

/** Depths that are no numbers of steps. */
enum { OURO_DEPTH_DEFAULT = 0, OURO_DEPTH_AUTO = -1 };

/** Tokens that a sequence ends after where nothing else is said. */
enum { OURO_MAX_NEW_TOKENS_DEFAULT = 64 };

/** What went wrong; released with ouro_error_release. */
typedef struct ouro_error ouro_error;
/** A loaded bundle; released with ouro_engine_release. Used from any number of threads. */
typedef struct ouro_engine ouro_engine;
/** A conversation; released with ouro_session_release. */
typedef struct ouro_session ouro_session;
/** An answer in the making; released with ouro_stream_release. */
typedef struct ouro_stream ouro_stream;
/** What a call gives back; released with ouro_result_release. */
typedef struct ouro_result ouro_result;

/** Text that need not end with a zero byte; UTF-8. */
typedef struct ouro_text {
  const char* data; /**< may be null where `bytes` is 0 */
  size_t bytes;     /**< of `data` */
} ouro_text;

/** One message of a chat. */
typedef struct ouro_message {
  ouro_text role;    /**< such as "system", "user" or "assistant" */
  ouro_text content; /**< what was said */
} ouro_message;

/** What a prompt is. */
typedef enum ouro_prompt_kind {
  OURO_PROMPT_TEXT = 0,
  OURO_PROMPT_IDS = 1,
  OURO_PROMPT_MESSAGES = 2 /**< a chat, rendered with the bundle's template */
} ouro_prompt_kind;

/** What to generate from: text, ids or messages, by `kind`. */
typedef struct ouro_prompt {
  size_t size;                  /**< of this structure */
  int32_t kind;                 /**< an ouro_prompt_kind */
  ouro_text text;               /**< of OURO_PROMPT_TEXT */
  const int64_t* ids;           /**< of OURO_PROMPT_IDS: tokens, taken as they are */
  size_t id_count;              /**< of `ids` */
  const ouro_message* messages; /**< of OURO_PROMPT_MESSAGES, the oldest first */
  size_t message_count;         /**< of `messages` */
} ouro_prompt;

/** Which fields of ouro_options were given; the others take the bundle's defaults. */
enum {
  OURO_GIVEN_TEMPERATURE = 1,
  OURO_GIVEN_TOP_K = 2,
  OURO_GIVEN_TOP_P = 4,
  OURO_GIVEN_MIN_P = 8,
  OURO_GIVEN_REPETITION_PENALTY = 16,
  OURO_GIVEN_SEED = 32,
  OURO_GIVEN_LOGPROBS = 64
};

/** How a sequence is generated; docs/sampling.md says exactly how a token is chosen. */
typedef struct ouro_options {
  size_t size;            /**< of this structure */
  uint32_t given;         /**< OURO_GIVEN_* of the fields below that count */
  int64_t max_new_tokens; /**< the sequence ends after so many; always counts */
  double temperature;     /**< 0 takes the most likely token */
  int64_t top_k;          /**< keeps so many of the most likely tokens; 0 keeps all */
  double top_p;           /**< keeps the most likely tokens that make up this probability */
  double min_p;           /**< keeps tokens of this share of the best one's probability */
  double
      repetition_penalty; /**< divides or multiplies logits of tokens that stand before; 1: none */
  uint64_t seed;          /**< not given: the system draws one */
  int64_t logprobs;       /**< how many of the best tokens to keep beside the chosen one */
  const ouro_text* stop;  /**< texts to stop before */
  size_t stop_count;      /**< of `stop` */
} ouro_options;

/** One sequence to generate. */
typedef struct ouro_request {
  size_t size;                 /**< of this structure */
  const ouro_prompt* prompt;   /**< must be set */
  const ouro_options* options; /**< null for the defaults */
  int64_t depth;               /**< recurrences, OURO_DEPTH_DEFAULT or OURO_DEPTH_AUTO */
  double halt_threshold;       /**< of OURO_DEPTH_AUTO, above 0; 0 takes the bundle's */
} ouro_request;

/** How a bundle is opened. */
typedef struct ouro_open_options {
  size_t size;            /**< of this structure */
  const char* backend;    /**< "auto", "cpu", "cuda" or "trt"; null is "auto" */
  int64_t threads;        /**< inside an operator; 0 lets ONNX Runtime use every core */
  int64_t accuracy_level; /**< of int8 and int4 weights on the CPU: 1 or 4; 0 is the bundle's */
} ouro_open_options;

/** The numbers of a model. Text lives as long as the engine's handle. */
typedef struct ouro_info {
  size_t size;              /**< of this structure, set by the caller */
  int64_t min_depth;        /**< the least depth, in recurrences */
  int64_t max_depth;        /**< the greatest */
  int64_t default_depth;    /**< of OURO_DEPTH_DEFAULT */
  int64_t vocab_size;       /**< logits a token */
  int64_t hidden_size;      /**< numbers of a hidden state */
  int64_t max_positions;    /**< tokens of a sequence, prompt included */
  int32_t can_choose_depth; /**< whether OURO_DEPTH_AUTO works */
  int32_t can_chat;         /**< whether the chat template is there and compiled */
  ouro_text backend;        /**< "cpu", "cuda" or "trt" */
  ouro_text reason;         /**< why it was taken */
  ouro_text precision;      /**< of the weights: "fp32", "fp16", "bf16", "int8" or "int4" */
} ouro_info;

/** A token among the most likely. */
typedef struct ouro_candidate {
  int64_t token;  /**< its id */
  double logprob; /**< natural logarithm of its probability */
} ouro_candidate;

/** What the model gave a chosen token. */
typedef struct ouro_logprob {
  int64_t token;              /**< the chosen one's id */
  double logprob;             /**< natural logarithm of its probability */
  const ouro_candidate* best; /**< the most likely first */
  size_t best_count;          /**< of `best` */
} ouro_logprob;

/** One finished sequence; its pointers live as long as the result. */
typedef struct ouro_generation {
  size_t size;                  /**< of this structure, set by the caller */
  ouro_text text;               /**< of the new tokens, up to a stop string */
  const int64_t* ids;           /**< the new tokens, an end-of-text token included */
  size_t id_count;              /**< of `ids` */
  int64_t prompt_tokens;        /**< tokens before the first new one */
  int64_t depth;                /**< recurrences that it was made with */
  ouro_finish finish;           /**< why it ended */
  const ouro_logprob* logprobs; /**< one a token where asked for, else null */
} ouro_generation;

/** One token of a stream; its pointers live until the next call with the stream. */
typedef struct ouro_piece {
  size_t size;                 /**< of this structure, set by the caller */
  ouro_text text;              /**< complete with this token; often a word, sometimes empty */
  int64_t token;               /**< -1 in the piece that reports a cancellation */
  ouro_finish finish;          /**< OURO_FINISH_NONE until the last piece */
  const ouro_logprob* logprob; /**< null where not asked for */
  int64_t depth;               /**< recurrences that it was made with */
} ouro_piece;

/**
 * Asked before every token. 0 goes on; OURO_ASKING_FAILED fails the call, as any failure does;
 * anything else ends the generation.
 */
typedef int (*ouro_cancelled)(void* user);
/** What an ouro_cancelled returns that can't tell. */
enum { OURO_ASKING_FAILED = -1 };

/** OURO_ABI_VERSION of the library. */
OURO_API uint32_t ouro_abi_version(void);
/** The version of the library, such as "0.1.0". */
OURO_API const char* ouro_version(void);

/** The kind of an error; OURO_CODE_OTHER for null. */
OURO_API ouro_code ouro_error_code(const ouro_error* error);
/** What was given and what is allowed; "" for null. Lives as long as the error. */
OURO_API const char* ouro_error_problem(const ouro_error* error);
/** What to do next; may be "". Lives as long as the error. */
OURO_API const char* ouro_error_cure(const ouro_error* error);
/** Problem and cure on one line. Lives as long as the error. */
OURO_API const char* ouro_error_message(const ouro_error* error);
/** Frees an error. */
OURO_API void ouro_error_release(ouro_error* error);

/** Sets the defaults and the size. */
OURO_API void ouro_open_options_init(ouro_open_options* options);
/** Sets the defaults and the size. */
OURO_API void ouro_options_init(ouro_options* options);
/** Sets the size: an empty text. */
OURO_API void ouro_prompt_init(ouro_prompt* prompt);
/** Sets the defaults and the size: the bundle's depth, no prompt. */
OURO_API void ouro_request_init(ouro_request* request);

/**
 * Verifies a bundle and loads it.
 * @param path the bundle's directory, UTF-8.
 * @param options null for the defaults.
 * @param[out] engine to release with ouro_engine_release.
 */
OURO_API ouro_status ouro_engine_open(const char* path, const ouro_open_options* options,
                                      ouro_engine** engine, ouro_error** error);
/**
 * Frees the graph once requests in progress have ended and sessions that were used are reset or
 * released; the handle stays valid, and is refused.
 */
OURO_API ouro_status ouro_engine_close(ouro_engine* engine, ouro_error** error);
/** Gives the handle back. What the engine has given out goes on. */
OURO_API void ouro_engine_release(ouro_engine* engine);
/** The model's numbers; `info->size` must be set. */
OURO_API ouro_status ouro_engine_info(const ouro_engine* engine, ouro_info* info,
                                      ouro_error** error);
/**
 * Warnings since the last call, such as of a depth that was never trained.
 * @param[out] warnings a result with one text each.
 */
OURO_API ouro_status ouro_engine_warnings(ouro_engine* engine, ouro_result** warnings,
                                          ouro_error** error);

/** Token ids of a text, as if it began a sequence: a result with ids. */
OURO_API ouro_status ouro_tokenize(const ouro_engine* engine, ouro_text text, ouro_result** ids,
                                   ouro_error** error);
/** The text of token ids, special tokens left out: a result with one text. */
OURO_API ouro_status ouro_detokenize(const ouro_engine* engine, const int64_t* ids, size_t count,
                                     ouro_result** text, ouro_error** error);

/**
 * Generates from prompts that advance together, each at its own depth and with its own options.
 * @param requests `count` of them.
 * @param cancelled asked before every token; null never ends it.
 * @param user handed to `cancelled`.
 * @param[out] generations a result with `count` generations.
 */
OURO_API ouro_status ouro_generate(ouro_engine* engine, const ouro_request* requests, size_t count,
                                   ouro_cancelled cancelled, void* user, ouro_result** generations,
                                   ouro_error** error);
/**
 * Logits of every position of one prompt: a result with floats [tokens, vocab_size].
 * @param depth recurrences or OURO_DEPTH_DEFAULT; OURO_DEPTH_AUTO is refused.
 */
OURO_API ouro_status ouro_logits(ouro_engine* engine, const ouro_prompt* prompt, int64_t depth,
                                 ouro_result** logits, ouro_error** error);
/** Generates from one prompt, a token at a time; the request is checked before this returns. */
OURO_API ouro_status ouro_stream_open(ouro_engine* engine, const ouro_request* request,
                                      ouro_stream** stream, ouro_error** error);

/**
 * The next token.
 * @param[out] piece its `size` must be set.
 * @param[out] more 0 once there is no token; `piece` is then untouched.
 */
OURO_API ouro_status ouro_stream_next(ouro_stream* stream, ouro_piece* piece, int* more,
                                      ouro_error** error);
/** Ends it before its next token; may be called from any thread. */
OURO_API ouro_status ouro_stream_cancel(ouro_stream* stream, ouro_error** error);
/** Recurrences that it is made with; known once the first piece is there. */
OURO_API ouro_status ouro_stream_depth(const ouro_stream* stream, int64_t* depth,
                                       ouro_error** error);
/** Gives the handle back; a session keeps what was generated, also of a stream that failed. */
OURO_API void ouro_stream_release(ouro_stream* stream);

/** A conversation that keeps its cache between turns. */
OURO_API ouro_status ouro_session_open(ouro_engine* engine, int64_t depth, double halt_threshold,
                                       ouro_session** session, ouro_error** error);
/**
 * Adds a prompt and answers it: a result with one generation. The prompts of a session are text and
 * ids, or all messages. A call that fails leaves the conversation as it was.
 */
OURO_API ouro_status ouro_session_generate(ouro_session* session, const ouro_prompt* prompt,
                                           const ouro_options* options, ouro_cancelled cancelled,
                                           void* user, ouro_result** generation,
                                           ouro_error** error);
/** Adds a prompt and answers it, a token at a time. */
OURO_API ouro_status ouro_session_stream(ouro_session* session, const ouro_prompt* prompt,
                                         const ouro_options* options, ouro_stream** stream,
                                         ouro_error** error);
/** All tokens so far: a result with ids. */
OURO_API ouro_status ouro_session_ids(const ouro_session* session, ouro_result** ids,
                                      ouro_error** error);
/** Recurrences of every turn; of OURO_DEPTH_AUTO the most there may be, until a prompt was fed. */
OURO_API ouro_status ouro_session_depth(const ouro_session* session, int64_t* depth,
                                        ouro_error** error);
/** Forgets the conversation, and a depth that it has chosen. */
OURO_API ouro_status ouro_session_reset(ouro_session* session, ouro_error** error);
/** Gives the handle back. */
OURO_API void ouro_session_release(ouro_session* session);

/** How many generations or texts a result holds; 0 for null. */
OURO_API size_t ouro_result_count(const ouro_result* result);
/** One of its generations; its `size` must be set. */
OURO_API ouro_status ouro_result_generation(const ouro_result* result, size_t index,
                                            ouro_generation* generation, ouro_error** error);
/** One of its texts. */
OURO_API ouro_status ouro_result_text(const ouro_result* result, size_t index, ouro_text* text,
                                      ouro_error** error);
/** Its token ids. */
OURO_API ouro_status ouro_result_ids(const ouro_result* result, const int64_t** ids, size_t* count,
                                     ouro_error** error);
/** Its floats, row by row. */
OURO_API ouro_status ouro_result_floats(const ouro_result* result, const float** floats,
                                        size_t* rows, size_t* columns, ouro_error** error);
/** Frees a result and all it points to. */
OURO_API void ouro_result_release(ouro_result* result);

#ifdef __cplusplus
}
#endif

#endif
