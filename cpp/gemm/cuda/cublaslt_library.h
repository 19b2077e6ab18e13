// cuBLASLt, which is loaded when the first device needs it, and products described to it.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/dtype.h"

namespace minisgl::cuda {

// Products call for no more workspace than this.
constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

struct LtProduct {
  DType dtype;  // of weights and x: f32, bf16, f16 or f8e4m3
  DType y_dtype;
  const void* bias;  // [outputs] in y's format, or null
  std::int64_t rows, inputs, outputs;
  // Of f8e4m3: what each output's weights and each row of x are multiplied by. Sums keep the few bits that the tensor
  // cores' own have.
  const float* weight_scales = nullptr;  // [outputs]
  const float* x_scales = nullptr;       // [rows]
};

struct LtLimits {
  std::size_t workspace_bytes = kWorkspaceBytes;
  unsigned alignment = 256;  // of every pointer, bytes
};

struct LtOperands {
  const void* weights;
  const void* x;
  void* y;
  bool added;  // y += the product
};

class CublasLt {
 public:
  // Throws InputError where libcublasLt can't be loaded.
  CublasLt();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  // One product, as cuBLASLt knows it. The library outlives it.
  class Description {
   public:
    Description(const CublasLt& library, const LtProduct& product);
    ~Description();
    Description(const Description&) = delete;
    Description& operator=(const Description&) = delete;

   private:
    friend class CublasLt;
    const CublasLt& library_;
    cublasLtMatmulDesc_t operation_ = nullptr;
    cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, d_ = nullptr;
  };

  std::size_t version() const { return functions_.version(); }
  // Algorithms for the product with the workspace that each needs, the library's favourite first; none where it knows
  // none.
  std::vector<cublasLtMatmulHeuristicResult_t> proposals(const Description& product, const LtLimits& limits) const;
  // The workspace that an algorithm of another product needs for this one; nothing where it can't compute it.
  std::optional<std::size_t> workspace_bytes(const Description& product, const cublasLtMatmulAlgo_t& algorithm) const;
  // Queues the product on `stream`; false where the algorithm doesn't take the operands after all.
  [[nodiscard]] bool multiply(const Description& product, const LtOperands& operands,
                              const cublasLtMatmulAlgo_t& algorithm, void* workspace, std::size_t workspace_bytes,
                              cudaStream_t stream) const;

 private:
  struct Functions {
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
  };
  static Functions load();

  Functions functions_ = load();
  cublasLtHandle_t handle_ = nullptr;
};

}  // namespace minisgl::cuda
