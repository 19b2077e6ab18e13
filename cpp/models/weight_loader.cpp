// Takes a rank's parts of tensors out of a weight source, checks them against what the configuration promised, and
// packs them.
#include "models/weight_loader.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "core/error.h"
#include "core/float_at.h"
#include "io/mapped_file.h"
#include "io/quote.h"
#include "io/tensor_layout.h"
#include "layers/matrix_part.h"
#include "models/quantization.h"

namespace minisgl {
namespace {

constexpr std::size_t num_dtypes = static_cast<std::size_t>(DType::f8e4m3) + 1;  // the last of the enumeration

// Files don't promise that either.
void align(MatrixPart& part) {
  if (reinterpret_cast<std::uintptr_t>(part.bytes.data()) % sizeof(float) == 0) return;
  part.staging = AlignedBuffer(part.bytes.size());
  std::memcpy(part.staging.data(), part.bytes.data(), part.bytes.size());
  part.bytes = {part.staging.data(), part.staging.size()};
}

// The rows in halves order.
AlignedBuffer halves_order(std::span<const std::byte> raw, std::int64_t rows, const ProjectionRequest& request,
                           ThreadPool& pool) {
  AlignedBuffer ordered(raw.size());
  const auto stride = raw.size() / static_cast<std::size_t>(rows);
  pool.parallel_for(rows / request.head_dim, [&](std::int64_t head, int) {
    for (std::int64_t row = head * request.head_dim; row < (head + 1) * request.head_dim; ++row) {
      std::memcpy(ordered.data() + static_cast<std::size_t>(row) * stride,
                  raw.data() + static_cast<std::size_t>(file_row(request, row)) * stride, stride);
    }
  });
  return ordered;
}

}  // namespace

Slice slice_of(const ProjectionRequest& request, int rank, int num_ranks) {
  const ShardRule rule = shard_rule(request.role);
  const std::int64_t features = rule.cut == Cut::rows ? request.out_features : request.in_features;
  return rank_slice(rule.split, features / request.head_dim, rank, num_ranks) * request.head_dim;
}

// Of the first `interleaved` rows of each head, rows 2i and 2i + 1 rotate together in the file; here rows i and
// i + interleaved / 2 do.
std::int64_t file_row(const ProjectionRequest& request, std::int64_t row) {
  const std::int64_t half = request.interleaved / 2, head = row / request.head_dim, i = row % request.head_dim;
  return head * request.head_dim + (i >= 2 * half ? i : i < half ? 2 * i : 2 * (i - half) + 1);
}

WeightLoader::WeightLoader(const WeightSource& source, Device& device, Pass pass, Quantize quantize,
                           std::function<void(std::int64_t)> on_bytes, ExpertCut expert_cut)
    : source_(source),
      device_(device),
      pass_(pass),
      quantize_(quantize),
      expert_cut_(expert_cut),
      on_bytes_(std::move(on_bytes)),
      bytes_by_dtype_(num_dtypes, 0) {}

void WeightLoader::count(DType dtype, std::int64_t bytes) {
  bytes_by_dtype_[static_cast<std::size_t>(dtype)] += bytes;
  on_bytes_(bytes);
}

TensorData WeightLoader::checked(const std::string& name, const std::vector<std::int64_t>& shape) {
  TensorData tensor = pass_ == Pass::check ? source_.described(name) : source_.tensor(name);
  read_.insert(name);
  if (tensor.shape != shape) {
    throw InputError(concat("'", source_.path(), "': tensor ", quote_name(name), " has shape ",
                            shape_text(tensor.shape), ", the configuration asks for ", shape_text(shape)));
  }
  return tensor;
}

std::vector<std::string> WeightLoader::unread() const {
  std::vector<std::string> names = source_.names();
  std::erase_if(names, [&](const std::string& name) { return read_.contains(name); });
  std::ranges::sort(names);
  return names;
}

std::vector<float> WeightLoader::vector(const std::string& name, std::int64_t size) {
  return elements(name, size, {0, size});
}

// `wanted` of a tensor [size]. In the check only its bytes are counted.
std::vector<float> WeightLoader::elements(const std::string& name, std::int64_t size, const Slice& wanted) {
  if (pass_ == Pass::dummy)
    return std::vector<float>(static_cast<std::size_t>(wanted.count), name.ends_with(".bias") ? 0.0f : 1.0f);
  const TensorData tensor = checked(name, {size});
  if (is_quantized(tensor.dtype)) {
    throw InputError(concat("'", source_.path(), "': tensor ", quote_name(name), " has type ",
                            dtype_info(tensor.dtype).name, ", norms and biases must be f32, f16 or bf16"));
  }
  std::vector<float> values;
  if (pass_ == Pass::load) {
    values.resize(static_cast<std::size_t>(wanted.count));
    for (std::int64_t i = 0; i < wanted.count; ++i)
      values[static_cast<std::size_t>(i)] = float_at(tensor.dtype, tensor.bytes.data(), wanted.first + i);
  }
  on_bytes_(row_bytes(tensor.dtype, wanted.count));
  return values;
}

DeviceBuffer WeightLoader::norm(const std::string& name, std::int64_t size, double offset) {
  std::vector<float> weights = vector(name, size);
  for (float& weight : weights) weight += static_cast<float>(offset);
  return on_device(weights);
}

DeviceBuffer WeightLoader::head_norm(const std::string& name, const ProjectionRequest& request) {
  MINISGL_CHECK(request.interleaved == 0, "a norm over heads that are put in another order");
  return on_device(elements(name, request.out_features, slice_of(request)));
}

DeviceBuffer WeightLoader::on_device(const std::vector<float>& values) {
  if (values.empty()) return {};
  const auto bytes = std::as_bytes(std::span(values));
  DeviceBuffer buffer = device_.allocate(bytes.size());
  device_.upload(bytes, buffer.data());
  return buffer;
}

std::shared_ptr<const Matrix> WeightLoader::vocabulary(const std::string& name, std::int64_t vocab_size,
                                                       std::int64_t hidden_size) {
  return matrix(name, {.name = name, .role = Role::vocabulary, .out_features = vocab_size, .in_features = hidden_size});
}

// All ranks' rows of a projection, which may be some of a larger matrix.
TensorData WeightLoader::whole_matrix(const std::string& name, const ProjectionRequest& request) {
  const FusedMatrix& fused = request.fused;
  if (fused.name.empty()) return checked(name, {request.out_features, request.in_features});
  TensorData tensor = checked(fused.name + ".weight", {fused.num_rows, request.in_features});
  const auto stride = static_cast<std::size_t>(row_bytes(tensor.dtype, request.in_features));
  if (pass_ == Pass::check) return tensor;
  tensor.bytes = tensor.bytes.subspan(static_cast<std::size_t>(fused.first_row) * stride,
                                      static_cast<std::size_t>(request.out_features) * stride);
  tensor.shape.front() = request.out_features;
  return tensor;
}

std::shared_ptr<const Matrix> WeightLoader::matrix(const std::string& name, const ProjectionRequest& request) {
  const Slice slice = slice_of(request);
  const bool by_rows = shard_rule(request.role).cut == Cut::rows;
  const std::int64_t rows = by_rows ? slice.count : request.out_features;
  const std::int64_t cols = by_rows ? request.in_features : slice.count;
  if (pass_ == Pass::dummy) {
    auto random = device_.make_random_matrix(rows, cols);
    if (is_quantized_at_load(request.role)) random = device_.quantized(std::move(random), quantize_);
    count(random->dtype(), row_bytes(random->dtype(), rows * cols));
    return random;
  }
  if (auto matrix = kept_matrix(name, request, rows, cols)) return matrix;
  const TensorData tensor = whole_matrix(name, request);
  const std::int64_t num_bytes = rows * row_bytes(tensor.dtype, cols);
  ScaleGrid scales;
  if (tensor.dtype == DType::f8e4m3) scales = scales_of(name, request, slice);
  std::shared_ptr<const Matrix> matrix;
  if (pass_ == Pass::load) {
    MatrixPart part = take_part({tensor.dtype, request.out_features, request.in_features, tensor.bytes},
                                shard_rule(request.role).cut, slice, device_.pool());
    if (request.interleaved > 0) {
      part.staging = halves_order(part.bytes, rows, request, device_.pool());
      if (scales.block_rows == 1 && !scales.values.empty()) {
        const AlignedBuffer ordered =
            halves_order(std::as_bytes(std::span(scales.values)), rows, request, device_.pool());
        std::memcpy(scales.values.data(), ordered.data(), scales.values.size() * sizeof(float));
      }
      part.bytes = {part.staging.data(), part.staging.size()};
    } else {
      align(part);
    }
    matrix = made(tensor.dtype, rows, cols, part.bytes, scales, request.role);
    if (tensor.mapped) release_pages(part.read);
  }
  const bool may_differ = matrix != nullptr && (tensor.dtype == DType::f8e4m3 || quantize_ != Quantize::none);
  count(may_differ ? matrix->dtype() : tensor.dtype, num_bytes);
  return matrix;
}

// What an earlier start made of the tensor, without reading it. The check has seen its shape.
std::shared_ptr<const Matrix> WeightLoader::kept_matrix(const std::string& name, const ProjectionRequest& request,
                                                        std::int64_t rows, std::int64_t cols) {
  if (pass_ != Pass::load || quantize_ != Quantize::none) return nullptr;
  const FusedMatrix& fused = request.fused;
  const DType dtype = source_.described(fused.name.empty() ? name : fused.name + ".weight").dtype;
  const bool widened = dtype == DType::f8e4m3;
  auto matrix = device_.kept_matrix(name, rows, cols);
  if (matrix == nullptr) return nullptr;
  count(widened ? DType::bf16 : dtype, rows * row_bytes(dtype, cols));
  return matrix;
}

std::shared_ptr<const Matrix> WeightLoader::made(DType dtype, std::int64_t rows, std::int64_t cols,
                                                 std::span<const std::byte> raw, const ScaleGrid& scales, Role role) {
  const bool is_projection = role != Role::vocabulary;  // of which no rows are looked up
  if (dtype != DType::f8e4m3) {
    auto matrix = device_.make_matrix(dtype, rows, cols, raw);
    return is_quantized_at_load(role) ? device_.quantized(std::move(matrix), quantize_) : matrix;
  }
  if (is_projection && device_.keeps_e4m3(cols, scales.block_rows, scales.block_cols))
    return device_.make_scaled_matrix(rows, cols, raw, scales);
  const std::vector<std::uint16_t> wide = widen_e4m3(raw, rows, cols, scales, device_.pool());
  return device_.make_matrix(DType::bf16, rows, cols, std::as_bytes(std::span(wide)));
}

ScaleGrid WeightLoader::scales_of(const std::string& name, const ProjectionRequest& request, const Slice& slice) {
  const FusedMatrix& fused = request.fused;
  const std::string weight = fused.name.empty() ? name : fused.name + ".weight";
  const std::int64_t all_rows = fused.name.empty() ? request.out_features : fused.num_rows;
  read_.insert(scales_name(source_, weight));
  ScaleGrid scales = read_scales(source_, weight, all_rows, request.in_features);
  scales =
      take_scales(scales, all_rows, request.in_features, Cut::rows, {fused.first_row, request.out_features}, weight);
  scales = take_scales(scales, request.out_features, request.in_features, shard_rule(request.role).cut, slice, weight);
  if (request.interleaved > 0 && scales.block_rows > 1 && scales.block_rows < request.out_features &&
      scales.block_rows % request.head_dim != 0) {
    throw InputError(concat("'", source_.path(), "': ", quote_name(weight), " has scales in blocks of ",
                            scales.block_rows, " rows, which heads of ", request.head_dim, " rows lie across"));
  }
  return scales;
}

std::vector<float> WeightLoader::bias(const std::string& name, const ProjectionRequest& request) {
  if (shard_rule(request.role).cut == Cut::columns) {
    return elements(name, request.out_features, {0, device_.rank() == 0 ? request.out_features : 0});
  }
  std::vector<float> values = elements(name, request.out_features, slice_of(request));
  if (request.interleaved == 0 || values.empty()) return values;
  const AlignedBuffer ordered =
      halves_order(std::as_bytes(std::span(values)), std::ssize(values), request, device_.pool());
  std::memcpy(values.data(), ordered.data(), values.size() * sizeof(float));
  return values;
}

Projection WeightLoader::projection(const ProjectionRequest& request) {
  Projection projection;
  projection.weight = matrix(request.name + ".weight", request);
  if (request.bias) projection.bias = bias(request.name + ".bias", request);
  return projection;
}

std::unique_ptr<const Linear> WeightLoader::linear(const std::vector<ProjectionRequest>& requests) {
  std::vector<Projection> outputs;
  for (const ProjectionRequest& request : requests) outputs.push_back(projection(request));
  if (pass_ == Pass::check) return nullptr;
  auto linear = device_.make_linear(std::move(outputs));
  if (requests.front().role != Role::router) {
    AdapterTarget target{.linear = linear.get(), .projections = requests};
    if (source_.interleaved_rope()) {  // this file's order alone
      for (ProjectionRequest& request : target.projections) request.interleaved = 0;
    }
    adapter_targets_.push_back(std::move(target));
  }
  return linear;
}

std::unique_ptr<const Experts> WeightLoader::experts(const std::string& prefix, const ModelSpec& spec) {
  const ModelShard shard = shard_of(spec, device_.num_ranks(), {}, expert_cut_);
  const ExpertsShape shape = experts_shape(spec, shard, device_.rank());
  if (pass_ == Pass::dummy) {
    const std::int64_t elements = 3 * shape.num_experts * shape.hidden_size * shape.intermediate_size;
    count(DType::bf16, row_bytes(DType::bf16, elements));
    const auto maker = device_.make_experts(shape);
    maker->put_random();
    return note_experts(prefix, spec, maker->finish());
  }
  const ExpertFiles files(source_, prefix, spec);
  read_.insert(files.names().begin(), files.names().end());
  const auto maker = pass_ == Pass::load ? device_.make_experts(shape) : nullptr;
  for (std::int64_t i = 0; i < shape.num_experts; ++i) {
    for (const ExpertMatrix which : {ExpertMatrix::gate, ExpertMatrix::up, ExpertMatrix::down}) {
      put_expert(files, shape.first_expert + i, which, shape, i, maker.get());
    }
  }
  return maker ? note_experts(prefix, spec, maker->finish()) : nullptr;
}

std::unique_ptr<const Experts> WeightLoader::note_experts(const std::string& prefix, const ModelSpec& spec,
                                                          std::unique_ptr<const Experts> experts) {
  adapter_targets_.push_back({.experts = experts.get(), .prefix = prefix + spec.experts.names.experts + "."});
  return experts;
}

// One matrix of an expert, or its part. Without a maker its bytes are counted.
void WeightLoader::put_expert(const ExpertFiles& files, std::int64_t expert, ExpertMatrix which,
                              const ExpertsShape& shape, std::int64_t place, ExpertsMaker* maker) {
  const bool is_down = which == ExpertMatrix::down;
  const DType dtype = files.dtype(expert, which);
  const std::int64_t rows = is_down ? shape.hidden_size : shape.intermediate_size;
  const std::int64_t cols = is_down ? shape.intermediate_size : shape.hidden_size;
  const std::int64_t num_bytes = rows * row_bytes(dtype, cols);
  bytes_by_dtype_[static_cast<std::size_t>(dtype)] += num_bytes;
  expert_bytes_ += num_bytes;
  if (maker != nullptr) {
    AlignedBuffer whole;
    const MatrixBytes matrix = files.matrix(expert, which, device_.pool(), whole);
    const bool is_cut = expert_cut_ == ExpertCut::width;
    const Slice slice{is_cut ? device_.rank() * shape.intermediate_size : 0, shape.intermediate_size};
    MatrixPart part = take_part(matrix, is_down ? Cut::columns : Cut::rows, slice, device_.pool());
    align(part);
    std::vector<float> bias = files.bias(expert, which);
    if (is_down && is_cut && device_.rank() > 0) bias.clear();  // rank 0 alone adds it
    if (!is_down && !bias.empty()) bias = {bias.begin() + slice.first, bias.begin() + slice.first + slice.count};
    maker->put(place, which, dtype, part.bytes, bias);
    if (whole.size() == 0) release_pages(part.read);
  }
  on_bytes_(num_bytes);
}

}  // namespace minisgl
