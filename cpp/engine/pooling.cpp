// Sums in 64 bits: a prompt may have many rows.
#include "engine/pooling.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace minisgl {

void Pooler::add(std::span<const float> rows, std::size_t width) {
  if (rows.empty()) return;
  MINISGL_CHECK(width > 0 && rows.size() % width == 0, rows.size(), " hidden states of ", width, " per row");
  if (pooling_.kind == Pooling::Kind::last) {
    sums_.assign(rows.end() - static_cast<std::ptrdiff_t>(width), rows.end());
    num_rows_ = 1;
    return;
  }
  sums_.resize(width, 0.0);
  for (std::size_t first = 0; first < rows.size(); first += width, ++num_rows_) {
    for (std::size_t i = 0; i < width; ++i) sums_[i] += rows[first + i];
  }
}

std::vector<float> Pooler::embedding() const {
  MINISGL_CHECK(num_rows_ > 0, "an embedding of no rows");
  const std::size_t size =
      pooling_.dimensions == 0 ? sums_.size() : std::min(sums_.size(), static_cast<std::size_t>(pooling_.dimensions));
  double scale = 1.0 / static_cast<double>(num_rows_);
  if (pooling_.normalize) {
    double squares = 0;
    for (std::size_t i = 0; i < size; ++i) squares += sums_[i] * sums_[i];
    scale = squares > 0 ? 1.0 / std::sqrt(squares) : 0.0;
  }
  std::vector<float> embedding(size);
  for (std::size_t i = 0; i < size; ++i) embedding[i] = static_cast<float>(sums_[i] * scale);
  return embedding;
}

}  // namespace minisgl
