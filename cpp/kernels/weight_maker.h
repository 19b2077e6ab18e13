// From the bytes of a file to weights in a device's own layout.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/memory_file.h"
#include "gemm/scaled_bytes.h"
#include "gemm/weights.h"
#include "kernels/adapter.h"
#include "kernels/layer_stack.h"

namespace minisgl {

// Collects the experts of a layer.
class ExpertsMaker {
 public:
  virtual ~ExpertsMaker() = default;
  // One matrix of an expert, of the device's numbered from 0: gate and up are [intermediate_size, hidden_size], down is
  // [hidden_size, intermediate_size]. `raw` as with WeightMaker::make_matrix. `bias`: [rows] or empty, which is none.
  // Every matrix comes once, in any order. Experts of a layer, and gate and up of one expert, may differ in dtype.
  virtual void put(std::int64_t expert, ExpertMatrix which, DType dtype, std::span<const std::byte> raw,
                   std::span<const float> bias) = 0;
  // All matrices: small numbers of a fixed random stream, bf16; no biases.
  virtual void put_random() = 0;
  virtual std::unique_ptr<const Experts> finish() = 0;
};

// What projections become at load that the files have in bf16.
enum class Quantize : std::uint8_t {
  none,
  fp8,   // e4m3 with a scale for each row
  int4,  // groups of 128 columns, symmetric
  q4_1,  // as that block format: scale and offset for 32 columns
};
constexpr std::array<std::string_view, 4> kQuantizeNames{"none", "fp8", "int4", "q4_1"};  // in that order

class WeightMaker {
 public:
  virtual ~WeightMaker() = default;
  // `raw` is row-major [rows, cols] in `dtype` as a file stores it, aligned to 4 bytes; it isn't needed afterwards.
  virtual std::shared_ptr<const Matrix> make_matrix(DType dtype, std::int64_t rows, std::int64_t cols,
                                                    std::span<const std::byte> raw) = 0;
  // Whether products are computed of e4m3 of so many columns with scales of such blocks; else the caller widens them.
  virtual bool keeps_e4m3(std::int64_t /*cols*/, std::int64_t /*block_rows*/, std::int64_t /*block_cols*/) const {
    return false;
  }
  // Bytes of e4m3, row-major [rows, cols], where keeps_e4m3().
  virtual std::shared_ptr<const Matrix> make_scaled_matrix(std::int64_t /*rows*/, std::int64_t /*cols*/,
                                                           std::span<const std::byte> /*raw*/,
                                                           const ScaleGrid& /*scales*/) {
    return nullptr;
  }
  // Whether quantized() makes anything.
  virtual bool can_quantize(Quantize /*quantize*/) const { return false; }
  // The matrix rounded to a format of fewer bits, as far as the device computes it so; else as it is.
  virtual std::shared_ptr<const Matrix> quantized(std::shared_ptr<const Matrix> matrix, Quantize /*quantize*/) {
    return matrix;
  }
  // A matrix for measuring: small numbers of a fixed random stream.
  virtual std::shared_ptr<const Matrix> make_random_matrix(std::int64_t rows, std::int64_t cols) = 0;
  // From here to finish_matrices() matrices that kept_matrix() is asked for before they are made are kept in a file, or
  // come out of one that an earlier start kept of the same, whose path it returns. A device with memory of its own
  // keeps nothing.
  virtual std::string keep_matrices(const KeepRequest& /*request*/) { return {}; }
  virtual void finish_matrices() {}
  // What the earlier start made of the tensor of this name; null: nothing, and the next make_matrix() is for it.
  virtual std::shared_ptr<const Matrix> kept_matrix(const std::string& /*name*/, std::int64_t /*rows*/,
                                                    std::int64_t /*cols*/) {
    return nullptr;
  }
  // The projections as one layer; all have the same number of input features.
  virtual std::unique_ptr<const Linear> make_linear(std::vector<Projection> outputs) = 0;
  // The file that experts lie in, where memory needn't hold them.
  virtual const MemoryFile* expert_file() const { return nullptr; }
  // On devices with Ops::computes_experts().
  virtual std::unique_ptr<ExpertsMaker> make_experts(const ExpertsShape&) {
    throw CheckError("the device computes no experts");
  }
  // Whether sequences may have adapters.
  virtual bool takes_adapters() const { return false; }
  // An adapter of linears and experts that this device made, with values in `dtype`, f32 or bf16. Any thread may call,
  // while others compute.
  virtual std::shared_ptr<const Adapter> make_adapter(std::vector<AdapterPair> /*pairs*/, DType /*dtype*/) {
    throw CheckError("the device takes no adapters");
  }
  // These layers as one operation; null where the device has none for them. Its own linears.
  virtual std::unique_ptr<LayerStack> make_layer_stack(const StackedLayers&) { return nullptr; }
};

}  // namespace minisgl
