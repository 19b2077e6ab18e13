// The operations of a step on one device.
//
// Operations are queued in the order of the calls; what they wrote is there for the next operation, and for the host
// after Hardware::download() or StepRunner::take_outputs(). Every op treats a row (a token, or a token's head) on its
// own. Activations have activation_dtype(), sums are f32. An operation counts a write to each OutputTensor that it is
// given (core/tensor.h), so that a LinearInput notices when it is stale.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/error.h"
#include "core/tensor.h"
#include "gemm/weights.h"
#include "kernels/activation.h"
#include "kernels/linear_input.h"
#include "kernels/router.h"
#include "kernels/step.h"

namespace minisgl {

// Merged projections of a token: queries, keys, values, each head after head.
struct HeadShape {
  int num_heads;
  int num_kv_heads;
  int head_dim;
  constexpr std::int64_t row_size() const { return std::int64_t{num_heads + 2 * num_kv_heads} * head_dim; }
};

// What happens to query and key heads before they meet.
struct HeadTransform {
  const float* query_norm = nullptr;  // [head_dim] RMS norm of each query head (Qwen3), or null
  const float* key_norm = nullptr;    // [head_dim] of each key head
  // One norm over all query heads of all ranks and one over all key heads (OLMo 2): the weights are those of the rank's
  // heads, [num_heads, head_dim] and [num_kv_heads, head_dim].
  bool norms_all_heads = false;
  float eps = 0.0f;
  // [positions, rotary_dim]: the first half of a row is cos, the second sin, attention factor included. Halves
  // (x[i], x[i + rotary_dim / 2]) rotate together.
  const float* rope_table = nullptr;
  const float* query_rope_table = nullptr;  // of queries, where it is another
  int rotary_dim = 0;
};

// What the softmax is taken of: the product of a query and a key times `scale`, and of that, where there is a cap,
// cap * tanh(score / cap). A head's sink is one more score, of no key: it takes its share of the sum and adds nothing.
struct ScoreRule {
  float scale;
  float cap;           // 0: none
  const float* sinks;  // [num_heads] as they are, neither scaled nor capped; or null
  ScoreRule(float scale, float cap = 0.0f, const float* sinks = nullptr)  // NOLINT: most rules are a scale
      : scale(scale), cap(cap), sinks(sinks) {}
};

// A layer's experts, and what chooses among them.
struct ExpertLayer {
  const Experts& experts;
  // hidden -> a logit for each expert of all ranks, and one more for Shared::gated. The same on every rank.
  const Linear& router;
  RouterRule rule;
  Activation activation = Activation::silu;
};

class Ops {
 public:
  virtual ~Ops() = default;

  // y[r] = the table's row of token r times `scale`; zeros for tokens that it doesn't hold. y [num_rows, hidden]; the
  // table's rows are the tokens from first_token on.
  virtual void embed(const Matrix& table, std::int64_t first_token, OutputTensor y, float scale = 1.0f) = 0;

  // The operations that return a LinearInput have its rows in `y`, once they are written; x may be y. Where there is no
  // norm (Norm) its rows are those of x, or of the residual, and y stays as it is.

  // y = the norm of x.
  virtual LinearInput rms_norm(Tensor x, const Norm& norm, OutputTensor y) = 0;
  // delta = the sum of the ranks' deltas, residual += delta, then y = the norm of the residual.
  virtual LinearInput reduce_add_rms_norm(OutputTensor residual, OutputTensor delta, const Norm& norm,
                                          OutputTensor y) = 0;
  // delta = the sum of the ranks' deltas, residual += the norm `added` of delta, then y = the norm of the residual.
  // delta becomes anything.
  virtual LinearInput reduce_norm_add_rms_norm(OutputTensor residual, OutputTensor delta, const Norm& added,
                                               const Norm& norm, OutputTensor y) = 0;
  // y [rows, out_features] = x [rows, in_features] through every projection, in order. y may be f32.
  virtual void linear(const Linear& weights, const LinearInput& x, OutputTensor y) = 0;
  // y[r, i] = activation(gate) * up with gate = z[r, i], up = z[r, cols + i] of z = linear(gate_up, x). `scratch` holds
  // z [rows, 2 * cols] where the device needs it, which may be until y is read.
  virtual LinearInput gated_linear(const Linear& gate_up, const LinearInput& x, OutputTensor scratch, OutputTensor y,
                                   Activation activation = Activation::silu) = 0;
  // residual += the sum over ranks of linear(x), then y = the norm of the residual. All [rows, out_features]; `delta`
  // holds the product where the device needs it.
  virtual LinearInput linear_add_norm(const Linear& weights, const LinearInput& x, OutputTensor delta,
                                      OutputTensor residual, const Norm& norm, OutputTensor y) {
    linear(weights, x, delta);
    return reduce_add_rms_norm(residual, delta, norm, y);
  }
  // y [rows, hidden_size] = the sum over the experts that are chosen for a row, in the order of their scores, of the
  // expert's weight times down(activation(gate(x)) * up(x)), biases included; RouterRule::Shared says what becomes of
  // what y held. Of chosen experts that the device doesn't hold it adds nothing: with several ranks, y is the rank's
  // share of a sum. x has no row in common with y. `scratch`: experts_scratch_bytes() of so many rows, aligned to 256
  // bytes. No size depends on what is chosen, so the operation can be recorded.
  virtual void experts(const ExpertLayer&, const LinearInput& /*x*/, std::span<std::byte> /*scratch*/,
                       OutputTensor /*y*/) {
    throw CheckError("the device computes no experts");
  }
  // residual += the sum over ranks of experts(x), which is without a shared expert, then y = the norm of the residual.
  // x may be a norm of the residual, and stand in y. `delta` holds the experts' sum where the device needs it.
  virtual LinearInput experts_add_norm(const ExpertLayer& layer, const LinearInput& x, std::span<std::byte> scratch,
                                       OutputTensor delta, Tensor residual, const Norm& norm, Tensor y) {
    experts(layer, x, scratch, delta);
    return reduce_add_rms_norm(residual, delta, norm, y);
  }
  // For rows of `rule`; grows with num_rows.
  virtual std::int64_t experts_scratch_bytes(const ExpertsShape&, const RouterRule&, std::int64_t /*num_rows*/) const {
    return 0;
  }
  virtual bool computes_experts() const { return false; }
  // For measuring, between steps: the layers whose experts were computed since the start, and the experts of this
  // device of which each layer read the weights, added up.
  struct ExpertUse {
    std::int64_t layers = 0, experts = 0;
  };
  virtual ExpertUse expert_use() { return {}; }
  // The rows of x for an operation that isn't a linear: finishes what was left undone. Afterwards x, too, stands for
  // the written rows. The tensor is good as long as x.
  virtual Tensor plain_rows(LinearInput& x) = 0;

  // Norms and rotates the query and key heads of qkv [num_rows, shape.row_size()] in place, by the batch's positions,
  // and writes keys and values into the cache.
  virtual void store_heads(OutputTensor qkv, const HeadShape& shape, const HeadTransform& transform,
                           const ops::KvLayer& cache) = 0;
  // linear(weights, x, qkv), then store_heads. What qkv then holds of keys and values is not said.
  virtual void linear_heads(const Linear& weights, const LinearInput& x, OutputTensor qkv, const HeadShape& shape,
                            const HeadTransform& transform, const ops::KvLayer& cache) {
    linear(weights, x, qkv);
    store_heads(qkv, shape, transform, cache);
  }
  // Causal attention of every row over its sequence's cache (which already holds the row's own key and value). What a
  // sequence of one row sees before that was written by an earlier step or a copy; that of several rows may also have
  // been written by the rows of another sequence of this step.
  // A row at position p sees positions (p - window, p], or [0, p] for window 0. out [num_rows, num_heads * head_dim].
  // What the cache holds at positions that a row does not see, garbage and NaN included, has no influence. Throws
  // CheckError for shapes that are not allowed (head_dim: a multiple of 8 up to 256).
  virtual void paged_attention(Tensor qkv, const HeadShape& shape, const ops::KvLayer& cache, ScoreRule scores,
                               std::int32_t window, OutputTensor out) = 0;
  // The rows of x that something is wanted of: y[i] = x[logit_rows[i]], then those of hidden_rows. y [num_logits +
  // num_hidden, cols].
  virtual void gather_wanted_rows(Tensor x, OutputTensor y) = 0;

  // Gives the host the hidden states [num_hidden, hidden_size] with the step's outputs, as f32.
  virtual void keep_hidden(Tensor hidden) = 0;
  // logits[r, i] *= scale, and then, where there is a cap, cap * tanh(logits[r, i] / cap).
  virtual void scale_logits(OutputTensor logits, float scale, float cap) = 0;
  // Answers the step's queries from logits [num_logits, vocab_size] f32, which it may change.
  virtual void sample(OutputTensor logits) = 0;
};

}  // namespace minisgl
