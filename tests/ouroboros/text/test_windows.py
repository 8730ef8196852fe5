"""Packing text into windows: documents and their labels, separators, what a window starts with."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ouroboros.errors import DataError
from ouroboros.text.windows import (
    IGNORED,
    collate,
    end_of_text_id,
    eval_windows,
    pack_documents,
    prefix_ids,
)
from tests.support.letters import EOT, LETTERS, special_tokenizer


def test_packing_joins_documents_with_end_of_text(letters: PreTrainedTokenizerFast) -> None:
    windows = pack_documents(["abc", "de", "fghijklm"], letters, seq_len=5)
    # abc<eot>d | e<eot>fgh | ijklm, and the last <eot> is left over
    assert windows.input_ids.tolist() == [[2, 3, 4, 0, 5], [6, 0, 7, 8, 9], [10, 11, 12, 13, 14]]
    assert windows.input_ids.dtype == np.int32
    assert len(windows) == 3
    assert windows.seq_len == 5


def test_packing_restarts_positions_at_documents_and_windows(
    letters: PreTrainedTokenizerFast,
) -> None:
    windows = pack_documents(["abc", "de", "fghijklm"], letters, seq_len=5)
    positions = [windows[i]["position_ids"].tolist() for i in range(3)]
    assert positions == [[0, 1, 2, 3, 0], [0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]


def test_packing_labels_never_cross_a_boundary(letters: PreTrainedTokenizerFast) -> None:
    rng = np.random.default_rng(0)
    documents = ["".join(rng.choice(list(LETTERS), size=n)) for n in rng.integers(1, 30, size=60)]
    windows = pack_documents(documents, letters, seq_len=16)
    owner = np.repeat(np.arange(60), [len(d) + 1 for d in documents])
    owner = owner[: windows.input_ids.size].reshape(-1, 16)
    for index in range(len(windows)):
        window = windows[index]
        # The model's one shift: logits[t] are scored on labels[t + 1].
        for t in range(15):
            target = window["labels"][t + 1]
            if owner[index, t] == owner[index, t + 1]:
                assert target == window["input_ids"][t + 1]
            else:
                assert window["input_ids"][t] == EOT
                assert target == IGNORED


def test_packing_is_deterministic(letters: PreTrainedTokenizerFast) -> None:
    one = pack_documents(["abc", "de", "fghijklm"], letters, 5)
    assert one.fingerprint() == pack_documents(["abc", "de", "fghijklm"], letters, 5).fingerprint()
    assert one.fingerprint() != pack_documents(["abc", "de", "fghijkl"], letters, 5).fingerprint()
    # The same tokens cut elsewhere into documents are other training data.
    assert one.fingerprint() != pack_documents(["abc", "de", "fghijklm"], letters, 4).fingerprint()


def test_collate_stacks_to_int64(letters: PreTrainedTokenizerFast) -> None:
    windows = pack_documents(["abc", "de", "fghijklm"], letters, 5)
    batch = collate([windows[0], windows[2]])
    assert set(batch) == {"input_ids", "position_ids", "labels"}
    assert {str(t.dtype) for t in batch.values()} == {"torch.int64"}
    assert batch["input_ids"].tolist() == [[2, 3, 4, 0, 5], [10, 11, 12, 13, 14]]


def test_end_of_text_prefers_endoftext_to_eos(letters: PreTrainedTokenizerFast) -> None:
    assert end_of_text_id(letters) == EOT
    plain = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    assert end_of_text_id(PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>")) == 1
    with pytest.raises(DataError, match="no end-of-text token"):
        end_of_text_id(PreTrainedTokenizerFast(tokenizer_object=plain))


def test_eval_windows_are_the_first_of_the_text(letters: PreTrainedTokenizerFast) -> None:
    windows = eval_windows(LETTERS, letters, seq_len=4, max_windows=2)
    assert windows.tolist() == [[2, 3, 4, 5], [6, 7, 8, 9]]
    assert windows.dtype == np.int64
    assert eval_windows(LETTERS, letters, seq_len=10, max_windows=8).shape == (2, 10)


@pytest.mark.parametrize(
    ("specials", "eos", "wanted"),
    [
        (["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], "<|eot_id|>", "<|end_of_text|>"),
        (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", "<|endoftext|>"),
        (["<bos>", "<eos>", "<end_of_turn>", "</s>"], "<end_of_turn>", "<eos>"),
        (["</s>", "<|endoftext|>", "<|end|>"], "<|end|>", "<|endoftext|>"),
        (["<s>", "</s>"], "</s>", "</s>"),
        (["<s>", "</s>", "<|im_end|>"], "<|im_end|>", "</s>"),
        (["<EOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"], "<|END_OF_TURN_TOKEN|>", "<EOS_TOKEN>"),
        (["<｜end▁of▁sentence｜>", "<|end_of_text|>"], "<｜end▁of▁sentence｜>", None),
        (["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>"], "<|user|>", "<|endoftext|>"),
        (["<unknown end>", "other"], "<unknown end>", None),
    ],
)
def test_separator_ends_a_document_not_a_turn(
    specials: list[str], eos: str, wanted: str | None
) -> None:
    tokenizer = special_tokenizer(specials, eos)
    assert tokenizer.convert_ids_to_tokens(end_of_text_id(tokenizer)) == (wanted or eos)


def test_separator_is_no_word_of_the_text() -> None:
    vocab = {"[EOS]": 0, "<turn>": 1, "a": 2}
    core = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(["<turn>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<turn>")
    assert tokenizer("[EOS]")["input_ids"] == [0]
    assert end_of_text_id(tokenizer) == 1


LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]


@pytest.mark.parametrize(
    ("specials", "eos", "prefix"),
    [
        (LLAMA3, "<|eot_id|>", LLAMA3[:1]),
        (["<s>", "</s>"], "</s>", ["<s>"]),
        (["[gMASK]", "<sop>", "<|endoftext|>"], "<|endoftext|>", ["[gMASK]", "<sop>"]),
        (["<|endoftext|>", "<|im_end|>"], "<|im_end|>", []),
    ],
)
def test_every_document_and_window_starts_as_the_tokenizer_starts_a_text(
    specials: list[str], eos: str, prefix: list[str]
) -> None:
    tokenizer = special_tokenizer(specials, eos, prefix)
    begin = [specials.index(name) for name in prefix]
    assert prefix_ids(tokenizer) == begin
    end, a, size = end_of_text_id(tokenizer), len(specials), len(prefix)
    windows = pack_documents(["abc", "de"], tokenizer, 2 * size + 7)
    wanted = [*begin, a, a + 1, a + 2, end, *begin, a + 3, a + 4, end]
    assert windows.input_ids.tolist() == [wanted]
    window = windows[0]
    assert window["position_ids"].tolist() == [*range(size + 4), *range(size + 3)]
    labels = np.asarray(wanted)
    for start in (0, size + 4):
        labels[start : start + max(size, 1)] = IGNORED
    assert window["labels"].tolist() == labels.tolist()
    cut = eval_windows(LETTERS, tokenizer, size + 4, 2)
    assert cut.tolist() == [
        [*begin, *range(a, a + 4)],
        [*begin, *range(a + 4, a + 8)],
    ]


def test_window_with_no_room_for_text_is_refused() -> None:
    tokenizer = special_tokenizer(["[gMASK]", "<sop>"], "<sop>", ["[gMASK]", "<sop>"])
    with pytest.raises(DataError, match="no room for text after the 2 tokens"):
        eval_windows(LETTERS, tokenizer, 2, 1)
