// Mixtures of experts on each device, against what their declaration says, in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/aligned_buffer.h"
#include "kernels/devices.h"
#include "kernels/random_floats.h"

namespace minisgl {
namespace {

using testing_support::device_label;
using testing_support::device_of;
using testing_support::DeviceKind;
using testing_support::DeviceMatrix;
using testing_support::relative_error;
using testing_support::rounded;
using testing_support::stored;

using Values = std::vector<float>;
using Shared = RouterRule::Shared;
using Scores = RouterRule::Scores;

// A layer as a test describes it; weights are what the device's dtype holds.
struct Layer {
  std::int64_t num_experts = 8, hidden = 64, intermediate = 96;
  RouterRule rule{.num_chosen = 2, .normalized = true};
  Activation activation = Activation::silu;
  bool biased = false;
  Values router, router_bias;            // [num_experts (+ 1), hidden], [num_experts (+ 1)]
  std::vector<Values> gate, up, down;    // of each expert
  Values gate_bias, up_bias, down_bias;  // the same for each expert, or empty
  Values choice_bias;                    // [num_experts] or empty

  std::int64_t num_logits() const { return num_experts + (rule.shared == Shared::gated ? 1 : 0); }
};

Layer random_layer(DType dtype, Layer layer) {
  layer.router = rounded(dtype, random_floats(layer.num_logits() * layer.hidden, 1, 0.5f));
  if (layer.router_bias.empty()) layer.router_bias.assign(static_cast<std::size_t>(layer.num_logits()), 0.0f);
  for (int i = 0; i < layer.num_experts; ++i) {
    layer.gate.push_back(rounded(dtype, random_floats(layer.intermediate * layer.hidden, 10 + i, 0.3f)));
    layer.up.push_back(rounded(dtype, random_floats(layer.intermediate * layer.hidden, 100 + i, 0.3f)));
    layer.down.push_back(rounded(dtype, random_floats(layer.intermediate * layer.hidden, 200 + i, 0.3f)));
  }
  if (layer.biased) {
    layer.gate_bias = random_floats(layer.intermediate, 3);
    layer.up_bias = random_floats(layer.intermediate, 4);
    layer.down_bias = random_floats(layer.hidden, 5);
  }
  return layer;
}

double dot(const float* a, const float* b, std::int64_t size) {
  return std::inner_product(a, a + size, b, 0.0, std::plus<>(), [](float x, float y) { return double{x} * y; });
}

double activated(Activation activation, double gate, double up) {
  if (activation == Activation::silu) return gate / (1 + std::exp(-gate)) * up;
  if (activation == Activation::clamped_silu) {
    gate = std::min(gate, 7.0);
    return gate / (1 + std::exp(-1.702 * gate)) * (std::clamp(up, -7.0, 7.0) + 1);
  }
  return 0.5 * gate * (1 + std::tanh(0.7978845608 * (gate + 0.044715 * gate * gate * gate))) * up;
}

// The chosen experts of a row, best first, and their weights.
std::vector<std::pair<int, double>> choose(const Layer& layer, const std::vector<double>& logits) {
  const auto count = static_cast<std::size_t>(layer.num_experts);
  std::vector<double> scores(count), keys;
  const double largest = *std::max_element(logits.begin(), logits.begin() + layer.num_experts);
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += std::exp(logits[i] - largest);
  for (std::size_t i = 0; i < count; ++i) {
    scores[i] =
        layer.rule.scores == Scores::softmax ? std::exp(logits[i] - largest) / sum : 1 / (1 + std::exp(-logits[i]));
  }
  keys = scores;
  for (std::size_t i = 0; i < layer.choice_bias.size(); ++i) keys[i] += layer.choice_bias[i];
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int a, int b) { return keys[a] > keys[b]; });
  std::vector<std::pair<int, double>> chosen;
  double total = 0;
  for (int j = 0; j < layer.rule.num_chosen; ++j) total += scores[order[j]];
  for (int j = 0; j < layer.rule.num_chosen; ++j) {
    chosen.emplace_back(order[j], scores[order[j]] / (layer.rule.normalized ? total : 1) * layer.rule.scale);
  }
  return chosen;
}

// The experts from `first` on, so many of them, of so many intermediate features from `from` on.
struct Part {
  std::int64_t first, count, from, width;
  bool down_bias = true;
};

std::vector<double> expected(const Layer& layer, const Part& part, std::span<const float> x, std::int64_t rows,
                             std::span<const float> shared) {
  std::vector<double> y;
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* in = x.data() + row * layer.hidden;
    std::vector<double> logits, out(static_cast<std::size_t>(layer.hidden), 0.0);
    for (std::int64_t i = 0; i < layer.num_logits(); ++i) {
      logits.push_back(dot(in, &layer.router[i * layer.hidden], layer.hidden) + layer.router_bias[i]);
    }
    if (layer.rule.shared != Shared::none) {
      const double gate = layer.rule.shared == Shared::gated ? 1 / (1 + std::exp(-logits.back())) : 1.0;
      for (std::int64_t i = 0; i < layer.hidden; ++i) out[i] = gate * shared[row * layer.hidden + i];
    }
    for (const auto& [expert, weight] : choose(layer, logits)) {
      if (expert < part.first || expert >= part.first + part.count) continue;
      Values inner;
      for (std::int64_t i = part.from; i < part.from + part.width; ++i) {
        const double gate =
            dot(in, &layer.gate[expert][i * layer.hidden], layer.hidden) + (layer.biased ? layer.gate_bias[i] : 0.0f);
        const double up =
            dot(in, &layer.up[expert][i * layer.hidden], layer.hidden) + (layer.biased ? layer.up_bias[i] : 0.0f);
        inner.push_back(static_cast<float>(activated(layer.activation, gate, up)));
      }
      for (std::int64_t i = 0; i < layer.hidden; ++i) {
        out[i] += weight * (dot(inner.data(), &layer.down[expert][i * layer.intermediate + part.from], part.width) +
                            (layer.biased && part.down_bias ? layer.down_bias[i] : 0.0f));
      }
    }
    y.insert(y.end(), out.begin(), out.end());
  }
  return y;
}

class DeviceExperts : public testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override {
    MINISGL_SKIP_WITHOUT(GetParam());
    if (!device().computes_experts()) GTEST_SKIP() << device().device_name() << " computes no experts";
  }
  Device& device() const { return *device_of(GetParam()); }
  DType dtype() const { return device().activation_dtype(); }
  double tolerance() const { return GetParam() == DeviceKind::cpu ? 2e-5 : 1.5e-2; }
  Layer layer(Layer form) const { return random_layer(dtype(), std::move(form)); }
  Values activations(std::int64_t count, int seed) const { return rounded(dtype(), random_floats(count, seed)); }

  std::unique_ptr<const Experts> make(const Layer& layer, const Part& part) const {
    const auto maker = device().make_experts({.num_experts = part.count,
                                              .first_expert = part.first,
                                              .all_experts = layer.num_experts,
                                              .hidden_size = layer.hidden,
                                              .intermediate_size = part.width,
                                              .biased = layer.biased});
    for (std::int64_t i = 0; i < part.count; ++i) {
      const std::int64_t expert = part.first + i, offset = part.from * layer.hidden;
      const auto rows = [&](const Values& all) {
        return stored(dtype(), std::span(all).subspan(offset, part.width * layer.hidden));
      };
      const auto biases = [&](const Values& all) {
        return all.empty() ? std::span<const float>{} : std::span(all).subspan(part.from, part.width);
      };
      Values down;
      for (std::int64_t row = 0; row < layer.hidden; ++row) {
        const auto begin = layer.down[expert].begin() + row * layer.intermediate + part.from;
        down.insert(down.end(), begin, begin + part.width);
      }
      maker->put(i, ExpertMatrix::down, dtype(), stored(dtype(), down),
                 part.down_bias ? std::span<const float>(layer.down_bias) : std::span<const float>{});
      maker->put(i, ExpertMatrix::gate, dtype(), rows(layer.gate[expert]), biases(layer.gate_bias));
      maker->put(i, ExpertMatrix::up, dtype(), rows(layer.up[expert]), biases(layer.up_bias));
    }
    return maker->finish();
  }

  Values run(const Layer& layer, const Part& part, std::span<const float> x, std::int64_t rows,
             std::span<const float> shared = {}) const {
    const auto experts = make(layer, part);
    EXPECT_GE(experts->nbytes(), 3 * part.count * layer.hidden * row_bytes(dtype(), part.width));
    std::vector<Projection> outputs;
    outputs.push_back({device().make_matrix(dtype(), layer.num_logits(), layer.hidden, stored(dtype(), layer.router)),
                       layer.router_bias});
    const auto router = device().make_linear(std::move(outputs));
    const DeviceMatrix choice_bias(device(), DType::f32, 1, layer.num_experts, layer.choice_bias);
    RouterRule rule = layer.rule;
    if (!layer.choice_bias.empty()) rule.choice_bias = choice_bias.f32();
    const DeviceMatrix in(device(), dtype(), rows, layer.hidden, x), y(device(), dtype(), rows, layer.hidden, shared);
    const DeviceBuffer scratch =
        device().allocate(static_cast<std::size_t>(device().experts_scratch_bytes(experts->shape(), rule, rows)));
    device().experts({*experts, *router, rule, layer.activation}, in.view(), {scratch.data(), scratch.size()},
                     y.view());
    return y.values();
  }
  static Part whole(const Layer& layer) { return {0, layer.num_experts, 0, layer.intermediate}; }
  void expect_right(const Layer& layer, std::span<const float> x, std::span<const float> shared = {}) const {
    const std::int64_t rows = std::ssize(x) / layer.hidden;
    EXPECT_LE(relative_error(run(layer, whole(layer), x, rows, shared), expected(layer, whole(layer), x, rows, shared)),
              tolerance())
        << rows << " rows";
  }
};

INSTANTIATE_TEST_SUITE_P(All, DeviceExperts, testing::Values(DeviceKind::cpu, DeviceKind::cuda),
                         [](const auto& info) { return device_label(info.param); });

TEST_P(DeviceExperts, AnyNumberOfRows) {
  const Layer few = layer({});
  for (const std::int64_t rows : {1, 2, 3, 7, 16, 33, 100, 300}) expect_right(few, activations(rows * few.hidden, 7));
  const Layer many = layer({.num_experts = 40, .hidden = 128, .intermediate = 64, .rule = {.num_chosen = 8}});
  for (const std::int64_t rows : {1, 5, 64, 200}) expect_right(many, activations(rows * many.hidden, 8));
}

TEST_P(DeviceExperts, EveryRule) {
  for (const Scores scores : {Scores::softmax, Scores::sigmoid}) {
    for (const bool normalized : {false, true}) {
      for (const bool biased : {false, true}) {
        Layer one = layer({.rule = {.num_chosen = 3, .scores = scores, .normalized = normalized, .scale = 2.5f}});
        if (biased) one.choice_bias = {0.1f, 3, -2, 0.3f, 2, -0.1f, -4, 0};
        expect_right(one, activations(9 * one.hidden, 9));
      }
    }
  }
}

TEST_P(DeviceExperts, BiasesAndActivations) {
  for (const Activation activation : {Activation::silu, Activation::gelu_tanh, Activation::clamped_silu}) {
    for (const bool biased : {false, true}) {
      const Layer one = layer({.activation = activation, .biased = biased});
      Values x = activations(5 * one.hidden, 11);
      for (float& value : x) value *= 8;  // beyond the limits of what is clamped
      expect_right(one, x);
      expect_right(one, activations(70 * one.hidden, 12));
    }
  }
}

TEST_P(DeviceExperts, SharedExpertIsAddedTo) {
  for (const Shared shared : {Shared::added, Shared::gated}) {
    const Layer one = layer({.rule = {.num_chosen = 2, .shared = shared}});
    for (const std::int64_t rows : {1, 40}) {
      expect_right(one, activations(rows * one.hidden, 13), activations(rows * one.hidden, 14));
    }
  }
}

TEST_P(DeviceExperts, TiesGoToTheLowestNumbers) {
  Layer one = layer({.rule = {.num_chosen = 3}});
  std::ranges::fill(one.router, 0.0f);
  expect_right(one, activations(6 * one.hidden, 15));  // all logits are 0: experts 0, 1 and 2
  one.router_bias = {0, 1, 2, 1, 0, 1, 1, -1};         // 2, then two of four
  expect_right(one, activations(6 * one.hidden, 16));
}

TEST_P(DeviceExperts, AllRowsToOneExpert) {
  Layer one = layer({.rule = {.num_chosen = 1}});
  one.router_bias = {0, 0, 0, 0, 0, 100, 0, 0};
  for (const std::int64_t rows : {1, 2, 65, 400}) expect_right(one, activations(rows * one.hidden, 17));
}

TEST_P(DeviceExperts, NoneOneOrManyRowsOfAnExpert) {
  // Row r is the unit vector of the expert that it chooses: expert 0 gets one row, 3 two, 6 all others.
  Layer one = layer({.rule = {.num_chosen = 1}});
  std::ranges::fill(one.router, 0.0f);
  for (std::int64_t i = 0; i < one.num_experts; ++i) one.router[i * one.hidden + i] = 50.0f;
  constexpr std::int64_t rows = 131;
  Values x = activations(rows * one.hidden, 18);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t expert = row == 77 ? 0 : row == 5 || row == 130 ? 3 : 6;
    for (std::int64_t i = 0; i < one.num_experts; ++i) x[row * one.hidden + i] = i == expert ? 4.0f : 0.0f;
  }
  expect_right(one, x);
}

TEST_P(DeviceExperts, HundredsOfRowsOfAnExpert) {
  // 192 and 328 weight rows, which are an even and an odd number of tiles.
  Layer one = layer({.hidden = 328});
  expect_right(one, activations(700 * one.hidden, 20));
  one.router_bias = {0, 0, 0, 0, 0, 100, 0, 0};  // one expert gets all rows, the others some
  expect_right(one, activations(700 * one.hidden, 21));
}

TEST_P(DeviceExperts, PartsOfRanksAddUp) {
  const Layer one = layer({.rule = {.num_chosen = 3}, .biased = true});
  constexpr std::int64_t rows = 21;
  const Values x = activations(rows * one.hidden, 19);
  const std::vector<double> all = expected(one, whole(one), x, rows, {});
  for (const auto& parts :
       {std::vector<Part>{{0, 3, 0, 96}, {3, 5, 0, 96}}, std::vector<Part>{{0, 8, 0, 32}, {0, 8, 32, 64, false}}}) {
    Values sum(all.size(), 0.0f);
    for (const Part& part : parts) {
      const Values share = run(one, part, x, rows);
      EXPECT_LE(relative_error(share, expected(one, part, x, rows, {})), tolerance());
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += share[i];
    }
    EXPECT_LE(relative_error(sum, all), tolerance());
  }
}

TEST(CpuExperts, ARowIsComputedWithoutRegardToTheOthers) {
  Device& device = *device_of(DeviceKind::cpu);
  for (const DType dtype : {DType::bf16, DType::q8_0, DType::mxfp4}) {
    const std::int64_t hidden = 64, intermediate = 96, rows = 70;
    const auto maker = device.make_experts(
        {.num_experts = 4, .all_experts = 4, .hidden_size = hidden, .intermediate_size = intermediate});
    for (int expert = 0; expert < 4; ++expert) {
      for (const ExpertMatrix which : {ExpertMatrix::gate, ExpertMatrix::up, ExpertMatrix::down}) {
        // Any bytes are blocks of the format; those of scales are made small.
        std::vector<std::byte> raw(static_cast<std::size_t>(hidden * row_bytes(dtype, intermediate)));
        for (std::size_t i = 0; i < raw.size(); ++i) raw[i] = static_cast<std::byte>((i * 37 + expert * 11) % 251);
        const DTypeInfo info = dtype_info(dtype);
        if (info.block_size > 1) {
          for (std::size_t i = 0; i < raw.size(); i += info.block_bytes) {
            raw[i] = std::byte{120};
            if (dtype == DType::q8_0) raw[i + 1] = std::byte{0x20};
          }
        } else {
          raw = stored(dtype, random_floats(hidden * intermediate, expert, 0.2f));
        }
        maker->put(expert, which, dtype, raw, {});
      }
    }
    const auto experts = maker->finish();
    std::vector<Projection> outputs;
    outputs.push_back(
        {device.make_matrix(DType::f32, 4, hidden, stored(DType::f32, random_floats(4 * hidden, 1))), {}});
    const auto router = device.make_linear(std::move(outputs));
    const RouterRule rule{.num_chosen = 2, .normalized = true};
    const Values x = random_floats(rows * hidden, 2);
    const auto run = [&](std::int64_t first, std::int64_t count) {
      const DeviceMatrix in(device, DType::f32, count, hidden, std::span(x).subspan(first * hidden, count * hidden));
      const DeviceMatrix y(device, DType::f32, count, hidden);
      AlignedBuffer scratch(static_cast<std::size_t>(device.experts_scratch_bytes(experts->shape(), rule, count)));
      device.experts({*experts, *router, rule}, in.view(), {scratch.data(), scratch.size()}, y.view());
      return y.values();
    };
    const Values all = run(0, rows);
    for (const float value : all) ASSERT_TRUE(std::isfinite(value));
    for (const std::int64_t row : {0, 33, 69}) {
      EXPECT_EQ(run(row, 1), Values(all.begin() + row * hidden, all.begin() + (row + 1) * hidden));
    }
  }
}

}  // namespace
}  // namespace minisgl
