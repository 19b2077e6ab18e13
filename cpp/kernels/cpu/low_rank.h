// Adapters on the CPU: rows of several of them, and rows of none, in the products of one linear layer.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/thread_pool.h"
#include "kernels/adapter.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/step.h"

namespace minisgl::cpu_ops {

// One projection's second factor.
struct LowRankOutput {
  std::int64_t first_output, outputs;
  std::int64_t first_rank, rank;  // its rows of the layer's `down`
  AlignedBuffer up;               // [ceil(outputs / kLowRankPanel), rank, kLowRankPanel], zeros behind the last output
};

// The changes of projections that read the same rows.
struct LowRankLayer {
  std::int64_t inputs = 0, rank = 0;  // of all together
  AlignedBuffer down;                 // [rank, inputs]
  std::vector<LowRankOutput> outputs;
};

class CpuAdapter final : public Adapter {
 public:
  // Values in `dtype`, f32 or bf16.
  CpuAdapter(std::vector<AdapterPair> pairs, DType dtype);
  std::int64_t nbytes() const override { return nbytes_; }
  DType dtype() const { return dtype_; }
  // Null where it changes nothing.
  const LowRankLayer* of(const Linear& linear) const { return find({&linear, 0}); }
  const LowRankLayer* of(const Experts& experts, std::int64_t expert, bool is_down) const {
    return find({&experts, 2 * expert + (is_down ? 1 : 0)});
  }

 private:
  using Key = std::pair<const void*, std::int64_t>;
  const LowRankLayer* find(const Key& key) const {
    const auto found = layers_.find(key);
    return found == layers_.end() ? nullptr : &found->second;
  }

  DType dtype_;
  std::map<Key, LowRankLayer> layers_;
  std::int64_t nbytes_ = 0;
};

// Rows that one adapter changes.
struct AdapterRows {
  const Adapter* made;             // by this device
  std::vector<std::int32_t> rows;  // ascending

  const CpuAdapter& adapter() const { return static_cast<const CpuAdapter&>(*made); }
};

// Those of a step, by adapter; empty where no sequence has one.
std::vector<AdapterRows> adapter_rows(std::span<const ops::SequenceRows> sequences);
// The same of the rows `kept`, numbered anew in their order.
std::vector<AdapterRows> kept_adapter_rows(std::span<const AdapterRows> all, std::span<const std::int32_t> kept);

// What one adapter adds to some rows of a product.
struct LowRankUse {
  const LowRankLayer* layer;
  DType dtype;
  std::span<const std::int32_t> rows;
};
// y[row] += the change of x[row] for the rows of every use, in which no row comes twice. Strides in floats.
void add_low_rank(ThreadPool& pool, std::span<const LowRankUse> uses, const float* x, std::int64_t x_stride, float* y,
                  std::int64_t y_stride, AlignedBuffer& scratch);

}  // namespace minisgl::cpu_ops
