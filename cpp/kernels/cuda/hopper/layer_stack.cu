// The kernel of all layers as an operation: what it fits, its memory, its launch.
#include <map>
#include <numbers>
#include <utility>
#include <vector>

#include "kernels/cuda/hopper/decode_stack.cuh"
#include "kernels/cuda/layer_stack.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/weights.h"

namespace minisgl::cuda {
namespace {

constexpr int kFewestSlots = 6;  // of the ring: with fewer, weights come too late
constexpr std::int64_t kMostRows = 4;

using Kernel = void (*)(stack::StackArgs, stack::Room);
constexpr Kernel kernels[] = {stack::decode_stack_kernel<64, false>, stack::decode_stack_kernel<64, true>,
                              stack::decode_stack_kernel<128, false>, stack::decode_stack_kernel<128, true>};

// What the blocks hand each other in steps of one number of rows.
struct Words {
  DeviceBuffer memory;
  stack::StackArgs args;
  stack::Room room;
};

class HopperStack final : public LayerStack {
 public:
  HopperStack(const StackedLayers& layers, const StepSlots& slots, const cudaDeviceProp& properties,
              cudaStream_t stream)
      : slots_(slots), stream_(stream), num_processors_(properties.multiProcessorCount) {
    const StackedLayer& first = layers.layers.front();
    args_.num_layers = static_cast<int>(layers.layers.size());
    args_.hidden = static_cast<int>(layers.hidden);
    args_.intermediate = static_cast<int>(layers.intermediate);
    args_.num_heads = layers.shape.num_heads;
    args_.num_kv_heads = layers.shape.num_kv_heads;
    args_.head_dim = layers.shape.head_dim;
    args_.norm_eps = args_.head_eps = layers.norm_eps;
    args_.scale_log2 = layers.score_scale * std::numbers::log2e_v<float>;
    args_.page_size = first.cache.page_size;
    args_.by_page = stack::Divisor::of(args_.page_size);
    args_.part_positions = 128;
    std::vector<stack::StackLayer> entries;
    for (const StackedLayer& layer : layers.layers) entries.push_back(entry_of(layer));
    layers_ = allocate_on_device(entries.size() * sizeof entries[0]);
    MINISGL_CUDA_CHECK(cudaMemcpyAsync(layers_.data(), entries.data(), layers_.size(), cudaMemcpyHostToDevice, stream));
    MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream));
    args_.layers = layers_.as<stack::StackLayer>();
    blocks_ = std::min({num_processors_, args_.hidden / stack::kTileRows, query_outputs() / stack::kTileRows,
                        args_.intermediate * 2 / stack::kTileRows});
    const auto allow = [](auto kernel) {
      MINISGL_CUDA_CHECK(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, stack::kSharedBytes));
    };
    for (const Kernel kernel : kernels) allow(kernel);
  }

  static bool fits(const StackedLayers& layers) {
    const HeadShape& shape = layers.shape;
    const auto is_plain = [](const StackedLayer& layer) {
      const auto is_bf16 = [](const Linear* linear) {
        return static_cast<const DeviceLinear*>(linear)->format() == WeightFormat::bf16;
      };
      const auto has_bias = [](const Linear* linear) {
        return static_cast<const DeviceLinear*>(linear)->bias() != nullptr;
      };
      return layer.cache.dtype == DType::bf16 && is_bf16(layer.qkv) && is_bf16(layer.attention_output) &&
             is_bf16(layer.gate_up) && is_bf16(layer.down) && !has_bias(layer.attention_output) &&
             !has_bias(layer.gate_up) && !has_bias(layer.down);
    };
    const auto fits_tiles = [](std::int64_t inputs) { return inputs % 32 == 0 && inputs <= stack::kMostInputs; };
    return (shape.head_dim == 64 || shape.head_dim == 128) && layers.rotary_dim == shape.head_dim &&
           shape.num_heads % shape.num_kv_heads == 0 && shape.num_heads / shape.num_kv_heads <= stack::kMostQueries &&
           layers.hidden % 128 == 0 && fits_tiles(layers.hidden) && fits_tiles(layers.intermediate) &&
           fits_tiles(std::int64_t{shape.num_heads} * shape.head_dim) && !layers.layers.empty() &&
           std::ranges::all_of(layers.layers, is_plain);
  }

  std::int64_t most_rows() const override {
    std::int64_t rows = kMostRows;
    while (rows > 0 && !has_room(static_cast<int>(rows))) --rows;
    return rows;
  }
  bool takes(std::int64_t num_rows) const override {
    const StepData& step = slots_.step();
    return step.num_rows <= num_rows && num_rows <= most_rows() && step.num_rows == step.num_sequences;
  }

  LinearInput run(OutputTensor residual, const float* rope_table, const Norm& norm, OutputTensor normed) override {
    const StepData& step = slots_.step();
    const Words& words = words_for(step.num_rows);
    stack::StackArgs args = words.args;
    args.rope_table = rope_table;
    args.positions = step.positions;
    args.cache_rows = step.cache_rows;
    args.pages = step.pages;
    args.sequences = step.sequences;
    args.residual = reinterpret_cast<bf16*>(residual.data);
    const Kernel kernel = kernels[2 * (args.head_dim == 128) + (args.rows == 1)];
    launch_kernel(kernel, dim3(static_cast<unsigned>(blocks_)), stack::kThreads, words.room.total, stream_, args,
                  words.room);
    return LinearInput::deferred(normed, residual, norm);
  }

 private:
  static stack::StackLayer entry_of(const StackedLayer& layer) {
    const auto weights = [](const Linear* linear) {
      return static_cast<const bf16*>(static_cast<const DeviceLinear*>(linear)->weights().data);
    };
    return {
        .weights = {weights(layer.qkv), weights(layer.attention_output), weights(layer.gate_up), weights(layer.down)},
        .qkv_bias = static_cast<const DeviceLinear*>(layer.qkv)->bias(),
        .input_norm = layer.input_norm,
        .mlp_norm = layer.mlp_norm,
        .query_norm = layer.query_norm,
        .key_norm = layer.key_norm,
        .keys = reinterpret_cast<bf16*>(layer.cache.keys),
        .values = reinterpret_cast<bf16*>(layer.cache.values)};
  }
  int query_outputs() const { return (args_.num_heads + 2 * args_.num_kv_heads) * args_.head_dim; }

  bool has_room(int rows) const { return rows * args_.num_kv_heads <= blocks_ && room_of(rows).slots >= kFewestSlots; }
  stack::Room room_of(int rows) const {
    stack::StackArgs args = args_;
    args.rows = rows;
    return stack::room_for(args, blocks_);
  }

  // Made when a step of so many rows first comes, which is before one is recorded.
  const Words& words_for(int rows) {
    const auto found = words_.find(rows);
    if (found != words_.end()) return found->second;
    const auto aligned = [](std::int64_t bytes) { return (bytes + 255) / 256 * 256; };
    const std::int64_t parts = std::int64_t{blocks_} + rows * args_.num_kv_heads;
    const int widths[] = {query_outputs(), args_.num_heads * args_.head_dim, args_.hidden, args_.intermediate,
                          args_.hidden};
    const std::int64_t part_bytes = aligned(8 * parts * stack::kMostQueries * (args_.head_dim + 2));
    std::int64_t word_bytes = 0;
    for (const int width : widths) word_bytes += aligned(4 * std::int64_t{rows} * width);
    Words words{.memory = allocate_on_device(static_cast<std::size_t>(word_bytes + part_bytes + 256)),
                .args = args_,
                .room = room_of(rows)};
    std::byte* at = words.memory.data();
    MINISGL_CUDA_CHECK(cudaMemsetAsync(at, 0xff, static_cast<std::size_t>(word_bytes), stream_));  // stack::kNoPair
    MINISGL_CUDA_CHECK(cudaMemsetAsync(at + word_bytes, 0, static_cast<std::size_t>(part_bytes + 256), stream_));
    words.args.rows = rows;
    for (int i = 0; i < 5; ++i) {
      words.args.words[i] = reinterpret_cast<std::uint32_t*>(at);
      words.args.pairs[i] = rows * widths[i] / 2;
      at += aligned(4 * std::int64_t{rows} * widths[i]);
    }
    words.args.part_words = reinterpret_cast<std::uint64_t*>(at);
    words.args.epoch = reinterpret_cast<std::uint32_t*>(at + part_bytes);
    return words_.emplace(rows, std::move(words)).first->second;
  }

  const StepSlots& slots_;
  cudaStream_t stream_;
  int num_processors_, blocks_ = 0;
  stack::StackArgs args_{};
  DeviceBuffer layers_;
  std::map<int, Words> words_;  // by rows
};

}  // namespace

std::unique_ptr<LayerStack> make_layer_stack(const StackedLayers& layers, const StepSlots& slots,
                                             const cudaDeviceProp& properties, cudaStream_t stream) {
  if (properties.major != 9 || !HopperStack::fits(layers)) return nullptr;
  return std::make_unique<HopperStack>(layers, slots, properties, stream);
}

}  // namespace minisgl::cuda
