"""Compares the C++ library's tokenizers with Hugging Face's, and times both.

    python runtime/cpp/tests/text/compare_tokenizers.py BUILD/tests/tokenizer_pipe
        [--strings 200000] [--stride 1] [--only FAMILY ...] [--bundle TOKENIZER_JSON] [--time]

A tokenizer of every family that is read is trained here. With it are compared every code point
(alone, and between letters, digits, spaces and other things), every pair of combining marks, and
random strings: eight languages, code, random bytes, white space, special tokens; and what the
tokens of these decode to. Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

# The first article of the Universal Declaration of Human Rights.
ARTICLE = """
All human beings are born free and equal in dignity and rights. They are endowed with reason
and conscience and should act towards one another in a spirit of brotherhood.

Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und
Gewissen begabt und sollen einander im Geiste der Brüderlichkeit begegnen.

Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de
raison et de conscience et doivent agir les uns envers les autres dans un esprit de
fraternité.

Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и
совестью и должны поступать в отношении друг друга в духе братства.

يولد جميع الناس أحرارا متساوين في الكرامة والحقوق. وقد وهبوا عقلا وضميرا وعليهم أن يعامل
بعضهم بعضا بروح الإخاء.

सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।
उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है और परस्पर उन्हें भाईचारे के भाव से बर्ताव करना
चाहिए।

人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。

모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로
이성과 양심을 부여받았으며 서로 형제애의 정신으로 행동하여야 한다.
"""
LANGUAGES = tuple(" ".join(paragraph.split()) for paragraph in ARTICLE.split("\n\n"))
OTHERS = (
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền. "
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。 "
    "👩\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 e\u0301a\u0328\u0301 "
    "I'll they've WE'RE he'd I'M it's O'Neill 'ſt ½ ² Ⅷ ٣٤ १२३ 12345678901 3.14 1e-9 ﬁ ﷺ"
)
SPACES = [" ", "  ", "\n", "\r", "\r\n", "\t", "\v", "\f", "\x1c", "\x85", "\xa0", "\u1680"]
SPACES += ["\u180e", "\u2003", "\u2028", "\u200b", "\u202f", "\u3000", "\ufeff", "▁", "a", "1", "."]
SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|a|>", "<|a|>b", "<mask>", "[W]", "Ada"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
SHIFT = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def by_bytes(*before: Any, prefix: bool = False, regex: bool = True) -> Any:
    """A pre-tokenizer whose words are bytes."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
    return pre_tokenizers.Sequence([*before, level]) if before else level


def by_lines(pattern: str) -> Any:
    """One that a regular expression divides before."""
    return by_bytes(pre_tokenizers.Split(Regex(pattern), "isolated"), regex=False)


def by_mark(scheme: str, split: bool) -> Any:
    """One that writes a mark in place of a space."""
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)


# Pre-tokenizer, normalizer, and what else the model has.
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gpt2": (by_bytes(), None, {}),
    "gpt2, prefix": (by_bytes(prefix=True), None, {}),
    "smollm2": (by_bytes(pre_tokenizers.Digits(individual_digits=True)), None, {}),
    "llama3": (by_lines(LLAMA3), None, {"ignore_merges": True}),
    "qwen2": (by_lines(QWEN2), normalizers.NFC(), {}),
    "llama2": (None, SHIFT, {"byte_fallback": True, "fuse_unk": True}),
    "mistral": (by_mark("first", False), None, {"byte_fallback": True, "fuse_unk": True}),
    "metaspace, words": (by_mark("first", True), None, {"byte_fallback": True, "fuse_unk": True}),
    "metaspace, always": (by_mark("always", False), normalizers.NFC(), {"byte_fallback": True}),
    "metaspace, no bytes": (by_mark("never", True), None, {"fuse_unk": True}),
    "metaspace, each unknown": (by_mark("always", True), None, {}),
}


def train(family: str, texts: Sequence[str], size: int = 6000) -> Any:
    """A tokenizer of a family, with merges of what it will be asked."""
    splitter, normalizer, options = FAMILIES[family]
    level = splitter is not None and "ByteLevel" in splitter.__getstate__().decode()
    core: Any = Tokenizer(models.BPE(unk_token=None if level else "<unk>"))
    core.normalizer = None if normalizer is SHIFT else normalizer
    core.pre_tokenizer = splitter if level else by_mark("always", True)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if level else []
    tokens = [] if level else ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=tokens, initial_alphabet=alphabet,
            limit_alphabet=size // 4, show_progress=False,
        ),
    )  # fmt: skip
    made = json.loads(core.to_str())
    made["added_tokens"] = []
    made["model"] |= {"fuse_unk": False, "byte_fallback": False, **options}
    core = Tokenizer.from_str(json.dumps(made))
    core.normalizer, core.pre_tokenizer = normalizer, splitter
    if level:
        core.decoder = decoders.ByteLevel()
    elif splitter is None or "first" in splitter.__getstate__().decode():
        spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        core.decoder = decoders.Sequence([*spaces, decoders.Strip(" ", 1, 0)])
    else:
        mark = decoders.Metaspace(prepend_scheme=splitter.prepend_scheme)
        core.decoder = decoders.Sequence([decoders.ByteFallback(), mark])
    core.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    core.add_tokens(
        [
            AddedToken("<|a|>", lstrip=True, normalized=False),
            AddedToken("<|a|>b", rstrip=True, normalized=False, special=True),
            AddedToken("<mask>", lstrip=True, rstrip=True, special=True, normalized=True),
            AddedToken("[W]", single_word=True, normalized=False),
            AddedToken("Ada", single_word=True, normalized=True),
            AddedToken("e\u0301x", normalized=True),
        ]
    )
    return core


def make_texts(count: int, seed: int) -> Iterator[bytes]:
    """Random strings of every sort; some are not UTF-8."""
    draw = random.Random(seed)
    words = [text.split() for text in (*LANGUAGES, OTHERS)]
    code = "\n".join(
        file.read_text("utf-8") for file in sorted(Path(json.__file__).parent.glob("*.py"))
    )
    lead = [
        0x20,
        0x41,
        0x61,
        0xC3,
        0xE2,
        0x82,
        0xAC,
        0xED,
        0xA0,
        0xF0,
        0x9F,
        0x98,
        0x80,
        0xF4,
        0x90,
    ]

    def prose() -> bytes:
        known = draw.choice(words)
        start, size = draw.randrange(len(known)), draw.randrange(1, 20)
        joint = draw.choice([" ", " ", " ", "  ", "", "\n"])
        return joint.join(known[start : start + size]).encode()

    def mixed() -> bytes:
        return " ".join(draw.choice(draw.choice(words)) for _ in range(draw.randrange(12))).encode()

    def letters() -> bytes:
        text = draw.choice((*LANGUAGES, OTHERS))
        return "".join(draw.choice(text) for _ in range(draw.randrange(30))).encode()

    def program() -> bytes:
        start = draw.randrange(len(code))
        return code[start : start + draw.randrange(200)].encode()

    def noise() -> bytes:
        return draw.randbytes(draw.randrange(40))

    def torn() -> bytes:
        return bytes(draw.choice(lead) for _ in range(draw.randrange(24)))

    def white() -> bytes:
        return "".join(draw.choice(SPACES) for _ in range(draw.randrange(16))).encode()

    def special() -> bytes:
        known = [*SPECIALS, *SPACES, "a", "Bob ", " e", "\u0301x", "_", "é", "<", "|"]
        return "".join(draw.choice(known) for _ in range(draw.randrange(14))).encode()

    def long() -> bytes:
        text = draw.choice((*LANGUAGES, OTHERS)).replace(" ", "")
        return (text[: draw.randrange(1, 40)] * draw.randrange(1, 12)).encode()

    def anything() -> bytes:
        codes = (draw.choice((0x250, 0x3000, 0xD7FF, 0x1FFFF)) for _ in range(draw.randrange(12)))
        return "".join(chr(draw.randrange(most)) for most in codes).encode("utf-8", "replace")

    makers: list[Callable[[], bytes]] = [
        *(prose, mixed, letters, program, noise, torn, white, special, long, anything)
    ]
    for number in range(count):
        yield makers[number % len(makers)]()


def make_points(stride: int) -> Iterator[bytes]:
    """Every code point: alone; many in a text between letters, digits, spaces and other things."""
    around = [
        "a%b",
        "1%2",
        " % ",
        "'%e a.%.\n%  x'l%<|a|>%e%\u0301\u1100%\u11a8[W]%Ada<|a|>b%[W]%1\u3000%",
    ]
    codes = [code for code in range(0, 0x110000, stride) if not 0xD800 <= code < 0xE000]
    for place in range(0, len(codes), 32):
        some = [chr(code) for code in codes[place : place + 32]]
        yield from (one.encode() for one in some)
        yield from ("".join(form.replace("%", one) for one in some).encode() for form in around)


def make_marks(stride: int) -> Iterator[bytes]:
    """Every pair of combining marks after a letter."""
    swap = normalizers.NFD().normalize_str
    marks = [
        one
        for one in map(chr, (*range(0x300, 0xD800), *range(0xE000, 0x110000)))
        if swap(one) == one
        and (swap("\u0345" + one) != "\u0345" + one or swap(one + "\u0334") != one + "\u0334")
    ]
    for first in marks[::stride]:
        for second in marks:
            yield f"a{first}{second}".encode()


class Program:
    """The C++ program, with one tokenizer."""

    def __init__(self, program: str, file: str) -> None:
        self._command = [program, file]

    def ask(self, mode: str, data: bytes) -> bytes:
        """What it answers in a mode."""
        done = subprocess.run(
            [*self._command, mode], input=data, stdout=subprocess.PIPE, check=True
        )
        return done.stdout

    def encode(self, texts: Sequence[bytes]) -> list[list[int]]:
        """The tokens of texts."""
        answer = np.frombuffer(self.ask("encode", _pack(texts)), np.uint32)
        return [part.tolist() for part in _cut(answer, len(texts))]

    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """The texts of tokens."""
        data = b"".join(struct.pack(f"={len(ids) + 1}I", len(ids), *ids) for ids in tokens)
        answer, texts, place = self.ask("decode", data), [], 0
        for _ in tokens:
            (size,) = struct.unpack_from("=I", answer, place)
            texts.append(answer[place + 4 : place + 4 + size].decode())
            place += 4 + size
        assert place == len(answer)
        return texts


def _pack(texts: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("=I", len(text)) + text for text in texts)


def _cut(answer: Any, count: int) -> Iterator[Any]:
    place = 0
    for _ in range(count):
        size = int(answer[place])
        yield answer[place + 1 : place + 1 + size]
        place += 1 + size
    assert place == len(answer)


def compare(core: Any, program: Program, texts: Iterator[bytes], name: str) -> int:
    """Compares in parts, prints how many differ and how, and returns their number."""
    wrong = total = 0
    while part := [text for _, text in zip(range(50_000), texts, strict=False)]:
        found = program.encode(part)
        plain = [text.decode("utf-8", "replace") for text in part]
        wanted = [one.ids for one in core.encode_batch_fast(plain, add_special_tokens=False)]
        if "strings" in name:
            pairs = zip(wanted, program.decode(wanted), core.decode_batch(wanted), strict=True)
            for ids, said, true in pairs:
                if said != true:
                    wrong += 1
                    print(f"  decoded {ids}: {said!r}, not {true!r}")
        for text, one, other in zip(part, found, wanted, strict=True):
            if one != other:
                wrong += 1
                if wrong <= 5:
                    print(f"  {text.decode('utf-8', 'replace')!r}: {one}, not {other}")
        total += len(part)
    print(f"  {name}: {total} compared, {wrong} differ", flush=True)
    return wrong


def measure(core: Any, program: Program, texts: Sequence[bytes]) -> None:
    """Prints the speeds of both, in turn, the best of five."""
    plain = [text.decode("utf-8", "replace") for text in texts]
    size = sum(len(text.encode()) for text in plain) / 1e6
    data = _pack([text.encode() for text in plain])
    best = {"C++": 0.0, "Hugging Face": 0.0}
    for _ in range(5):
        load, seconds, _ = map(float, program.ask("time", data).split())
        start = time.perf_counter()
        for text in plain:
            core.encode(text, add_special_tokens=False)
        other = time.perf_counter() - start
        start = time.perf_counter()
        core.encode_batch_fast(plain, add_special_tokens=False)
        other = min(other, time.perf_counter() - start)
        best = {
            "C++": max(best["C++"], size / seconds),
            "Hugging Face": max(best["Hugging Face"], size / other),
        }
    shown = ", ".join(f"{name} {speed:.1f} MB/s" for name, speed in best.items())
    ratio = best["C++"] / best["Hugging Face"]
    print(f"  {size:.1f} MB: {shown}, {ratio:.1f} times; read in {load * 1e3:.0f} ms")


def main() -> int:
    """Compares, or times; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("program")
    parser.add_argument("--strings", type=int, default=200_000)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=FAMILIES)
    parser.add_argument("--bundle")
    parser.add_argument("--time", action="store_true")
    asked = parser.parse_args()
    training = [text.decode("utf-8", "replace") for text in make_texts(20_000, 1)]
    made = {
        name: train(name, training) for name in (FAMILIES if asked.only is None else asked.only)
    }
    if asked.bundle:
        made[asked.bundle] = Tokenizer.from_file(asked.bundle)
    wrong = 0
    for name, core in made.items():
        print(name, flush=True)
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
            file.write(core.to_str())
            file.flush()
            program = Program(asked.program, file.name)
            if asked.time:
                long = b"\n".join(make_texts(30_000, 3))
                measure(
                    core,
                    program,
                    [long[place : place + 2000] for place in range(0, len(long), 2000)],
                )
                continue
            wrong += compare(core, program, make_texts(asked.strings, 2), "strings")
            wrong += compare(core, program, make_points(asked.stride), "code points")
            if "qwen2" in name or "always" in name:
                wrong += compare(core, program, make_marks(asked.stride), "pairs of marks")
    print(f"{len(made)} tokenizers, {wrong} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
