// The library's functions by name, and its descriptions of products.
#include "gemm/cuda/cublaslt_library.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <string>
#include <type_traits>

#include "core/cuda/runtime.h"

namespace minisgl::cuda {
namespace {

constexpr int kMostAlgorithms = 24;

void check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) throw CheckError(concat(call, " failed with cuBLAS status ", int{status}));
}

cudaDataType type_of(DType dtype) {
  if (dtype == DType::f8e4m3) return CUDA_R_8F_E4M3;
  return dtype == DType::f32 ? CUDA_R_32F : dtype == DType::f16 ? CUDA_R_16F : CUDA_R_16BF;
}

}  // namespace

CublasLt::Functions CublasLt::load() {
  const std::string name = concat("libcublasLt.so.", CUBLAS_VER_MAJOR);
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (handle == nullptr) throw InputError(concat("cuBLAS could not be loaded: ", dlerror()));
  Functions functions;
  const auto look_up = [&](const char* symbol, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, symbol));
    if (function == nullptr) throw InputError(concat(name, " has no ", symbol));
  };
  look_up("cublasLtCreate", functions.create);
  look_up("cublasLtDestroy", functions.destroy);
  look_up("cublasLtMatmul", functions.matmul);
  look_up("cublasLtMatmulDescCreate", functions.desc_create);
  look_up("cublasLtMatmulDescDestroy", functions.desc_destroy);
  look_up("cublasLtMatmulDescSetAttribute", functions.desc_set);
  look_up("cublasLtMatrixLayoutCreate", functions.layout_create);
  look_up("cublasLtMatrixLayoutDestroy", functions.layout_destroy);
  look_up("cublasLtMatmulPreferenceCreate", functions.preference_create);
  look_up("cublasLtMatmulPreferenceDestroy", functions.preference_destroy);
  look_up("cublasLtMatmulPreferenceSetAttribute", functions.preference_set);
  look_up("cublasLtMatmulAlgoGetHeuristic", functions.heuristic);
  look_up("cublasLtMatmulAlgoCheck", functions.check);
  look_up("cublasLtGetVersion", functions.version);
  return functions;
}

CublasLt::CublasLt() {
  check(functions_.create(&handle_), "cublasLtCreate");
}
CublasLt::~CublasLt() {
  functions_.destroy(handle_);
}

// cuBLAS is column-major: it computes yᵀ [outputs, rows] = W · xᵀ.
CublasLt::Description::Description(const CublasLt& library, const LtProduct& product) : library_(library) {
  const Functions& functions = library.functions_;
  check(functions.desc_create(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    check(functions.desc_set(operation_, attribute, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (product.bias != nullptr) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias);
  }
  if (product.dtype == DType::f8e4m3) {
    set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, product.weight_scales);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, product.x_scales);
    set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, std::int8_t{1});
  }
  const auto layout = [&](cublasLtMatrixLayout_t& target, DType dtype, std::int64_t height, std::int64_t width) {
    check(functions.layout_create(&target, type_of(dtype), static_cast<std::uint64_t>(height),
                                  static_cast<std::uint64_t>(width), height),
          "cublasLtMatrixLayoutCreate");
  };
  layout(a_, product.dtype, product.inputs, product.outputs);
  layout(b_, product.dtype, product.inputs, product.rows);
  layout(d_, product.y_dtype, product.outputs, product.rows);
}
CublasLt::Description::~Description() {
  for (const cublasLtMatrixLayout_t layout : {a_, b_, d_})
    if (layout != nullptr) library_.functions_.layout_destroy(layout);
  if (operation_ != nullptr) library_.functions_.desc_destroy(operation_);
}

std::vector<cublasLtMatmulHeuristicResult_t> CublasLt::proposals(const Description& product,
                                                                 const LtLimits& limits) const {
  cublasLtMatmulPreference_t preference = nullptr;
  check(functions_.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    functions_.preference_set(preference, attribute, &value, sizeof value);
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, limits.workspace_bytes);
  for (const auto matrix : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    set(matrix, std::uint32_t{limits.alignment});
  std::vector<cublasLtMatmulHeuristicResult_t> results(kMostAlgorithms);
  int count = 0;
  const cublasStatus_t status = functions_.heuristic(handle_, product.operation_, product.a_, product.b_, product.d_,
                                                     product.d_, preference, kMostAlgorithms, results.data(), &count);
  functions_.preference_destroy(preference);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return {};
  check(status, "cublasLtMatmulAlgoGetHeuristic");
  results.resize(static_cast<std::size_t>(count));
  std::erase_if(results, [](const auto& result) { return result.state != CUBLAS_STATUS_SUCCESS; });
  return results;
}

std::optional<std::size_t> CublasLt::workspace_bytes(const Description& product,
                                                     const cublasLtMatmulAlgo_t& algorithm) const {
  cublasLtMatmulHeuristicResult_t result{};
  const cublasStatus_t status = functions_.check(handle_, product.operation_, product.a_, product.b_, product.d_,
                                                 product.d_, &algorithm, &result);
  if (status != CUBLAS_STATUS_SUCCESS) return {};
  return result.workspaceSize;
}

bool CublasLt::multiply(const Description& product, const LtOperands& operands, const cublasLtMatmulAlgo_t& algorithm,
                        void* workspace, std::size_t workspace_bytes, cudaStream_t stream) const {
  const float one = 1.0f, old = operands.added ? 1.0f : 0.0f;
  const cublasStatus_t status =
      functions_.matmul(handle_, product.operation_, &one, operands.weights, product.a_, operands.x, product.b_, &old,
                        operands.y, product.d_, operands.y, product.d_, &algorithm, workspace, workspace_bytes, stream);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return false;
  check(status, "cublasLtMatmul");
  return true;
}

}  // namespace minisgl::cuda
