// Puts a step together in pinned memory and takes it to the device in one copy.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "kernels/cuda/memory.h"
#include "kernels/cuda/step_data.h"
#include "kernels/query.h"
#include "kernels/step.h"

namespace minisgl::cuda {

class StepBlock {
 public:
  using SlotOf = std::function<std::int32_t(const SeenTokens*)>;

  // Bytes of the largest step within `limits`.
  static std::size_t bytes_for(const StepLimits& limits);
  // Room for `bytes`; what the device holds is lost.
  void reserve(std::size_t bytes);
  cudaEvent_t sent() const { return sent_.get(); }

  // Lengths of the arrays, padding included.
  struct Shape {
    bool by_rows = false;  // as recorded steps: each row is a decode and has a query's place
    std::int64_t rows = 0, sequences = 0, logits = 0, hidden = 0;
    std::int64_t pages = 0, biases = 0, banned = 0, mask_words = 0;
    std::size_t bytes() const;  // at most
  };
  // The shape of a batch; with `recorded_rows` that of a recorded step with so many, which is filled up to them.
  static Shape shape_of(const StepBatch& batch, std::span<const LogitQuery> queries, std::int64_t recorded_rows);
  // Sequences of one row are prefills as the others: one kernel computes all rows.
  void let_prefills_be_all() { all_prefills_ = true; }
  // Whether it goes where the last one was. Else upload() makes room somewhere else.
  bool fits(const Shape& shape) const { return shape.bytes() <= device_.size(); }

  // Queues the copy of a batch of that shape; sent() follows it on `stream`. `places`: of each query among the step's.
  // Slots of the sampled tokens are found by slot_of(query.seen).
  const StepData& upload(const StepBatch& batch, std::span<const LogitQuery> queries, const Shape& shape,
                         std::span<const std::int32_t> places, const SlotOf& slot_of, cudaStream_t stream);
  // Queues what upload() kept back where a query awaits its mask: all masks, and queries that draw nothing. sent()
  // follows it.
  void upload_masks(std::span<const LateMask> masks, std::span<const std::int32_t> places, cudaStream_t stream);

 private:
  // The places where the arrays of StepData are written on the host, and the indices from which on kernels know biases,
  // bans and masks.
  struct Arrays {
    std::int32_t *tokens, *positions, *cache_rows;
    SequenceEntry* sequences;
    std::int32_t *decodes, *prefills, *logit_rows;
    QueryEntry* queries;
    std::int32_t* pages;
    BiasEntry* biases;
    std::int32_t* banned;
    std::uint32_t* masks;
    std::int64_t first_bias, first_banned, first_mask;
    std::byte* end;
  };

  class ProcessorWriter;

  Arrays lay_out(const Shape& shape);
  void write_rows(const StepBatch& batch, const Shape& shape, const Arrays& host);
  void write_sequences(const StepBatch& batch, bool by_rows, const Arrays& host);
  void write_queries(std::span<const LogitQuery> queries, std::span<const std::int32_t> places, const SlotOf& slot_of,
                     const Arrays& host);
  void send(const void* begin, const void* end, cudaStream_t stream);

  DeviceBuffer device_;
  PinnedMemory staging_;
  CudaEvent sent_;
  bool all_prefills_ = false;
  Arrays host_{};  // of the step at hand, as data_
  StepData data_{};
};

}  // namespace minisgl::cuda
