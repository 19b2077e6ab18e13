// Cosines and sines of rotary position embeddings, computed for the positions that are used.
#include "models/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"

namespace minisgl {
namespace {

// Low frequencies divided by the factor, high ones kept, a smooth passage between (Llama 3.1).
double llama3_frequency(const RopeSpec& spec, double frequency) {
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  if (wavelength > spec.original_max_position / spec.low_freq_factor) return frequency / spec.factor;
  if (wavelength < spec.original_max_position / spec.high_freq_factor) return frequency;
  const double smooth =
      (spec.original_max_position / wavelength - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor);
  return (1.0 - smooth) * frequency / spec.factor + smooth * frequency;
}

// Dimensions between which yarn passes from kept to interpolated frequencies.
struct YarnRange {
  double low, high;
};

YarnRange yarn_range(const RopeSpec& spec) {
  const auto dim = static_cast<double>(spec.rotary_dim);
  const auto correction = [&](double rotations) {
    return dim * std::log(spec.original_max_position / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(spec.theta));
  };
  double low = correction(spec.beta_fast);
  double high = correction(spec.beta_slow);
  if (spec.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  return {low, low == high ? high + 0.001 : high};
}

double yarn_frequency(const RopeSpec& spec, const YarnRange& range, std::int64_t index, double frequency) {
  const double ramp = std::clamp((static_cast<double>(index) - range.low) / (range.high - range.low), 0.0, 1.0);
  return frequency / spec.factor * ramp + frequency * (1.0 - ramp);
}

constexpr std::int64_t block = 256;  // positions that a task computes

std::int64_t whole_blocks(std::int64_t num_positions) {
  return (num_positions + block - 1) / block * block;
}

}  // namespace

std::vector<float> rope_inverse_frequencies(const RopeSpec& spec, std::int64_t context) {
  const std::int64_t half = spec.rotary_dim / 2;
  const bool is_long = static_cast<double>(context) > spec.original_max_position;
  const std::vector<float>& divisors = is_long ? spec.long_factors : spec.short_factors;
  MINISGL_CHECK(spec.freq_factors.empty() || std::ssize(spec.freq_factors) == half);
  const YarnRange range = spec.type == RopeSpec::Type::yarn ? yarn_range(spec) : YarnRange{};
  std::vector<float> frequencies;
  for (std::int64_t i = 0; i < half; ++i) {
    double frequency = std::pow(spec.theta, -2.0 * static_cast<double>(i) / static_cast<double>(spec.rotary_dim));
    switch (spec.type) {
      case RopeSpec::Type::standard: break;
      case RopeSpec::Type::linear: frequency /= spec.factor; break;
      case RopeSpec::Type::llama3: frequency = llama3_frequency(spec, frequency); break;
      case RopeSpec::Type::yarn: frequency = yarn_frequency(spec, range, i, frequency); break;
      case RopeSpec::Type::longrope: frequency /= static_cast<double>(divisors[static_cast<std::size_t>(i)]); break;
    }
    if (!spec.freq_factors.empty()) frequency /= static_cast<double>(spec.freq_factors[static_cast<std::size_t>(i)]);
    frequencies.push_back(static_cast<float>(frequency));
  }
  return frequencies;
}

double rope_attention_factor(const RopeSpec& spec) {
  if (spec.type != RopeSpec::Type::yarn && spec.type != RopeSpec::Type::longrope) return 1.0;
  if (spec.attention_factor != 0.0) return spec.attention_factor;
  if (spec.type == RopeSpec::Type::longrope) {
    return spec.factor <= 1.0 ? 1.0 : std::sqrt(1.0 + std::log(spec.factor) / std::log(spec.original_max_position));
  }
  return spec.factor <= 1.0 ? 1.0 : 0.1 * std::log(spec.factor) + 1.0;
}

RopeTable::RopeTable(const RopeSpec& spec, std::int64_t max_positions, Hardware& device, bool for_queries)
    : spec_(spec),
      for_queries_(for_queries),
      inverse_frequencies_(rope_inverse_frequencies(spec, max_positions)),
      attention_factor_(static_cast<float>(rope_attention_factor(spec))),
      max_positions_(max_positions),
      device_(device) {}

void RopeTable::set_context(std::int64_t num_positions) {
  MINISGL_CHECK(num_positions_ == 0, "the table's angles are in use");
  inverse_frequencies_ = rope_inverse_frequencies(spec_, num_positions);
}

std::int64_t RopeTable::bytes_for(std::int64_t num_positions) const {
  const std::int64_t grown = std::max(num_positions, std::min(2 * num_positions, max_positions_));
  return whole_blocks(grown) * 2 * std::ssize(inverse_frequencies_) * std::int64_t{sizeof(float)};
}

float RopeTable::scale_at(std::int64_t position) const {
  if (!for_queries_) return attention_factor_;
  const double periods = std::floor(static_cast<double>(position) / spec_.original_max_position);
  return static_cast<float>((1.0 + spec_.query_growth * std::log(1.0 + periods)) * attention_factor_);
}

void RopeTable::reserve(std::int64_t num_positions) {
  if (num_positions <= num_positions_) return;
  const std::int64_t first = num_positions_;
  const std::int64_t last = whole_blocks(std::max(num_positions, std::min(2 * first, max_positions_)));
  const std::int64_t half = std::ssize(inverse_frequencies_);
  std::vector<float> added(static_cast<std::size_t>((last - first) * 2 * half));
  device_.pool().parallel_for((last - first + block - 1) / block, [&](std::int64_t task, int) {
    const std::int64_t begin = first + task * block;
    for (std::int64_t position = begin; position < std::min(last, begin + block); ++position) {
      float* row = added.data() + (position - first) * 2 * half;
      const float scale = scale_at(position);
      for (std::int64_t i = 0; i < half; ++i) {
        // Rounded to f32 before cos and sin: models are trained and published with that angle.
        const float angle = static_cast<float>(position) * inverse_frequencies_[static_cast<std::size_t>(i)];
        row[i] = std::cos(angle) * scale;
        row[half + i] = std::sin(angle) * scale;
      }
    }
  });
  const auto old_bytes = static_cast<std::size_t>(first * 2 * half) * sizeof(float);
  DeviceBuffer table = device_.allocate(old_bytes + added.size() * sizeof(float));
  device_.copy(table_.data(), old_bytes, table.data());
  device_.upload(std::as_bytes(std::span(added)), table.data() + old_bytes);
  table_ = std::move(table);
  num_positions_ = last;
}

}  // namespace minisgl
