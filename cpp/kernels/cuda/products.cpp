// Chooses by the number of rows, and hands the norm to the kernels that take it.
#include "kernels/cuda/products.h"

#include "core/error.h"
#include "kernels/cuda/launch.h"

namespace minisgl::cuda {

void Products::write(const DeviceLinear& weights, const LinearInput& x, Tensor y) {
  const auto output = y.dtype == DType::f32 ? SkinnyOutput::f32 : SkinnyOutput::plain;
  if (!few_rows(weights, x, y, output)) many_rows(weights, x, y, y.data, false);
}

void Products::write_gated(const DeviceLinear& weights, const LinearInput& x, Tensor scratch, Tensor y) {
  if (few_rows(weights, x, y, SkinnyOutput::gated)) return;
  write(weights, x, scratch);
  gate_rows(Activation::silu, scratch.data, y.rows, y.cols, y.data, stream_);
}

void Products::add(const DeviceLinear& weights, const LinearInput& x, Tensor scratch, Tensor y) {
  if (!few_rows(weights, x, y, SkinnyOutput::added)) many_rows(weights, x, y, scratch.data, true);
}

bool Products::few_rows(const DeviceLinear& weights, const LinearInput& x, Tensor y, SkinnyOutput output) {
  const std::int64_t outputs = weights.out_features() / (output == SkinnyOutput::gated ? 2 : 1);
  MINISGL_CHECK(x.cols() == weights.in_features() && y.cols == outputs && x.rows() == y.rows);
  if (x.rows() == 0) return true;
  if (!skinny_gemm_fits(x.rows(), x.cols())) return false;
  const LinearInput::Form input = x.form();
  const bool norms = input.norm != nullptr;
  skinny_gemm({.weights = weights.weight(),
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

void Products::many_rows(const DeviceLinear& weights, const LinearInput& x, Tensor y, std::byte* scratch, bool added) {
  const LinearInput::Form input = x.form();
  MINISGL_CHECK(input.norm == nullptr, "a product of many rows is to take a norm");
  const bool y_is_f32 = y.dtype == DType::f32;
  dense_.run({.weights = weights.weight(),
              .x = input.rows.data,
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

}  // namespace minisgl::cuda
