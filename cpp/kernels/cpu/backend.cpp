// The CPU as a device: the operations of ops.h, the products of gemm.h and the sampler, over one pool of threads. Every
// call is done when it returns.
#include "kernels/cpu/backend.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "core/aligned_buffer.h"
#include "core/bandwidth.h"
#include "core/error.h"
#include "core/host_limits.h"
#include "gemm/gemm.h"
#include "gemm/int4_blocks.h"
#include "gemm/kept_matrices.h"
#include "kernels/cpu/experts.h"
#include "kernels/cpu/logprob.h"
#include "kernels/cpu/low_rank.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/random_weights.h"
#include "kernels/cpu/sampling.h"
#include "kernels/cpu/seen_tokens.h"

namespace minisgl {
namespace {

class CpuLinear final : public Linear {
 public:
  explicit CpuLinear(std::vector<Projection> outputs) : outputs_(std::move(outputs)) {
    for (const Projection& output : outputs_) {
      const auto& weight = static_cast<const PackedMatrix&>(*output.weight);
      MINISGL_CHECK(weight.cols() == outputs_.front().weight->cols());
      MINISGL_CHECK(output.bias.empty() || std::ssize(output.bias) == weight.rows());
      parts_.push_back({&weight, output.bias.empty() ? nullptr : output.bias.data(), out_features_});
      out_features_ += weight.rows();
      nbytes_ += static_cast<std::int64_t>(weight.nbytes() + output.bias.size() * sizeof(float));
    }
  }
  std::int64_t in_features() const override { return outputs_.front().weight->cols(); }
  std::int64_t out_features() const override { return out_features_; }
  std::int64_t nbytes() const override { return nbytes_; }
  std::span<const GemmPart> parts() const { return parts_; }

 private:
  std::vector<Projection> outputs_;
  std::vector<GemmPart> parts_;  // point into outputs_
  std::int64_t out_features_ = 0;
  std::int64_t nbytes_ = 0;
};

class CpuDevice final : public Device {
 public:
  CpuDevice(int num_threads, std::shared_ptr<Communicator> comm, const std::string& expert_folder)
      : pool_(num_threads), comm_(std::move(comm)), scratch_(static_cast<std::size_t>(num_threads)) {
    if (!expert_folder.empty()) expert_file_.emplace(expert_folder);
  }

  std::string device_name() const override { return concat("CPU (", cpu_isa_name(), ")"); }
  ThreadPool& pool() override { return pool_; }
  int rank() const override { return comm_ ? comm_->rank() : 0; }
  int num_ranks() const override { return comm_ ? comm_->size() : 1; }
  DType activation_dtype() const override { return DType::f32; }
  DType kv_dtype_for(DType weight_dtype) const override {
    return weight_dtype == DType::f32 || weight_dtype == DType::bf16 ? weight_dtype : DType::f16;
  }
  bool supports_kv_dtype(DType dtype) const override { return cpu_ops::is_cache_dtype(dtype); }
  bool has_own_memory() const override { return false; }
  std::int64_t usual_batch_tokens() const override { return 512; }
  std::int64_t available_memory() const override {  // the system takes pages of files for free ones
    const std::int64_t kept = kept_ ? kept_->mapped_bytes() * num_ranks() : 0;
    return std::max<std::int64_t>(0, minisgl::available_memory() - kept);
  }

  double measure_read_bandwidth() override { return minisgl::measure_read_bandwidth(pool_); }
  void synchronize() override {}

  DeviceBuffer allocate(std::size_t bytes) override {
    const auto memory = std::make_shared<AlignedBuffer>(bytes);
    return {std::shared_ptr<std::byte>(memory, memory->data()), bytes};
  }
  void upload(std::span<const std::byte> from, std::byte* to) override { copy(from.data(), from.size(), to); }
  void copy(const std::byte* from, std::size_t bytes, std::byte* to) override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void download(const std::byte* from, std::span<std::byte> to) override { copy(from, to.size(), to.data()); }

  std::shared_ptr<const Matrix> make_matrix(DType dtype, std::int64_t rows, std::int64_t cols,
                                            std::span<const std::byte> raw) override {
    has_quantized_weights_ = has_quantized_weights_ || is_quantized(dtype);
    PackedMatrix matrix;
    if (dtype == DType::int4_64 || dtype == DType::int4_128) {
      const FileBlocks blocks = int4_as_blocks(dtype, rows, cols, raw, pool_);
      matrix = PackedMatrix::pack(blocks.dtype, rows, cols, {blocks.bytes.data(), blocks.bytes.size()}, pool_);
    } else {
      matrix = PackedMatrix::pack(dtype, rows, cols, raw, pool_);
    }
    if (!next_name_.empty()) kept_->put(std::exchange(next_name_, {}), matrix);
    return std::make_shared<const PackedMatrix>(std::move(matrix));
  }
  std::string keep_matrices(const KeepRequest& request) override {
    kept_ = std::make_unique<KeptMatrices>(request);
    return kept_->is_reading() ? kept_->file().string() : std::string();
  }
  void finish_matrices() override {
    if (kept_) kept_->finish();
  }
  std::shared_ptr<const Matrix> kept_matrix(const std::string& name, std::int64_t rows, std::int64_t cols) override {
    if (!kept_) return nullptr;
    std::optional<PackedMatrix> matrix = kept_->take(name, rows, cols);
    next_name_ = matrix ? std::string() : name;
    if (!matrix) return nullptr;
    has_quantized_weights_ = has_quantized_weights_ || is_quantized(matrix->dtype());
    return std::make_shared<const PackedMatrix>(std::move(*matrix));
  }
  std::shared_ptr<const Matrix> make_random_matrix(std::int64_t rows, std::int64_t cols) override {
    const auto values = random_weights(rows, cols, pool_);
    return make_matrix(DType::bf16, rows, cols, std::as_bytes(std::span(values)));
  }
  std::unique_ptr<const Linear> make_linear(std::vector<Projection> outputs) override {
    return std::make_unique<const CpuLinear>(std::move(outputs));
  }
  const MemoryFile* expert_file() const override { return expert_file_ ? &*expert_file_ : nullptr; }
  std::unique_ptr<ExpertsMaker> make_experts(const ExpertsShape& shape) override {
    return cpu_ops::make_experts(shape, pool_, expert_file_ ? &*expert_file_ : nullptr);
  }
  bool takes_adapters() const override { return true; }
  std::shared_ptr<const Adapter> make_adapter(std::vector<AdapterPair> pairs, DType dtype) override {
    return std::make_shared<const cpu_ops::CpuAdapter>(std::move(pairs), dtype);
  }
  std::unique_ptr<SeenTokens> make_seen_tokens(std::int64_t vocab_size, bool in_prompt) override {
    return std::make_unique<CpuSeenTokens>(vocab_size, in_prompt);
  }

  void begin_step(const StepBatch& batch, std::span<const LogitQuery> queries) override {
    batch_ = batch;
    queries_ = queries;
    outputs_ = {};
    adapter_rows_ = cpu_ops::adapter_rows(batch.sequences);
    wanted_only_ = false;
  }
  void run_step(const std::function<void()>& body) override { body(); }

  void embed(const Matrix& table, std::int64_t first_token, OutputTensor y, float scale) override {
    const auto& packed = static_cast<const PackedMatrix&>(table);
    const std::int64_t num_rows = std::ssize(batch_.tokens);
    MINISGL_CHECK(y.rows == num_rows && y.cols == packed.cols());
    constexpr std::int64_t rows_per_task = 16;  // a decode step's few rows are not worth waking threads
    pool_.parallel_for((num_rows + rows_per_task - 1) / rows_per_task, [&](std::int64_t task, int) {
      const std::int64_t end = std::min(num_rows, (task + 1) * rows_per_task);
      for (std::int64_t row = task * rows_per_task; row < end; ++row) {
        const std::int64_t index = batch_.tokens[static_cast<std::size_t>(row)] - first_token;
        float* out = y.f32() + row * y.cols;
        if (index >= 0 && index < packed.rows()) {
          packed.dequantize_row(index, out);
          if (scale != 1.0f) std::transform(out, out + y.cols, out, [scale](float x) { return x * scale; });
        } else {
          std::fill_n(out, y.cols, 0.0f);
        }
      }
    });
  }
  LinearInput rms_norm(Tensor x, const Norm& norm, OutputTensor y) override {
    const Tensor rows = norm.weight != nullptr ? Tensor(y) : x;
    ActivationBlock* const blocks = blocks_for(rows);
    cpu_ops::norm_rows(pool_, x.f32(), norm, {x.rows, x.cols, rows.f32(), blocks});
    return with_blocks(LinearInput::written(rows, x), blocks);
  }
  LinearInput reduce_add_rms_norm(OutputTensor residual, OutputTensor delta, const Norm& norm,
                                  OutputTensor y) override {
    return reduce_norm_add_rms_norm(residual, delta, {}, norm, y);
  }
  LinearInput reduce_norm_add_rms_norm(OutputTensor residual, OutputTensor delta, const Norm& added, const Norm& norm,
                                       OutputTensor y) override {
    sum_over_ranks(delta);
    const Tensor rows = norm.weight != nullptr ? y : residual;
    ActivationBlock* const blocks = blocks_for(rows);
    cpu_ops::add_norm_rows(pool_, residual.f32(), delta.f32(), added, norm,
                           {residual.rows, residual.cols, rows.f32(), blocks});
    return with_blocks(LinearInput::written(rows, residual), blocks);
  }
  void linear(const Linear& weights, const LinearInput& x, OutputTensor y) override {
    const LinearInput::Form input = x.form();
    MINISGL_CHECK(x.cols() == weights.in_features() && y.cols == weights.out_features() && x.rows() == y.rows);
    gemm({.parts = static_cast<const CpuLinear&>(weights).parts(),
          .x = input.rows.f32(),
          .num_rows = y.rows,
          .y = y.f32(),
          .y_stride = y.cols,
          .quantized = static_cast<const ActivationBlock*>(input.beside)},
         gemm_workspace_, pool_);
    if (!adapter_rows_.empty()) add_adapters(weights, input.rows, y);
  }
  LinearInput gated_linear(const Linear& gate_up, const LinearInput& x, OutputTensor scratch, OutputTensor y,
                           Activation activation) override {
    linear(gate_up, x, scratch);
    ActivationBlock* const blocks = blocks_for(y);
    cpu_ops::gate_rows(pool_, activation, scratch.f32(), {y.rows, y.cols, y.f32(), blocks});
    return with_blocks(LinearInput::written(y, {}), blocks);
  }
  void experts(const ExpertLayer& layer, const LinearInput& x, std::span<std::byte> scratch, OutputTensor y) override {
    const std::int64_t num_logits = layer.router.out_features();
    MINISGL_CHECK(x.cols() == layer.experts.shape().hidden_size && y.cols == x.cols() && y.rows == x.rows());
    router_logits_.reserve(static_cast<std::size_t>(y.rows * num_logits) * sizeof(float));
    linear(layer.router, x, Tensor{router_logits_.data(), DType::f32, y.rows, num_logits});
    cpu_ops::run_experts(layer,
                         {x.form().rows.f32(), router_logits_.as<float>(), y.rows, y.f32(), adapter_rows_, &low_rank_},
                         scratch, gemm_workspace_, pool_);
  }
  std::int64_t experts_scratch_bytes(const ExpertsShape& shape, const RouterRule& rule,
                                     std::int64_t num_rows) const override {
    return cpu_ops::experts_scratch_bytes(shape, rule, num_rows);
  }
  bool computes_experts() const override { return true; }
  Tensor plain_rows(LinearInput& x) override { return x.form().rows; }
  void store_heads(OutputTensor qkv, const HeadShape& shape, const HeadTransform& transform,
                   const ops::KvLayer& cache) override {
    const cpu_ops::QkvView view = view_of(qkv, shape);
    if (transform.norms_all_heads) {
      square_sums_.resize(static_cast<std::size_t>(2 * view.num_rows));
      cpu_ops::head_square_sums(pool_, view, square_sums_.data());
      if (comm_) comm_->all_reduce_sum(square_sums_.data(), std::ssize(square_sums_), DType::f32, 0);
      cpu_ops::norm_all_heads(pool_, view, transform, square_sums_.data(), num_ranks());
    } else if (transform.query_norm != nullptr) {
      cpu_ops::qk_norm(pool_, view, transform.query_norm, transform.key_norm, transform.eps);
    }
    const float* keys = transform.rope_table;
    const float* queries = transform.query_rope_table != nullptr ? transform.query_rope_table : keys;
    cpu_ops::rope(pool_, view, batch_.positions.data(), {queries, keys}, transform.rotary_dim);
    cpu_ops::store_kv(pool_, view, batch_.sequences, cache);
  }
  void paged_attention(Tensor qkv, const HeadShape& shape, const ops::KvLayer& cache, ScoreRule scores,
                       std::int32_t window, OutputTensor out) override {
    cpu_ops::paged_attention(pool_, view_of(qkv, shape), batch_.sequences, cache, scores, window, out.f32());
  }
  void gather_wanted_rows(Tensor x, OutputTensor y) override {
    const auto bytes = static_cast<std::size_t>(row_bytes(x.dtype, x.cols));
    std::byte* to = y.data;
    for (const std::span<const std::int32_t> rows : {batch_.logit_rows, batch_.hidden_rows}) {
      for (const std::int32_t row : rows) {
        copy(x.data + static_cast<std::size_t>(row) * bytes, bytes, to);
        to += bytes;
      }
    }
    if (!adapter_rows_.empty()) keep_wanted_adapters();
  }
  void sum_over_ranks(OutputTensor x) override {
    if (comm_) comm_->all_reduce_sum(x.data, x.rows * x.cols, x.dtype, 0);
  }
  void gather_columns(Tensor part, OutputTensor scratch, OutputTensor y) override {
    MINISGL_CHECK(part.rows == y.rows && y.cols <= num_ranks() * part.cols, y.cols, " columns of ", part.cols);
    if (comm_) {
      MINISGL_CHECK(scratch.nbytes() == num_ranks() * part.nbytes(), scratch.rows, " rows of scratch");
      comm_->all_gather(part.data, scratch.data, part.nbytes(), 0);
    }
    const float* parts = comm_ ? scratch.f32() : part.f32();
    pool_.parallel_for(part.rows, [&](std::int64_t row, int) {
      for (std::int64_t first = 0, index = row; first < y.cols; first += part.cols, index += part.rows) {
        std::copy_n(parts + index * part.cols, std::min(part.cols, y.cols - first), y.f32() + row * y.cols + first);
      }
    });
  }

  void scale_logits(OutputTensor logits, float scale, float cap) override {
    cpu_ops::scale_and_cap(pool_, logits.f32(), logits.rows, logits.cols, scale, cap);
  }
  void sample(OutputTensor logits) override {
    const std::int64_t num_logits = std::ssize(queries_);
    MINISGL_CHECK(logits.rows == num_logits, logits.rows, " rows of logits, ", num_logits, " wanted");
    outputs_.tokens.assign(static_cast<std::size_t>(num_logits), TokenOutput{});
    pool_.parallel_for(num_logits, [&](std::int64_t index, int thread) {
      const auto i = static_cast<std::size_t>(index);
      const std::span row(logits.f32() + index * logits.cols, static_cast<std::size_t>(logits.cols));
      answer(row, queries_[i], scratch_[static_cast<std::size_t>(thread)], outputs_.tokens[i]);
    });
  }
  void keep_hidden(Tensor hidden) override {
    outputs_.hidden.assign(hidden.f32(), hidden.f32() + hidden.rows * hidden.cols);
  }
  StepOutputs take_outputs() override { return std::exchange(outputs_, {}); }

 private:
  // Buffers of one thread of the pool.
  struct Scratch {
    SampleScratch sample;
    std::vector<float> logits;  // [vocab] what the sampler may change while the original is still needed
  };

  // What the step's adapters change of y = weights(x).
  void add_adapters(const Linear& weights, Tensor x, Tensor y) {
    uses_.clear();
    for (const cpu_ops::AdapterRows& entry : adapter_rows_) {
      if (const cpu_ops::LowRankLayer* const layer = entry.adapter().of(weights)) {
        uses_.push_back({layer, entry.adapter().dtype(), entry.rows});
      }
    }
    if (!uses_.empty()) cpu_ops::add_low_rank(pool_, uses_, x.f32(), x.cols, y.f32(), y.cols, low_rank_);
  }
  // From here on rows are those that something is wanted of.
  void keep_wanted_adapters() {
    if (std::exchange(wanted_only_, true)) return;
    std::vector<std::int32_t> kept(batch_.logit_rows.begin(), batch_.logit_rows.end());
    kept.insert(kept.end(), batch_.hidden_rows.begin(), batch_.hidden_rows.end());
    adapter_rows_ = cpu_ops::kept_adapter_rows(adapter_rows_, kept);
  }

  // The place where the operation at hand, which writes y for a linear, also puts its quantised rows; null where no
  // linear needs them. They hold until the next such operation; a linear that finds them gone makes the same ones
  // again.
  ActivationBlock* blocks_for(Tensor y) {
    ++block_writes_;
    if (!has_quantized_weights_ || y.cols % 32 != 0) return nullptr;
    blocks_.reserve(static_cast<std::size_t>(y.rows * y.cols / 32) * sizeof(ActivationBlock));
    return blocks_.as<ActivationBlock>();
  }
  LinearInput with_blocks(LinearInput rows, const ActivationBlock* blocks) const {
    if (blocks != nullptr) rows.keep_beside(blocks, &block_writes_);
    return rows;
  }

  static cpu_ops::QkvView view_of(Tensor qkv, const HeadShape& shape) {
    MINISGL_CHECK(qkv.cols == shape.row_size());
    return {qkv.f32(), qkv.rows, shape.num_heads, shape.num_kv_heads, shape.head_dim};
  }

  // One row of logits [vocab]. A sequence with penalties draws one token per step, so its counts have one writer.
  static void answer(std::span<float> logits, const LogitQuery& query, Scratch& scratch, TokenOutput& output) {
    if (query.target != LogitQuery::kSample) {
      output.token = query.target;
      output.logprob = token_logprob(logits, query.target, query.num_top, output.top);
      return;
    }
    std::span<float> changeable = logits;
    if (query.num_top >= 0) {
      scratch.logits.assign(logits.begin(), logits.end());
      changeable = scratch.logits;
    }
    output.token = minisgl::sample(changeable, *query.params, query.processors, query.position, scratch.sample);
    if (query.num_top >= 0) output.logprob = token_logprob(logits, output.token, query.num_top, output.top);
    if (query.processors.penalties.seen != nullptr) query.processors.penalties.seen->add_output({&output.token, 1});
  }

  ThreadPool pool_;
  std::shared_ptr<Communicator> comm_;
  std::optional<MemoryFile> expert_file_;
  std::unique_ptr<KeptMatrices> kept_;
  std::string next_name_;  // of the matrix that is made next, where it may be kept
  GemmWorkspace gemm_workspace_;
  bool has_quantized_weights_ = false;
  AlignedBuffer router_logits_;     // [rows, experts] f32
  AlignedBuffer blocks_;            // [rows, cols / 32] ActivationBlocks of the last rows made for a linear
  WriteCount block_writes_ = 0;     // how often blocks_ were written
  std::vector<float> square_sums_;  // [num_rows, 2] of a norm over all heads
  std::vector<Scratch> scratch_;    // [num_threads]

  // The step at hand.
  StepBatch batch_{};
  std::span<const LogitQuery> queries_;
  StepOutputs outputs_;
  std::vector<cpu_ops::AdapterRows> adapter_rows_;  // of the rows that operations have now
  bool wanted_only_ = false;                        // which are those that something is wanted of
  std::vector<cpu_ops::LowRankUse> uses_;
  AlignedBuffer low_rank_;  // between an adapter's two products
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(int num_threads, std::shared_ptr<Communicator> comm,
                                        const std::string& expert_folder) {
  return std::make_unique<CpuDevice>(num_threads, std::move(comm), expert_folder);
}

}  // namespace minisgl
