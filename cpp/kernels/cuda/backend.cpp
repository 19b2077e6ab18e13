// One GPU as a device: everything is queued on one stream. Steps and their graphs are step_slots.h.
#include "kernels/cuda/backend.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "comm/nccl.h"
#include "core/cuda/runtime.h"
#include "gemm/cuda/launch.h"
#include "gemm/cuda/quantised.h"
#include "kernels/cuda/device_experts.h"
#include "kernels/cuda/embed_units.h"
#include "kernels/cuda/host_pages.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layer_stack.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/seen_tokens.h"
#include "kernels/cuda/step_slots.h"
#include "kernels/cuda/wait.h"
#include "kernels/cuda/weights.h"

namespace minisgl {
namespace {

using cuda::allocate_on_device;

constexpr int kPartsPerProcessor = 12;   // parts of decode attention: enough that the last don't run alone
constexpr std::int64_t kLazySlots = 64;  // slots of penalty counts, where none were reserved

class CudaDevice final : public Device {
 public:
  CudaDevice(int device_index, const cudaDeviceProp& properties, int num_threads, std::shared_ptr<Communicator> comm,
             const std::string& cache_folder, bool deterministic)
      : comm_(std::move(comm)),
        device_index_(device_index),
        deterministic_(deterministic),
        properties_(properties),
        pool_(num_threads),
        stream_(make_stream()),
        uploader_(pool_, stream_.get()),
        products_(properties.name, cache_folder, pool_, deterministic, stream_.get()),
        slots_(device_index, stream_.get(), comm_.get(), deterministic) {
    const std::int64_t parts = most_attention_parts();
    partials_ = allocate_on_device(static_cast<std::size_t>(parts * cuda::partial_floats(256)) * sizeof(float));
    arrived_ = allocate(static_cast<std::size_t>(parts) * sizeof(std::uint32_t));
    tickets_ = allocate(sizeof(cuda::Tickets));
    expert_use_ = allocate(2 * sizeof(std::uint64_t));
  }

  std::string device_name() const override { return properties_.name; }
  ThreadPool& pool() override { return pool_; }
  int rank() const override { return comm_ ? comm_->rank() : 0; }
  int num_ranks() const override { return comm_ ? comm_->size() : 1; }
  DType activation_dtype() const override { return DType::bf16; }
  DType kv_dtype_for(DType) const override { return DType::bf16; }
  bool supports_kv_dtype(DType dtype) const override {
    return dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::f8e4m3;
  }
  bool has_own_memory() const override { return true; }
  std::int64_t usual_batch_tokens() const override { return 8192; }
  std::int64_t available_memory() const override {
    std::size_t free = 0, total = 0;
    MINISGL_CUDA_CHECK(cudaMemGetInfo(&free, &total));
    return static_cast<std::int64_t>(free);
  }

  double measure_read_bandwidth() override;
  void synchronize() override {
    cuda::wait_for_device(comm_.get(), [&] { return cudaStreamSynchronize(stream_.get()); });
  }

  DeviceBuffer allocate(std::size_t bytes) override {
    DeviceBuffer buffer = allocate_on_device(bytes);
    if (bytes > 0) MINISGL_CUDA_CHECK(cudaMemsetAsync(buffer.data(), 0, bytes, stream_.get()));
    return buffer;
  }
  void upload(std::span<const std::byte> from, std::byte* to) override { uploader_.upload(from, to); }
  void copy(const std::byte* from, std::size_t bytes, std::byte* to) override {
    if (bytes > 0) MINISGL_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_.get()));
  }
  void download(const std::byte* from, std::span<std::byte> to) override {
    if (!to.empty()) {
      MINISGL_CUDA_CHECK(cudaMemcpyAsync(to.data(), from, to.size(), cudaMemcpyDeviceToHost, stream_.get()));
    }
    synchronize();
  }

  bool has_host_pages() const override { return true; }
  std::unique_ptr<HostPages> make_host_pages(const HostPagesOptions& options) override {
    return std::make_unique<cuda::PinnedPages>(device_index_, options, stream_.get());
  }

  bool records_steps() const override { return true; }
  std::int64_t step_bytes(const StepLimits& limits) const override {
    return cuda::StepSlots::bytes_for(limits) + (limits.logits + limits.penalized) * limits.vocab_size * 4 +
           limits.rows * 8 + static_cast<std::int64_t>(products_.scratch_bytes(limits.rows));
  }
  void reserve(const StepLimits& limits) override {
    slots_.reserve(limits);
    reserve_adjusted(limits.logits, limits.vocab_size);
    reserve_square_sums(limits.rows);
    products_.reserve(limits.rows);
    seen_.reserve(limits.penalized, limits.vocab_size);
  }

  std::shared_ptr<const Matrix> make_matrix(DType dtype, std::int64_t rows, std::int64_t cols,
                                            std::span<const std::byte> raw) override {
    MINISGL_CHECK(static_cast<std::int64_t>(raw.size()) == rows * row_bytes(dtype, cols), rows, " x ", cols, " of ",
                  dtype_info(dtype).name, " in ", raw.size(), " bytes");
    const auto format =
        keeps_units() ? cuda::quantised_format(dtype).value_or(cuda::WeightFormat::bf16) : cuda::WeightFormat::bf16;
    auto matrix = std::make_shared<cuda::DeviceMatrix>(format, rows, cols);
    if (dtype == DType::bf16) {
      uploader_.upload(raw, matrix->data());
      return matrix;
    }
    const DeviceBuffer staged = allocate_on_device(raw.size());  // freed when the stream is done with it
    uploader_.upload(raw, staged.data());
    if (format == cuda::WeightFormat::bf16) {
      cuda::convert_to_bf16(dtype, staged.data(), rows * cols, matrix->data(), stream_.get());
    } else {
      cuda::pack_quantised(dtype, staged.data(), rows, cols, matrix->data(), stream_.get());
    }
    return matrix;
  }
  // Formats of 4 to 8 bits: their products depend on the step's rows.
  bool keeps_units() const { return !deterministic_ && cuda::has_slim_gemm(); }
  bool keeps_e4m3(std::int64_t cols, std::int64_t block_rows, std::int64_t block_cols) const override {
    const bool of_rows = block_cols >= cols;
    return !deterministic_ && cuda::has_slim_gemm() && cols % 16 == 0 &&
           (of_rows || (block_rows == cuda::kScaleBlock && block_cols == cuda::kScaleBlock));
  }
  std::shared_ptr<const Matrix> make_scaled_matrix(std::int64_t rows, std::int64_t cols, std::span<const std::byte> raw,
                                                   const ScaleGrid& scales) override;
  bool can_quantize(Quantize) const override { return cuda::has_slim_gemm(); }
  std::shared_ptr<const Matrix> quantized(std::shared_ptr<const Matrix> matrix, Quantize quantize) override;
  std::shared_ptr<const Matrix> make_random_matrix(std::int64_t rows, std::int64_t cols) override {
    auto matrix = std::make_shared<cuda::DeviceMatrix>(cuda::WeightFormat::bf16, rows, cols);
    cuda::fill_random_bf16(matrix->data(), rows * cols, 0.05f, ++random_seed_ << 40, stream_.get());
    return matrix;
  }
  std::unique_ptr<const Linear> make_linear(std::vector<Projection> outputs) override {
    auto joined = cuda::join_projections(outputs, uploader_, stream_.get());
    if (deterministic_ && joined->in_features() % 8 != 0)
      throw InputError(
          concat("--deterministic needs layers of a multiple of 8 inputs, and one has ", joined->in_features()));
    products_.expect(*joined);
    return joined;
  }

  std::unique_ptr<ExpertsMaker> make_experts(const ExpertsShape& shape) override {
    if (deterministic_)
      throw InputError("--deterministic is not for mixtures of experts on a GPU, whose sums depend on the step's rows");
    return cuda::make_device_experts(shape, uploader_, stream_.get(), random_seed_);
  }
  std::unique_ptr<LayerStack> make_layer_stack(const StackedLayers& layers) override {
    if (deterministic_) return nullptr;  // its sums are not those of more rows
    return cuda::make_layer_stack(layers, slots_, properties_, stream_.get());
  }

  std::unique_ptr<SeenTokens> make_seen_tokens(std::int64_t vocab_size, bool in_prompt) override {
    MINISGL_CUDA_CHECK(cudaSetDevice(device_index_));  // any thread may call, also before the first step
    if (seen_.vocab_size != vocab_size) seen_.reserve(kLazySlots, vocab_size);
    return std::make_unique<cuda::DeviceSeenTokens>(seen_, in_prompt, stream_.get());
  }

  bool runs_ahead() const override { return true; }
  void begin_step(const StepBatch& batch, std::span<const LogitQuery> queries) override {
    slots_.begin(batch, queries);
  }
  void run_step(const std::function<void()>& body) override { slots_.run(body); }
  void run_forward(const std::function<void()>& forward) override { slots_.run_forward(forward); }
  void run_sampling(std::span<const LateMask> masks, const std::function<void()>& sampling) override {
    slots_.run_sampling(masks, sampling);
  }
  void record_step(const StepBatch& batch, std::span<const LogitQuery> queries, const std::function<void()>& forward,
                   const std::function<void()>& sampling) override {
    slots_.record(batch, queries, forward, sampling);
  }

  void embed(const Matrix& table, std::int64_t first_token, OutputTensor y, float scale) override {
    const auto& matrix = static_cast<const cuda::DeviceMatrix&>(table);
    if (cuda::is_quantised(matrix.format())) {
      cuda::embed_units(slots_.step(), matrix.view(), first_token, table.rows(), table.cols(), scale, y.data,
                        stream_.get());
    } else {
      cuda::embed(slots_.step(), matrix.data(), first_token, table.rows(), table.cols(), scale, y.data, stream_.get());
    }
  }
  LinearInput rms_norm(Tensor x, const Norm& norm, OutputTensor y) override {
    if (norm.weight == nullptr) return LinearInput::written(x, {});
    add_norm(x, {}, norm, y);
    return LinearInput::written(y, x);
  }
  LinearInput reduce_add_rms_norm(OutputTensor residual, OutputTensor delta, const Norm& norm,
                                  OutputTensor y) override {
    const SumAddRmsNorm sum{.residual = residual.data,
                            .delta = delta.data,
                            .weight = norm.weight,
                            .eps = norm.eps,
                            .y = y.data,
                            .rows = residual.rows,
                            .cols = residual.cols,
                            .dtype = residual.dtype};
    // Both in one would be chosen by the number of rows, and add up the norm's squares in an order of its own.
    if (!comm_ || deterministic_ || !norm.is_plain_rms() || !comm_->all_reduce_add_rms_norm(sum, stream_handle())) {
      sum_over_ranks(delta);
      add_norm(residual, delta, norm, y);
    }
    return norm.weight != nullptr ? LinearInput::written(y, residual) : LinearInput::written(residual, {});
  }
  LinearInput reduce_norm_add_rms_norm(OutputTensor residual, OutputTensor delta, const Norm& added, const Norm& norm,
                                       OutputTensor y) override {
    sum_over_ranks(delta);
    cuda::add_norm_rows({residual.data, delta.data, residual.rows, residual.cols, y.data}, added, norm, stream_.get());
    return norm.weight != nullptr ? LinearInput::written(y, residual) : LinearInput::written(residual, {});
  }
  void linear(const Linear& weights, const LinearInput& x, OutputTensor y) override {
    products_.write(static_cast<const cuda::DeviceLinear&>(weights), x, y);
  }
  LinearInput gated_linear(const Linear& gate_up, const LinearInput& x, OutputTensor scratch, OutputTensor y,
                           Activation activation) override {
    if (activation == Activation::silu)
      return products_.write_gated(static_cast<const cuda::DeviceLinear&>(gate_up), x, scratch, y);
    linear(gate_up, x, scratch);
    cuda::gate_rows(activation, scratch.data, y.rows, y.cols, y.data, stream_.get());
    return LinearInput::written(y, {});
  }
  LinearInput linear_add_norm(const Linear& weights, const LinearInput& x, OutputTensor delta, OutputTensor residual,
                              const Norm& norm, OutputTensor y) override;
  bool computes_experts() const override { return true; }
  ExpertUse expert_use() override {
    std::uint64_t counts[2];
    download(expert_use_.data(), std::as_writable_bytes(std::span(counts)));
    return {static_cast<std::int64_t>(counts[0]), static_cast<std::int64_t>(counts[1])};
  }
  std::int64_t experts_scratch_bytes(const ExpertsShape& shape, const RouterRule& rule,
                                     std::int64_t num_rows) const override {
    return cuda::device_experts_scratch_bytes(shape, rule, num_rows);
  }
  void experts(const ExpertLayer& layer, const LinearInput& x, std::span<std::byte> scratch, OutputTensor y) override {
    cuda::run_experts(layer, x, scratch, {.y = y, .use = expert_use_.as<std::uint64_t>()}, products_, stream_.get());
  }
  LinearInput experts_add_norm(const ExpertLayer& layer, const LinearInput& x, std::span<std::byte> scratch,
                               OutputTensor delta, Tensor residual, const Norm& norm, Tensor y) override;
  Tensor plain_rows(LinearInput& x) override { return products_.plain_rows(x); }
  void store_heads(OutputTensor qkv, const HeadShape& shape, const HeadTransform& transform,
                   const ops::KvLayer& cache) override {
    cuda::SquareSums squares{.num_ranks = num_ranks()};
    if (transform.norms_all_heads) {
      reserve_square_sums(qkv.rows);
      const Tensor sums{square_sums_.data(), DType::f32, qkv.rows, 2};
      cuda::head_square_sums(qkv.data, qkv.rows, shape, sums.f32(), stream_.get());
      sum_over_ranks(sums);
      squares.sums = sums.f32();
    }
    cuda::store_heads(slots_.step(), qkv.data, shape, transform, cache, squares, stream_.get());
  }
  void linear_heads(const Linear& weights, const LinearInput& x, OutputTensor qkv, const HeadShape& shape,
                    const HeadTransform& transform, const ops::KvLayer& cache) override;
  void paged_attention(Tensor qkv, const HeadShape& shape, const ops::KvLayer& cache, ScoreRule scores,
                       std::int32_t window, OutputTensor out) override;
  void gather_wanted_rows(Tensor x, OutputTensor y) override {
    cuda::gather_rows(slots_.step(), x.data, x.cols, y.data, stream_.get());
  }
  void sum_over_ranks(OutputTensor x) override {
    if (comm_) comm_->all_reduce_sum(x.data, x.rows * x.cols, x.dtype, stream_handle());
  }
  void gather_columns(Tensor part, OutputTensor scratch, OutputTensor y) override;

  void scale_logits(OutputTensor logits, float scale, float cap) override {
    cuda::scale_and_cap(logits.f32(), logits.rows * logits.cols, scale, cap, stream_.get());
  }
  void sample(OutputTensor logits) override {
    const cuda::StepData& step = slots_.step();
    MINISGL_CHECK(logits.rows == step.num_logits, logits.rows, " rows of logits, ", step.num_logits, " wanted");
    reserve_adjusted(logits.rows, logits.cols);
    cuda::sample(step, logits.f32(), adjusted_.as<float>(), logits.cols, seen_.counts.as<std::uint32_t>(),
                 slots_.outputs(), stream_.get());
  }
  void keep_hidden(Tensor hidden) override { slots_.keep_hidden(hidden); }
  StepOutputs take_outputs() override { return slots_.take(); }
  double busy_seconds() const override { return slots_.busy_seconds(); }

 private:
  // The most parts that decode attention cuts sequences into.
  std::int64_t most_attention_parts() const {
    return std::int64_t{properties_.multiProcessorCount} * kPartsPerProcessor;
  }
  StreamHandle stream_handle() const { return reinterpret_cast<StreamHandle>(stream_.get()); }
  void reserve_adjusted(std::int64_t rows, std::int64_t vocab_size);
  void reserve_square_sums(std::int64_t rows) {
    const auto bytes = static_cast<std::size_t>(2 * rows) * sizeof(float);
    if (bytes > square_sums_.size()) square_sums_ = allocate_on_device(bytes);
  }
  // x += delta, if there is one, and y = the norm of x, if there is one.
  void add_norm(Tensor x, Tensor delta, const Norm& norm, Tensor y) {
    if (norm.is_plain_rms()) {
      cuda::add_rms_norm(x.data, delta.data, norm.weight, norm.eps, x.rows, x.cols, y.data, stream_.get());
    } else {
      cuda::add_norm_rows({x.data, delta.data, x.rows, x.cols, y.data}, {}, norm, stream_.get());
    }
  }

  std::shared_ptr<Communicator> comm_;  // outlives the graphs that its calls were captured in
  int device_index_;
  bool deterministic_;
  cudaDeviceProp properties_;
  ThreadPool pool_;
  CudaStream stream_;
  cuda::Uploader uploader_;
  cuda::Products products_;
  std::uint64_t random_seed_ = 0;

  DeviceBuffer partials_, arrived_;  // what decode attention keeps between its blocks
  DeviceBuffer tickets_;             // what prefill attention does
  DeviceBuffer adjusted_;            // [logits, vocab] f32: logits with bias, penalties and bans
  DeviceBuffer expert_use_;          // [2] of 64 bits: layers, experts
  DeviceBuffer square_sums_;         // [num_rows, 2] f32 of norms over all heads
  cuda::SeenPool seen_;
  cuda::StepSlots slots_;
};

std::shared_ptr<const Matrix> CudaDevice::make_scaled_matrix(std::int64_t rows, std::int64_t cols,
                                                             std::span<const std::byte> raw, const ScaleGrid& scales) {
  MINISGL_CHECK(std::ssize(raw) == rows * cols, rows, " x ", cols, " in ", raw.size(), " bytes");
  const bool of_rows = scales.block_cols >= cols;
  auto matrix = std::make_shared<cuda::DeviceMatrix>(
      of_rows ? cuda::WeightFormat::e4m3_rows : cuda::WeightFormat::e4m3_blocks, rows, cols);
  const DeviceBuffer staged = allocate_on_device(raw.size());  // freed when the stream is done with it
  uploader_.upload(raw, staged.data());
  cuda::place_e4m3(staged.data(), rows, cols, matrix->data(), stream_.get());
  std::vector<float> values = scales.values;
  if (of_rows && scales.block_rows > 1) {
    values.clear();
    for (std::int64_t row = 0; row < rows; ++row)
      values.push_back(scales.values[static_cast<std::size_t>(row / scales.block_rows)]);
  }
  uploader_.upload(std::as_bytes(std::span(values)), matrix->scales());
  return matrix;
}

std::shared_ptr<const Matrix> CudaDevice::quantized(std::shared_ptr<const Matrix> matrix, Quantize quantize) {
  const auto& plain = static_cast<const cuda::DeviceMatrix&>(*matrix);
  const std::int64_t rows = plain.rows(), cols = plain.cols();
  if (quantize != Quantize::fp8) {
    if (plain.format() != cuda::WeightFormat::bf16 || cols % 8 != 0) return matrix;
    const auto format = quantize == Quantize::int4 ? cuda::WeightFormat::q4_zero_128 : cuda::WeightFormat::q4_offset_32;
    auto rounded = std::make_shared<cuda::DeviceMatrix>(format, rows, cols);
    cuda::quantise_to(format, plain.data(), rows, cols, rounded->data(), stream_.get());
    return rounded;
  }
  if (plain.format() != cuda::WeightFormat::bf16 || !keeps_e4m3(cols, 1, cols)) return matrix;
  auto bytes = std::make_shared<cuda::DeviceMatrix>(cuda::WeightFormat::e4m3_rows, rows, cols);
  cuda::quantize_rows({.x = plain.data(),
                       .norm = nullptr,
                       .eps = 0.0f,
                       .rows = rows,
                       .cols = cols,
                       .data = bytes->data(),
                       .scales = reinterpret_cast<float*>(bytes->scales())},
                      stream_.get());
  return bytes;
}

double CudaDevice::measure_read_bandwidth() {
  constexpr std::size_t bytes = std::size_t{2} << 30;
  constexpr int runs = 7;
  const DeviceBuffer data = allocate(bytes);
  const DeviceBuffer sink = allocate(sizeof(std::uint32_t));
  std::vector<CudaEvent> events;
  for (int i = 0; i <= runs; ++i) events.push_back(make_timed_event());
  MINISGL_CUDA_CHECK(cudaEventRecord(events[0].get(), stream_.get()));
  for (int run = 0; run < runs; ++run) {
    cuda::read_all(data.data(), bytes, sink.as<std::uint32_t>(), properties_.multiProcessorCount, stream_.get());
    MINISGL_CUDA_CHECK(cudaEventRecord(events[run + 1].get(), stream_.get()));
  }
  synchronize();
  std::vector<float> times(runs);
  for (int run = 0; run < runs; ++run)
    MINISGL_CUDA_CHECK(cudaEventElapsedTime(&times[run], events[run].get(), events[run + 1].get()));
  std::ranges::nth_element(times, times.begin() + runs / 2);
  return static_cast<double>(bytes) / (times[runs / 2] * 1e-3);
}

void CudaDevice::reserve_adjusted(std::int64_t rows, std::int64_t vocab_size) {
  const auto bytes = static_cast<std::size_t>(rows * vocab_size) * sizeof(float);
  if (bytes > adjusted_.size()) adjusted_ = allocate_on_device(bytes);
}

LinearInput CudaDevice::linear_add_norm(const Linear& weights, const LinearInput& x, OutputTensor delta,
                                        OutputTensor residual, const Norm& norm, OutputTensor y) {
  if (num_ranks() > 1) return Ops::linear_add_norm(weights, x, delta, residual, norm, y);
  if (x.norm_is_deferred()) {  // products that are added take none
    LinearInput plain = x;
    plain_rows(plain);
    return linear_add_norm(weights, plain, delta, residual, norm, y);
  }
  const auto& matrix = static_cast<const cuda::DeviceLinear&>(weights);
  if (norm.is_plain_rms()) return products_.add_norm(matrix, x, delta, residual, norm, y);
  products_.add(matrix, x, delta, residual);
  return norm.weight == nullptr ? LinearInput::written(residual, {}) : rms_norm(residual, norm, y);
}

LinearInput CudaDevice::experts_add_norm(const ExpertLayer& layer, const LinearInput& x, std::span<std::byte> scratch,
                                         OutputTensor delta, Tensor residual, const Norm& norm, Tensor y) {
  if (num_ranks() > 1 || layer.rule.shared != RouterRule::Shared::none)
    return Ops::experts_add_norm(layer, x, scratch, delta, residual, norm, y);
  // Products of few rows take the norm on their way.
  const bool defers = norm.is_plain_rms() && cuda::Products::takes_norms(residual.rows, residual.cols);
  const bool norms = cuda::run_experts(layer, x, scratch,
                                       {.y = residual,
                                        .adds = true,
                                        .norm = norm.is_plain_rms() && !defers ? &norm : nullptr,
                                        .normed = y,
                                        .use = expert_use_.as<std::uint64_t>()},
                                       products_, stream_.get());
  const OutputTensor sum = residual, next = y;  // x is read
  if (defers) return LinearInput::deferred(next, sum, norm);
  if (norm.weight == nullptr) return LinearInput::written(sum, {});
  return norms && norm.is_plain_rms() ? LinearInput::written(next, sum) : rms_norm(sum, norm, y);
}

void CudaDevice::linear_heads(const Linear& weights, const LinearInput& x, OutputTensor qkv, const HeadShape& shape,
                              const HeadTransform& transform, const ops::KvLayer& cache) {
  const bool fits = shape.head_dim == cuda::kSlimHead && transform.rotary_dim == cuda::kSlimHead &&
                    transform.query_rope_table == nullptr && !transform.norms_all_heads && cache.dtype == DType::bf16;
  const cuda::StepData& step = slots_.step();
  if (fits && products_.write_heads(static_cast<const cuda::DeviceLinear&>(weights), x, qkv,
                                    {.num_heads = shape.num_heads,
                                     .num_kv_heads = shape.num_kv_heads,
                                     .query_norm = transform.query_norm,
                                     .key_norm = transform.key_norm,
                                     .eps = transform.eps,
                                     .rope_table = transform.rope_table,
                                     .keys = cache.keys,
                                     .values = cache.values,
                                     .page_size = cache.page_size,
                                     .positions = step.positions,
                                     .cache_rows = step.cache_rows}))
    return;
  Ops::linear_heads(weights, x, qkv, shape, transform, cache);
}

void CudaDevice::paged_attention(Tensor qkv, const HeadShape& shape, const ops::KvLayer& cache, ScoreRule scores,
                                 std::int32_t window, OutputTensor out) {
  MINISGL_CHECK(qkv.cols == shape.row_size() && shape.num_heads % shape.num_kv_heads == 0, shape.num_heads,
                " heads for ", shape.num_kv_heads, " KV heads");
  cuda::paged_attention({.step = slots_.step(),
                         .qkv = qkv.data,
                         .out = out.data,
                         .shape = shape,
                         .cache = cache,
                         .scale = scores.scale,
                         .cap = scores.cap / scores.scale,
                         .sinks = scores.sinks,
                         .window = window,
                         .fixed_tiles = deterministic_,
                         .most_parts = most_attention_parts(),
                         .partials = partials_.as<float>(),
                         .arrived = arrived_.as<std::uint32_t>(),
                         .tickets = tickets_.as<cuda::Tickets>()},
                        stream_.get());
}

void CudaDevice::gather_columns(Tensor part, OutputTensor scratch, OutputTensor y) {
  MINISGL_CHECK(part.rows == y.rows && y.cols <= num_ranks() * part.cols, y.cols, " columns of ", part.cols);
  if (comm_) {
    MINISGL_CHECK(scratch.nbytes() == num_ranks() * part.nbytes(), scratch.rows, " rows of scratch");
    comm_->all_gather(part.data, scratch.data, part.nbytes(), stream_handle());
  }
  cuda::join_columns(comm_ ? scratch.f32() : part.f32(), part.rows, part.cols, y.cols, y.f32(), stream_.get());
}

}  // namespace

std::string cuda_pci_id(int device_index) {
  char id[32] = "";
  return cudaDeviceGetPCIBusId(id, sizeof id, device_index) == cudaSuccess ? id : "";
}

std::unique_ptr<Device> make_cuda_device(int device_index, int num_threads, std::shared_ptr<Communicator> comm,
                                         const std::string& cache_folder, bool deterministic) {
  const int count = num_gpus();
  if (device_index < 0 || device_index >= count) {
    throw InputError(concat("there is no CUDA device ", device_index, ": this process sees ", count));
  }
  cudaDeviceProp properties{};
  MINISGL_CUDA_CHECK(cudaSetDevice(device_index));
  MINISGL_CUDA_CHECK(cudaGetDeviceProperties(&properties, device_index));
  if (properties.major < 8) {
    throw InputError(concat(properties.name, " has compute capability ", properties.major, ".", properties.minor,
                            "; 8.0 is needed"));
  }
  if (deterministic && !cuda::has_slim_gemm()) {
    throw InputError(concat("--deterministic needs a GPU of compute capability 9.0 and a build for 9.0a; ",
                            properties.name, " has ", properties.major, ".", properties.minor));
  }
  return std::make_unique<CudaDevice>(device_index, properties, num_threads, std::move(comm), cache_folder,
                                      deterministic);
}

}  // namespace minisgl
