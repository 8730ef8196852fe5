"""How llama.cpp's named pre-tokenizers cut a text, as pre-tokenizers of Hugging Face's library.

Written as the model's own tokenizer.json has it where that is known, else as llama.cpp's rule.
Source: llama.cpp, src/llama-vocab.cpp, by the names of `tokenizer.ggml.pre`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FRONT = r"[^\r\n\p{L}\p{N}]?"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
_ASCII_MARKS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"

_QWEN2 = f"{_SUFFIX}|{_WORD}|\\p{{N}}|{_MARKS}|{_SPACES}"
_LLAMA3 = f"{_SUFFIX}|{_WORD}|\\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}"
_QWEN35 = (
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_JAIS2 = (
    rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_MARKS}|\s*[\r\n]+|"
    + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"|\s{1,2}(?!\S)|\s{1}"
)
_TEKKEN = rf"{_FRONT}{_UPPER}*{_LOWER}+|{_FRONT}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASHED}"
_GPT4O = (
    rf"{_FRONT}{_UPPER}*{_LOWER}+{_SUFFIX}?|{_FRONT}{_UPPER}+{_LOWER}*{_SUFFIX}?"
    rf"|\p{{N}}{{1,3}}|{_SLASHED}"
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_EXAONE_MOE = (
    rf"{_SUFFIX}|{_FRONT}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3 = (
    rf"{_ASCII_MARKS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# The letters of alphabets with two cases, as DeepSeek's tokenizer.json lists them.
_CASED = (
    "\\s?[A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3"
    "-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-"
    "\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-"
    "\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-"
    "\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126"
    "\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00"
    "-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f"
    "\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-"
    "\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
_DEEPSEEK_MARKS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"

DIGIT = "digit"  # every digit by itself


@dataclass(frozen=True)
class Rule:
    """How a text is cut before the merges are applied.

    Attributes:
        cuts: one after another, each on the pieces of the former: a regex whose matches become
            pieces, or DIGIT.
        gpt2: whether GPT-2's own pattern follows.
        whole: whether a piece that is a token is taken without merges.
        bos: whether a begin-of-text token is put first where the file does not say.
        nfc: whether the text is normalised to NFC first.
    """

    cuts: tuple[str, ...] = ()
    gpt2: bool = False
    whole: bool = False
    bos: bool = False
    nfc: bool = False

    def build(self, space: bool) -> Any:
        """Returns the pre-tokenizer; `space` puts a space before a text that has none."""
        from tokenizers import Regex, pre_tokenizers

        made: list[Any] = []
        for cut in self.cuts:
            if cut == DIGIT:
                made.append(pre_tokenizers.Digits(individual_digits=True))
            else:
                made.append(pre_tokenizers.Split(Regex(cut), "isolated"))
        last = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=self.gpt2)
        return pre_tokenizers.Sequence([*made, last]) if made else last


_DIGIT_GPT2 = Rule((DIGIT,), gpt2=True)
_PLAIN_GPT2 = Rule(gpt2=True)
_DEEPSEEK_V3 = Rule((r"\p{N}{1,3}", _CJK, _DEEPSEEK3))
_LLAMA3_WHOLE = Rule((_LLAMA3,), whole=True, bos=True)

_BY_RULE: tuple[tuple[Rule, str], ...] = (
    (
        Rule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
        "default",
    ),
    (
        _LLAMA3_WHOLE,
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    ),
    (Rule((_LLAMA3,)), "dbrx smaug-bpe chatglm-bpe"),
    (Rule((_LLAMA3,), whole=True), "glm4 glm5"),
    (Rule((_JAIS2,)), "jais-2"),
    (
        Rule(("[\r\n]", _CASED, _DEEPSEEK_MARKS, r"\s+$", _HAN, DIGIT)),
        "deepseek-llm",
    ),
    (Rule(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, DIGIT)), "deepseek-coder"),
    (_DEEPSEEK_V3, "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    (Rule((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")), "falcon"),
    (
        _DIGIT_GPT2,
        "starcoder refact smollm codeshell exaone minerva minerva-7b mellum2",
    ),
    (Rule((DIGIT,), gpt2=True, nfc=True), "command-r"),
    (
        _PLAIN_GPT2,
        "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum exaone4",
    ),
    (_PLAIN_GPT2, "modern-bert jais trillion granite-docling"),
    (Rule(gpt2=True, nfc=True), "mpt olmo"),
    (Rule((_QWEN2,), nfc=True), "qwen2 f2llmv2"),
    (
        Rule((_QWEN2,)),
        "deepseek-r1-qwen kormo megrez stablelm2 hunyuan solar-open grok-2",
    ),
    (Rule((_QWEN35,), nfc=True), "qwen35"),
    (Rule((_BLOOM,)), "poro-chat bloom gpt3-finnish"),
    (Rule((_BLOOM, DIGIT)), "viking"),
    (Rule((_TEKKEN,), whole=True, bos=True), "tekken"),
    (Rule((_GPT4O,)), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (Rule((_BAILING,)), "bailingmoe bailingmoe2 llada-moe"),
    (Rule((_SEED,)), "seed-coder"),
    (Rule((_EXAONE_MOE,)), "exaone-moe"),
    (Rule((r"\p{N}{1,3}", _LLAMA3), whole=True), "minicpm5"),
    (Rule(("[^\n]+|[\n]+", _QWEN2)), "laguna"),
)
RULES = {name: rule for rule, names in _BY_RULE for name in names.split()}
"""The rule of each name that `tokenizer.ggml.pre` may have."""
