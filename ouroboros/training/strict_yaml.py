"""YAML that says each thing once: of a key given twice YAML takes the last, without a word."""

from __future__ import annotations

from typing import Any

import yaml  # type: ignore[import-untyped]


class StrictLoader(yaml.SafeLoader):
    """Reads plain values, and no mapping with a key twice."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Returns a mapping as it stands in the text.

        Raises:
            ValueError: a key is given twice.
        """
        # Before `<<` is replaced by what it stands for, which may be given anew.
        node = super().compose_mapping_node(anchor)
        given = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in given:
                    raise ValueError(f"{key.value!r:.80} is given twice")
                given.add(key.value)
        return node


def read_yaml(text: str) -> Any:
    """Returns what a text of YAML holds, an empty table where it holds nothing.

    Raises:
        ValueError: a key is given twice, or a value is none.
        yaml.YAMLError: it is no YAML.
        RecursionError: it is nested too deeply.
    """
    loader = StrictLoader(text)
    try:
        whole = loader.get_single_node()
        return {} if whole is None else loader.construct_document(whole)
    finally:
        loader.dispose()
