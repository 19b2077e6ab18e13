// How long steps take, learnt from those that ran, and so how much of a prompt fits beside sequences that decode.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

namespace minisgl {

// What the time of a step depends on.
struct StepShape {
  std::int64_t decode_rows = 0, prefill_rows = 0;
  std::int64_t decode_pairs = 0, prefill_pairs = 0;  // of a row and a position that it attends to

  void add_decode(std::int64_t start, std::int64_t rows) {
    decode_rows += rows;
    decode_pairs += pairs(start, rows);
  }
  void add_prefill(std::int64_t start, std::int64_t rows) {
    prefill_rows += rows;
    prefill_pairs += pairs(start, rows);
  }

 private:
  static std::int64_t pairs(std::int64_t start, std::int64_t rows) { return rows * start + rows * (rows + 1) / 2; }
};

// A linear model of a step's seconds, fitted as steps end; later ones count more. Chunks begin small and at most double
// until they are as large as the target allows.
class StepCost {
 public:
  // So many rows of a prompt are in every step, whatever it takes: or a prompt would never end.
  static constexpr std::int64_t kLeastRows = 16;

  // `target_seconds`: how long a step with sequences that decode may take.
  explicit StepCost(double target_seconds) : target_(target_seconds) {}

  // A step of this shape took so long.
  void learn(const StepShape& shape, double seconds);
  // Rows of a prompt, from position `start` on, that may be added to a step of this shape; 0 where it is full.
  std::int64_t rows_that_fit(const StepShape& shape, std::int64_t start) const;
  double predict(const StepShape& shape) const;  // seconds
  // How much longer a prefill from position `start` on takes for its first `count` rows, of `rows` in all; nothing
  // where no prefill was learnt from.
  std::optional<double> prefill_seconds(std::int64_t start, std::int64_t count, std::int64_t rows) const;

 private:
  // One, whether there is a prefill, and the fields of a shape, in units that make them about one.
  static constexpr std::size_t kFeatures = 6;
  using Features = std::array<double, kFeatures>;
  static Features features_of(const StepShape& shape);

  double target_;
  double share_ = 0.9;                               // of the target, what steps are planned for
  Features weights_ = {};                            // seconds per unit of a feature
  std::array<Features, kFeatures> covariance_ = {};  // of recursive least squares
  bool has_learnt_ = false;
  std::int64_t largest_ = 0;  // prefill rows of a step that was learnt from
};

}  // namespace minisgl
