// Chooses a kernel for each product of a user's tensors: the one for few rows, one of cuBLASLt's, or the plain one.
// What is the fastest for a shape is measured when it is first used.
#include "gemm/tensor_product.h"

#include <algorithm>
#include <bit>
#include <compare>
#include <iterator>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "core/cuda/device_guard.h"
#include "core/cuda/runtime.h"
#include "gemm/cuda/cublaslt.h"
#include "gemm/cuda/cublaslt_library.h"
#include "gemm/cuda/launch.h"
#include "gemm/cuda/stopwatch.h"
#include "gemm/cuda/tensor_launch.h"
#include "gemm/cuda/workspaces.h"

namespace minisgl {
namespace {

using cuda::Capture;
using cuda::CublasLt;

constexpr std::int64_t kCopiesBytes = std::int64_t{128} << 20;  // more than second-level caches hold
constexpr std::size_t kMostTurns = 24;

// Products that share a choice.
struct Shape {
  DType dtype;
  bool has_bias;
  unsigned alignment;  // bytes that every pointer is a multiple of
  std::int64_t rows;   // the most that share it
  std::int64_t outputs, inputs;
  auto operator<=>(const Shape&) const = default;
};

unsigned alignment_of(const TensorProduct& product) {
  std::uintptr_t address = 256;
  for (const void* pointer : {product.weights, product.bias, product.x, static_cast<const void*>(product.y)})
    address |= reinterpret_cast<std::uintptr_t>(pointer);
  const unsigned alignment = 1u << std::countr_zero(address);
  return alignment >= 256 ? 256 : std::min(alignment, 16u);
}

Shape shape_of(const TensorProduct& product) {
  const std::int64_t rows = product.rows == 1 ? 1 : product.rows <= 8 ? 8 : cuda::rows_of_choice(product.rows);
  return {product.dtype, product.bias != nullptr, alignment_of(product), rows, product.outputs, product.inputs};
}

struct Choice {
  std::optional<cuda::SkinnyTuning> skinny;
  // Else one of cuBLASLt's; its favourite where `algorithm` is empty too.
  std::optional<cublasLtMatmulAlgo_t> algorithm;
  std::size_t workspace_bytes = 0;  // of the algorithm, for this many rows
  std::int64_t rows = 0;
};

void check(const TensorProduct& product) {
  if (product.dtype != DType::f32 && product.dtype != DType::bf16 && product.dtype != DType::f16) {
    throw InputError(
        concat("a product of a GPU's tensors is of f32, bf16 or f16, not ", dtype_info(product.dtype).name));
  }
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  for (const std::int64_t size : {product.rows, product.outputs, product.inputs}) {
    if (size < 0 || size > most) {
      throw InputError(concat("a product of ", product.rows, " rows, ", product.outputs, " outputs and ",
                              product.inputs, " inputs: each is to be from 0 to ", most));
    }
  }
}

// Products of more rows are bound by the GPU's power, and what is the faster kernel for a moment was up to a tenth
// slower as it went on: cuBLASLt's favourite computes them.
constexpr std::int64_t kMostTimedRows = 64;

// As many copies of the weights as there is room for, and the weights: what a row of products takes in turn.
std::vector<const void*> copied_weights(const TensorProduct& product, void* copies, cudaStream_t stream) {
  const std::int64_t bytes = product.outputs * row_bytes(product.dtype, product.inputs);
  const std::int64_t stride = (bytes + 511) / 256 * 256;  // each begins at the same place of 256 bytes as the weights
  const std::int64_t begin = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(product.weights) % 256);
  std::vector<const void*> all{product.weights};
  for (std::int64_t end = stride; end <= kCopiesBytes && all.size() < kMostTurns; end += stride) {
    std::byte* copy = static_cast<std::byte*>(copies) + (end - stride) + begin;
    MINISGL_CUDA_CHECK(
        cudaMemcpyAsync(copy, product.weights, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, stream));
    all.push_back(copy);
  }
  return all;
}

// How many products are timed together: all weights once, or two where each takes long.
std::size_t turns_of(const TensorProduct& product, std::size_t num_weights) {
  const double operations = 2.0 * static_cast<double>(product.rows) * static_cast<double>(product.outputs) *
                            static_cast<double>(product.inputs);
  const bool takes_long = operations > (product.dtype == DType::f32 ? 5e9 : 1e11);
  return takes_long ? 2 : std::max<std::size_t>(num_weights, 4);
}

class CudaProducts final : public GpuProducts {
 public:
  explicit CudaProducts(int device) : device_(device), workspaces_(cuda::kWorkspaceBytes) {}

  void run(const TensorProduct& product, std::uintptr_t stream_handle) override {
    check(product);
    if (product.rows == 0 || product.outputs == 0) return;
    const DeviceGuard device(device_);
    const cuda::RelaxedCapture relaxed;
    const std::lock_guard lock(mutex_);
    const auto stream = reinterpret_cast<cudaStream_t>(stream_handle);
    if (product.inputs == 0) return cuda::plain_tensor_gemm(product, stream);
    const Capture capture = cuda::capture_of(stream);
    const Shape shape = shape_of(product);
    auto known = choices_.find(shape);
    if (known == choices_.end()) {
      if (capture.id != 0) return launch(product, usual(product), stream, capture);
      known = choices_.emplace(shape, chosen(product, stream)).first;
    }
    launch(product, known->second, stream, capture);
  }

 private:
  static Choice usual(const TensorProduct& product) {
    Choice choice;
    if (cuda::skinny_tensor_gemm_fits(product)) choice.skinny = cuda::SkinnyTuning{};
    return choice;
  }

  static cuda::LtProduct described(const TensorProduct& product) {
    return {product.dtype, product.dtype, product.bias, product.rows, product.inputs, product.outputs};
  }
  std::vector<cublasLtMatmulHeuristicResult_t> proposals(const TensorProduct& product,
                                                         const CublasLt::Description& description,
                                                         std::size_t workspace_bytes) const {
    return library_.proposals(description, {.workspace_bytes = workspace_bytes, .alignment = alignment_of(product)});
  }

  void launch(const TensorProduct& product, const Choice& choice, cudaStream_t stream, const Capture& capture) {
    if (choice.skinny) return cuda::skinny_tensor_gemm(product, *choice.skinny, stream);
    const CublasLt::Description description(library_, described(product));
    if (choice.algorithm) {
      const std::optional<std::size_t> bytes = product.rows == choice.rows
                                                   ? choice.workspace_bytes
                                                   : library_.workspace_bytes(description, *choice.algorithm);
      if (bytes && multiplied(product, description, *choice.algorithm, *bytes, stream, capture)) return;
    }
    for (const std::size_t most : {cuda::kWorkspaceBytes, std::size_t{0}}) {
      for (const auto& proposal : proposals(product, description, most))
        if (multiplied(product, description, proposal.algo, proposal.workspaceSize, stream, capture)) return;
    }
    cuda::plain_tensor_gemm(product, stream);
  }

  // Queues the product by an algorithm that needs a workspace of `bytes`; false where there is none, and where the
  // algorithm doesn't take the product after all.
  bool multiplied(const TensorProduct& product, const CublasLt::Description& description,
                  const cublasLtMatmulAlgo_t& algorithm, std::size_t bytes, cudaStream_t stream,
                  const Capture& capture) {
    if (bytes > cuda::kWorkspaceBytes) return false;
    void* workspace = bytes > 0 ? workspaces_.of(stream, capture) : nullptr;
    if (bytes > 0 && workspace == nullptr) return false;
    return library_.multiply(description, {product.weights, product.x, product.y, false}, algorithm, workspace, bytes,
                             stream);
  }

  Choice chosen(const TensorProduct& product, cudaStream_t stream) {
    if (product.rows <= kMostTimedRows) return measured(product, stream);
    const std::vector<Choice> favourite = algorithms(product, stream, 1);
    return favourite.empty() ? usual(product) : favourite.front();
  }

  // cuBLASLt's algorithms that take the product, its favourite first; each has computed it. Asked without a workspace,
  // the library also names algorithms that it otherwise puts behind those that cut the inputs.
  std::vector<Choice> algorithms(const TensorProduct& product, cudaStream_t stream, std::size_t most) {
    const CublasLt::Description description(library_, described(product));
    std::vector<Choice> taken;
    for (const std::size_t workspace_bytes : {cuda::kWorkspaceBytes, std::size_t{0}}) {
      for (const auto& proposal : proposals(product, description, workspace_bytes)) {
        if (!multiplied(product, description, proposal.algo, proposal.workspaceSize, stream, {})) continue;
        taken.push_back({.skinny = {},
                         .algorithm = proposal.algo,
                         .workspace_bytes = proposal.workspaceSize,
                         .rows = product.rows});
        if (taken.size() == most) return taken;
      }
    }
    return taken;
  }

  // The fastest of the kernels that take the product, in a row of products whose weights no cache holds. It is computed
  // many times.
  Choice measured(const TensorProduct& product, cudaStream_t stream) {
    MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream));  // what made the operands
    const cuda::CudaMemory copies = cuda::try_allocate(kCopiesBytes);
    if (!copies) return usual(product);
    std::vector<Choice> candidates;
    if (cuda::skinny_tensor_gemm_fits(product)) {
      for (const auto& [blocks, deep] : {std::pair(1, false), std::pair(2, false), std::pair(1, true)})
        candidates.emplace_back().skinny = cuda::SkinnyTuning{.blocks_per_processor = blocks, .deep = deep};
    }
    const std::size_t favourite = candidates.size();  // cuBLASLt's first, or the kernel for few rows
    std::ranges::copy(algorithms(product, stream, std::numeric_limits<std::size_t>::max()),
                      std::back_inserter(candidates));
    if (candidates.empty()) return usual(product);
    const std::vector<const void*> weights = copied_weights(product, copies.get(), stream);
    MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream));  // from here on, its workspace is the candidates'
    void* workspace = workspaces_.of(stream, {});
    const CublasLt::Description description(library_, described(product));
    const auto run = [&](std::size_t i, std::size_t turn, cudaStream_t queue) {
      TensorProduct of_turn = product;
      of_turn.weights = weights[turn % weights.size()];
      if (candidates[i].skinny) return cuda::skinny_tensor_gemm(of_turn, *candidates[i].skinny, queue);
      const bool queued = library_.multiply(description, {of_turn.weights, of_turn.x, of_turn.y, false},
                                            *candidates[i].algorithm, workspace, candidates[i].workspace_bytes, queue);
      MINISGL_CHECK(queued, "cuBLASLt refuses an algorithm that it took");
    };
    const std::size_t preferred = favourite < candidates.size() ? favourite : 0;
    return candidates[cuda::fastest_in_a_row(candidates.size(), preferred, turns_of(product, weights.size()), run)];
  }

  int device_;
  std::mutex mutex_;  // of all below
  CublasLt library_;
  cuda::Workspaces workspaces_;
  std::map<Shape, Choice> choices_;
};

}  // namespace

std::unique_ptr<GpuProducts> make_gpu_products(int device) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  if (device < 0 || device >= count)
    throw InputError(concat("there is no CUDA device ", device, ": this process sees ", count));
  int major = 0, minor = 0;
  MINISGL_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  MINISGL_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  if (major < 8)
    throw InputError(concat("CUDA device ", device, " has compute capability ", major, ".", minor, "; 8.0 is needed"));
  const DeviceGuard guard(device);
  return std::make_unique<CudaProducts>(device);
}

}  // namespace minisgl
