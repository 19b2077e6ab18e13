// Keeps the fastest of cuBLASLt's algorithms for each shape of the engine's products.
#include "gemm/cuda/cublaslt.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <string>
#include <vector>

#include "core/cuda/runtime.h"
#include "gemm/choice_file.h"
#include "gemm/cuda/cublaslt_library.h"
#include "gemm/cuda/stopwatch.h"

namespace minisgl::cuda {
namespace {

static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(AlgorithmWords));  // it may be stored and restored as it is

CudaHandle<void*, cudaFree> allocate_scrub() {
  void* memory = nullptr;
  MINISGL_CUDA_CHECK(cudaMalloc(&memory, kScrubBytes));
  return CudaHandle<void*, cudaFree>(memory);
}

}  // namespace

std::int64_t rows_of_choice(std::int64_t rows) {
  return rows <= 64 ? (rows + 15) / 16 * 16
                    : static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(rows)));
}

struct DenseGemm::Impl {
  CublasLt library;
  std::string owner;  // what the choices were measured with
  std::filesystem::path file;
  GemmChoices choices;
  CudaHandle<void*, cudaFree> scrub = allocate_scrub();  // products use its beginning as their workspace
  Stopwatch stopwatch;

  Impl(const std::string& gpu_name, const std::filesystem::path& cache_folder, ThreadPool& pool)
      : owner(concat(gpu_name, ", cuBLASLt ", library.version())), stopwatch(scrub.get(), pool) {
    if (cache_folder.empty()) return;
    std::string name = concat("gemm ", owner, ".txt");
    std::ranges::replace_if(name, [](unsigned char c) { return std::isalnum(c) == 0 && c != '.'; }, '-');
    file = cache_folder / name;
    choices = read_choices(file, owner);
  }

  void launch(const CublasLt::Description& description, const DenseArgs& args, const cublasLtMatmulAlgo_t& algorithm,
              cudaStream_t stream) {
    const bool queued = library.multiply(description, {args.weights, args.x, args.y, args.added}, algorithm,
                                         scrub.get(), kWorkspaceBytes, stream);
    MINISGL_CHECK(queued, "cuBLASLt doesn't take the product that it proposed an algorithm for");
  }

  std::vector<cublasLtMatmulHeuristicResult_t> proposals(const CublasLt::Description& description) {
    auto results = library.proposals(description, {});
    MINISGL_CHECK(!results.empty(), "cuBLASLt knows no product of this shape");
    return results;
  }

  cublasLtMatmulAlgo_t fastest(const CublasLt::Description& description, DenseArgs args, cudaStream_t stream) {
    args.y = args.scratch;
    const auto proposed = proposals(description);
    const auto run = [&](std::size_t i) { launch(description, args, proposed[i].algo, stream); };
    return proposed[stopwatch.fastest(proposed.size(), run, stream)].algo;
  }
};

DenseGemm::DenseGemm(const std::string& gpu_name, const std::filesystem::path& cache_folder, ThreadPool& pool)
    : impl_(std::make_unique<Impl>(gpu_name, cache_folder, pool)) {}
DenseGemm::~DenseGemm() = default;

void DenseGemm::run(const DenseArgs& args, cudaStream_t stream) {
  const bool of_bytes = args.x_scales != nullptr;
  const CublasLt::Description description(impl_->library, {.dtype = of_bytes ? DType::f8e4m3 : DType::bf16,
                                                           .y_dtype = args.y_is_f32 ? DType::f32 : DType::bf16,
                                                           .bias = nullptr,
                                                           .rows = args.rows,
                                                           .inputs = args.inputs,
                                                           .outputs = args.outputs,
                                                           .weight_scales = args.weight_scales,
                                                           .x_scales = args.x_scales});
  const ProductShape shape{args.outputs, args.inputs, rows_of_choice(args.rows), args.y_is_f32, args.added, of_bytes};
  const auto known = impl_->choices.find(shape);
  if (known != impl_->choices.end()) {
    const auto algorithm = std::bit_cast<cublasLtMatmulAlgo_t>(known->second);
    const auto needed = impl_->library.workspace_bytes(description, algorithm);
    if (needed && *needed <= kWorkspaceBytes) {
      impl_->launch(description, args, algorithm, stream);
      return;
    }
  }
  cudaStreamCaptureStatus capturing;
  MINISGL_CUDA_CHECK(cudaStreamIsCapturing(stream, &capturing));
  if (capturing != cudaStreamCaptureStatusNone || known != impl_->choices.end()) {
    impl_->launch(description, args, impl_->proposals(description).front().algo, stream);
    return;
  }
  const cublasLtMatmulAlgo_t choice = impl_->fastest(description, args, stream);
  impl_->choices.emplace(shape, std::bit_cast<AlgorithmWords>(choice));
  if (!impl_->file.empty()) write_choices(impl_->file, impl_->owner, impl_->choices);
  impl_->launch(description, args, choice, stream);
}

}  // namespace minisgl::cuda
