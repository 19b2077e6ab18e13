// Operations of a device beside ceilings measured in this process: GB/s over the read bandwidth, TFLOP/s over an 8192³
// product; then whole decode steps of models with dummy weights through the engine.
//
//   device_bench [linear] [small] [attention] [qwen3-0.6b] [llama-3.1-8b] [qwen3-30b-a3b] [prefill] [disable-overlap]
//   [fp8] [fp8-weights] [int4-weights] [q4_1-weights] [deterministic] [profile] [b1] [b2] [b4] [b8] [b16] [b64] [b128]
//   [b129] [b192] [b256]
//
// (default: all but qwen3-30b-a3b, 61 GB of weights, and the last ones from prefill on, and b1, b16, b64 and b256).
// fp8: the models' cache is of that type. fp8-weights and the like: the weights of their linear layers are.
// deterministic: as --deterministic. profile: the kernels of decode steps of the models and batches named beside it.
// Busy: the time from the start to the end of the steps on the device, over the time that they took in all.
#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <unordered_map>
#include <vector>

#include "comm/nccl.h"
#include "engine/defaults.h"
#include "engine/engine.h"
#include "engine/open_rank.h"
#include "kernel_profile.h"
#include "kernels/cpu/backend.h"
#include "kernels/cuda/backend.h"

namespace {

using namespace minisgl;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Median seconds of one call among `runs` timed groups of `calls` queued calls.
template <typename Body>
double time_calls(Device& device, int runs, int calls, const Body& body) {
  for (int i = 0; i < calls; ++i) body(i);
  device.synchronize();
  std::vector<double> seconds;
  for (int run = 0; run < runs; ++run) {
    const auto start = Clock::now();
    for (int i = 0; i < calls; ++i) body(i);
    device.synchronize();
    seconds.push_back(seconds_since(start) / calls);
  }
  std::ranges::nth_element(seconds, seconds.begin() + runs / 2);
  return seconds[static_cast<std::size_t>(runs / 2)];
}

struct Matrix2D {
  Matrix2D(Device& device, DType dtype, std::int64_t rows, std::int64_t cols)
      : buffer(device.allocate(static_cast<std::size_t>(rows * row_bytes(dtype, cols)))),
        view{buffer.data(), dtype, rows, cols} {}
  DeviceBuffer buffer;
  Tensor view;
};

// Random activations: the rows of a random matrix, which has the device's own type.
Matrix2D random_rows(Device& device, std::int64_t rows, std::int64_t cols) {
  Matrix2D matrix(device, device.activation_dtype(), rows, cols);
  const auto table = device.make_random_matrix(rows, cols);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(rows)), pages(1, 0);
  std::iota(tokens.begin(), tokens.end(), 0);
  const ops::SequenceRows sequence{0, static_cast<std::int32_t>(rows), 0, pages.data()};
  device.begin_step({tokens, tokens, {&sequence, 1}, {}, 1 << 30}, {});
  device.embed(*table, 0, matrix.view);
  device.synchronize();
  return matrix;
}

std::vector<std::unique_ptr<const Linear>> random_linears(Device& device, int count, std::int64_t outputs,
                                                          std::int64_t inputs) {
  std::vector<std::unique_ptr<const Linear>> linears;
  for (int i = 0; i < count; ++i) {
    std::vector<Projection> projections;
    projections.push_back({device.make_random_matrix(outputs, inputs), {}});
    linears.push_back(device.make_linear(std::move(projections)));
  }
  return linears;
}

double measure_gemm_rate(Device& device) {
  constexpr std::int64_t n = 8192;
  const auto linears = random_linears(device, 1, n, n);
  const Matrix2D x = random_rows(device, n, n), y(device, device.activation_dtype(), n, n);
  const double seconds = time_calls(device, 5, 5, [&](int) { device.linear(*linears[0], x.view, y.view); });
  return 2.0 * n * n * n / seconds;
}

// Weights that together exceed the caches, in turn.
void bench_linear(Device& device, std::int64_t rows, std::int64_t outputs, std::int64_t inputs, double bandwidth,
                  double gemm_rate) {
  const std::int64_t bytes = outputs * inputs * 2;
  const int copies = static_cast<int>(std::clamp<std::int64_t>((std::int64_t{256} << 20) / bytes + 1, 2, 64));
  const auto linears = random_linears(device, copies, outputs, inputs);
  const Matrix2D x = random_rows(device, rows, inputs), y(device, device.activation_dtype(), rows, outputs);
  const double seconds = time_calls(device, 5, 2 * copies, [&](int i) {
    device.linear(*linears[static_cast<std::size_t>(i % copies)], x.view, y.view);
  });
  const double rate = static_cast<double>(bytes) / seconds, flops = 2.0 * rows * outputs * inputs / seconds;
  std::printf("linear %4lld x %6lld x %5lld  %8.1f us  %7.1f GB/s = %.2f of read  %6.1f TFLOP/s = %.2f of gemm\n",
              static_cast<long long>(rows), static_cast<long long>(outputs), static_cast<long long>(inputs),
              seconds * 1e6, rate / 1e9, rate / bandwidth, flops / 1e12, flops / gemm_rate);
}

// One layer of a cache with something in it. Bytes are of random bits, scales of one size.
class RandomCache {
 public:
  RandomCache(Device& device, DType dtype, std::int64_t num_pages, int page_size, const HeadShape& shape)
      : keys_(random_rows(device,
                          num_pages * page_size * row_bytes(dtype, shape.num_kv_heads * shape.head_dim) /
                              row_bytes(device.activation_dtype(), shape.num_kv_heads * shape.head_dim / 2),
                          shape.num_kv_heads * shape.head_dim / 2)),
        values_(random_rows(device, keys_.view.rows, keys_.view.cols)),
        layer_{keys_.buffer.data(), values_.buffer.data(), dtype, shape.num_kv_heads, page_size, shape.head_dim} {
    if (!has_kv_scales(dtype)) return;
    const std::vector<float> scales(
        static_cast<std::size_t>(2 * num_pages * page_size) * static_cast<std::size_t>(shape.num_kv_heads), 0.001f);
    scales_ = device.allocate(scales.size() * sizeof(float));
    device.upload(std::as_bytes(std::span(scales)), scales_.data());
    layer_.key_scales = scales_.as<float>();
    layer_.value_scales = layer_.key_scales + scales.size() / 2;
  }
  const ops::KvLayer& layer() const { return layer_; }
  std::int64_t bytes() const {
    return keys_.view.nbytes() + values_.view.nbytes() + static_cast<std::int64_t>(scales_.size());
  }

 private:
  Matrix2D keys_, values_;
  DeviceBuffer scales_;
  ops::KvLayer layer_;
};

// `batch` sequences of `context` positions, of which a step computes the last `rows`.
struct AttentionStep {
  DType dtype;
  int batch, context, rows;
  HeadShape shape;
  bool sinks = false;
  float cap = 0.0f;
};

void bench_attention(Device& device, const AttentionStep& step, double bandwidth, double gemm_rate) {
  constexpr int page_size = 16;
  const DType dtype = step.dtype;
  const int batch = step.batch, context = step.context, rows = step.rows;
  const HeadShape& shape = step.shape;
  const std::int64_t pages_each = (context + page_size - 1) / page_size, num_pages = batch * pages_each;
  const RandomCache cache(device, dtype, num_pages, page_size, shape);
  const Matrix2D qkv = random_rows(device, std::int64_t{batch} * rows, shape.row_size()),
                 out(device, device.activation_dtype(), std::int64_t{batch} * rows,
                     std::int64_t{shape.num_heads} * shape.head_dim);
  std::vector<std::int32_t> pages(static_cast<std::size_t>(num_pages)), positions;
  for (std::int64_t i = 0; i < num_pages; ++i)  // pages of a sequence lie apart, as they do after a while
    pages[static_cast<std::size_t>(i % batch * pages_each + i / batch)] = static_cast<std::int32_t>(i);
  std::vector<ops::SequenceRows> sequences;
  for (int s = 0; s < batch; ++s) {
    sequences.push_back({s * rows, rows, context - rows, pages.data() + s * pages_each});
    for (int i = 0; i < rows; ++i) positions.push_back(context - rows + i);
  }
  const std::vector<std::int32_t> tokens(positions.size(), 0);
  device.begin_step({tokens, positions, sequences, {}, page_size}, {});
  const DeviceBuffer sinks = device.allocate(static_cast<std::size_t>(shape.num_heads) * sizeof(float));
  const std::vector<float> zeros(static_cast<std::size_t>(shape.num_heads), 0.0f);
  device.upload(std::as_bytes(std::span(zeros)), sinks.data());
  const ScoreRule scores(static_cast<float>(1 / std::sqrt(static_cast<double>(shape.head_dim))), step.cap,
                         step.sinks ? sinks.as<float>() : nullptr);
  const auto attend = [&](int) { device.paged_attention(qkv.view, shape, cache.layer(), scores, 0, out.view); };
  const double seconds = time_calls(device, 5, rows > 1 ? 3 : 20, attend);
  const std::string name =
      concat(dtype_info(dtype).name, step.sinks ? " with sinks" : "", step.cap > 0 ? " with a cap" : "");
  if (rows == 1) {
    const double rate = static_cast<double>(cache.bytes()) / seconds;
    std::printf("decode attention %s %4d x %5d, %d/%d heads of %d  %8.1f us  %7.1f GB/s = %.2f of read\n", name.c_str(),
                batch, context, shape.num_heads, shape.num_kv_heads, shape.head_dim, seconds * 1e6, rate / 1e9,
                rate / bandwidth);
  } else {
    const double pairs = rows * (2.0 * context - rows + 1) / 2;
    const double flops = 4.0 * batch * pairs * shape.num_heads * shape.head_dim / seconds;
    std::printf("prefill attention %s %d x %d, %d/%d heads of %d  %8.1f us  %6.1f TFLOP/s = %.2f of gemm\n",
                name.c_str(), batch, context, shape.num_heads, shape.num_kv_heads, shape.head_dim, seconds * 1e6,
                flops / 1e12, flops / gemm_rate);
  }
}

// The operations of one layer that move little, and the sampler: what a decode step of `batch` rows spends on each.
void bench_small_ops(Device& device, int batch, std::int64_t hidden, std::int64_t intermediate, std::int64_t vocab,
                     const HeadShape& shape) {
  constexpr int page_size = 16, context = 256;
  const std::int64_t pages_each = context / page_size;
  std::vector<std::int32_t> pages(static_cast<std::size_t>(batch * pages_each)),
      positions(static_cast<std::size_t>(batch), context - 1), tokens(static_cast<std::size_t>(batch), 0),
      rows(static_cast<std::size_t>(batch));
  std::iota(pages.begin(), pages.end(), 0);
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<ops::SequenceRows> sequences;
  for (const std::int32_t row : rows) sequences.push_back({row, 1, context - 1, pages.data() + row * pages_each});
  SamplingParams greedy, warm, nucleus;
  greedy.temperature = 0.0f;
  warm.temperature = 0.6f;
  nucleus.temperature = 0.6f;
  nucleus.top_k = 50;
  nucleus.top_p = 0.9f;
  const RandomCache cache(device, device.activation_dtype(), batch * pages_each, page_size, shape);
  const Matrix2D qkv = random_rows(device, batch, shape.row_size()), x = random_rows(device, batch, hidden),
                 delta = random_rows(device, batch, hidden), y = random_rows(device, batch, hidden),
                 scratch(device, device.activation_dtype(), batch, 2 * intermediate),
                 activated(device, device.activation_dtype(), batch, intermediate),
                 attended(device, device.activation_dtype(), batch, std::int64_t{shape.num_heads} * shape.head_dim),
                 logits(device, DType::f32, batch, vocab);
  const DeviceBuffer norm = device.allocate(static_cast<std::size_t>(hidden) * 4),
                     table = device.allocate(static_cast<std::size_t>(context * shape.head_dim) * 4);
  const int copies = 16;
  const auto gate_up = random_linears(device, copies, 2 * intermediate, hidden);
  const auto head = random_linears(device, 1, vocab, hidden);
  std::vector<LogitQuery> queries;
  const auto begin = [&](const SamplingParams& params) {
    queries.assign(rows.size(), LogitQuery{.params = &params});
    device.begin_step({tokens, positions, sequences, rows, page_size}, queries);
    device.linear(*head[0], x.view, logits.view);
  };
  const auto show = [&](const char* name, double seconds) {
    std::printf("batch %3d hidden %4lld  %-28s %7.1f us\n", batch, static_cast<long long>(hidden), name, seconds * 1e6);
  };
  begin(greedy);
  const double gated = time_calls(device, 5, 64, [&](int i) {
    device.gated_linear(*gate_up[static_cast<std::size_t>(i % copies)], x.view, scratch.view, activated.view);
  });
  show("gate, up and SiLU", gated);
  show("add and norm", time_calls(device, 5, 200, [&](int) {
         device.reduce_add_rms_norm(x.view, delta.view, {norm.as<float>(), 1e-6f}, y.view);
       }));
  show("heads to the cache", time_calls(device, 5, 200, [&](int) {
         device.store_heads(qkv.view, shape, {.rope_table = table.as<float>(), .rotary_dim = shape.head_dim},
                            cache.layer());
       }));
  show("attention over 256", time_calls(device, 5, 200, [&](int) {
         device.paged_attention(qkv.view, shape, cache.layer(), 0.1f, 0, attended.view);
       }));
  show("sampling, greedy", time_calls(device, 5, 20, [&](int) { device.sample(logits.view); }));
  begin(warm);
  show("sampling, temperature", time_calls(device, 5, 20, [&](int) { device.sample(logits.view); }));
  begin(nucleus);
  show("sampling, top_k and top_p", time_calls(device, 5, 20, [&](int) { device.sample(logits.view); }));
}

void bench_linears(Device& device, double bandwidth, double gemm_rate) {
  // 16 rows are the most that our own kernels take; 17 show what cuBLASLt makes of as much.
  for (const std::int64_t rows : {1, 8, 16, 17, 64, 256}) {
    bench_linear(device, rows, 4096, 1024, bandwidth, gemm_rate);    // Qwen3-0.6B: QKV
    bench_linear(device, rows, 1024, 2048, bandwidth, gemm_rate);    // attention's output
    bench_linear(device, rows, 1024, 3072, bandwidth, gemm_rate);    // down
    bench_linear(device, rows, 151936, 1024, bandwidth, gemm_rate);  // head
    bench_linear(device, rows, 6144, 4096, bandwidth, gemm_rate);    // Llama-3.1-8B: QKV
    bench_linear(device, rows, 4096, 4096, bandwidth, gemm_rate);    // attention's output
    bench_linear(device, rows, 28672, 4096, bandwidth, gemm_rate);   // gate and up
    bench_linear(device, rows, 4096, 14336, bandwidth, gemm_rate);   // down
  }
}

const HeadShape llama{32, 8, 128}, qwen{16, 8, 128};

void bench_small(Device& device) {
  for (const int batch : {1, 16, 64, 256}) {
    bench_small_ops(device, batch, 1024, 3072, 151936, qwen);
    bench_small_ops(device, batch, 4096, 14336, 128256, llama);
  }
}

void bench_attentions(Device& device, double bandwidth, double gemm_rate) {
  constexpr HeadShape gpt_oss{64, 8, 64}, gemma_2{16, 8, 256};
  const auto run = [&](const AttentionStep& step) { bench_attention(device, step, bandwidth, gemm_rate); };
  for (const DType dtype : {device.activation_dtype(), DType::f8e4m3}) {
    if (!device.supports_kv_dtype(dtype)) continue;
    run({dtype, 64, 2048, 1, llama});
    run({dtype, 1, 32768, 1, llama});
    run({dtype, 256, 512, 1, qwen});
    run({dtype, 256, 256, 1, qwen});
    run({dtype, 8, 4096, 4096, llama});
    run({dtype, 1, 8192, 512, llama});
    for (const bool sinks : {false, true}) {
      run({dtype, 64, 2048, 1, gpt_oss, sinks});
      run({dtype, 8, 4096, 4096, gpt_oss, sinks});
    }
    for (const float cap : {0.0f, 50.0f}) {
      run({dtype, 64, 2048, 1, gemma_2, false, cap});
      run({dtype, 8, 4096, 4096, gemma_2, false, cap});
    }
  }
}

struct Shape {
  const char* name;
  const char* config;
  bool only_where_asked = false;
};
const Shape shapes[] = {
    {"qwen3-0.6b",
     R"({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "hidden_size": 1024,
         "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
         "head_dim": 128, "rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "rope_theta": 1000000,
         "tie_word_embeddings": true})"},
    {"llama-3.1-8b",
     R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096,
         "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
         "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "rope_theta": 500000})"},
    {"qwen3-30b-a3b",
     R"({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 151936,
         "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32,
         "num_key_value_heads": 4, "head_dim": 128, "rms_norm_eps": 1e-6, "max_position_embeddings": 40960,
         "rope_theta": 1000000, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
         "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": []})",
     true},
};

struct Speed {
  double prefill_seconds;
  double tokens_a_second, busy_share;  // from the moment that all have their first token
};

// Answers of `batch` requests.
Speed run_requests(Engine& engine, int batch, int prompt_tokens, int new_tokens) {
  Speed speed{};
  const auto start = Clock::now();
  for (int i = 0; i < batch; ++i) {
    Request request;
    request.id = static_cast<std::uint64_t>(i);
    for (int t = 0; t < prompt_tokens; ++t) request.prompt.push_back((i * 131 + t * 7919) % 10000);
    request.sampling.temperature = 0.0f;
    request.max_tokens = new_tokens;
    request.ignore_eos = true;
    engine.submit(std::move(request));
  }
  std::unordered_map<std::uint64_t, int> counts;
  std::int64_t total = 0, at_start = 0;
  double busy_at_start = 0;
  Clock::time_point decode_start{};
  for (int finished = 0; finished < batch;) {
    pollfd event{.fd = engine.event_fd(), .events = POLLIN, .revents = 0};
    poll(&event, 1, 60000);
    for (const RequestOutput& output : engine.take_outputs()) {
      if (output.finish == FinishReason::error) throw std::runtime_error(output.error);
      counts[output.id] += static_cast<int>(output.tokens.size());
      total += std::ssize(output.tokens);
      finished += output.finish != FinishReason::none;
    }
    if (at_start == 0 && std::ssize(counts) == batch) {
      at_start = total;
      decode_start = Clock::now();
      busy_at_start = engine.stats().device_busy_seconds;
      speed.prefill_seconds = seconds_since(start);
    }
  }
  const double seconds = seconds_since(decode_start);
  speed.tokens_a_second = static_cast<double>(total - at_start) / seconds;
  speed.busy_share = (engine.stats().device_busy_seconds - busy_at_start) / seconds;
  return speed;
}

// The kernels of decode steps of `batch` sequences.
void profile_steps(Engine& engine, const char* name, int batch) {
  KernelProfile profile;
  if (!profile.available()) {
    std::printf("%s: no profile, CUPTI is not here\n", name);
    return;
  }
  run_requests(engine, batch, 128, 16);
  profile.start();
  const double rate = run_requests(engine, batch, 128, 64).tokens_a_second;
  std::vector<KernelRun> runs = profile.stop();
  runs.erase(runs.begin(), runs.begin() + std::ssize(runs) / 2);  // the prefill is in the first half
  std::printf("%s decode-b%d: %.1f us a step by the clock\n", name, batch, batch / rate * 1e6);
  print_profile(runs, "sample_kernel");
}

struct ModelRun {
  bool prefill, overlap, fp8, profile, deterministic;
  std::string quantize;
  std::vector<int> batches;
};

void bench_model(const Shape& shape, double bandwidth, const ModelRun& run) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / (std::string("device_bench-") + shape.name);
  fs::create_directories(folder);
  std::ofstream(folder / "config.json") << shape.config;
  const auto start = Clock::now();
  LoadedRank rank = load_rank({.model_path = folder.string(),
                               .load_format = "dummy",
                               .quantize = run.quantize,
                               .num_threads = num_gpus() > 0 ? 4 : 0,
                               .kv_dtype = run.fp8 ? "fp8" : "auto",
                               .kv_cache_tokens = 256 * 512,
                               .max_model_len = 8192,
                               .max_batch_tokens = 8192,
                               .disable_overlap = !run.overlap,
                               .disable_prefix_cache = true,  // runs ask the same again
                               .deterministic = run.deterministic});
  rank.device->synchronize();
  const double load_seconds = seconds_since(start);
  const std::int64_t weight_bytes = rank.info.weight_bytes;
  Device& device = *rank.device;  // the engine's, looked at between runs
  Engine engine(std::move(rank.model), std::move(rank.device), rank.info.config);
  engine.start();
  std::printf("%s: weights %.2f GB a step, loaded in %.1f s, ready after %.1f s; workspace %.2f GB, graphs %.3f GB\n",
              shape.name, weight_bytes / 1e9, load_seconds, seconds_since(start), engine.memory().workspace / 1e9,
              engine.memory().graphs / 1e9);
  if (run.prefill) {
    for (int round = 0; round < 2; ++round) {
      const double seconds = run_requests(engine, 8, 4096, 1).prefill_seconds;
      std::printf("%s prefill-8x4096  %.0f tok/s\n", shape.name, 8 * 4096 / seconds);
    }
  }
  if (run.profile) {
    for (const int batch : run.batches) profile_steps(engine, shape.name, batch);
  }
  for (const int batch : run.batches) {
    run_requests(engine, batch, 128, 16);
    const Ops::ExpertUse before = device.expert_use();
    const Speed speed = run_requests(engine, batch, 128, 256);
    const Ops::ExpertUse use = device.expert_use();
    const double rate = speed.tokens_a_second;
    const double weights = rate / batch * static_cast<double>(weight_bytes);
    std::printf("%s decode-b%-3d  %8.1f tok/s  %6.3f ms a step  busy %.4f  weights %.0f GB/s = %.2f of read\n",
                shape.name, batch, rate, batch / rate * 1e3, speed.busy_share, weights / 1e9, weights / bandwidth);
    if (use.layers > before.layers) {
      std::printf("  %.1f different experts a layer and step, steps of prompts among them\n",
                  static_cast<double>(use.experts - before.experts) / static_cast<double>(use.layers - before.layers));
    }
    std::fflush(stdout);
  }
  engine.stop();
  fs::remove_all(folder);
}

}  // namespace

int main(int argc, char** argv) try {
  const std::vector<std::string> chosen(argv + 1, argv + argc);
  const auto asked = [&](const char* name) { return std::ranges::find(chosen, name) != chosen.end(); };
  const auto wants = [&](const char* name) { return chosen.empty() || asked(name); };
  double bandwidth = 0;
  {
    const std::unique_ptr<Device> device =
        num_gpus() > 0 ? make_cuda_device(0, 4) : make_cpu_device(choose_num_threads(0));
    bandwidth = device->measure_read_bandwidth();
    std::printf("%s: reads %.1f GB/s\n", device->device_name().c_str(), bandwidth / 1e9);
    const double gemm_rate = measure_gemm_rate(*device);
    std::printf("8192^3 product %.1f TFLOP/s\n", gemm_rate / 1e12);
    if (wants("linear")) bench_linears(*device, bandwidth, gemm_rate);
    if (wants("small")) bench_small(*device);
    if (wants("attention")) bench_attentions(*device, bandwidth, gemm_rate);
  }
  std::fflush(stdout);
  ModelRun run{.prefill = asked("prefill"),
               .overlap = !asked("disable-overlap"),
               .fp8 = asked("fp8"),
               .profile = asked("profile"),
               .deterministic = asked("deterministic"),
               .quantize = "none",
               .batches = {}};
  for (const char* format : {"fp8", "int4", "q4_1"})
    if (asked((std::string(format) + "-weights").c_str())) run.quantize = format;
  for (const int batch : {1, 2, 4, 8, 16, 64, 128, 129, 192, 256})
    if (asked(("b" + std::to_string(batch)).c_str())) run.batches.push_back(batch);
  if (run.batches.empty()) run.batches = {1, 16, 64, 256};
  for (const Shape& shape : shapes)
    if (shape.only_where_asked ? asked(shape.name) : wants(shape.name)) bench_model(shape, bandwidth, run);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "device_bench: %s\n", error.what());
  return 1;
}
