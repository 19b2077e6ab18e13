// Loads cuBLASLt, describes products to it, and keeps the fastest algorithm of each shape.
#include "gemm/cuda/cublaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <string>
#include <utility>
#include <vector>

#include "core/cuda/runtime.h"
#include "gemm/choice_file.h"

namespace minisgl::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;
// This much is overwritten before a timed run: more than second-level caches hold. Products use its beginning as their
// workspace.
constexpr std::size_t kScrubBytes = std::size_t{128} << 20;
constexpr int kMostAlgorithms = 24;
constexpr int kFinalists = 4;
constexpr int kFinalRuns = 4;

// cuBLASLt's functions; absent on machines without a GPU, which never need them.
struct Library {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulAlgoCheck) check;
  decltype(&cublasLtGetVersion) version;

  static Library load() {
    const std::string name = concat("libcublasLt.so.", CUBLAS_VER_MAJOR);
    void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (handle == nullptr) throw InputError(concat("cuBLAS could not be loaded: ", dlerror()));
    Library library;
    const auto look_up = [&](const char* symbol, auto& function) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, symbol));
      if (function == nullptr) throw InputError(concat(name, " has no ", symbol));
    };
    look_up("cublasLtCreate", library.create);
    look_up("cublasLtDestroy", library.destroy);
    look_up("cublasLtMatmul", library.matmul);
    look_up("cublasLtMatmulDescCreate", library.desc_create);
    look_up("cublasLtMatmulDescDestroy", library.desc_destroy);
    look_up("cublasLtMatmulDescSetAttribute", library.desc_set);
    look_up("cublasLtMatrixLayoutCreate", library.layout_create);
    look_up("cublasLtMatrixLayoutDestroy", library.layout_destroy);
    look_up("cublasLtMatmulPreferenceCreate", library.preference_create);
    look_up("cublasLtMatmulPreferenceDestroy", library.preference_destroy);
    look_up("cublasLtMatmulPreferenceSetAttribute", library.preference_set);
    look_up("cublasLtMatmulAlgoGetHeuristic", library.heuristic);
    look_up("cublasLtMatmulAlgoCheck", library.check);
    look_up("cublasLtGetVersion", library.version);
    return library;
  }
};

void check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) throw CheckError(concat(call, " failed with cuBLAS status ", int{status}));
}

// The description of one product. cuBLAS is column-major: it computes yᵀ [outputs, rows] = W · xᵀ.
class Description {
 public:
  Description(const Library& library, const DenseArgs& args) : library_(library) {
    check(library.desc_create(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check(library.desc_set(operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed),
          "cublasLtMatmulDescSetAttribute");
    const auto layout = [&](cublasLtMatrixLayout_t& target, cudaDataType type, std::int64_t height,
                            std::int64_t width) {
      check(library.layout_create(&target, type, static_cast<std::uint64_t>(height), static_cast<std::uint64_t>(width),
                                  height),
            "cublasLtMatrixLayoutCreate");
    };
    layout(a, CUDA_R_16BF, args.inputs, args.outputs);
    layout(b, CUDA_R_16BF, args.inputs, args.rows);
    layout(d, args.y_is_f32 ? CUDA_R_32F : CUDA_R_16BF, args.outputs, args.rows);
  }
  ~Description() {
    for (const cublasLtMatrixLayout_t layout : {a, b, d})
      if (layout != nullptr) library_.layout_destroy(layout);
    if (operation != nullptr) library_.desc_destroy(operation);
  }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;

  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;

 private:
  const Library& library_;
};

}  // namespace

namespace {

static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(AlgorithmWords));  // it may be stored and restored as it is

std::int64_t bucket_of(std::int64_t rows) {
  return rows <= 64 ? (rows + 15) / 16 * 16
                    : static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(rows)));
}

CudaEvent make_timer() {
  cudaEvent_t event = nullptr;
  MINISGL_CUDA_CHECK(cudaEventCreate(&event));
  return CudaEvent(event);
}

}  // namespace

struct DenseGemm::Impl {
  Library library = Library::load();
  cublasLtHandle_t handle = nullptr;
  std::string owner;  // what the choices were measured with
  std::filesystem::path file;
  GemmChoices choices;
  void* workspace = nullptr;
  CudaEvent start = make_timer(), end = make_timer();

  Impl(const std::string& gpu_name, const std::filesystem::path& cache_folder)
      : owner(concat(gpu_name, ", cuBLASLt ", library.version())) {
    if (!cache_folder.empty()) {
      std::string name = concat("gemm ", owner, ".txt");
      std::ranges::replace_if(name, [](unsigned char c) { return std::isalnum(c) == 0 && c != '.'; }, '-');
      file = cache_folder / name;
      choices = read_choices(file, owner);
    }
    check(library.create(&handle), "cublasLtCreate");
    MINISGL_CUDA_CHECK(cudaMalloc(&workspace, kScrubBytes));
  }
  ~Impl() {
    cudaFree(workspace);
    library.destroy(handle);
  }

  void launch(const Description& description, const DenseArgs& args, const cublasLtMatmulAlgo_t& algorithm,
              cudaStream_t stream) {
    const float one = 1.0f, old = args.added ? 1.0f : 0.0f;
    check(library.matmul(handle, description.operation, &one, args.weights, description.a, args.x, description.b, &old,
                         args.y, description.d, args.y, description.d, &algorithm, workspace, kWorkspaceBytes, stream),
          "cublasLtMatmul");
  }

  // What cuBLASLt proposes, its favourite first.
  std::vector<cublasLtMatmulAlgo_t> proposals(const Description& description) {
    cublasLtMatmulPreference_t preference = nullptr;
    check(library.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
    const std::size_t bytes = kWorkspaceBytes;
    library.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
    std::array<cublasLtMatmulHeuristicResult_t, kMostAlgorithms> results{};
    int count = 0;
    const cublasStatus_t status =
        library.heuristic(handle, description.operation, description.a, description.b, description.d, description.d,
                          preference, kMostAlgorithms, results.data(), &count);
    library.preference_destroy(preference);
    check(status, "cublasLtMatmulAlgoGetHeuristic");
    std::vector<cublasLtMatmulAlgo_t> algorithms;
    for (int i = 0; i < count; ++i)
      if (results[static_cast<std::size_t>(i)].state == CUBLAS_STATUS_SUCCESS)
        algorithms.push_back(results[static_cast<std::size_t>(i)].algo);
    MINISGL_CHECK(!algorithms.empty(), "cuBLASLt knows no product of this shape");
    return algorithms;
  }

  float milliseconds(const Description& description, const DenseArgs& args, const cublasLtMatmulAlgo_t& algorithm,
                     cudaStream_t stream) {
    MINISGL_CUDA_CHECK(cudaMemsetAsync(workspace, 0, kScrubBytes, stream));
    MINISGL_CUDA_CHECK(cudaEventRecord(start.get(), stream));
    launch(description, args, algorithm, stream);
    MINISGL_CUDA_CHECK(cudaEventRecord(end.get(), stream));
    MINISGL_CUDA_CHECK(cudaEventSynchronize(end.get()));
    float ms = 0;
    MINISGL_CUDA_CHECK(cudaEventElapsedTime(&ms, start.get(), end.get()));
    return ms;
  }

  // Runs every proposal twice, the first time to load it, the best of them a few times more, and gives the one whose
  // shortest run was the shortest.
  cublasLtMatmulAlgo_t fastest(const Description& description, DenseArgs args, cudaStream_t stream) {
    args.y = args.scratch;
    std::vector<std::pair<float, cublasLtMatmulAlgo_t>> timed;
    for (const cublasLtMatmulAlgo_t& algorithm : proposals(description)) {
      launch(description, args, algorithm, stream);
      timed.emplace_back(milliseconds(description, args, algorithm, stream), algorithm);
    }
    const auto by_time = [](const auto& entry) { return entry.first; };
    std::ranges::sort(timed, {}, by_time);
    timed.resize(std::min<std::size_t>(timed.size(), kFinalists));
    for (auto& [least, algorithm] : timed)
      for (int run = 0; run < kFinalRuns; ++run)
        least = std::min(least, milliseconds(description, args, algorithm, stream));
    return std::ranges::min(timed, {}, by_time).second;
  }
};

DenseGemm::DenseGemm(const std::string& gpu_name, const std::filesystem::path& cache_folder)
    : impl_(std::make_unique<Impl>(gpu_name, cache_folder)) {}
DenseGemm::~DenseGemm() = default;

void DenseGemm::run(const DenseArgs& args, cudaStream_t stream) {
  const Description description(impl_->library, args);
  const ProductShape shape{args.outputs, args.inputs, bucket_of(args.rows), args.y_is_f32, args.added};
  const auto known = impl_->choices.find(shape);
  if (known != impl_->choices.end()) {
    const auto algorithm = std::bit_cast<cublasLtMatmulAlgo_t>(known->second);
    cublasLtMatmulHeuristicResult_t result{};
    const cublasStatus_t fits = impl_->library.check(impl_->handle, description.operation, description.a, description.b,
                                                     description.d, description.d, &algorithm, &result);
    if (fits == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= kWorkspaceBytes) {
      impl_->launch(description, args, algorithm, stream);
      return;
    }
  }
  cudaStreamCaptureStatus capturing;
  MINISGL_CUDA_CHECK(cudaStreamIsCapturing(stream, &capturing));
  if (capturing != cudaStreamCaptureStatusNone || known != impl_->choices.end()) {
    impl_->launch(description, args, impl_->proposals(description).front(), stream);
    return;
  }
  const cublasLtMatmulAlgo_t choice = impl_->fastest(description, args, stream);
  impl_->choices.emplace(shape, std::bit_cast<AlgorithmWords>(choice));
  if (!impl_->file.empty()) write_choices(impl_->file, impl_->owner, impl_->choices);
  impl_->launch(description, args, choice, stream);
}

}  // namespace minisgl::cuda
