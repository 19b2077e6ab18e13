// Takes tensors out of a weight source, checks them against what the configuration promised, and packs them.
#include "models/weight_loader.h"

#include <cstring>
#include <utility>

#include "core/aligned_buffer.h"
#include "core/error.h"
#include "core/half.h"
#include "io/mapped_file.h"
#include "io/quote.h"
#include "io/tensor_layout.h"

namespace minisgl {
namespace {

constexpr std::size_t num_dtypes = static_cast<std::size_t>(DType::q6_k) + 1;

// Files don't promise alignment, so elements are copied out.
template <typename T>
T element(std::span<const std::byte> bytes, std::int64_t index) {
  T value;
  std::memcpy(&value, bytes.data() + static_cast<std::size_t>(index) * sizeof(T), sizeof(T));
  return value;
}

// Within each head, rows 2i and 2i + 1 rotate together in the file; here rows i and i + head_dim / 2 do.
AlignedBuffer halves_order(std::span<const std::byte> raw, std::int64_t rows, std::int64_t head_dim, ThreadPool& pool) {
  AlignedBuffer ordered(raw.size());
  const auto stride = raw.size() / static_cast<std::size_t>(rows);
  const std::int64_t half = head_dim / 2;
  pool.parallel_for(rows / head_dim, [&](std::int64_t head, int) {
    for (std::int64_t i = 0; i < head_dim; ++i) {
      const std::int64_t target = head * head_dim + i;
      const std::int64_t origin = head * head_dim + (i < half ? 2 * i : 2 * (i - half) + 1);
      std::memcpy(ordered.data() + static_cast<std::size_t>(target) * stride,
                  raw.data() + static_cast<std::size_t>(origin) * stride, stride);
    }
  });
  return ordered;
}

}  // namespace

WeightLoader::WeightLoader(const WeightSource& source, Ops& device, Pass pass,
                           std::function<void(std::int64_t)> on_bytes)
    : source_(source), device_(device), pass_(pass), on_bytes_(std::move(on_bytes)), bytes_by_dtype_(num_dtypes, 0) {}

TensorData WeightLoader::checked(const std::string& name, const std::vector<std::int64_t>& shape) const {
  TensorData tensor = source_.tensor(name);
  if (tensor.shape != shape) {
    throw InputError(concat("'", source_.path(), "': tensor ", quote_name(name), " has shape ",
                            shape_text(tensor.shape), ", the configuration asks for ", shape_text(shape)));
  }
  return tensor;
}

std::vector<float> WeightLoader::vector(const std::string& name, std::int64_t size) {
  if (pass_ == Pass::dummy)
    return std::vector<float>(static_cast<std::size_t>(size), name.ends_with(".bias") ? 0.0f : 1.0f);
  const TensorData tensor = checked(name, {size});
  if (is_quantized(tensor.dtype)) {
    throw InputError(concat("'", source_.path(), "': tensor ", quote_name(name), " has type ",
                            dtype_info(tensor.dtype).name, ", norms and biases must be f32, f16 or bf16"));
  }
  std::vector<float> values;
  if (pass_ == Pass::load) {
    values.resize(static_cast<std::size_t>(size));
    for (std::int64_t i = 0; i < size; ++i) {
      float& value = values[static_cast<std::size_t>(i)];
      switch (tensor.dtype) {
        case DType::f16: value = f16_to_f32(element<std::uint16_t>(tensor.bytes, i)); break;
        case DType::bf16: value = bf16_to_f32(element<std::uint16_t>(tensor.bytes, i)); break;
        default: value = element<float>(tensor.bytes, i); break;
      }
    }
  }
  on_bytes_(static_cast<std::int64_t>(tensor.bytes.size()));
  return values;
}

DeviceBuffer WeightLoader::norm(const std::string& name, std::int64_t size) {
  const std::vector<float> values = vector(name, size);
  if (values.empty()) return {};
  const auto bytes = std::as_bytes(std::span(values));
  DeviceBuffer buffer = device_.allocate(bytes.size());
  device_.upload(bytes, buffer.data());
  return buffer;
}

std::shared_ptr<const Matrix> WeightLoader::matrix(const std::string& name, std::int64_t rows, std::int64_t cols,
                                                   std::int64_t rotary_head_dim) {
  if (pass_ == Pass::dummy) {
    bytes_by_dtype_[static_cast<std::size_t>(DType::bf16)] += row_bytes(DType::bf16, rows * cols);
    on_bytes_(row_bytes(DType::bf16, rows * cols));
    return device_.make_random_matrix(rows, cols);
  }
  const TensorData tensor = checked(name, {rows, cols});
  const auto num_bytes = static_cast<std::int64_t>(tensor.bytes.size());
  bytes_by_dtype_[static_cast<std::size_t>(tensor.dtype)] += num_bytes;
  std::shared_ptr<const Matrix> matrix;
  if (pass_ == Pass::load) {
    AlignedBuffer staging;
    std::span<const std::byte> raw = tensor.bytes;
    if (rotary_head_dim != 0 && source_.interleaved_rope()) {
      staging = halves_order(raw, rows, rotary_head_dim, device_.pool());
      raw = {staging.data(), raw.size()};
    } else if (reinterpret_cast<std::uintptr_t>(raw.data()) % sizeof(float) != 0) {
      staging = AlignedBuffer(raw.size());
      std::memcpy(staging.data(), raw.data(), raw.size());
      raw = {staging.data(), raw.size()};
    }
    matrix = device_.make_matrix(tensor.dtype, rows, cols, raw);
    release_pages(tensor.bytes);
  }
  on_bytes_(num_bytes);
  return matrix;
}

Projection WeightLoader::projection(const ProjectionRequest& request) {
  Projection projection;
  projection.weight =
      matrix(request.name + ".weight", request.out_features, request.in_features, request.rotary_head_dim);
  if (!request.bias) return projection;
  projection.bias = vector(request.name + ".bias", request.out_features);
  if (request.rotary_head_dim != 0 && source_.interleaved_rope() && pass_ == Pass::load) {
    const AlignedBuffer ordered = halves_order(std::as_bytes(std::span(projection.bias)), request.out_features,
                                               request.rotary_head_dim, device_.pool());
    std::memcpy(projection.bias.data(), ordered.data(), projection.bias.size() * sizeof(float));
  }
  return projection;
}

std::unique_ptr<const Linear> WeightLoader::linear(const std::vector<ProjectionRequest>& requests) {
  std::vector<Projection> outputs;
  for (const ProjectionRequest& request : requests) outputs.push_back(projection(request));
  return pass_ == Pass::check ? nullptr : device_.make_linear(std::move(outputs));
}

}  // namespace minisgl
