// Chooses by the number of rows, and hands the norm to the kernels that take it.
#include "kernels/cuda/products.h"

#include <algorithm>

#include "core/error.h"
#include "kernels/cuda/launch.h"

namespace minisgl::cuda {
namespace {

constexpr std::int64_t kMostPrepared = 65536;  // columns of a norm that a product prepares
// Of a product with outputs in f32, as logits are: cuBLASLt's write more of them faster.
constexpr std::int64_t kMostSlimF32Rows = 32, kFewF32Outputs = 2048;
// From so many rows on cuBLASLt's products of e4m3 are faster than ours, which have more to do with each output.
constexpr std::int64_t kFewestLtByteRows = 512;

template <typename T>
T* shifted(T* pointer, std::int64_t by) {
  return pointer == nullptr ? nullptr : pointer + by;
}
const void* shifted_bytes(const void* pointer, std::int64_t by) {
  return shifted(static_cast<const std::byte*>(pointer), by);
}
void* shifted_bytes(void* pointer, std::int64_t by) {
  return shifted(static_cast<std::byte*>(pointer), by);
}

// The product of `rows` rows of `all` from `first` on, a multiple of kMostSlimRows. Sums of squares lie there one such
// piece after the other.
SlimArgs piece_of(const SlimArgs& all, std::int64_t first, std::int64_t rows) {
  SlimArgs piece = all;
  piece.rows = rows;
  piece.x = shifted_bytes(all.x, first * all.inputs * 2);
  piece.y = shifted_bytes(all.y, first * all.outputs * (all.output == SkinnyOutput::f32 ? 4 : 2));
  piece.norm.squares = shifted(all.norm.squares, first * slim_parts(all.inputs));
  piece.next.scaled = shifted_bytes(all.next.scaled, first * all.outputs * 2);
  piece.next.squares = shifted(all.next.squares, first * slim_parts(all.outputs));
  piece.heads.positions = shifted(all.heads.positions, first);
  piece.heads.cache_rows = shifted(all.heads.cache_rows, first);
  return piece;
}

// Whether norms are prepared beside the rows, whose sums of squares lie as all formats have them: quantised weights
// take more rows in pieces of their own.
bool prepares_norms(WeightFormat format, std::int64_t rows) {
  return !is_quantised(format) || rows <= kMostSlimRows;
}

}  // namespace

Products::Products(const std::string& gpu_name, const std::string& cache_folder, ThreadPool& pool, bool deterministic,
                   cudaStream_t stream)
    : deterministic_(deterministic), dense_(gpu_name, cache_folder, pool), stream_(stream) {
  reserve(kMostManyRows);
}

void Products::expect(const DeviceLinear& weights) {
  if (is_quantised(weights.format())) most_wide_ = std::max(most_wide_, weights.out_features() * weights.in_features());
  if (is_e4m3(weights.format())) most_byte_inputs_ = std::max(most_byte_inputs_, weights.in_features());
}

std::size_t Products::square_bytes(std::int64_t rows) const {
  const std::int64_t kept = deterministic_ ? std::max(rows, kMostManyRows) : kMostManyRows;
  return static_cast<std::size_t>(slim_parts(kMostPrepared) * kept) * sizeof(float);
}

std::size_t Products::scratch_bytes(std::int64_t rows) const {
  const std::size_t fixed = square_bytes(rows) + static_cast<std::size_t>(most_wide_) * 2;
  if (most_byte_inputs_ == 0) return fixed;
  return fixed + static_cast<std::size_t>(rows) * (static_cast<std::size_t>(most_byte_inputs_) + sizeof(float));
}

void Products::reserve(std::int64_t rows) {
  const auto make_room = [](DeviceBuffer& buffer, std::size_t bytes) {
    if (bytes > buffer.size()) buffer = allocate_on_device(bytes);
  };
  make_room(squares_, square_bytes(rows));
  make_room(wide_, static_cast<std::size_t>(most_wide_) * 2);
  if (most_byte_inputs_ == 0) return;
  make_room(bytes_, static_cast<std::size_t>(rows * most_byte_inputs_));
  make_room(byte_scales_, static_cast<std::size_t>(rows) * sizeof(float));
}

bool Products::takes_some_rows(WeightFormat format, std::int64_t rows, std::int64_t inputs) const {
  if (inputs % (is_e4m3(format) ? 16 : 8) != 0 || inputs <= 0 || !has_slim_gemm()) return false;
  return deterministic_ ? rows > 0 : rows >= fewest_slim_rows(format) && rows <= most_slim_rows(format);
}

void Products::write(const DeviceLinear& weights, const LinearInput& x, Tensor y) {
  const auto output = y.dtype == DType::f32 ? SkinnyOutput::f32 : SkinnyOutput::plain;
  if (some_rows(weights, x, y, {.output = output}) || few_rows(weights, x, y, output)) return;
  many_rows(weights, x, y, y.data, false);
}

LinearInput Products::write_gated(const DeviceLinear& weights, const LinearInput& x, Tensor scratch, Tensor y) {
  constexpr auto output = SkinnyOutput::gated;
  const bool leaves_gate = takes_most_byte_rows(weights, y.rows);
  if (!leaves_gate && (some_rows(weights, x, y, {.output = output}) || few_rows(weights, x, y, output) ||
                       many_byte_rows(weights, x, y, nullptr, output)))
    return LinearInput::written(y, {});
  write(weights, x, scratch);
  if (leaves_gate) return LinearInput::ungated(y, scratch);
  gate_rows(Activation::silu, scratch.data, y.rows, y.cols, y.data, stream_);
  return LinearInput::written(y, {});
}

bool Products::write_heads(const DeviceLinear& weights, const LinearInput& x, Tensor y, const SlimHeads& heads) {
  return some_rows(weights, x, y, {.output = SkinnyOutput::plain, .heads = heads});
}

void Products::add(const DeviceLinear& weights, const LinearInput& x, Tensor scratch, Tensor y) {
  constexpr auto output = SkinnyOutput::added;
  if (some_rows(weights, x, y, {.output = output}) || few_rows(weights, x, y, output)) return;
  many_rows(weights, x, y, scratch.data, true);
}

LinearInput Products::add_norm(const DeviceLinear& weights, const LinearInput& x, Tensor scratch, Tensor y,
                               const Norm& norm, Tensor normed) {
  // What reads the norm has as many rows, and takes it on its way as far as it was left undone.
  reserve(y.rows);
  if (takes_some_rows(weights.format(), y.rows, y.cols) && prepares_norms(weights.format(), y.rows) &&
      y.cols <= kMostPrepared &&
      some_rows(weights, x, y,
                {.output = SkinnyOutput::added,
                 .next = {.weight = norm.weight, .scaled = normed.data, .squares = squares_.as<float>()}})) {
    LinearInput prepared = LinearInput::deferred(normed, y, norm);
    ++prepared_;
    prepared.keep_beside(squares_.data(), &prepared_);
    return prepared;
  }
  add(weights, x, scratch, y);
  const bool takes_bytes =
      y.rows > most_slim_rows(weights.format()) && is_e4m3(weights.format());  // as the next product will
  if (!deterministic_ && (takes_bytes || takes_norms(y.rows, y.cols))) return LinearInput::deferred(normed, y, norm);
  add_rms_norm(y.data, nullptr, norm.weight, norm.eps, y.rows, y.cols, normed.data, stream_);
  return LinearInput::written(normed, y);
}

bool Products::takes_norms(std::int64_t rows, std::int64_t cols) {
  return skinny_gemm_fits(WeightFormat::bf16, rows, cols);
}

Tensor Products::plain_rows(LinearInput& x) {
  const Tensor rows = written_rows(x);
  if (x.norm_is_deferred() || x.form().is_ungated) x = LinearInput::written(rows, x.form().source);
  return rows;
}

Tensor Products::written_rows(const LinearInput& x) {
  const LinearInput::Form form = x.form();
  if (form.norm != nullptr) {
    ++prepared_;  // it may be what the rows hold
    add_rms_norm(form.source.data, nullptr, form.norm->weight, form.norm->eps, form.rows.rows, form.rows.cols,
                 form.rows.data, stream_);
  }
  if (form.is_ungated)
    gate_rows(Activation::silu, form.source.data, form.rows.rows, form.rows.cols, form.rows.data, stream_);
  return form.rows;
}

bool Products::few_rows(const DeviceLinear& weights, const LinearInput& x, Tensor y, SkinnyOutput output) {
  const std::int64_t outputs = weights.out_features() / (output == SkinnyOutput::gated ? 2 : 1);
  MINISGL_CHECK(x.cols() == weights.in_features() && y.cols == outputs && x.rows() == y.rows);
  if (x.rows() == 0) return true;
  if (deterministic_ || !skinny_gemm_fits(weights.format(), x.rows(), x.cols())) return false;
  const LinearInput::Form input = x.form();
  const bool norms = input.norm != nullptr;
  skinny_gemm({.weights = weights.weights(),
               .bias = weights.bias(),
               .x = norms ? input.source.data : input.rows.data,
               .norm = norms ? input.norm->weight : nullptr,
               .eps = norms ? input.norm->eps : 0.0f,
               .y = y.data,
               .output = output,
               .rows = x.rows(),
               .inputs = x.cols(),
               .outputs = outputs},
              stream_);
  return true;
}

bool Products::some_rows(const DeviceLinear& weights, const LinearInput& x, Tensor y, SlimArgs args) {
  if (!takes_some_rows(weights.format(), x.rows(), x.cols())) return false;
  const std::int64_t outputs = weights.out_features() / (args.output == SkinnyOutput::gated ? 2 : 1);
  MINISGL_CHECK(x.cols() == weights.in_features() && y.cols == outputs && x.rows() == y.rows);
  const bool is_wide = x.rows() > kMostSlimF32Rows && outputs > kFewF32Outputs;
  if (args.output == SkinnyOutput::f32 && is_wide && !deterministic_ && weights.format() == WeightFormat::bf16)
    return false;
  if ((args.output == SkinnyOutput::gated || args.output == SkinnyOutput::added) && outputs % 4 != 0) return false;
  if (is_quantised(weights.format()) && args.output == SkinnyOutput::gated && outputs % kUnitRows != 0) return false;
  const LinearInput::Form input = x.form();
  // Logits are made of the rows that hidden states are kept of, whether a step keeps some or not.
  const bool takes_written = deterministic_ && args.output == SkinnyOutput::f32;
  if (input.norm != nullptr && input.beside != nullptr && !takes_written &&
      prepares_norms(weights.format(), x.rows())) {
    args.x = input.rows.data;
    args.norm = {.squares = static_cast<const float*>(input.beside), .eps = input.norm->eps};
  } else {
    args.x = written_rows(x).data;
  }
  args.weights = weights.weights();
  args.bias = weights.bias();
  args.y = y.data;
  args.rows = x.rows();
  args.inputs = x.cols();
  args.outputs = outputs;
  const std::int64_t most = deterministic_ || is_quantised(weights.format()) ? kMostSlimRows : kMostManyRows;
  for (std::int64_t first = 0; first < x.rows(); first += most) {
    const SlimArgs piece = piece_of(args, first, std::min(most, x.rows() - first));
    slim_gemm(piece, slim_tuning(piece), stream_);
  }
  return true;
}

void Products::many_rows(const DeviceLinear& weights, const LinearInput& x, Tensor y, std::byte* scratch, bool added) {
  const bool y_is_f32 = y.dtype == DType::f32;
  const auto output = added ? SkinnyOutput::added : y_is_f32 ? SkinnyOutput::f32 : SkinnyOutput::plain;
  MINISGL_CHECK(!deterministic_, "no product of ", x.cols(), " inputs and ", y.cols, " outputs for any number of rows");
  if (many_byte_rows(weights, x, y, scratch, output)) return;
  dense_.run({.weights = wide_weights(weights).data,
              .x = written_rows(x).data,
              .y = y.data,
              .scratch = scratch,
              .y_is_f32 = y_is_f32,
              .added = added,
              .rows = x.rows(),
              .inputs = x.cols(),
              .outputs = y.cols},
             stream_);
  if (weights.bias() != nullptr) add_bias(y.data, y_is_f32, weights.bias(), y.rows, y.cols, stream_);
}

bool Products::takes_most_byte_rows(const DeviceLinear& weights, std::int64_t rows) const {
  return weights.format() == WeightFormat::e4m3_rows && rows >= kFewestLtByteRows && weights.out_features() % 16 == 0;
}

bool Products::many_byte_rows(const DeviceLinear& weights, const LinearInput& x, Tensor y, std::byte* scratch,
                              SkinnyOutput output) {
  if (!is_e4m3(weights.format())) return false;
  const std::int64_t outputs = weights.out_features() / (output == SkinnyOutput::gated ? 2 : 1);
  MINISGL_CHECK(x.cols() == weights.in_features() && y.cols == outputs && x.rows() == y.rows);
  const LinearInput::Form input = x.form();
  const bool norms = input.norm != nullptr;
  reserve(x.rows());
  quantize_rows({.x = norms || input.is_ungated ? input.source.data : input.rows.data,
                 .norm = norms ? input.norm->weight : nullptr,
                 .eps = norms ? input.norm->eps : 0.0f,
                 .rows = x.rows(),
                 .cols = x.cols(),
                 .data = bytes_.data(),
                 .scales = byte_scales_.as<float>(),
                 .gated = input.is_ungated},
                stream_);
  if (output != SkinnyOutput::gated && takes_most_byte_rows(weights, x.rows())) {
    const bool y_is_f32 = output == SkinnyOutput::f32;
    dense_.run({.weights = weights.weights().data,
                .x = bytes_.data(),
                .y = y.data,
                .scratch = scratch,
                .y_is_f32 = y_is_f32,
                .added = output == SkinnyOutput::added,
                .rows = x.rows(),
                .inputs = x.cols(),
                .outputs = outputs,
                .weight_scales = static_cast<const float*>(weights.weights().scales),
                .x_scales = byte_scales_.as<float>()},
               stream_);
    if (weights.bias() != nullptr) add_bias(y.data, y_is_f32, weights.bias(), y.rows, y.cols, stream_);
    return true;
  }
  const WideArgs args{.weights = weights.weights(),
                      .bias = weights.bias(),
                      .x = bytes_.data(),
                      .x_scales = byte_scales_.as<float>(),
                      .y = y.data,
                      .output = output,
                      .rows = x.rows(),
                      .inputs = x.cols(),
                      .outputs = outputs};
  wide_gemm(args, wide_tuning(args), stream_);
  return true;
}

DeviceWeights Products::wide_weights(const DeviceLinear& weights) {
  if (!is_quantised(weights.format())) return weights.weights();
  reserve(0);
  widen_weights(weights.weights(), weights.out_features(), weights.in_features(), wide_.data(), stream_);
  return {.format = WeightFormat::bf16, .data = wide_.data()};
}

}  // namespace minisgl::cuda
