// One device: its memory, its weights and every operation of a step. The CPU (cpu/backend.h) and CUDA (cuda/backend.h)
// implement it; whoever calls it knows neither. One thread at a time.
//
// Devices that were given a communicator compute one model together, each a rank of it: all of them make the same calls
// in the same order, with the same steps.
//
// Operations are queued in the order of the calls; what they wrote is there for the next operation, and for the host
// after download() or take_outputs(). Every op treats a row (a token, or a token's head) on its own. Activations have
// activation_dtype(), sums are f32. What an op writes for a linear to read next may be in whatever form the device's
// product wants (the CPU's quantised products read int8 blocks), as long as tensors of that size hold it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "gemm/weights.h"
#include "kernels/query.h"
#include "kernels/step.h"

namespace minisgl {

// Merged projections of a token: queries, keys, values, each head after head.
struct HeadShape {
  int num_heads;
  int num_kv_heads;
  int head_dim;
  constexpr std::int64_t row_size() const { return std::int64_t{num_heads + 2 * num_kv_heads} * head_dim; }
};

// The RMS norm of a row: x / rms(x) * weight.
struct Norm {
  const float* weight;  // [cols]
  float eps;
};

// What happens to query and key heads before they meet.
struct HeadTransform {
  const float* query_norm = nullptr;  // [head_dim] RMS norm of each query head (Qwen3), or null
  const float* key_norm = nullptr;    // [head_dim] of each key head
  float eps = 0.0f;
  // [positions, rotary_dim]: the first half of a row is cos, the second sin, attention factor included. Halves
  // (x[i], x[i + rotary_dim / 2]) rotate together.
  const float* rope_table = nullptr;
  int rotary_dim = 0;
};

class Ops {
 public:
  virtual ~Ops() = default;

  virtual std::string device_name() const = 0;  // for people
  virtual ThreadPool& pool() = 0;               // the host's threads
  virtual int rank() const = 0;                 // among num_ranks() devices
  virtual int num_ranks() const = 0;            // 1 without a communicator
  virtual DType activation_dtype() const = 0;
  virtual DType kv_dtype_for(DType weight_dtype) const = 0;  // of the cache, where nobody chose
  virtual bool supports_kv_dtype(DType dtype) const = 0;
  virtual bool has_own_memory() const = 0;              // that nobody else needs: the cache may take what is left
  virtual std::int64_t usual_batch_tokens() const = 0;  // rows of a step that keep the device busy
  // Bytes that can be allocated for weights, cache and workspace.
  virtual std::int64_t available_memory() const = 0;

  // Bytes a second that are read from memory, here and now: the ceiling of everything that memory bounds.
  virtual double measure_read_bandwidth() = 0;
  virtual void synchronize() = 0;  // waits for everything queued

  // Zeroed. Throws std::bad_alloc.
  virtual DeviceBuffer allocate(std::size_t bytes) = 0;
  virtual void upload(std::span<const std::byte> from, std::byte* to) = 0;
  virtual void copy(const std::byte* from, std::size_t bytes, std::byte* to) = 0;
  virtual void download(const std::byte* from, std::span<std::byte> to) = 0;

  // Devices that record steps want all memory reserved first: nothing may move afterwards. Others need neither.
  virtual bool records_steps() const { return false; }
  virtual std::int64_t step_bytes(const StepLimits&) const { return 0; }  // at most, of reserve() and record_step()
  virtual void reserve(const StepLimits&) {}

  // `raw` is row-major [rows, cols] in `dtype` as a file stores it, aligned to 4 bytes; it isn't needed afterwards.
  virtual std::shared_ptr<const Matrix> make_matrix(DType dtype, std::int64_t rows, std::int64_t cols,
                                                    std::span<const std::byte> raw) = 0;
  // For measuring: small numbers of a fixed random stream.
  virtual std::shared_ptr<const Matrix> make_random_matrix(std::int64_t rows, std::int64_t cols) = 0;
  // All with the same number of input features.
  virtual std::unique_ptr<const Linear> make_linear(std::vector<Projection> outputs) = 0;
  // For the penalties of a sequence over a vocabulary; `in_prompt`: the prompt's tokens count, too.
  virtual std::unique_ptr<SeenTokens> make_seen_tokens(std::int64_t vocab_size, bool in_prompt) = 0;

  // Whether a step may begin before the outputs of the one before it are taken: the device works while the host goes
  // on, and finds the tokens that it drew itself. Others compute everything within the calls.
  virtual bool runs_ahead() const { return false; }
  // The step at hand: what the operations below read beside their arguments. `queries`: what is wanted of each row of
  // logits; empty where nobody samples. What both point to must stay until run_step() returns.
  virtual void begin_step(const StepBatch& batch, std::span<const LogitQuery> queries) = 0;
  // Runs `body`, which makes the calls of the step. A device may replay what it recorded of a step of this form
  // instead. Each such step's outputs are taken, in order.
  virtual void run_step(const std::function<void()>& body) = 0;
  // Begins the step of `batch`, which has one row and one query for each sequence, and records `body` for it and for
  // steps of this form with fewer sequences, down to the next that is recorded.
  virtual void record_step(const StepBatch&, std::span<const LogitQuery>, const std::function<void()>&) {}

  // y[r] = the table's row of token r; zeros for tokens that it doesn't hold. y [num_rows, hidden]; the table's rows
  // are the tokens from first_token on.
  virtual void embed(const Matrix& table, std::int64_t first_token, Tensor y) = 0;
  // y[r] = x[r] / rms(x[r]) * weight, with weight [cols]; x == y is allowed.
  virtual void rms_norm(Tensor x, const float* weight, float eps, Tensor y) = 0;
  // delta = the sum of the ranks' deltas, residual += delta, then y = rms_norm(residual).
  virtual void reduce_add_rms_norm(Tensor residual, Tensor delta, const float* weight, float eps, Tensor y) = 0;
  // y [rows, out_features] = x [rows, in_features] through every projection, in order. y may be f32.
  virtual void linear(const Linear& weights, Tensor x, Tensor y) = 0;
  // y[r, i] = silu(gate) * up with gate = z[r, i], up = z[r, cols + i] of z = linear(gate_up, x). `scratch` holds z
  // [rows, 2 * cols] where the device needs it.
  virtual void gated_linear(const Linear& gate_up, Tensor x, Tensor scratch, Tensor y) = 0;
  // residual += the sum over ranks of linear(x), and normed = its RMS norm, for linears (and nothing else) to read
  // while the residual stays as it is. All [rows, out_features]; `delta` holds the product where the device needs it.
  virtual void linear_add_norm(const Linear& weights, Tensor x, Tensor delta, Tensor residual, const Norm& norm,
                               Tensor normed) {
    linear(weights, x, delta);
    reduce_add_rms_norm(residual, delta, norm.weight, norm.eps, normed);
  }
  // Norms and rotates the query and key heads of qkv [num_rows, shape.row_size()] in place, by the batch's positions,
  // and writes keys and values into the cache.
  virtual void store_heads(Tensor qkv, const HeadShape& shape, const HeadTransform& transform,
                           const ops::KvLayer& cache) = 0;
  // Causal attention of every row over its sequence's cache (which already holds the row's own key and value).
  // A row at position p sees positions (p - window, p], or [0, p] for window 0. out [num_rows, num_heads * head_dim].
  // What the cache holds at positions that a row does not see, garbage and NaN included, has no influence. Throws
  // CheckError for shapes that are not allowed (head_dim: a multiple of 8 up to 256).
  virtual void paged_attention(Tensor qkv, const HeadShape& shape, const ops::KvLayer& cache, float scale,
                               std::int32_t window, Tensor out) = 0;
  // y[i] = x[logit_rows[i]]. y [num_logits, cols].
  virtual void gather_logit_rows(Tensor x, Tensor y) = 0;

  // x = the sum of the ranks' x: the same bits on every rank.
  virtual void sum_over_ranks(Tensor x) = 0;
  // y = the ranks' columns side by side, as far as y has columns. part [rows, n], scratch [num_ranks * rows, n],
  // y [rows, up to num_ranks * n]; all f32.
  virtual void gather_columns(Tensor part, Tensor scratch, Tensor y) = 0;

  // Answers the step's queries from logits [num_logits, vocab_size] f32, which it may change.
  virtual void sample(Tensor logits) = 0;
  // Waits for the oldest step whose outputs were not taken, and for no later one. Its answers, in the order of the
  // queries; none where there were none.
  virtual std::vector<TokenOutput> take_outputs() = 0;
  // Seconds that the device worked on the steps whose outputs were taken; 0 where it is the host that works.
  virtual double busy_seconds() const { return 0.0; }
};

}  // namespace minisgl
