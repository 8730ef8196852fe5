"""Text out of HTML, DocBook and Mallard: what a reader of the page would read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


_VOID = _names("area base br col embed hr img input link meta source track wbr ")
_DROPPED = _names(
    "head script style nav footer header form button select svg math info remark bookinfo "
    "articleinfo chapterinfo sect1info comment "
)
_BLOCKS = _names(
    "address article blockquote body br caption dd div dl dt fieldset figcaption figure h1 h2 h3 "
    "h4 h5 h6 hr li main ol p pre section table tbody td th thead tr ul para title screen item "
    "listitem programlisting steps sect1 sect2 note entry row varlistentry term simpara "
)
_VERBATIM = frozenset({"pre", "screen", "programlisting", "code-block"})
_BETWEEN = re.compile(
    r"(^|\s)(nav|footer|sidebar|toolbar|breadcrumb|toc(\s|$)|headerlink|related|search|copyright|menu)",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&([A-Za-z]{3,});")
_GAPS = re.compile(r"\n{3,}")


class _Reader(HTMLParser):
    """Collects the text; what lies in a dropped element counts only its depth."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._dropping: list[str] = []
        self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            if not self._dropping and tag in ("br", "hr"):
                self.parts.append("\n")
            return
        if self._dropping:
            if tag == self._dropping[0]:
                self._dropping.append(tag)
            return
        marks = " ".join(v for k, v in attrs if v and k in ("class", "id", "role"))
        if tag in _DROPPED or (tag not in ("html", "body") and marks and _BETWEEN.search(marks)):
            self._dropping.append(tag)
            return
        if tag in _BLOCKS:
            self.parts.append("\n\n" if tag not in ("li", "td", "th", "tr", "dd") else "\n")
            if tag == "li":
                self.parts.append("- ")
        self._verbatim += tag in _VERBATIM

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("br", "hr") and not self._dropping:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self._dropping:
            if tag == self._dropping[-1]:
                self._dropping.pop()
            return
        if tag in _BLOCKS and tag not in ("li", "td", "th", "dd"):
            self.parts.append("\n")
        if tag in _VERBATIM:
            self._verbatim = max(0, self._verbatim - 1)

    def handle_data(self, data: str) -> None:
        if not self._dropping:
            self.parts.append(data if self._verbatim else re.sub(r"\s+", " ", data))


def text_of_markup(page: str) -> str:
    """Returns the text of a page without navigation, with blank lines between blocks."""
    reader = _Reader()
    reader.feed(page)  # entities of DocBook's own, &kstars; say, become their names
    reader.close()
    lines = [line.rstrip() for line in _ENTITY.sub(r"\1", "".join(reader.parts)).split("\n")]
    lines = [line[1:] if line[:1] == " " and line[:2] != "  " else line for line in lines]
    return _GAPS.sub("\n\n", "\n".join(lines)).strip()


def without_common_lines(texts: Sequence[str], share: float = 0.1) -> list[str]:
    """Takes lines out that stand in many of the texts: what a site repeats on each page.

    Args:
        texts: pages of one source; fewer than 20 are left as they are.
        share: of the pages, above which a line is the site's own.
    """
    if len(texts) < 20:
        return list(texts)
    counts = Counter(line for text in texts for line in {x.strip() for x in text.split("\n")})
    common = {x for x, n in counts.items() if x and n > max(5, share * len(texts))}
    cleaned = ("\n".join(x for x in text.split("\n") if x.strip() not in common) for text in texts)
    return [_GAPS.sub("\n\n", text).strip() for text in cleaned]
