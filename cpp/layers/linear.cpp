// Linear layers over the GEMM dispatch.
#include "layers/linear.h"

#include <utility>

#include "core/error.h"

namespace minisgl {
namespace {

template <typename... Items>
std::vector<Projection> list_of(Items&&... items) {  // projections can only be moved, initializer lists only copied
  std::vector<Projection> list;
  list.reserve(sizeof...(items));
  (list.push_back(std::forward<Items>(items)), ...);
  return list;
}

}  // namespace

MergedLinear::MergedLinear(std::vector<Projection> outputs) : outputs_(std::move(outputs)) {
  for (const Projection& output : outputs_) {
    MINISGL_CHECK(output.weight.cols() == outputs_.front().weight.cols());
    MINISGL_CHECK(output.bias.empty() || std::ssize(output.bias) == output.weight.rows());
    parts_.push_back({&output.weight, output.bias.empty() ? nullptr : output.bias.data(), out_features_});
    out_features_ += output.weight.rows();
  }
}

void MergedLinear::forward(const float* x, std::int64_t num_rows, float* y, GemmWorkspace& workspace,
                           ThreadPool& pool) const {
  gemm({.parts = parts_, .x = x, .num_rows = num_rows, .y = y, .y_stride = out_features_}, workspace, pool);
}

std::int64_t MergedLinear::nbytes() const {
  std::size_t bytes = 0;
  for (const Projection& output : outputs_) bytes += output.weight.nbytes() + output.bias.size() * sizeof(float);
  return static_cast<std::int64_t>(bytes);
}

LinearQKVMerged::LinearQKVMerged(Projection query, Projection key, Projection value)
    : MergedLinear(list_of(std::move(query), std::move(key), std::move(value))) {}

LinearRowParallel::LinearRowParallel(Projection output) : MergedLinear(list_of(std::move(output))) {}

}  // namespace minisgl
