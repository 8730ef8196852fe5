"""Random numbers by their place: the n-th draw of a seed, in any order and any language.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011),
Philox-4x32 with 10 rounds. `docs/sampling.md` says how draws are made of it.
"""

from __future__ import annotations

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_STEPS = (0x9E3779B9, 0xBB67AE85)  # what the key grows by, from round to round
_WORD = 0xFFFFFFFF

Words = tuple[int, int, int, int]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Four random words of 32 bits.

    Args:
        counter: four words.
        key: two words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        first, second = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (second >> 32) ^ c1 ^ k0,
            second & _WORD,
            (first >> 32) ^ c3 ^ k1,
            first & _WORD,
        )
        k0, k1 = (k0 + _STEPS[0]) & _WORD, (k1 + _STEPS[1]) & _WORD
    return c0, c1, c2, c3


def uniform(seed: int, number: int) -> float:
    """The draw of a seed by its number: 53 random bits in [0, 1).

    Args:
        seed: 0..2**64 - 1.
        number: 0..2**64 - 1.
    """
    counter = (number & _WORD, number >> 32, 0, 0)
    high, low, _, _ = philox(counter, (seed & _WORD, seed >> 32))
    return float((high << 32 | low) >> 11) * 2.0**-53
