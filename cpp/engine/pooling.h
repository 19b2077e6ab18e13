// A prompt's embedding: what the hidden states of its rows come to.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace minisgl {

// What a request asks for.
struct Pooling {
  enum class Kind : std::uint8_t { none, last, mean };
  Kind kind = Kind::none;       // of the last token's row, or of all rows
  bool normalize = true;        // to length 1
  std::int64_t dimensions = 0;  // the first so many alone, before they are normalised; 0: all

  bool enabled() const { return kind != Kind::none; }
  // How many of a prompt's last rows it is made of.
  std::int64_t num_rows(std::int64_t prompt_len) const {
    return kind == Kind::none ? 0 : kind == Kind::last ? 1 : prompt_len;
  }
};

// Takes the rows step by step, in order of position; where the steps cut the prompt changes no bit.
class Pooler {
 public:
  explicit Pooler(const Pooling& pooling) : pooling_(pooling) {}
  // Rows of `width` hidden states, one after the other.
  void add(std::span<const float> rows, std::size_t width);
  // [dimensions, or width] once all rows were added. Zeros stay zeros where they are normalised.
  std::vector<float> embedding() const;

 private:
  Pooling pooling_;
  std::vector<double> sums_;  // [width] of the rows that count
  std::int64_t num_rows_ = 0;
};

}  // namespace minisgl
