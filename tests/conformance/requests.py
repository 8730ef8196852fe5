"""What is asked of every bundle, as plain JSON values: the same for each language.

A request is a dict with a `name`, a `call` (one of `runtime.Engine`) and that call's arguments by
their names there. Prompts are texts, lists of ids, lists of messages with `chat`, or lists of
those. Beside what the call takes: `bytes`, a text as the hexadecimal of bytes that need not be
UTF-8; `cancel`, how many tokens are made before it is cancelled; `take`, how many pieces of a
stream are read before it is left; `code`, that of an error only its code is compared.
"""

from __future__ import annotations

import random
from typing import Any

from runtime import Engine

Request = dict[str, Any]

TEXTS = (
    "Hello",
    "The sea is",
    "In 2024, 1234567 people's cats weren't there; they'd gone.",
    "def f(x):\n    return x + 1\n\n\n# and so on\t\r\n",
    "naïve café, Straße, Привет мир, مرحبا, 東京は夜, ไทย, 👩‍👩‍👧 😀!",
)
ODD_TEXTS = (
    "",
    " ",
    "  two spaces  ",
    "\n",
    "\n\n  \t x \r\n\r\n y",
    "a\u00a0b\u2003c\u3000d\u180ee\u200bf",
    "e\u0301 a\u0323\u0307 a\u0307\u0323 \u1e9b\u0323 \uac00 \u1100\u1161 \u212b \ufb01",
    "①²Ⅷ½ ٣٤ 𝟘𝟙 1,000.50 0x1F",
    "'s 'S 'Re 'LL don't DON'T 'ſ",
    "<|im_start|>user\nHi<|im_end|>\n<s></s><|endoftext|> <|im_end",
    "<0x41> <unk> ▁ ▁▁the cat sat",
    "\u0000\u0001\u007f\u0085\u2028\u2029\ufeff\ufffd\U0010ffff",
    "    if (a&&b){return!c;}//x",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "the cat sat at the cat",
)
BROKEN_BYTES = ("ff", "61c3", "c328e28261", "eda080", "f09f98", "f4908080", "e0808041c2")
SAMPLINGS: tuple[Request, ...] = (
    {"temperature": 1.0, "seed": 0},
    {"temperature": 0.7, "top_k": 40, "seed": 1},
    {"temperature": 1.3, "top_p": 0.9, "seed": 2**64 - 1},
    {"temperature": 1.0, "min_p": 0.05, "seed": 3},
    {"temperature": 60.0, "top_k": 40, "min_p": 0.001, "repetition_penalty": 1.2, "seed": 5},
    {"temperature": 60.0, "seed": 6, "logprobs": 3},
    {"temperature": 5.0, "top_k": 7, "top_p": 0.5, "seed": 7, "logprobs": 0},
    {"temperature": 0.01, "seed": 8},
    {"temperature": 2.0, "top_k": 1, "seed": 9},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "temperature": 1.0, "seed": 10},
    {"temperature": 0.0, "logprobs": 5},
)
BAD_OPTIONS: tuple[Request, ...] = (
    {"max_new_tokens": 0},
    {"max_new_tokens": -3},
    {"max_new_tokens": 10**9},
    {"temperature": -1.0},
    {"temperature": -0.25},
    {"top_k": -2},
    {"top_p": 0.0},
    {"top_p": 2.0},
    {"min_p": -0.5},
    {"min_p": 1.5},
    {"repetition_penalty": 0.0},
    {"repetition_penalty": -1.1},
    {"logprobs": -1},
    {"stop": ["fine", ""]},
)
WILD: Request = {"temperature": 60.0, "seed": 4}  # tiny random models are sure of themselves
SYSTEM = {"role": "system", "content": " Be brief. "}
USER = {"role": "user", "content": "Why is the sky blue?\n"}
TOLD = {"role": "assistant", "content": "It scatters."}
MORE = {"role": "user", "content": "And the sea 🌊?"}


class Asked:
    """The requests of one bundle, made with an engine on it that knows its limits."""

    def __init__(self, engine: Engine) -> None:
        manifest = engine.manifest
        self._engine, self._random = engine, random.Random(0)
        self.requests: list[Request] = []
        self._size, self._most = manifest.model.vocab_size, manifest.model.max_position_embeddings
        spec = manifest.depth
        self._first, self._last, self._halting = spec.min, spec.max, spec.halting is not None
        few = spec.max <= 5
        self._depths = [*range(1, spec.max + 1)] if few else sorted({1, spec.default, spec.max})
        chat = manifest.tokenizer.chat
        self._chat, self._alternating = chat is not None, chat and chat.order == "alternating"

    def make(self) -> list[Request]:
        """Every request."""
        self._text()
        self._greedy()
        self._sampled()
        self._ended()
        self._stopped()
        self._cancelled()
        self._logits()
        self._sessions()
        if self._chat:
            self._chats()
        if self._halting:
            self._halters()
        self._refused()
        return self.requests

    def _add(self, name: str, call: str, **arguments: Any) -> None:
        self.requests.append({"name": name, "call": call, **arguments})

    def _both(self, name: str, prompt: Any, **arguments: Any) -> None:
        """The same at once and as a stream."""
        self._add(name, "generate", prompt=prompt, **arguments)
        self._add(f"{name}, streamed", "stream", prompt=prompt, **arguments)

    def _ids(self, length: int) -> list[int]:
        return [self._random.randrange(3, self._size) for _ in range(length)]

    def _text(self) -> None:
        for number, text in enumerate((*TEXTS, *ODD_TEXTS)):
            self._add(f"text {number}", "tokenize", text=text)
        for given in BROKEN_BYTES:
            self._add(f"bytes {given}", "tokenize", bytes=given)
        self._add("no ids", "detokenize", ids=[])
        self._add("the first ids", "detokenize", ids=list(range(min(self._size, 300))))
        for number in range(4):
            self._add(f"ids {number}", "detokenize", ids=self._ids(40))

    def _greedy(self) -> None:
        for depth, text in zip(self._depths, TEXTS * 2, strict=False):
            self._both(f"depth {depth}", text, depth=depth, options={"max_new_tokens": 12})
        self._both("default depth", TEXTS[0], options={"max_new_tokens": 1})
        self._add("defaults", "generate", prompt=self._ids(4))
        self._both("ids", self._ids(70), depth=1, options={"max_new_tokens": 70})
        rows, new = [self._ids(length) for length in (3, 40, 1, 140, 17)], {"max_new_tokens": 30}
        depths = [self._depths[place % len(self._depths)] for place in (0, -1, 1, 0, -1)]
        self._add("batch", "generate", prompt=rows, depth=depths, options=new)
        self._add("batch of one depth", "generate", prompt=rows[:3], depth=1, options=new)
        self._add("batch of texts", "generate", prompt=list(TEXTS), options={"max_new_tokens": 5})
        self._add("batch of one", "generate", prompt=[self._ids(3)], options={"max_new_tokens": 2})
        long = min(self._most - 5, 700)
        self._both("long", self._ids(long), depth=1, options={"max_new_tokens": 5})

    def _sampled(self) -> None:
        prompt = self._ids(9)
        for number, options in enumerate(SAMPLINGS):
            depth = self._depths[number % len(self._depths)]
            named: Request = {"depth": depth, "options": {"max_new_tokens": 14, **options}}
            self._both(f"sampling {number}", prompt, **named)
        rows = [self._ids(length) for length in (5, 11, 8)]
        options = {**SAMPLINGS[4], "max_new_tokens": 12, "logprobs": 2}
        self._add("sampled batch", "generate", prompt=rows, options=options)
        self._add(
            "a seed a row",
            "generate",
            prompt=rows,
            depth=[self._depths[0], self._depths[-1], self._depths[0]],
            options={**options, "seed": [3, 2**64 - 1, 3]},
        )

    def _ended(self) -> None:
        """Texts that the model ends, by the first seeds that do; not of a large vocabulary."""
        prompt, found = self._ids(5), 0
        for seed in range(200 if self._size < 10_000 else 0):
            options = {"temperature": 60.0, "seed": seed, "max_new_tokens": 20}
            if self._engine.generate(prompt, 1, **options).finish_reason == "eos":
                self._both(f"ended by seed {seed}", prompt, depth=1, options=options)
                found += 1
            if found == 2:
                break

    def _stopped(self) -> None:
        prompt, options = self._ids(6), {**WILD, "max_new_tokens": 30}
        text = self._engine.generate(prompt, 1, **options).text
        places = [(2, 5), (len(text) // 2, len(text) // 2 + 1), (len(text) - 1, len(text))]
        for number, (start, end) in enumerate(places):
            stop = ["\u0000never", text[start:end] or "x", text[:1] + "\u0001"]
            self._both(f"stop {number}", prompt, depth=1, options={**options, "stop": stop})
        never = {**options, "stop": ["\u0000never", text + "x"]}
        self._both("never stopped", prompt, depth=1, options=never)
        for special in ("<|im_end|>", "</s>"):
            self._both(f"stop {special}", prompt, options={**options, "stop": [special]})
        rows = [prompt, self._ids(9)]
        batch = {**options, "stop": [text[3:4] or "x"]}
        self._add("batch with a stop", "generate", prompt=rows, depth=1, options=batch)

    def _cancelled(self) -> None:
        options = {"max_new_tokens": 9}
        for made in (0, 3, 50):
            self._both(f"cancelled at {made}", self._ids(5), cancel=made, options=options)
        stopped = {**WILD, "max_new_tokens": 9, "stop": ["\u0000"], "logprobs": 1}
        self._both("cancelled, with more options", TEXTS[1], cancel=4, options=stopped)
        rows = [self._ids(4), self._ids(2)]
        self._add("batch cancelled", "generate", prompt=rows, cancel=3, options=options)

    def _logits(self) -> None:
        lengths = (1, 9, 140) if self._size < 10_000 else (1, 4)
        for depth, length in zip(self._depths[:3], lengths, strict=False):
            self._add(f"logits {length}", "logits", ids=self._ids(length), depth=depth)
        self._add("logits of a text", "logits", ids=TEXTS[0])
        rows = [self._ids(length) for length in (3, lengths[1], 1)]
        depths = [self._depths[0], self._depths[-1], self._depths[0]]
        self._add("logits of a batch", "logits", ids=rows, depth=depths)

    def _sessions(self) -> None:
        new = {"max_new_tokens": 6}
        text = [{"prompt": TEXTS[0], "options": new}, {"prompt": " and more", "options": new}]
        for depth in (self._depths[0], self._depths[-1]):
            self._add(f"session of texts at {depth}", "session", depth=depth, turns=[*text, *text])
        ids = [{"prompt": self._ids(5 + 30 * turn), "options": new} for turn in range(4)]
        self._add("session of ids", "session", turns=ids)
        turns = [
            {"prompt": TEXTS[4], "options": {**WILD, **new, "logprobs": 1}},
            {"prompt": "x", "options": {**WILD, "max_new_tokens": 9, "stop": ["e", "t", "\ufffd"]}},
            {"prompt": TEXTS[3], "options": {"repetition_penalty": 1.4, **new}},
            {"prompt": TEXTS[1], "options": {**WILD, "max_new_tokens": 20}, "take": 3},
            {"prompt": TEXTS[1], "options": {**WILD, "max_new_tokens": 20}, "cancel": 2},
            {"prompt": [], "options": new},
            {"prompt": [self._size], "options": new},
            {"prompt": [5], "options": {"max_new_tokens": self._most}},
            {"prompt": "the end", "options": new},
            {"reset": True},
            {"prompt": TEXTS[4], "options": {**WILD, **new}},
        ]
        self._add("session of all sorts", "session", depth=self._depths[-1], turns=turns)

    def _chats(self) -> None:
        new: Request = {"chat": True, "options": {"max_new_tokens": 6}}
        self._both("chat", "Hi", **new)
        self._both("chat of messages", [SYSTEM, USER, TOLD, MORE], **new)
        self._add("chat batch", "generate", prompt=["Hi", "Hello"], **new)
        self._add("chats", "generate", prompt=[[USER], [USER, TOLD, MORE]], **new)
        # What is said of a chat that is refused is each reader's own affair.
        self._add("chat of nothing", "generate", prompt=[[USER], []], code=True, **new)
        if self._alternating:
            self._add("users", "generate", prompt=[USER, MORE], code=True, **new)
        wild = {"chat": True, "options": {**WILD, "max_new_tokens": 12}}
        stop = {
            "chat": True,
            "options": {**WILD, "max_new_tokens": 20, "stop": ["e", "a", "\ufffd"]},
        }
        turns: list[Request] = [
            {"prompt": [SYSTEM, USER], **wild},
            {"prompt": "Go on", **stop},
            {"prompt": [MORE], **new},
            {"prompt": "Go on", **wild, "take": 2},
            {"prompt": "And then?", **wild, "cancel": 3},
            {"prompt": "The end?", **new},
            {"reset": True},
            {"prompt": "Hi", **new},
        ]
        self._add("chat session", "session", turns=turns)
        mixed: list[Request] = [
            {"prompt": TEXTS[0], "options": {"max_new_tokens": 3}}, {"prompt": "Hi", **new},
        ]  # fmt: skip
        turns = [*mixed, *mixed, {"reset": True}, mixed[1], *mixed]
        self._add("text and chat session", "session", depth=1, turns=turns)

    def _halters(self) -> None:
        rows, new = [self._ids(length) for length in (4, 30, 9, 17, 6, 12)], {"max_new_tokens": 5}
        for threshold in (None, 0.02, 0.2, 0.5, 0.8, 1.0, 1e-6):
            named: Request = {"depth": "auto", "options": new}
            named |= {} if threshold is None else {"halt_threshold": threshold}
            self._both(f"auto at {threshold}", rows[1], **named)
            self._add(f"auto batch at {threshold}", "generate", prompt=rows, **named)
        turns: list[Request] = [{"prompt": row, "options": new} for row in rows[:3]]
        turns = [*turns, {"reset": True}, *turns[1:]]
        self._add("auto session", "session", depth="auto", turns=turns)
        self._add("auto texts", "session", depth="auto", halt_threshold=0.3, turns=[
            {"prompt": "Hello", "options": new}, {"prompt": " you", "options": new},
        ])  # fmt: skip
        for threshold in (0.0, -0.5, 1.5):
            self._add(
                f"threshold {threshold}", "generate", prompt="Hi", depth="auto",
                halt_threshold=threshold,
            )  # fmt: skip

    def _refused(self) -> None:
        ids = self._ids(2)
        for depth in (0, -1, -2, self._last + 1, 6400):
            self._add(f"bad depth {depth}", "generate", prompt=ids, depth=depth)
            self._add(f"bad depth {depth} of a session", "session", depth=depth, turns=[])
        self._add("bad depth of logits", "logits", ids=ids, depth=self._last + 1)
        prompts: list[Any] = [[], "", [self._size], [-1], [ids, []], [ids, [self._size + 7]]]
        prompts += [[5] * (self._most + 1), [[5], [5] * (self._most + 1)]]
        for number, prompt in enumerate(prompts):
            self._add(f"bad prompt {number}", "generate", prompt=prompt)
            self._add(f"bad ids {number} for logits", "logits", ids=prompt)
        for number in (0, 2, 3, 6):
            self._add(f"bad prompt {number} of a stream", "stream", prompt=prompts[number])
        fits = [5] * (self._most - 3)
        self._add("one too many", "generate", prompt=fits, options={"max_new_tokens": 4})
        self._add("no room", "generate", prompt=[5] * self._most, options={"max_new_tokens": 1})
        for number, options in enumerate(BAD_OPTIONS):
            self._add(f"bad options {number}", "generate", prompt=ids, options=options)
            self._add(f"bad options {number} of a stream", "stream", prompt=ids, options=options)
        self._add("depths", "generate", prompt=[ids, ids], depth=[1, 1, 1])
        # Of two faults every language tells the same one.
        faults = {"depth": [1, self._last + 1], "options": {"top_p": 2.0}}
        self._add("two faults", "generate", prompt=[ids, ids], **faults)
        self._add("seeds", "generate", prompt=[ids, ids], options={"seed": [1, 2, 3]})
        self._add("no effect", "generate", prompt=ids, depth=1, halt_threshold=0.5)
        if not self._halting:
            self._add("no halter", "generate", prompt=ids, depth="auto")
            self._add("no halter for a session", "session", depth="auto", turns=[])
        for ids in ([self._size], [-1], [3, 10**12]):
            self._add(f"bad ids {ids}", "detokenize", ids=ids)
        self._add("nowhere", "open", folder="nowhere")
        self._add("backend", "open", backend="gpu")
        self._add("backend with a quote", "open", backend="it's")
        for threads in (0, -1):
            self._add(f"threads {threads}", "open", threads=threads)
        self._add("accuracy level", "open", accuracy_level=2)
        self._add("closed", "closed", prompt=ids)
