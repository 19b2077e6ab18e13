// Collectives between the ranks of one model: the interface that every communicator implements. nccl.h, shm.h, tcp.h
// and bind/plugin_communicator.h make them.
#pragma once

#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/dtype.h"
#include "core/error.h"

namespace minisgl {

using StreamHandle = std::uintptr_t;  // a cudaStream_t; 0 is the default stream

// A collective that could not end because of another rank: it died, left, or didn't come within the time limit. The
// communicator is of no use afterwards: every later call throws the same.
class RankFailure : public std::runtime_error {
 public:
  // `rank`: the rank that is to blame; -1 where it isn't known.
  RankFailure(int rank, const std::string& message) : std::runtime_error(message), rank_(rank) {}
  int rank() const { return rank_; }

 private:
  int rank_;
};

// How long a rank waits for the others.
struct TimeLimit {
  std::chrono::milliseconds time{30'000};
  std::string option = {};  // the flag that sets it, for messages; may be empty
};
// "30 s", or "30 s (--step-timeout)".
inline std::string text_of(const TimeLimit& limit) {
  const std::string seconds = concat(static_cast<double>(limit.time.count()) / 1000.0, " s");
  return limit.option.empty() ? seconds : concat(seconds, " (", limit.option, ")");
}

// residual += the sum of delta over the ranks, then y = residual / rms(residual) * weight, row by row.
struct SumAddRmsNorm {
  void* residual;       // [rows, cols], the same on every rank
  const void* delta;    // [rows, cols], this rank's part; it may be overwritten
  const float* weight;  // [cols]
  float eps;
  void* y;  // [rows, cols]
  std::int64_t rows;
  std::int64_t cols;
  DType dtype;  // the type of residual, delta and y
};

// Every rank makes the same calls in the same order, with the same sizes. One thread at a time.
//
// With a device (device() >= 0), a call enqueues on `stream` and returns, and can be captured in a CUDA graph; all
// calls are on one stream or on streams that wait for each other. Without one (device() is -1), pointers are on the
// host, `stream` is ignored, and the call returns when it is done. f32, f16 and bf16 can be summed; every rank gets the
// same bits. Throws RankFailure.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual std::string name() const = 0;  // for people: how the ranks talk
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int device() const = 0;  // ordinal of the GPU that all pointers are on; -1: the host

  // data: [count], in place: the sum over the ranks.
  virtual void all_reduce_sum(void* data, std::int64_t count, DType dtype, StreamHandle stream) = 0;
  // input: [num_bytes]; output: [size, num_bytes], rank by rank. The input may be this rank's part of the output.
  virtual void all_gather(const void* input, void* output, std::int64_t num_bytes, StreamHandle stream) = 0;
  // input: [size, count]; output: [count], the sum over the ranks of the inputs' rank-th part. They don't overlap.
  virtual void reduce_scatter_sum(const void* input, void* output, std::int64_t count, DType dtype,
                                  StreamHandle stream) = 0;
  // data: [num_bytes]: root's, on every rank.
  virtual void broadcast(void* data, std::int64_t num_bytes, int root, StreamHandle stream) = 0;
  // No rank (its stream, where there is one) goes on before all have come here.
  virtual void barrier(StreamHandle stream) = 0;

  // Whether every element is summed in the order of ranks, wherever it lies in whatever sum: the same numbers make the
  // same bits always.
  virtual bool sums_by_rank() const { return false; }

  // The reduction and what follows it in a layer, in one. False where this communicator has no such thing, or not for
  // this size: then nothing was done, on any rank.
  virtual bool all_reduce_add_rms_norm(const SumAddRmsNorm&, StreamHandle) { return false; }

  // How long a collective waits for the other ranks from now on; at first it is the limit of the start. Not while a
  // call is under way. A communicator that waits in somebody else's code has limits of its own.
  virtual void set_time_limit(const TimeLimit&) {}

  // Before and after this thread waits for a stream that collectives are queued on, with a time limit: if another rank
  // keeps them from ending, the communicator gives them up so that the wait ends, and end_wait() says who is to blame.
  virtual void begin_wait() {}
  virtual void end_wait() {}
};

// Throws InputError for a rank outside [0, size). Every communicator's maker calls it.
inline void check_rank(int rank, int size) {
  if (size < 1 || rank < 0 || rank >= size) throw InputError(concat("rank must be in [0, ", size, "), got ", rank));
}

}  // namespace minisgl
