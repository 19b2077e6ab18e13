// The steps of one GPU, from the host's batch to the host's answers, and the graphs that were recorded of them. Two
// slots take turns, so that a step can be taken to the device while another runs.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "core/cuda/runtime.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/step_block.h"
#include "kernels/cuda/step_data.h"
#include "kernels/query.h"
#include "kernels/step.h"

namespace minisgl::cuda {

class StepSlots {
 public:
  // Steps are queued on `stream`. `comm` (or null) and `stream` outlive the slots. all_prefills: see StepBlock.
  StepSlots(int device_index, cudaStream_t stream, Communicator* comm, bool all_prefills);

  // Bytes of the device's memory that reserve() and record() take at most.
  static std::int64_t bytes_for(const StepLimits& limits);
  void reserve(const StepLimits& limits);

  // The steps of StepRunner.
  void begin(const StepBatch& batch, std::span<const LogitQuery> queries);
  void run(const std::function<void()>& body);
  void run_forward(const std::function<void()>& forward);
  void run_sampling(std::span<const LateMask> masks, const std::function<void()>& sampling);
  void record(const StepBatch& batch, std::span<const LogitQuery> queries, const std::function<void()>& forward,
              const std::function<void()>& sampling);

  // The step at hand, and where its answers go: [num_logits] OutputEntry.
  const StepData& step() const { return step_; }
  OutputEntry* outputs() { return static_cast<OutputEntry*>(current().outputs.get()); }

  // Queues the copy of bf16 rows to the host, for the outputs of the step at hand.
  void keep_hidden(Tensor hidden);
  // Waits for the oldest step whose outputs were not taken.
  StepOutputs take();
  double busy_seconds() const { return busy_seconds_; }  // the device's, in the steps that were taken

 private:
  // A step, and its halves.
  struct Recording {
    CudaGraphExec whole, forward, sampling;
  };

  // What a step reads beside the model and what comes of it. Graphs find it where it lay when they were captured.
  struct Slot {
    StepBlock block;
    StepBlock large_block;             // for steps that don't fit the one that graphs read
    DeviceBuffer drawn;                // [logits] tokens, for the next step
    PinnedMemory outputs;              // [logits] OutputEntry, written by the device
    PinnedMemory hidden;               // [num_hidden] bf16, a step's hidden states in a row
    std::vector<std::int32_t> places;  // of the queries' answers in both
    std::int64_t num_outputs = 0, num_hidden = 0, most_hidden = 0;
    CudaEvent begun, done;      // on the device
    CudaEvent paused, resumed;  // between its halves
    bool has_halves = false;
    std::map<std::int64_t, Recording> recordings;  // by number of rows

    void reserve_outputs(std::int64_t count);
  };

  Slot& current() { return slots_[current_]; }
  Slot& previous() { return slots_[current_ ^ 1]; }
  void open();
  void close();
  void launch(CudaGraphExec Recording::* recorded, const std::function<void()>& body);
  CudaGraphExec capture(const std::function<void()>& body);
  void upload(const StepBatch& batch, std::span<const LogitQuery> queries, const StepBlock::Shape& shape,
              StepBlock& block);

  int device_index_;
  cudaStream_t stream_;
  Communicator* comm_;
  std::int64_t vocab_size_ = 0;  // as reserved; 0: unknown
  bool all_prefills_;
  CudaStream upload_stream_;  // carries what steps read
  Slot slots_[2];
  int current_ = 0;  // the step at hand's; the other one's step came before it
  double busy_seconds_ = 0;
  bool is_open_ = false;              // the step at hand may make more calls
  bool awaits_masks_ = false;         // its sampling is still to come
  bool said_too_large_ = false;       // the log has a line on steps that don't fit their recording
  int num_untaken_ = 0;               // steps that ran, or run
  StepData step_{};                   // the step at hand
  StepBlock* block_ = nullptr;        // what it reads
  Recording* replayed_ = nullptr;     // what it replays
  std::vector<std::int32_t> tokens_;  // its batch's, those of the step before by their places
};

}  // namespace minisgl::cuda
