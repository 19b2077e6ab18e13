// Each operation of a step on each device, against what its declaration says, in double. Outputs start as NaN.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <type_traits>

#include "core/error.h"
#include "kernels/device_kv_cache.h"
#include "kernels/devices.h"
#include "kernels/random_floats.h"

namespace minisgl {
namespace {

using testing_support::device_label;
using testing_support::device_of;
using testing_support::DeviceKind;
using testing_support::DeviceKvCache;
using testing_support::DeviceMatrix;
using testing_support::relative_error;
using testing_support::rounded;
using testing_support::stored;

// The tolerance for a norm: f32 on the CPU, whose quantised formats are not tested here, and bf16 on the GPU.
double tolerance(DeviceKind kind) {
  return kind == DeviceKind::cpu ? 2e-6 : 6e-3;
}

class DeviceOps : public testing::TestWithParam<std::tuple<DeviceKind, int>> {
 protected:
  void SetUp() override { MINISGL_SKIP_WITHOUT(kind()); }
  DeviceKind kind() const { return std::get<0>(GetParam()); }
  int size() const { return std::get<1>(GetParam()); }
  Device& device() const { return *device_of(kind()); }
  DType dtype() const { return device().activation_dtype(); }

  // Random activations as the device holds them.
  std::vector<float> activations(std::int64_t count, int seed, float scale = 1.0f) const {
    return rounded(dtype(), random_floats(count, seed, scale));
  }
  DeviceMatrix matrix(std::int64_t rows, std::int64_t cols, std::span<const float> values = {}) const {
    return {device(), dtype(), rows, cols, values};
  }
};

// The norm of each row of x, weight.size() long.
std::vector<float> norm_of(std::span<const float> x, const std::vector<float>& weight, double eps) {
  std::vector<float> y;
  for (std::size_t first = 0; first < x.size(); first += weight.size()) {
    double squares = 0;
    for (std::size_t i = 0; i < weight.size(); ++i) squares += double{x[first + i]} * x[first + i];
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(weight.size()) + eps);
    for (std::size_t i = 0; i < weight.size(); ++i) y.push_back(static_cast<float>(x[first + i] * inverse * weight[i]));
  }
  return y;
}

const auto any_device = testing::Values(DeviceKind::cpu, DeviceKind::cuda);
const auto name_of = [](const auto& info) {
  return device_label(std::get<0>(info.param)) + "_" + std::to_string(std::get<1>(info.param));
};

// The parameter is the width of a row.
using DeviceRows = DeviceOps;
INSTANTIATE_TEST_SUITE_P(All, DeviceRows,
                         testing::Combine(any_device, testing::Values(8, 30, 64, 576, 1024, 4096, 5000)), name_of);

TEST_P(DeviceRows, AddRmsNorm) {
  const std::int64_t rows = 5, cols = size();
  const auto x = activations(rows * cols, 1, 3.0f), delta = activations(rows * cols, 2);
  const auto weight = random_floats(cols, 3);
  const DeviceMatrix residual = matrix(rows, cols, x), added = matrix(rows, cols, delta), y = matrix(rows, cols);
  const DeviceMatrix weights(device(), DType::f32, 1, cols, weight);
  LinearInput normed = device().reduce_add_rms_norm(residual.view(), added.view(), {weights.f32(), 1e-5f}, y.view());
  device().plain_rows(normed);
  std::vector<double> sums, expected;
  for (std::int64_t row = 0; row < rows; ++row) {
    double squares = 0;
    for (std::int64_t i = 0; i < cols; ++i) {
      sums.push_back(rounded(dtype(), x[row * cols + i] + delta[row * cols + i]));
      squares += sums.back() * sums.back();
    }
    for (std::int64_t i = 0; i < cols; ++i)
      expected.push_back(sums[row * cols + i] / std::sqrt(squares / static_cast<double>(cols) + 1e-5) * weight[i]);
  }
  EXPECT_LE(relative_error(residual.values(), sums), 1e-7);
  EXPECT_LE(relative_error(y.values(), expected), tolerance(kind()));

  const DeviceMatrix alone = matrix(rows, cols);
  normed = device().rms_norm(residual.view(), {weights.f32(), 1e-5f}, alone.view());
  device().plain_rows(normed);
  EXPECT_LE(relative_error(alone.values(), expected), tolerance(kind()));
}

TEST_P(DeviceRows, EmbedAndGatherRows) {
  const std::int64_t vocab = 11, cols = size();
  const auto table = activations(vocab * cols, 4);
  const auto embedding = device().make_matrix(dtype(), vocab, cols, stored(dtype(), table));
  const std::vector<std::int32_t> tokens{10, 0, 3, 3}, positions{0, 1, 2, 3}, pages{0};
  const std::vector<std::int32_t> logit_rows{1, 3}, hidden_rows{0, 1};
  const ops::SequenceRows sequence{0, 4, 0, pages.data()};
  device().begin_step({tokens, positions, {&sequence, 1}, logit_rows, 16, hidden_rows}, {});
  const DeviceMatrix all = matrix(4, cols), some = matrix(4, cols);
  device().embed(*embedding, 0, all.view());
  device().gather_wanted_rows(all.view(), some.view());
  std::vector<float> expected;
  for (const std::int32_t token : tokens)
    expected.insert(expected.end(), table.begin() + token * cols, table.begin() + (token + 1) * cols);
  EXPECT_EQ(all.values(), expected);
  std::vector<float> kept(expected.begin() + cols, expected.begin() + 2 * cols);
  kept.insert(kept.end(), expected.begin() + 3 * cols, expected.end());
  kept.insert(kept.end(), expected.begin(), expected.begin() + 2 * cols);
  EXPECT_EQ(some.values(), kept);

  device().keep_hidden(all.view());
  EXPECT_EQ(device().take_outputs().hidden, expected);
  device().begin_step({tokens, positions, {&sequence, 1}, logit_rows, 16}, {});
  EXPECT_TRUE(device().take_outputs().hidden.empty());  // nothing of the step before
}

struct Product {
  std::vector<float> x, weights, bias;
  std::int64_t rows, inputs, outputs;
  double at(std::int64_t row, std::int64_t output) const {
    double sum = bias.empty() ? 0.0 : bias[output];
    for (std::int64_t i = 0; i < inputs; ++i) sum += double{x[row * inputs + i]} * weights[output * inputs + i];
    return sum;
  }
  std::vector<double> all() const {
    std::vector<double> sums;
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t o = 0; o < outputs; ++o) sums.push_back(at(row, o));
    return sums;
  }
};

// The parameter is the number of rows of activations.
class DeviceLinear : public DeviceOps {
 protected:
  std::unique_ptr<const Linear> linear_of(std::span<const Product> products) const {
    std::vector<Projection> projections;
    for (const Product& part : products) {
      projections.push_back(
          {device().make_matrix(dtype(), part.outputs, part.inputs, stored(dtype(), part.weights)), part.bias});
    }
    return device().make_linear(std::move(projections));
  }
};
INSTANTIATE_TEST_SUITE_P(All, DeviceLinear,
                         testing::Combine(any_device,
                                          testing::Values(1, 2, 7, 8, 9, 16, 17, 64, 90, 128, 129, 192, 200, 256, 257)),
                         name_of);

TEST_P(DeviceLinear, MergedOutputsWithBiases) {
  for (const std::int64_t inputs : {32, 96, 576, 1000, 2048}) {
    const std::vector<std::int64_t> outputs{40, 16, 19};
    std::vector<Product> parts;
    std::vector<Projection> projections;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      Product part{activations(size() * inputs, 5),
                   activations(outputs[i] * inputs, 6 + static_cast<int>(i)),
                   {},
                   size(),
                   inputs,
                   outputs[i]};
      if (i == 1) part.bias = random_floats(outputs[i], 9);
      projections.push_back(
          {device().make_matrix(dtype(), outputs[i], inputs, stored(dtype(), part.weights)), part.bias});
      parts.push_back(std::move(part));
    }
    const auto linear = device().make_linear(std::move(projections));
    ASSERT_EQ(linear->out_features(), 75);
    std::vector<double> expected;
    for (std::int64_t row = 0; row < size(); ++row)
      for (const Product& part : parts)
        for (std::int64_t o = 0; o < part.outputs; ++o) expected.push_back(part.at(row, o));
    const DeviceMatrix x = matrix(size(), inputs, parts[0].x), y = matrix(size(), 75);
    device().linear(*linear, x.view(), y.view());
    EXPECT_LE(relative_error(y.values(), expected), tolerance(kind())) << inputs << " inputs";
    const DeviceMatrix logits(device(), DType::f32, size(), 75);
    device().linear(*linear, x.view(), logits.view());
    EXPECT_LE(relative_error(logits.values(), expected), 2e-6) << inputs << " inputs, f32";
  }
}

// More outputs than the kernels' blocks take at once, and none of their tiles whole.
TEST_P(DeviceLinear, ManyOutputs) {
  const std::int64_t inputs = 72, outputs = 132 * 40 + 5;
  const Product product{
      activations(size() * inputs, 25), activations(outputs * inputs, 26), {}, size(), inputs, outputs};
  const auto linear = linear_of({&product, 1});
  const DeviceMatrix x = matrix(size(), inputs, product.x), y(device(), DType::f32, size(), outputs);
  device().linear(*linear, x.view(), y.view());
  EXPECT_LE(relative_error(y.values(), product.all()), 2e-6);
}

// Gated outputs enough for blocks that are for them alone, the last of them not whole.
TEST_P(DeviceLinear, ManyGatedOutputs) {
  const std::int64_t inputs = 40, outputs = 132 * 108 + 4;
  const Product gate{activations(size() * inputs, 46), activations(outputs * inputs, 47), {}, size(), inputs, outputs};
  Product up = gate;
  up.weights = activations(outputs * inputs, 48);
  const Product both[2] = {gate, up};
  const auto linear = linear_of(both);
  const DeviceMatrix x = matrix(size(), inputs, gate.x), scratch = matrix(size(), 2 * outputs),
                     y = matrix(size(), outputs);
  device().gated_linear(*linear, x.view(), scratch.view(), y.view());
  std::vector<double> expected;
  for (std::int64_t row = 0; row < size(); ++row) {
    for (std::int64_t o = 0; o < outputs; ++o) {
      const double g = gate.at(row, o);
      expected.push_back(g / (1 + std::exp(-g)) * up.at(row, o));
    }
  }
  EXPECT_LE(relative_error(y.values(), expected), 2 * tolerance(kind()));
}

// A sum of products becomes the residual, and its norm is read by every kind of product.
TEST_P(DeviceLinear, AddedAndNormed) {
  for (const std::int64_t width : {8, 40, 576, 1000, 1004, 4096}) {
    const std::int64_t inputs = 136, outputs = 90;
    const Product down{activations(size() * inputs, 21),
                       activations(width * inputs, 22),
                       random_floats(width, 23),
                       size(),
                       inputs,
                       width};
    const auto before = activations(size() * width, 24, 50.0f), weight = random_floats(width, 27);
    const auto down_linear = linear_of({&down, 1});
    const DeviceMatrix x = matrix(size(), inputs, down.x), delta = matrix(size(), width),
                       residual = matrix(size(), width, before), normed = matrix(size(), width),
                       weights(device(), DType::f32, 1, width, weight);
    LinearInput input = device().linear_add_norm(*down_linear, x.view(), delta.view(), residual.view(),
                                                 {weights.f32(), 1e-5f}, normed.view());
    std::vector<double> sums = down.all();
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += before[i];
    const auto actual = residual.values();
    EXPECT_LE(relative_error(actual, sums), tolerance(kind())) << width;

    const auto normed_rows = norm_of(actual, weight, 1e-5);
    const Product gate{normed_rows, activations(outputs * width, 12, 0.1f), {}, size(), width, outputs};
    const Product up{normed_rows, activations(outputs * width, 13, 0.1f), random_floats(outputs, 28), size(), width,
                     outputs};
    const Product both[2] = {gate, up};
    const auto linear = linear_of(both);
    std::vector<double> side_by_side, gated;
    for (std::int64_t row = 0; row < size(); ++row) {
      for (const Product& part : both)
        for (std::int64_t o = 0; o < outputs; ++o) side_by_side.push_back(part.at(row, o));
      for (std::int64_t o = 0; o < outputs; ++o) {
        const double g = gate.at(row, o);
        gated.push_back(g / (1 + std::exp(-g)) * up.at(row, o));
      }
    }
    const DeviceMatrix y = matrix(size(), 2 * outputs), logits(device(), DType::f32, size(), 2 * outputs),
                       scratch = matrix(size(), 2 * outputs), activated = matrix(size(), outputs);
    device().linear(*linear, input, y.view());
    EXPECT_LE(relative_error(y.values(), side_by_side), tolerance(kind())) << width;
    device().linear(*linear, input, logits.view());
    EXPECT_LE(relative_error(logits.values(), side_by_side), tolerance(kind())) << width << ", f32";
    device().gated_linear(*linear, input, scratch.view(), activated.view());
    EXPECT_LE(relative_error(activated.values(), gated), 2 * tolerance(kind())) << width << ", gated";

    // What isn't a linear gets the rows themselves, and linears go on with them.
    const Tensor rows = device().plain_rows(input);
    ASSERT_EQ(rows.data, normed.data());
    EXPECT_FALSE(input.norm_is_deferred());
    std::vector<double> expected_rows(normed_rows.begin(), normed_rows.end());
    EXPECT_LE(relative_error(normed.values(), expected_rows), tolerance(kind())) << width << ", plain";
    device().linear(*linear, input, y.view());
    EXPECT_LE(relative_error(y.values(), side_by_side), tolerance(kind())) << width << ", plain";

    // The buffer's next content is read as it is.
    input = device().rms_norm(residual.view(), {weights.f32(), 1e-2f}, normed.view());
    Product other = gate;
    other.x = norm_of(actual, weight, 1e-2);
    const auto other_linear = linear_of({&other, 1});
    device().linear(*other_linear, input, activated.view());
    EXPECT_LE(relative_error(activated.values(), other.all()), tolerance(kind())) << width;
  }
}

// A norm that is read by another sum, and one that is stale, on every device whether or not it left the norm undone.
TEST_P(DeviceLinear, StaleInputsAreRefused) {
  const std::int64_t width = 64;
  const Product square{activations(size() * width, 31), activations(width * width, 32, 0.1f), {}, size(), width, width};
  const auto linear = linear_of({&square, 1});
  const auto weight = random_floats(width, 33);
  const DeviceMatrix weights(device(), DType::f32, 1, width, weight);
  const Norm norm{weights.f32(), 1e-5f};
  const DeviceMatrix x = matrix(size(), width, square.x), delta = matrix(size(), width), y = matrix(size(), width),
                     residual = matrix(size(), width, square.x), normed = matrix(size(), width),
                     other = matrix(size(), width, square.x), other_normed = matrix(size(), width);
  const auto make = [&] {
    return device().linear_add_norm(*linear, x.view(), delta.view(), residual.view(), norm, normed.view());
  };
  LinearInput input = make();
  EXPECT_NO_THROW(device().linear(*linear, input, y.view()));
  EXPECT_NO_THROW(device().linear_add_norm(*linear, input, delta.view(), other.view(), norm, other_normed.view()));
  EXPECT_NO_THROW(device().linear(*linear, input, y.view()));

  LinearInput later = make();  // writes to the residual that `input` is the norm of
  EXPECT_THROW(device().linear(*linear, input, y.view()), CheckError);
  EXPECT_THROW(device().plain_rows(input), CheckError);
  EXPECT_NO_THROW(device().linear(*linear, later, y.view()));
  device().sum_over_ranks(residual.view());
  EXPECT_THROW(device().linear(*linear, later, y.view()), CheckError);

  later = make();
  device().linear(*linear, x.view(), normed.view());  // another product lands where its rows are
  EXPECT_THROW(device().linear(*linear, later, y.view()), CheckError);
  later = make();
  EXPECT_THROW(device().linear_add_norm(*linear, later, delta.view(), residual.view(), norm, normed.view()),
               CheckError);
}

// Another sum reads a norm: where it was left undone, it is done first.
TEST_P(DeviceLinear, ANormIsReadByAnotherSum) {
  const std::int64_t width = 72;
  const Product square{activations(size() * width, 34), activations(width * width, 35, 0.1f), {}, size(), width, width};
  const auto linear = linear_of({&square, 1});
  const auto weight = random_floats(width, 36);
  const DeviceMatrix weights(device(), DType::f32, 1, width, weight);
  const Norm norm{weights.f32(), 1e-5f};
  const auto before = activations(size() * width, 37);
  const DeviceMatrix x = matrix(size(), width, square.x), delta = matrix(size(), width),
                     residual = matrix(size(), width, square.x), normed = matrix(size(), width),
                     other = matrix(size(), width, before), other_normed = matrix(size(), width);
  const LinearInput input =
      device().linear_add_norm(*linear, x.view(), delta.view(), residual.view(), norm, normed.view());
  device().linear_add_norm(*linear, input, delta.view(), other.view(), norm, other_normed.view());
  Product second = square;
  second.x = rounded(dtype(), norm_of(residual.values(), weight, 1e-5));
  std::vector<double> sums = second.all();
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += before[i];
  EXPECT_LE(relative_error(other.values(), sums), tolerance(kind()));
}

// What only linears read is no tensor: no other operation takes it.
template <typename Rows>
concept GatherableRows = requires(Ops& ops, Rows rows, Tensor y) { ops.gather_wanted_rows(rows, y); };
template <typename Rows>
concept AttendableRows = requires(Ops& ops, Rows rows, const HeadShape& shape, const ops::KvLayer& cache, Tensor y) {
  ops.paged_attention(rows, shape, cache, 1.0f, 0, y);
};
static_assert(GatherableRows<Tensor> && AttendableRows<Tensor>);
static_assert(!GatherableRows<LinearInput> && !AttendableRows<LinearInput>);
static_assert(std::is_convertible_v<Tensor, LinearInput> && !std::is_convertible_v<LinearInput, Tensor> &&
              !std::is_constructible_v<Tensor, LinearInput>);

TEST_P(DeviceLinear, GatedBySilu) {
  const std::int64_t inputs = 320, outputs = 88;
  const Product gate{
      activations(size() * inputs, 11), activations(outputs * inputs, 12, 0.2f), {}, size(), inputs, outputs};
  const Product up{gate.x, activations(outputs * inputs, 13, 0.2f), {}, size(), inputs, outputs};
  std::vector<Projection> projections;
  for (const Product* part : {&gate, &up})
    projections.push_back({device().make_matrix(dtype(), outputs, inputs, stored(dtype(), part->weights)), {}});
  const auto linear = device().make_linear(std::move(projections));
  std::vector<double> expected;
  for (std::int64_t row = 0; row < size(); ++row) {
    for (std::int64_t o = 0; o < outputs; ++o) {
      const double g = gate.at(row, o);
      expected.push_back(g / (1 + std::exp(-g)) * up.at(row, o));
    }
  }
  const DeviceMatrix x = matrix(size(), inputs, gate.x), scratch = matrix(size(), 2 * outputs),
                     y = matrix(size(), outputs);
  device().gated_linear(*linear, x.view(), scratch.view(), y.view());
  EXPECT_LE(relative_error(y.values(), expected), tolerance(kind()));
}

// How far keys in a cache may be from exact ones of random floats: half a unit in the last place of what is stored, and
// the activations' own rounding.
double cache_tolerance(DType dtype) {
  return dtype == DType::f8e4m3 ? 4e-2 : dtype == DType::i8 ? 2e-2 : 6e-3;
}

// The parameters are the head size and the cache's format.
class DeviceHeads : public testing::TestWithParam<std::tuple<DeviceKind, int, DType>> {
 protected:
  void SetUp() override {
    MINISGL_SKIP_WITHOUT(kind());
    if (!device().supports_kv_dtype(kv_dtype())) GTEST_SKIP() << "no such cache on this device";
  }
  DeviceKind kind() const { return std::get<0>(GetParam()); }
  int size() const { return std::get<1>(GetParam()); }
  DType kv_dtype() const { return std::get<2>(GetParam()); }
  Device& device() const { return *device_of(kind()); }
};
INSTANTIATE_TEST_SUITE_P(All, DeviceHeads,
                         testing::Combine(any_device, testing::Values(8, 24, 64, 80, 96, 128, 256),
                                          testing::ValuesIn(kv_dtypes)),
                         [](const auto& info) {
                           return device_label(std::get<0>(info.param)) + "_" +
                                  std::to_string(std::get<1>(info.param)) + "_" +
                                  std::string(dtype_info(std::get<2>(info.param)).name);
                         });

TEST_P(DeviceHeads, NormRotationAndCache) {
  const HeadShape shape{.num_heads = 6, .num_kv_heads = 2, .head_dim = size()};
  const std::int64_t width = shape.row_size(), dim = size();
  const int page_size = 4, num_pages = 5, rotary = size() / 2 / 2 * 2;
  const std::vector<std::int32_t> tokens(5, 0), positions{6, 7, 8, 0, 3}, first{4, 2, 1}, second{3}, third{0};
  const std::vector<ops::SequenceRows> sequences{
      {0, 3, 6, first.data()}, {3, 1, 0, second.data()}, {4, 1, 3, third.data()}};
  const auto qkv = rounded(device().activation_dtype(), random_floats(5 * width, 14));
  const auto query_norm = random_floats(dim, 15), key_norm = random_floats(dim, 16);
  const auto table = random_floats(10 * rotary, 17);
  const DeviceMatrix data(device(), device().activation_dtype(), 5, width, qkv);
  const DeviceKvCache cache(device(), kv_dtype(), num_pages, shape, page_size);
  const DeviceMatrix q(device(), DType::f32, 1, dim, query_norm), k(device(), DType::f32, 1, dim, key_norm),
      cos_sin(device(), DType::f32, 10, rotary, table);
  device().begin_step({tokens, positions, sequences, {}, page_size}, {});
  device().store_heads(
      data.view(), shape,
      {.query_norm = q.f32(), .key_norm = k.f32(), .eps = 1e-6f, .rope_table = cos_sin.f32(), .rotary_dim = rotary},
      cache.layer());

  const auto got = data.values(), got_keys = cache.keys(), got_values = cache.values();
  std::vector<bool> written(got_keys.size(), false);
  for (const ops::SequenceRows& sequence : sequences) {
    for (std::int32_t i = 0; i < sequence.num_rows; ++i) {
      const std::int64_t row = sequence.first_row + i;
      const std::int32_t position = positions[row];
      const std::int64_t page = sequence.page_table[position / page_size];
      for (int head = 0; head < shape.num_heads + 2 * shape.num_kv_heads; ++head) {
        const float* x = &qkv[row * width + head * dim];
        std::vector<double> head_values(x, x + dim);
        const bool is_value = head >= shape.num_heads + shape.num_kv_heads;
        if (!is_value) {
          double squares = 0;
          for (const double value : head_values) squares += value * value;
          const auto& norm = head < shape.num_heads ? query_norm : key_norm;
          for (std::int64_t j = 0; j < dim; ++j)
            head_values[j] *= norm[j] / std::sqrt(squares / static_cast<double>(dim) + 1e-6);
          const auto before = head_values;
          const int half = rotary / 2;
          const float* angles = &table[position * rotary];
          for (int j = 0; j < half; ++j) {
            head_values[j] = before[j] * angles[j] - before[j + half] * angles[half + j];
            head_values[j + half] = before[j + half] * angles[j] + before[j] * angles[half + j];
          }
        }
        std::vector<float> actual;
        if (head < shape.num_heads) {
          actual.assign(&got[row * width + head * dim], &got[row * width + head * dim] + dim);
        } else {
          const int kv_head = (head - shape.num_heads) % shape.num_kv_heads;
          const std::int64_t at = ((page * shape.num_kv_heads + kv_head) * page_size + position % page_size) * dim;
          const auto& plane = is_value ? got_values : got_keys;
          actual.assign(&plane[at], &plane[at] + dim);
          std::fill_n(written.begin() + at, dim, true);
          if (is_value) {
            EXPECT_EQ(actual, as_cached(kv_dtype(), x, size())) << "row " << row << ", head " << head;
          }
        }
        const double tolerance = head < shape.num_heads ? 6e-3 : cache_tolerance(kv_dtype());
        EXPECT_LE(relative_error(actual, head_values), tolerance) << "row " << row << ", head " << head;
      }
    }
  }
  for (std::size_t i = 0; i < written.size(); ++i) {
    ASSERT_EQ(std::isnan(got_keys[i]), !written[i]) << i;
    ASSERT_EQ(std::isnan(got_values[i]), !written[i]) << i;
  }
}

// A product and its heads at once are the two one after the other, but for what is rounded between them.
TEST_P(DeviceHeads, OfAProduct) {
  const HeadShape shape{.num_heads = 4, .num_kv_heads = 2, .head_dim = size()};
  const std::int64_t width = shape.row_size(), inputs = 200, dim = size();
  const int page_size = 4, rotary = size();
  const DType dtype = device().activation_dtype();
  const auto query_norm = random_floats(dim, 41), key_norm = random_floats(dim, 42),
             table = random_floats(260 * rotary, 43);
  const DeviceMatrix q(device(), DType::f32, 1, dim, query_norm), k(device(), DType::f32, 1, dim, key_norm),
      cos_sin(device(), DType::f32, 260, rotary, table);
  const HeadTransform transform{
      .query_norm = q.f32(), .key_norm = k.f32(), .eps = 1e-6f, .rope_table = cos_sin.f32(), .rotary_dim = rotary};
  std::vector<Projection> projections;
  projections.push_back({device().make_matrix(dtype, width, inputs, stored(dtype, random_floats(width * inputs, 44))),
                         random_floats(width, 45)});
  const auto linear = device().make_linear(std::move(projections));
  for (const std::int32_t rows : {3, 17, 70, 160, 256}) {
    std::vector<std::int32_t> tokens(rows, 0), positions(rows), pages((rows + page_size - 1) / page_size);
    std::iota(positions.begin(), positions.end(), 2);
    std::iota(pages.rbegin(), pages.rend(), 0);
    pages.push_back(static_cast<std::int32_t>(pages.size()));
    const std::vector<ops::SequenceRows> sequences{{0, rows, 2, pages.data()}};
    device().begin_step({tokens, positions, sequences, {}, page_size}, {});
    const DeviceMatrix x(device(), dtype, rows, inputs, rounded(dtype, random_floats(rows * inputs, 46)));
    const auto num_pages = std::ssize(pages);
    std::vector<float> queries[2], keys[2], values[2];
    for (const bool at_once : {false, true}) {
      const DeviceMatrix qkv(device(), dtype, rows, width);
      const DeviceKvCache cache(device(), kv_dtype(), num_pages, shape, page_size);
      if (at_once) {
        device().linear_heads(*linear, x.view(), qkv.view(), shape, transform, cache.layer());
      } else {
        device().linear(*linear, x.view(), qkv.view());
        device().store_heads(qkv.view(), shape, transform, cache.layer());
      }
      const std::vector<float> all = qkv.values();
      for (std::int64_t row = 0; row < rows; ++row)
        queries[at_once].insert(queries[at_once].end(), &all[row * width], &all[row * width] + shape.num_heads * dim);
      keys[at_once] = cache.keys();
      values[at_once] = cache.values();
    }
    const auto expect_alike = [&](const std::vector<float>& got, const std::vector<float>& expected, double tolerance) {
      std::vector<float> written;
      std::vector<double> wanted;
      for (std::size_t i = 0; i < expected.size(); ++i) {
        ASSERT_EQ(std::isnan(got[i]), std::isnan(expected[i])) << i;
        if (std::isnan(got[i])) continue;
        written.push_back(got[i]);
        wanted.push_back(expected[i]);
      }
      EXPECT_LE(relative_error(written, wanted), tolerance) << rows << " rows";
    };
    expect_alike(queries[1], queries[0], 6e-3);
    expect_alike(keys[1], keys[0], cache_tolerance(kv_dtype()));
    expect_alike(values[1], values[0], cache_tolerance(kv_dtype()));
  }
}

// A head of zeros, the smallest floats, a head whose largest magnitude is alone, infinities and NaN, each as a value of
// its own row: what is stored is what the definition says of that row, whatever lies beside it.
TEST_P(DeviceHeads, EveryValueIsStoredByItself) {
  const HeadShape shape{.num_heads = 1, .num_kv_heads = 1, .head_dim = size()};
  const std::int64_t width = shape.row_size(), dim = size();
  const int page_size = 2;
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  std::vector<std::vector<float>> rows;
  for (const float odd : {0.0f, 1e-45f, 1e-38f, 1e-5f, 300.0f, -infinity, nan}) {
    rows.emplace_back(dim, 0.0f);
    rows.back()[3] = odd;
    rows.push_back(random_floats(dim, 90));
    rows.back()[dim - 1] = odd;
  }
  const auto num_rows = static_cast<std::int32_t>(std::ssize(rows));
  std::vector<float> qkv;
  for (std::vector<float>& row : rows) {
    row = rounded(device().activation_dtype(), row);
    qkv.insert(qkv.end(), 2 * dim, 0.5f);
    qkv.insert(qkv.end(), row.begin(), row.end());
  }
  std::vector<std::int32_t> positions(rows.size()), pages(rows.size() / page_size);
  std::iota(positions.begin(), positions.end(), 0);
  std::iota(pages.begin(), pages.end(), 0);
  const std::vector<ops::SequenceRows> sequences{{0, num_rows, 0, pages.data()}};
  const DeviceMatrix data(device(), device().activation_dtype(), num_rows, width, qkv);
  const std::vector<float> angles(rows.size() * 2, 0.0f);
  const DeviceMatrix cos_sin(device(), DType::f32, num_rows, 2, angles);
  const DeviceKvCache cache(device(), kv_dtype(), num_rows / page_size, shape, page_size);
  const std::vector<std::int32_t> tokens(rows.size(), 0);
  device().begin_step({tokens, positions, sequences, {}, page_size}, {});
  device().store_heads(data.view(), shape, {.rope_table = cos_sin.f32(), .rotary_dim = 2}, cache.layer());
  const std::vector<float> got = cache.values();
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const std::vector<float> expected = as_cached(kv_dtype(), rows[row].data(), size());
    for (int i = 0; i < size(); ++i) {
      const float value = got[row * dim + i];
      ASSERT_TRUE(value == expected[i] || (std::isnan(value) && std::isnan(expected[i])))
          << "row " << row << ", element " << i << ": " << value << ", expected " << expected[i];
    }
  }
}

TEST(DeviceMatrices, EveryFloatFormatIsLoaded) {
  MINISGL_SKIP_WITHOUT(DeviceKind::cuda);
  Device& device = *device_of(DeviceKind::cuda);
  const std::int64_t rows = 7, cols = 64;
  const auto weights = random_floats(rows * cols, 20);
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    const auto matrix = device.make_matrix(dtype, rows, cols, stored(dtype, weights));
    const std::vector<std::int32_t> tokens{6, 0}, positions{0, 1}, pages{0};
    const ops::SequenceRows sequence{0, 2, 0, pages.data()};
    device.begin_step({tokens, positions, {&sequence, 1}, {}, 16}, {});
    const DeviceMatrix y(device, DType::bf16, 2, cols);
    device.embed(*matrix, 0, y.view());
    for (std::int64_t i = 0; i < cols; ++i) {
      EXPECT_EQ(y.values()[i], rounded(DType::bf16, rounded(dtype, weights[6 * cols + i])));
      EXPECT_EQ(y.values()[cols + i], rounded(DType::bf16, rounded(dtype, weights[i])));
    }
  }
}

// The CPU reads blocks through gemm/block_codec.cpp, which its own tests hold to the formats' definitions.
TEST(DeviceMatrices, BlocksAreDequantizedAsOnTheCpu) {
  MINISGL_SKIP_WITHOUT(DeviceKind::cuda);
  for (const DType dtype : all_dtypes) {
    if (!is_quantized(dtype)) continue;
    const std::int64_t rows = 3, cols = 512;
    std::vector<std::byte> raw(static_cast<std::size_t>(rows * row_bytes(dtype, cols)));
    std::mt19937 random(21);
    for (std::byte& byte : raw) byte = static_cast<std::byte>(random() & 0x3f);  // no f16 of it is infinite
    const std::vector<std::int32_t> tokens{2, 0, 1}, positions{0, 1, 2}, pages{0};
    const ops::SequenceRows sequence{0, 3, 0, pages.data()};
    std::vector<std::vector<float>> results;
    for (const DeviceKind kind : {DeviceKind::cpu, DeviceKind::cuda}) {
      Device& device = *device_of(kind);
      const auto matrix = device.make_matrix(dtype, rows, cols, raw);
      device.begin_step({tokens, positions, {&sequence, 1}, {}, 16}, {});
      const DeviceMatrix y(device, device.activation_dtype(), 3, cols);
      device.embed(*matrix, 0, y.view());
      results.push_back(y.values());
    }
    // The GPU has a group's scale and offset in f16, also where a file has them as products.
    const float largest = std::ranges::max(results[0], {}, [](float v) { return std::abs(v); });
    for (std::size_t i = 0; i < results[0].size(); ++i)
      ASSERT_NEAR(results[1][i], results[0][i], 0.004 * std::abs(results[0][i]) + 0.0005 * std::abs(largest) + 1e-7)
          << dtype_info(dtype).name << ", element " << i;
  }
}

}  // namespace
}  // namespace minisgl
