// Low-rank adapters: what some sequences add to a model's linear layers, y += up · (down · x).
#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "gemm/weights.h"

namespace minisgl {

enum class ExpertMatrix : std::uint8_t { gate, up, down };

// A rank's part of the change of one projection. What is cut like the projection's inputs has its part of `down`, what
// is cut like its outputs of `up`: the change is cut as the product is, and sums over ranks as that does.
struct AdapterPair {
  const Linear* linear = nullptr;            // that has the projection; or
  const Experts* experts = nullptr;          // the layer that has
  std::int64_t expert = 0;                   // this expert, of the device's,
  ExpertMatrix matrix = ExpertMatrix::gate;  // and of it this one
  std::int64_t first_output = 0;             // the first of the linear's outputs that are the projection's
  std::int64_t rank = 0, inputs = 0, outputs = 0;
  std::vector<float> down = {};  // [rank, inputs]
  std::vector<float> up = {};    // [outputs, rank], the adapter's scale included
};

// All pairs of one adapter, as a device keeps them. Read only once it is made. Whoever has it may let go of it while a
// step that uses it is in flight.
class Adapter {
 public:
  Adapter() = default;
  Adapter(const Adapter&) = delete;
  Adapter& operator=(const Adapter&) = delete;
  virtual ~Adapter() = default;
  virtual std::int64_t nbytes() const = 0;
};

}  // namespace minisgl
