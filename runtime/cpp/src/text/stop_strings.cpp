#include "text/stop_strings.hpp"

#include <algorithm>
#include <string_view>
#include <utility>

#include "text/unicode.hpp"

namespace ouro::core {

std::string write_specials(const std::string& text, const Specials& specials) {
  std::string written;
  std::size_t last = 0;
  for (const auto& [place, special] : specials) {
    const std::size_t end = std::max(last, std::min(place, text.size()));
    written.append(text, last, end - last).append(special);
    last = end;
  }
  return written.append(text, last);
}

StopScanner::StopScanner(std::vector<std::string> stops) : stops_(std::move(stops)) {}

std::string StopScanner::push(const std::string& piece, const std::string& pending,
                              const std::optional<std::string>& special) {
  if (stops_.empty()) return piece;
  text_ += piece;
  // What is not whole is maybe the beginning of a character.
  const std::string rest = special ? pending : pending.substr(0, pending.find(kUnknown));
  if (special) specials_.emplace_back(text_.size() + rest.size(), *special);
  const std::string scanned = write_specials(text_ + rest, specials_);
  std::size_t start = std::string::npos;
  for (const std::string& stop : stops_) start = std::min(start, scanned.find(stop));
  if (start != std::string::npos) {
    found_ = true;
    std::string shown = (text_ + rest).substr(0, place_of(start));
    text_.clear();
    specials_.clear();
    return shown;
  }
  std::size_t keep = begun(scanned);
  if (!rest.empty()) {  // it may go away, and what is before it be the end again
    keep = std::min(keep, begun(write_specials(text_, specials_)));
  }
  return release(keep);
}

std::string StopScanner::flush() {
  specials_.clear();
  return std::exchange(text_, {});
}

// Where in the text an index of the scanned text lies.
std::size_t StopScanner::place_of(std::size_t index) const {
  std::size_t before = 0;
  for (const auto& [place, special] : specials_) {
    if (index <= place + before) break;
    before += std::min(special.size(), index - place - before);
  }
  return index - before;
}

// Where the longest beginning of a stop string stands at the end; else the end.
std::size_t StopScanner::begun(const std::string& scanned) const {
  std::size_t longest = 0;
  for (const std::string& stop : stops_) longest = std::max(longest, stop.size());
  for (std::size_t length = std::min(longest - std::min<std::size_t>(longest, 1), scanned.size());
       length > 0; --length) {
    const std::string_view end = std::string_view(scanned).substr(scanned.size() - length);
    for (const std::string& stop : stops_) {
      if (stop.size() > length && stop.compare(0, length, end) == 0) return scanned.size() - length;
    }
  }
  return scanned.size();
}

// Shows the settled text before an index of the scanned text.
std::string StopScanner::release(std::size_t keep) {
  std::size_t before = 0;  // bytes of the special tokens so far
  Specials kept;
  for (const auto& [place, special] : specials_) {
    const std::size_t start = place + before;
    before += special.size();
    if (start + special.size() > keep || place > text_.size()) kept.emplace_back(place, special);
  }
  const std::size_t cut = std::min(place_of(keep), text_.size());
  // What stands before the cut is at the beginning now.
  for (auto& one : kept) one.first -= cut;
  specials_ = std::move(kept);
  std::string shown = text_.substr(0, cut);
  text_.erase(0, cut);
  return shown;
}

}  // namespace ouro::core
