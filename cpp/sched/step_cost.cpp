// Recursive least squares with forgetting.
#include "sched/step_cost.h"

#include <algorithm>
#include <cmath>

namespace minisgl {
namespace {

constexpr double kRowUnit = 100, kPairUnit = 100'000;
constexpr double kForgetting = 0.99;
// At first nothing is known of a weight; nothing is forgotten where the steps of late say nothing about one.
constexpr double kUnknown = 100, kMostUnknown = 1000;
// What steps are planned for, as a share of the target: less after one that took longer, more after each that didn't,
// so that about one in a hundred does.
constexpr double kLess = 0.95, kMore = 0.0005, kLeastShare = 0.5, kMostShare = 0.95;

}  // namespace

StepCost::Features StepCost::features_of(const StepShape& shape) {
  return {1.0,
          shape.prefill_rows > 0 ? 1.0 : 0.0,
          static_cast<double>(shape.decode_rows) / kRowUnit,
          static_cast<double>(shape.decode_pairs) / kPairUnit,
          static_cast<double>(shape.prefill_rows) / kRowUnit,
          static_cast<double>(shape.prefill_pairs) / kPairUnit};
}

void StepCost::learn(const StepShape& shape, double seconds) {
  if (!has_learnt_) {
    for (std::size_t i = 0; i < kFeatures; ++i) covariance_[i][i] = kUnknown;
    has_learnt_ = true;
  }
  const Features x = features_of(shape);
  Features gain = {};  // the covariance times x
  double scale = kForgetting, error = seconds, unknown = 0;
  for (std::size_t i = 0; i < kFeatures; ++i) {
    for (std::size_t j = 0; j < kFeatures; ++j) gain[i] += covariance_[i][j] * x[j];
    scale += x[i] * gain[i];
    error -= weights_[i] * x[i];
    unknown = std::max(unknown, covariance_[i][i]);
  }
  const double forgetting = unknown < kMostUnknown ? kForgetting : 1.0;
  for (std::size_t i = 0; i < kFeatures; ++i) {
    weights_[i] += gain[i] / scale * error;
    for (std::size_t j = 0; j < kFeatures; ++j) {
      covariance_[i][j] = (covariance_[i][j] - gain[i] * gain[j] / scale) / forgetting;
    }
  }
  if (shape.prefill_rows == 0) return;
  largest_ = std::max(largest_, shape.prefill_rows);
  if (shape.decode_rows == 0) return;
  share_ = seconds > target_ ? std::max(kLeastShare, kLess * share_) : std::min(kMostShare, share_ + kMore);
}

double StepCost::predict(const StepShape& shape) const {
  const Features x = features_of(shape);
  double seconds = 0;
  for (std::size_t i = 0; i < kFeatures; ++i) seconds += std::max(0.0, weights_[i]) * x[i];
  return seconds;
}

std::optional<double> StepCost::prefill_seconds(std::int64_t start, std::int64_t count, std::int64_t rows) const {
  if (largest_ == 0) return std::nullopt;
  StepShape whole, rest;
  whole.add_prefill(start, rows);
  rest.add_prefill(start + count, rows - count);
  return predict(whole) - predict(rest);
}

std::int64_t StepCost::rows_that_fit(const StepShape& shape, std::int64_t start) const {
  const std::int64_t least = shape.prefill_rows == 0 ? kLeastRows : 0;
  const std::int64_t most = std::max(2 * largest_, kLeastRows) - shape.prefill_rows;
  if (most <= least) return least;
  StepShape begun = shape;
  begun.add_prefill(0, shape.prefill_rows == 0 ? 1 : 0);
  const double left = share_ * target_ - predict(begun);
  if (left <= 0) return least;
  // n rows take n * (per_row + per_pair * start) + per_pair * n * n / 2 seconds.
  const double per_pair = std::max(0.0, weights_[5]) / kPairUnit;
  const double per_row = std::max(0.0, weights_[4]) / kRowUnit + per_pair * (static_cast<double>(start) + 0.5);
  const double root = std::sqrt(per_row * per_row + 2 * per_pair * left);
  const double rows = per_row + root > 0 ? 2 * left / (per_row + root) : static_cast<double>(most);
  return std::clamp(static_cast<std::int64_t>(std::min(rows, static_cast<double>(most))), least, most);
}

}  // namespace minisgl
