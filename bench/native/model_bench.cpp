// A whole model's prefill and decode rates, each beside its ceiling measured in this process: bytes of weights that a
// step must read over the read bandwidth of the same threads.
//
//   model_bench MODEL [THREADS [BATCH[@CONTEXT]...]]
//
// Sequences decode behind CONTEXT tokens (128), which are computed in steps of at most 512 rows.
// Of a folder without weights (bench/shapes.py) they are random.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "core/bandwidth.h"
#include "gemm/gemm.h"
#include "kernels/cpu/backend.h"
#include "models/load_model.h"

namespace {

using Clock = std::chrono::steady_clock;
using minisgl::KvCache;
using minisgl::Model;

constexpr int kPageSize = 16;
constexpr int kPromptTokens = 128;
constexpr int kDecodeSteps = 64;
constexpr int kStepRows = 512;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// `batch` sequences that advance in step, each on pages of its own.
class Sequences {
 public:
  Sequences(minisgl::Device& device, Model& model, int batch, int max_tokens)
      : device_(device),
        model_(model),
        pages_per_sequence_((max_tokens + kPageSize - 1) / kPageSize),
        cache_(device, model.spec(), minisgl::DType::f16, std::int64_t{batch} * pages_per_sequence_, kPageSize),
        page_table_(static_cast<std::size_t>(batch) * pages_per_sequence_),
        batch_(batch) {
    std::iota(page_table_.begin(), page_table_.end(), 0);
  }

  // Runs `num_tokens` more tokens of every sequence in one step, with logits for the last of each.
  void step(int num_tokens) {
    std::vector<std::int32_t> tokens, positions, logit_rows;
    std::vector<minisgl::ops::SequenceRows> rows;
    for (int s = 0; s < batch_; ++s) {
      rows.push_back({s * num_tokens, num_tokens, length_, page_table_.data() + std::size_t(s) * pages_per_sequence_});
      for (int i = 0; i < num_tokens; ++i) {
        tokens.push_back((length_ + i * 7 + s * 31) % 1000);
        positions.push_back(length_ + i);
      }
      logit_rows.push_back((s + 1) * num_tokens - 1);
    }
    const minisgl::StepBatch batch{tokens, positions, rows, logit_rows, kPageSize};
    device_.begin_step(batch, {});
    model_.forward(batch, cache_);
    length_ += num_tokens;
  }

 private:
  minisgl::Device& device_;
  Model& model_;
  int pages_per_sequence_;
  KvCache cache_;
  std::vector<std::int32_t> page_table_;
  int batch_;
  int length_ = 0;
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// A cache may hold weights of this size from step to step, so reads over as many bytes are a ceiling of their own.
struct Bandwidth {
  double memory, same_size;  // bytes a second
};

Bandwidth measure_bandwidth(const Model& model, minisgl::ThreadPool& pool) {
  return {minisgl::measure_read_bandwidth(pool),
          minisgl::measure_read_bandwidth(pool, static_cast<std::size_t>(model.weight_bytes()))};
}

void bench_decode(minisgl::Device& device, Model& model, int batch, int context) {
  Sequences sequences(device, model, batch, context + kDecodeSteps + 1);
  const auto prefill_start = Clock::now();
  const int chunk = std::max(1, kStepRows / batch);
  for (int i = 0; i < context; i += chunk) sequences.step(std::min(chunk, context - i));
  const double prefill = seconds_since(prefill_start);
  // The ceiling moves with the machine's other load: the better of one measurement before and one after.
  const Bandwidth before = measure_bandwidth(model, device.pool());
  std::vector<double> seconds;
  for (int i = 0; i < kDecodeSteps; ++i) {
    const auto start = Clock::now();
    sequences.step(1);
    seconds.push_back(seconds_since(start));
  }
  const Bandwidth after = measure_bandwidth(model, device.pool());
  const double memory = std::max(before.memory, after.memory), same_size = std::max(before.same_size, after.same_size);
  const double step = median(seconds);
  const double rate = static_cast<double>(model.weight_bytes()) / step;
  std::printf(
      "decode  batch %3d  context %5d (prefilled in %6.2f s)  %8.1f tok/s  %7.2f ms/step  weights %6.2f GB/s = %.2f of "
      "read bandwidth %.2f, "
      "%.2f of %.2f over as many bytes\n",
      batch, context, prefill, batch / step, step * 1e3, rate / 1e9, rate / memory, memory / 1e9, rate / same_size,
      same_size / 1e9);
}

void bench_prefill(minisgl::Device& device, Model& model, int num_tokens) {
  std::vector<double> seconds;
  for (int run = 0; run < 3; ++run) {
    Sequences sequences(device, model, 1, num_tokens);
    const auto start = Clock::now();
    sequences.step(num_tokens);
    seconds.push_back(seconds_since(start));
  }
  std::printf("prefill tokens %4d %7.1f tok/s  %7.1f ms\n", num_tokens, num_tokens / median(seconds),
              median(seconds) * 1e3);
}

minisgl::LoadFormat format_of(const std::string& path) {
  if (!std::filesystem::is_directory(path)) return minisgl::LoadFormat::files;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    if (entry.path().extension() == ".safetensors") return minisgl::LoadFormat::files;
  }
  return minisgl::LoadFormat::dummy;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) {
    std::fprintf(stderr, "usage: model_bench MODEL [THREADS [BATCH[@CONTEXT]...]]\n");
    return 2;
  }
  const auto device = minisgl::make_cpu_device(argc > 2 ? std::atoi(argv[2]) : 2);
  const auto model = minisgl::load_model(argv[1], *device, {}, format_of(argv[1]));
  std::printf("%s  %s  %d threads  weights %.1f MB a step\n", argv[1], minisgl::cpu_isa_name(),
              device->pool().num_threads(), static_cast<double>(model->weight_bytes()) / 1e6);
  std::vector<std::string> batches(argv + std::min(argc, 3), argv + argc);
  if (batches.empty()) batches = {"1", "4", "16", "64"};
  for (const std::string& batch : batches) {
    const std::size_t at = batch.find('@');
    bench_decode(*device, *model, std::stoi(batch),
                 at == std::string::npos ? kPromptTokens : std::stoi(batch.substr(at + 1)));
  }
  for (const int num_tokens : {128, 512}) bench_prefill(*device, *model, num_tokens);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "model_bench: %s\n", error.what());
  return 1;
}
