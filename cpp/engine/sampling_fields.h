// The one table of what a request says about sampling: each field's name, its member of SamplingParams, and for a
// number the values that the sampler can calculate with. The binding reads by it (bind/request_reader.cpp), the engine
// checks by it (validation.cpp), and frames carry the fields in its order (plan_codec.h); how depends on a member's
// type alone. What an API promises beyond that is the business of SamplingParams in Python.
#pragma once

#include <cstdint>
#include <limits>
#include <tuple>

#include "kernels/query.h"

namespace minisgl {

// NaN is outside of any bounds.
struct Bounds {
  double low = std::numeric_limits<float>::lowest();
  double high = std::numeric_limits<float>::max();
  bool above_low = false;  // `low` itself is outside

  constexpr bool contain(double value) const { return (above_low ? value > low : value >= low) && value <= high; }
};

template <typename Value>
struct SamplingField {
  const char* name;
  Value SamplingParams::* member;
  Bounds bounds = {};  // where Value is a number
};
template <typename Value>
SamplingField(const char*, Value SamplingParams::*) -> SamplingField<Value>;
template <typename Value>
SamplingField(const char*, Value SamplingParams::*, Bounds) -> SamplingField<Value>;

inline constexpr std::tuple sampling_fields{
    SamplingField{"temperature", &SamplingParams::temperature, Bounds{0, 100}},
    SamplingField{"top_k", &SamplingParams::top_k, Bounds{-1, std::numeric_limits<std::int32_t>::max()}},
    SamplingField{"top_p", &SamplingParams::top_p, Bounds{0, 1, true}},
    SamplingField{"min_p", &SamplingParams::min_p, Bounds{0, 1}},
    SamplingField{"repetition_penalty", &SamplingParams::repetition_penalty,
                  Bounds{0, std::numeric_limits<float>::max(), true}},
    SamplingField{"presence_penalty", &SamplingParams::presence_penalty},
    SamplingField{"frequency_penalty", &SamplingParams::frequency_penalty},
    SamplingField{"seed", &SamplingParams::seed},
    SamplingField{"logit_bias", &SamplingParams::logit_bias},
    SamplingField{"bad_words", &SamplingParams::bad_words},
    SamplingField{"allowed_token_ids", &SamplingParams::allowed_token_ids},
};

// Calls visit(field) for each of them, in order.
template <typename Visit>
constexpr void for_each_sampling_field(Visit&& visit) {
  std::apply([&](const auto&... fields) { (visit(fields), ...); }, sampling_fields);
}

}  // namespace minisgl
