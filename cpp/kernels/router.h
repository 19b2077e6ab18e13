// How a router chooses among the experts of a layer, and what it makes of their outputs.
#pragma once

#include <cstdint>

namespace minisgl {

constexpr int kMaxExperts = 1024;      // of a layer
constexpr int kMaxChosenExperts = 32;  // for a row

// The router's logits of a row are f32, one for each expert of all ranks. The `num_chosen` experts with the highest
// logits (with a choice_bias: the highest scores and bias) are chosen, of equal ones those with the lower numbers; what
// is no number counts as the lowest. So the same logits give the same choice on every device.
struct RouterRule {
  enum class Scores : std::uint8_t {
    softmax,  // over all experts
    sigmoid,  // of each logit
  };
  // What y holds when the experts' outputs come to it.
  enum class Shared : std::uint8_t {
    none,   // nothing: it is overwritten
    added,  // the output of the shared expert, which theirs are added to
    gated,  // the same, which is multiplied by the sigmoid of one more logit, behind those of the experts
  };

  int num_chosen = 0;
  Scores scores = Scores::softmax;
  // The weights of the chosen add up to 1. With a softmax that is the softmax over the chosen alone.
  bool normalized = false;
  float scale = 1.0f;                  // of every weight
  const float* choice_bias = nullptr;  // [num_experts] added to the scores for the choice, not for the weights; or null
  Shared shared = Shared::none;
};

}  // namespace minisgl
