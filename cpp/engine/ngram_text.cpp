// Chains of positions behind the same three tokens.
#include "engine/ngram_text.h"

#include <algorithm>

namespace minisgl {

std::size_t NgramText::slot(std::int32_t first, std::int32_t second, std::int32_t third) const {
  std::uint64_t hash = static_cast<std::uint32_t>(first) * 0x9e3779b97f4a7c15U;
  hash = (hash ^ static_cast<std::uint32_t>(second)) * 0xbf58476d1ce4e5b9U;
  hash = (hash ^ (hash >> 29U) ^ static_cast<std::uint32_t>(third)) * 0x94d049bb133111ebU;
  return static_cast<std::size_t>(hash >> 32U) & static_cast<std::size_t>(mask());
}

std::size_t NgramText::slot(std::int64_t end) const {
  return slot(at(end - 3), at(end - 2), at(end - 1));
}

// The last position is indexed when a token stands behind it.
void NgramText::index() {
  const std::int64_t end = len_ - 1;
  if (end - kShortest < std::max<std::int64_t>(0, first())) return;
  if (at(end - 1) == kGap || at(end - 2) == kGap || at(end - 3) == kGap) return;
  std::uint32_t& head = heads_[slot(end)];
  before_[static_cast<std::size_t>(end & mask())] = head;
  head = static_cast<std::uint32_t>(end);
}

void NgramText::grow() {
  const auto size = std::max<std::size_t>(tokens_.size() * 2, static_cast<std::size_t>(kLongest) * 2);
  tokens_.resize(size);  // it was full, and nothing was given up: positions stay
  before_.assign(size, 0);
  heads_.assign(size, 0);
  const std::int64_t len = len_;
  for (len_ = 0; len_ < len;) ++len_, index();
}

void NgramText::append(std::span<const std::int32_t> tokens) {
  for (const std::int32_t token : tokens) {
    if (len_ == std::ssize(tokens_) && len_ < most_) grow();
    tokens_[static_cast<std::size_t>(len_ & mask())] = token;
    ++len_;
    index();
  }
}

std::int32_t NgramText::match_length(std::int64_t end, const NgramText& text) const {
  std::int32_t length = 0;
  while (length < kLongest && has(end - 1 - length) && text.has(text.len_ - 1 - length)) {
    const std::int32_t token = at(end - 1 - length);
    if (token == kGap || token != text.at(text.len_ - 1 - length)) break;
    ++length;
  }
  return length;
}

NgramText::Match NgramText::find(const NgramText& text) const {
  const std::int64_t len = text.len_;
  if (len_ < kShortest || !text.has(len - kShortest)) return {};
  Match best;
  std::int64_t end = heads_[slot(text.at(len - 3), text.at(len - 2), text.at(len - 1))];
  for (int i = 0; i < kMostPlaces && end > 0 && has(end - kShortest); ++i) {
    const std::int32_t length = match_length(end, text);
    if (length > best.length) best = {.next = end, .length = length};
    if (length == kLongest) break;
    const std::int64_t before = before_[static_cast<std::size_t>(end & mask())];
    if (before >= end) break;  // what was overwritten
    end = before;
  }
  return best.length >= kShortest && at(best.next) != kGap ? best : Match{};
}

}  // namespace minisgl
