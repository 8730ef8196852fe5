// UTF-8 as Python reads it, classes and NFC by the tables of the `tokenizers` wheel.
#include <catch2/catch.hpp>

#include "text/unicode.hpp"

using namespace ouro::core;  // NOLINT: a test

TEST_CASE("bytes that are not UTF-8 become marks as in Python") {
  const std::string mark(kUnknown);
  CHECK(to_utf8("") == "");
  CHECK(to_utf8("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80") ==
        "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
  CHECK(to_utf8("\xFF") == mark);
  CHECK(to_utf8("\xE2\x82") == mark);  // the beginning of a character
  CHECK(to_utf8("\xE2\x82z\x80") == mark + "z" + mark);
  CHECK(to_utf8("\xC0\x80") == mark + mark);  // overlong
  CHECK(to_utf8("\xE0\x80\x80") == mark + mark + mark);
  CHECK(to_utf8("\xED\xA0\x80") == mark + mark + mark);  // half a surrogate pair
  CHECK(to_utf8("\xF0\x9F\x98") == mark);
  CHECK(to_utf8("\xF4\x90\x80\x80") == mark + mark + mark + mark);  // beyond U+10FFFF
  CHECK(to_utf8("\xF5") == mark);
}

TEST_CASE("what is UTF-8 is known") {
  for (const char* text :
       {"", "a", "\xC2\x80", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xF4\x8F\xBF\xBF"}) {
    CHECK(is_utf8(text));
    CHECK(to_utf8(text) == text);
  }
  for (const char* text :
       {"\x80", "a\xC2", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xFE"}) {
    CHECK_FALSE(is_utf8(text));
  }
}

TEST_CASE("characters have the classes that the wheel gives them") {
  CHECK(classes('a') == (kLetter | kWord));
  CHECK(classes('7') == (kNumber | kNumeric | kWord));
  CHECK(classes(' ') == (kSpace | kWhite));
  CHECK(classes('_') == kWord);
  CHECK(classes('.') == 0);
  CHECK((classes(0x00BD) & (kNumber | kNumeric | kWord)) == (kNumber | kNumeric));  // one half
  CHECK((classes(0x0301) & (kLetter | kUnstable | kWord)) == (kUnstable | kWord));
  CHECK((classes(0x1C) & kSpace) == 0);  // white space to Python alone
  CHECK((classes(0x180E) & (kSpace | kWhite)) == 0);
  CHECK((classes(0x10FFFF)) == 0);
}

TEST_CASE("NFC composes, sorts marks and leaves the rest") {
  CHECK(nfc("plain \xE6\x97\xA5\xE6\x9C\xAC") == "plain \xE6\x97\xA5\xE6\x9C\xAC");
  CHECK(nfc("e\xCC\x81") == "\xC3\xA9");
  CHECK(nfc("\xCC\x81") == "\xCC\x81");
  CHECK(nfc("ab\xCC\xA3\xCC\x87z") == "a\xE1\xB8\x85\xCC\x87z");  // b, below, above
  CHECK(nfc("s\xCC\x87\xCC\xA3") == "\xE1\xB9\xA9");              // above, below: both compose
  CHECK(nfc("\xE2\x84\xAB") == "\xC3\x85");                       // the sign of Angstrom
  CHECK(nfc("\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8") == "\xEA\xB0\x81");  // Hangul
  CHECK(nfc("\xEA\xB0\x80\xE1\x86\xA8") == "\xEA\xB0\x81");
  CHECK(nfc("\xE0\xA4\x95\xE0\xA4\xBC") == "\xE0\xA4\x95\xE0\xA4\xBC");  // excluded from composing
}

TEST_CASE("texts are replaced from the left") {
  CHECK(replace_all("aaa", "aa", "b") == "ba");
  CHECK(replace_all("a b  c", " ", "\xE2\x96\x81") ==
        "a\xE2\x96\x81"
        "b\xE2\x96\x81\xE2\x96\x81"
        "c");
  CHECK(replace_all("", "x", "y").empty());
}
