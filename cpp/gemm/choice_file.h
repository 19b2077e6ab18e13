// Which of a library's algorithms were measured to be the fastest, kept on disk from one start to the next.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

namespace minisgl {

// y [rows, outputs] (+)= x [rows, inputs] · Wᵀ, in bf16 but for y where it is f32, and weights and x where they are
// e4m3.
struct ProductShape {
  std::int64_t outputs, inputs;
  std::int64_t rows;  // the most that share a choice
  bool y_is_f32;
  bool added;
  bool of_bytes;
  auto operator<=>(const ProductShape&) const = default;
};

// The library's own description of an algorithm, which only it can read.
using AlgorithmWords = std::array<std::uint64_t, 8>;
using GemmChoices = std::map<ProductShape, AlgorithmWords>;

// `owner` names what the choices were measured with: GPU and library. A missing file, or one of another owner, holds
// nothing; neither does a damaged one, which is logged.
GemmChoices read_choices(const std::filesystem::path& file, const std::string& owner);
// Replaces the file as a whole, and makes its folder. What goes wrong is logged: the choices are then measured again.
void write_choices(const std::filesystem::path& file, const std::string& owner, const GemmChoices& choices);

}  // namespace minisgl
