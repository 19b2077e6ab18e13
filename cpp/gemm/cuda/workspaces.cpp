// A graph returns its workspace through a user object that it owns.
#include "gemm/cuda/workspaces.h"

#include <mutex>
#include <utility>
#include <vector>

namespace minisgl::cuda {

Capture capture_of(cudaStream_t stream) {
  Capture capture;
  cudaStreamCaptureStatus status;
#if CUDART_VERSION >= 13000
  MINISGL_CUDA_CHECK(cudaStreamGetCaptureInfo(stream, &status, &capture.id, &capture.graph));
#else
  MINISGL_CUDA_CHECK(cudaStreamGetCaptureInfo_v2(stream, &status, &capture.id, &capture.graph));
#endif
  return status == cudaStreamCaptureStatusActive ? capture : Capture{};
}

CudaMemory try_allocate(std::size_t bytes) {
  const RelaxedCapture relaxed;
  void* memory = nullptr;
  if (cudaMalloc(&memory, bytes) != cudaSuccess) {
    cudaGetLastError();  // nobody else is to find it
    return {};
  }
  return CudaMemory(memory);
}

// Graphs end on threads of CUDA's, where nothing of CUDA may be called and Workspaces may be gone.
struct Workspaces::Lending {
  using Key = std::pair<unsigned long long, cudaStream_t>;  // number of the capture, stream
  struct Loan {
    std::shared_ptr<Lending> lending;
    Key key;
  };

  static void CUDART_CB end(void* pointer) {
    const std::unique_ptr<Loan> loan(static_cast<Loan*>(pointer));
    const std::lock_guard lock(loan->lending->mutex);
    const auto lent = loan->lending->lent.find(loan->key);
    loan->lending->free.push_back(lent->second);
    loan->lending->lent.erase(lent);
  }

  std::mutex mutex;
  std::map<Key, void*> lent;
  std::vector<void*> free;
};

Workspaces::Workspaces(std::size_t bytes) : bytes_(bytes), lending_(std::make_shared<Lending>()) {}

Workspaces::~Workspaces() {
  std::vector<void*> free;
  {
    const std::lock_guard lock(lending_->mutex);
    free.swap(lending_->free);
  }
  for (void* memory : free) cudaFree(memory);
}

void* Workspaces::of(cudaStream_t stream, const Capture& capture) {
  if (capture.id != 0) return lend(stream, capture);
  unsigned long long number = 0;
  MINISGL_CUDA_CHECK(cudaStreamGetId(stream, &number));
  const auto known = of_streams_.find(number);
  if (known != of_streams_.end()) return known->second.get();
  CudaMemory memory = try_allocate(bytes_);
  if (!memory) return nullptr;
  return of_streams_.emplace(number, std::move(memory)).first->second.get();
}

void* Workspaces::lend(cudaStream_t stream, const Capture& capture) {
  const Lending::Key key{capture.id, stream};
  void* memory = nullptr;
  {
    const std::lock_guard lock(lending_->mutex);
    const auto known = lending_->lent.find(key);
    if (known != lending_->lent.end()) return known->second;
    if (!lending_->free.empty()) {
      memory = lending_->free.back();
      lending_->free.pop_back();
    }
  }
  if (memory == nullptr) {
    CudaMemory fresh = try_allocate(bytes_);
    if (!fresh) return nullptr;
    memory = fresh.release();
  }
  std::unique_ptr<Lending::Loan> loan(new Lending::Loan{lending_, key});
  cudaUserObject_t object = nullptr;
  MINISGL_CUDA_CHECK(cudaUserObjectCreate(&object, loan.get(), Lending::end, 1, cudaUserObjectNoDestructorSync));
  {
    const std::lock_guard lock(lending_->mutex);
    lending_->lent.emplace(key, memory);
  }
  loan.release();  // the object's
  MINISGL_CUDA_CHECK(cudaGraphRetainUserObject(capture.graph, object, 1, cudaGraphUserObjectMove));
  return memory;
}

}  // namespace minisgl::cuda
