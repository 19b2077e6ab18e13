// A text of tokens that finds where its end, or the end of another text, stood in it before.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace minisgl {

// A few steps a token and a bounded number a search, whatever the length; 12 bytes a token at most. Where a text grows
// beyond `most`, its beginning is given up.
class NgramText {
 public:
  static constexpr std::int32_t kShortest = 3;  // tokens of an end that is looked for
  static constexpr std::int32_t kLongest = 32;  // no end is compared further
  static constexpr std::int32_t kGap = -1;      // between two texts in one: no end that is found has it

  struct Match {
    std::int64_t next = 0;  // the position behind the end that was found
    std::int32_t length = 0;
  };

  // `most`: a power of two, at least kLongest * 2.
  explicit NgramText(std::int64_t most) : most_(most) {}

  void append(std::span<const std::int32_t> tokens);
  // The longest end of `text` among the latest places here that have its last tokens; the later of equal ones, and none
  // behind which nothing stands. length 0: there is none.
  Match find(const NgramText& text) const;

  std::int64_t len() const { return len_; }
  // Whether the token at the position is still here.
  bool has(std::int64_t position) const { return position < len_ && position >= first() && position >= 0; }
  std::int32_t at(std::int64_t position) const { return tokens_[static_cast<std::size_t>(position & mask())]; }

 private:
  static constexpr int kMostPlaces = 16;  // that are compared

  std::int64_t first() const { return len_ - std::ssize(tokens_); }  // below 0: there is room left
  std::int64_t mask() const { return std::ssize(tokens_) - 1; }
  std::size_t slot(std::int64_t end) const;  // of heads_, by the tokens before a position
  std::size_t slot(std::int32_t first, std::int32_t second, std::int32_t third) const;
  void grow();
  void index();
  std::int32_t match_length(std::int64_t end, const NgramText& text) const;

  std::int64_t most_;
  std::int64_t len_ = 0;
  // By position modulo their size, a power of two: a token, and the place before that ends like the text up to it.
  std::vector<std::int32_t> tokens_;
  std::vector<std::uint32_t> before_;
  std::vector<std::uint32_t> heads_;  // the latest position behind tokens with this hash; 0: none
};

}  // namespace minisgl
