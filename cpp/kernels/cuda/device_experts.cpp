#include "kernels/cuda/device_experts.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/cuda/runtime.h"
#include "core/error.h"
#include "gemm/cuda/launch.h"
#include "kernels/cuda/weights.h"

namespace minisgl::cuda {
namespace {

// The most rows whose norm is done as they are read.
constexpr std::int64_t kMostNormedRows = 16;

constexpr const char* kAdvice = "the model's weights don't fit it";

ExpertWeights sizes_of(const ExpertsShape& shape) {
  return {.gate_up = nullptr,
          .down = nullptr,
          .gate_up_bias = nullptr,
          .down_bias = nullptr,
          .num_experts = static_cast<int>(shape.num_experts),
          .first_expert = static_cast<int>(shape.first_expert),
          .all_experts = static_cast<int>(shape.all_experts),
          .hidden = static_cast<int>(shape.hidden_size),
          .width = static_cast<int>(padded_outputs(shape.intermediate_size))};
}

class DeviceExpertsMaker final : public ExpertsMaker {
 public:
  DeviceExpertsMaker(const ExpertsShape& shape, Uploader& uploader, cudaStream_t stream, std::uint64_t& random_seed)
      : experts_(std::make_unique<DeviceExperts>(shape)),
        shape_(shape),
        width_(padded_outputs(shape.intermediate_size)),
        uploader_(uploader),
        stream_(stream),
        random_seed_(random_seed) {
    if (width_ == shape.intermediate_size) return;
    const ExpertWeights weights = experts_->weights();  // what fills them up is zeros
    clear(experts_->gate_up(), 2 * shape.num_experts * width_ * weights.hidden * 2);
    clear(experts_->down(), shape.num_experts * width_ * weights.hidden * 2);
  }

  void put(std::int64_t expert, ExpertMatrix which, DType dtype, std::span<const std::byte> raw,
           std::span<const float> bias) override {
    const bool is_down = which == ExpertMatrix::down;
    const std::int64_t rows = is_down ? shape_.hidden_size : shape_.intermediate_size;
    const std::int64_t cols = is_down ? shape_.intermediate_size : shape_.hidden_size;
    MINISGL_CHECK(expert >= 0 && expert < shape_.num_experts, "expert ", expert, " of ", shape_.num_experts);
    MINISGL_CHECK(std::ssize(raw) == rows * row_bytes(dtype, cols), rows, " x ", cols, " of ", dtype_info(dtype).name,
                  " in ", raw.size(), " bytes");
    MINISGL_CHECK(bias.empty() || (shape_.biased && std::ssize(bias) == rows), bias.size(), " biases of ", rows);
    if (is_down) {
      put_down(expert, dtype, raw);
    } else {
      put_half(expert, which == ExpertMatrix::up, dtype, raw);
    }
    put_bias(expert, which, bias);
  }

  void put_random() override {
    const ExpertWeights weights = experts_->weights();
    const std::int64_t half = shape_.num_experts * width_ * weights.hidden;
    fill_random_bf16(experts_->gate_up(), 2 * half, 0.05f, ++random_seed_ << 40, stream_);
    fill_random_bf16(experts_->down(), half, 0.05f, ++random_seed_ << 40, stream_);
  }

  std::unique_ptr<const Experts> finish() override {
    if (shape_.biased) experts_->set_biases(uploaded(gate_up_bias_), uploaded(down_bias_));
    return std::move(experts_);
  }

 private:
  void clear(std::byte* data, std::int64_t bytes) {
    MINISGL_CUDA_CHECK(cudaMemsetAsync(data, 0, static_cast<std::size_t>(bytes), stream_));
  }
  // `height` pieces of `width` bytes, which lie `from_pitch` and `to_pitch` bytes apart.
  void copy_pieces(std::byte* to, std::int64_t to_pitch, const std::byte* from, std::int64_t from_pitch,
                   std::int64_t width, std::int64_t height) {
    if (width == 0 || height == 0) return;
    MINISGL_CUDA_CHECK(cudaMemcpy2DAsync(to, static_cast<std::size_t>(to_pitch), from,
                                         static_cast<std::size_t>(from_pitch), static_cast<std::size_t>(width),
                                         static_cast<std::size_t>(height), cudaMemcpyDeviceToDevice, stream_));
  }
  // A matrix of the file in bf16, at `to`.
  void convert(DType dtype, std::span<const std::byte> raw, std::int64_t count, std::byte* to) {
    if (dtype == DType::bf16) return uploader_.upload(raw, to);
    if (raw.size() > raw_.size()) raw_ = allocate_on_device(raw.size(), kAdvice);
    uploader_.upload(raw, raw_.data());
    convert_to_bf16(dtype, raw_.data(), count, to, stream_);
  }
  std::byte* staged(DType dtype, std::span<const std::byte> raw) {
    const std::int64_t count = shape_.hidden_size * shape_.intermediate_size;
    if (staged_.size() == 0) staged_ = allocate_on_device(static_cast<std::size_t>(2 * count), kAdvice);
    convert(dtype, raw, count, staged_.data());
    return staged_.data();
  }
  void put_down(std::int64_t expert, DType dtype, std::span<const std::byte> raw) {
    const std::int64_t from_row = 2 * shape_.intermediate_size, to_row = 2 * width_;
    std::byte* to = experts_->down() + expert * shape_.hidden_size * to_row;
    if (from_row == to_row) return convert(dtype, raw, shape_.hidden_size * width_, to);
    copy_pieces(to, to_row, staged(dtype, raw), from_row, from_row, shape_.hidden_size);
  }
  void put_half(std::int64_t expert, bool is_up, DType dtype, std::span<const std::byte> raw) {
    const std::int64_t row = 2 * shape_.hidden_size, group = kGateGroup * row;
    const std::int64_t groups = shape_.intermediate_size / kGateGroup, rest = shape_.intermediate_size % kGateGroup;
    std::byte* to = experts_->gate_up() + expert * 2 * width_ * row + (is_up ? group : 0);
    const std::byte* from = staged(dtype, raw);
    copy_pieces(to, 2 * group, from, group, group, groups);
    copy_pieces(to + groups * 2 * group, row, from + groups * group, row, row, rest);
  }
  void put_bias(std::int64_t expert, ExpertMatrix which, std::span<const float> bias) {
    if (bias.empty()) return;
    std::vector<float>& all = which == ExpertMatrix::down ? down_bias_ : gate_up_bias_;
    const std::int64_t each = which == ExpertMatrix::down ? shape_.hidden_size : 2 * width_;
    all.resize(static_cast<std::size_t>(shape_.num_experts * each));
    float* its = all.data() + expert * each;
    if (which == ExpertMatrix::down) {
      std::ranges::copy(bias, its);
      return;
    }
    for (std::int64_t i = 0; i < std::ssize(bias); ++i) {
      its[i / kGateGroup * 2 * kGateGroup + i % kGateGroup + (which == ExpertMatrix::up ? kGateGroup : 0)] =
          bias[static_cast<std::size_t>(i)];
    }
  }
  DeviceBuffer uploaded(const std::vector<float>& values) {
    if (values.empty()) return {};
    DeviceBuffer buffer = allocate_on_device(values.size() * sizeof(float), kAdvice);
    uploader_.upload(std::as_bytes(std::span(values)), buffer.data());
    return buffer;
  }

  std::unique_ptr<DeviceExperts> experts_;
  ExpertsShape shape_;
  std::int64_t width_;
  Uploader& uploader_;
  cudaStream_t stream_;
  std::uint64_t& random_seed_;
  DeviceBuffer raw_, staged_;  // a matrix on its way
  std::vector<float> gate_up_bias_, down_bias_;
};

// Rows after rows, as many as the kernels for few take.
void run_slices(ExpertsArgs args, cudaStream_t stream) {
  const int rows = args.rows, stride = args.logit_stride();
  const auto step = [&](const void* data) {
    return static_cast<const std::byte*>(data) + kMostFewRows * 2 * args.weights.hidden;
  };
  for (int first = 0; first < rows; first += static_cast<int>(kMostFewRows)) {
    args.rows = std::min(rows - first, static_cast<int>(kMostFewRows));
    few_expert_rows(args, stream);
    args.x = step(args.x);
    args.y = const_cast<std::byte*>(step(args.y));
    args.scratch.logits += kMostFewRows * stride;
  }
}

}  // namespace

DeviceExperts::DeviceExperts(const ExpertsShape& shape) : shape_(shape) {
  if (shape.hidden_size % 8 != 0)
    throw InputError(concat("experts of ", shape.hidden_size, " inputs: a GPU takes multiples of 8"));
  MINISGL_CHECK(shape.all_experts <= kMaxExperts && shape.first_expert + shape.num_experts <= shape.all_experts);
  const std::int64_t half = 2 * shape.num_experts * padded_outputs(shape.intermediate_size) * shape.hidden_size;
  gate_up_ = allocate_on_device(static_cast<std::size_t>(2 * half), kAdvice);
  down_ = allocate_on_device(static_cast<std::size_t>(half), kAdvice);
}

std::int64_t DeviceExperts::nbytes() const {
  return static_cast<std::int64_t>(gate_up_.size() + down_.size() + gate_up_bias_.size() + down_bias_.size());
}

ExpertWeights DeviceExperts::weights() const {
  ExpertWeights weights = sizes_of(shape_);
  weights.gate_up = gate_up_.data();
  weights.down = down_.data();
  weights.gate_up_bias = gate_up_bias_.as<float>();
  weights.down_bias = down_bias_.as<float>();
  return weights;
}

void DeviceExperts::set_biases(DeviceBuffer gate_up, DeviceBuffer down) {
  gate_up_bias_ = std::move(gate_up);
  down_bias_ = std::move(down);
}

std::unique_ptr<ExpertsMaker> make_device_experts(const ExpertsShape& shape, Uploader& uploader, cudaStream_t stream,
                                                  std::uint64_t& random_seed) {
  return std::make_unique<DeviceExpertsMaker>(shape, uploader, stream, random_seed);
}

std::int64_t device_experts_scratch_bytes(const ExpertsShape& shape, const RouterRule& rule, std::int64_t num_rows) {
  ExpertScratch none{};
  return static_cast<std::int64_t>(lay_out_experts(nullptr, sizes_of(shape), rule, num_rows, none));
}

bool run_experts(const ExpertLayer& layer, const LinearInput& x, std::span<std::byte> scratch,
                 const ExpertsOutput& output, Products& products, cudaStream_t stream) {
  const auto& experts = static_cast<const DeviceExperts&>(layer.experts);
  ExpertsArgs args{.weights = experts.weights(),
                   .scratch = {},
                   .rule = layer.rule,
                   .activation = layer.activation,
                   .x = nullptr,
                   .norm = nullptr,
                   .eps = 0.0f,
                   .y = output.y.data,
                   .rows = static_cast<int>(x.rows()),
                   .adds = output.adds,
                   .use = output.use};
  const int stride = args.logit_stride();
  MINISGL_CHECK(x.cols() == args.weights.hidden && output.y.cols == x.cols() && output.y.rows == x.rows());
  MINISGL_CHECK(layer.router.out_features() == stride, layer.router.out_features(), " logits for ", stride);
  if (x.rows() == 0) return true;
  const std::size_t needed = lay_out_experts(scratch.data(), args.weights, args.rule, x.rows(), args.scratch);
  MINISGL_CHECK(needed <= scratch.size(), "experts need ", needed, " bytes of scratch, there are ", scratch.size());
  const Tensor logits{reinterpret_cast<std::byte*>(args.scratch.logits), DType::f32, x.rows(), stride};
  products.write(static_cast<const DeviceLinear&>(layer.router), x, logits);

  const LinearInput::Form form = x.form();
  if (form.norm != nullptr && x.rows() <= kMostNormedRows) {
    args.x = form.source.data;
    args.norm = form.norm->weight;
    args.eps = form.norm->eps;
  } else {
    LinearInput plain = x;
    args.x = products.plain_rows(plain).data;
  }
  if (x.rows() <= kMostFewRows || !has_expert_tiles()) {
    run_slices(args, stream);
    return false;
  }
  if (output.norm != nullptr) {
    args.next_norm = output.norm->weight;
    args.next_eps = output.norm->eps;
    args.normed = output.normed.data;
  }
  order_expert_rows(args, stream);
  multiply_expert_tiles(args, {}, stream);
  sum_expert_rows(args, stream);
  return true;
}

}  // namespace minisgl::cuda
