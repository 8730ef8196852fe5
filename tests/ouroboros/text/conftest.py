"""Fixture: a tokenizer of one token a letter."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from tests.support.letters import letter_tokenizer


@pytest.fixture(scope="module")
def letters() -> PreTrainedTokenizerFast:
    return letter_tokenizer()
