// Allocates, exchanges and opens the memory; the sums themselves are in peer_kernels.cu.
#include "comm/cuda/peer_all_reduce.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "core/error.h"

namespace minisgl {
namespace {

struct Verdict {
  std::int32_t good;
  std::array<char, 200> reason;
};

// The first reason that a rank has against it, the same on all ranks.
std::string agreed_reason(Communicator& host, const std::string& own_reason) {
  Verdict own{own_reason.empty(), {}};
  own_reason.copy(own.reason.data(), own.reason.size() - 1);
  std::vector<Verdict> verdicts(static_cast<std::size_t>(host.size()));
  host.all_gather(&own, verdicts.data(), sizeof(Verdict), 0);
  for (int rank = 0; rank < host.size(); ++rank) {
    const Verdict& verdict = verdicts[static_cast<std::size_t>(rank)];
    if (!verdict.good) return concat("rank ", rank, ": ", verdict.reason.data());
  }
  return "";
}

void enable_access(int device, int peer) {
  if (device == peer) return;
  int can = 0;
  MINISGL_CUDA_CHECK(cudaDeviceCanAccessPeer(&can, device, peer));
  if (!can) throw CheckError(concat("GPU ", device, " can't reach the memory of GPU ", peer));
  const cudaError_t enabled = cudaDeviceEnablePeerAccess(peer, 0);
  if (enabled == cudaErrorPeerAccessAlreadyEnabled) {
    cudaGetLastError();
    return;
  }
  MINISGL_CUDA_CHECK(enabled);
}

}  // namespace

void PeerAllReduce::allocate(const Communicator& host, int device, std::int64_t max_one_shot_bytes,
                             std::int64_t max_two_shot_bytes) {
  if (host.size() > cuda::kMaxPeers) throw CheckError(concat("more than ", cuda::kMaxPeers, " ranks"));
  max_one_shot_bytes_ = max_one_shot_bytes;
  max_two_shot_bytes_ = max_two_shot_bytes;
  group_.rank = host.rank();
  group_.size = host.size();
  group_.region_vectors = std::max(cuda::one_shot_vectors(max_one_shot_bytes, host.size()),
                                   cuda::two_shot_vectors(max_two_shot_bytes, host.size()));
  const std::int64_t vectors = cuda::kNumRegions * group_.region_vectors;
  void* memory = nullptr;
  MINISGL_CUDA_CHECK(cudaMalloc(&memory, static_cast<std::size_t>(vectors) * sizeof(uint4)));
  memory_ = CudaHandle<void*, cudaFree>(memory);
  void* state = nullptr;
  MINISGL_CUDA_CHECK(cudaMalloc(&state, sizeof(cuda::PeerState)));
  state_ = CudaHandle<void*, cudaFree>(state);
  void* signal = nullptr;
  MINISGL_CUDA_CHECK(cudaHostAlloc(&signal, sizeof(cuda::PeerSignal), cudaHostAllocMapped | cudaHostAllocPortable));
  signal_ = PinnedMemory(signal);
  std::memset(signal, 0, sizeof(cuda::PeerSignal));
  cuda::load_peer_kernels();
  MINISGL_CUDA_CHECK(cudaMemset(state, 0, sizeof(cuda::PeerState)));
  cuda::mark_unwritten(static_cast<uint4*>(memory), vectors, nullptr);
  MINISGL_CUDA_CHECK(cudaDeviceSynchronize());
  group_.state = static_cast<cuda::PeerState*>(state);
  void* mapped = nullptr;
  MINISGL_CUDA_CHECK(cudaHostGetDevicePointer(&mapped, signal, 0));
  group_.signal = static_cast<cuda::PeerSignal*>(mapped);
  MINISGL_CUDA_CHECK(cudaDeviceGetAttribute(&num_processors_, cudaDevAttrMultiProcessorCount, device));
}

PeerAllReduce::Offer PeerAllReduce::offer(int device) const {
  Offer own{};
  gethostname(own.host.data(), own.host.size() - 1);
  own.pid = getpid();
  own.device = device;
  own.address = memory_.get();
  MINISGL_CUDA_CHECK(cudaIpcGetMemHandle(&own.handle, memory_.get()));
  return own;
}

void PeerAllReduce::open(const std::vector<Offer>& offers, const Offer& own) {
  for (std::size_t rank = 0; rank < offers.size(); ++rank) {
    const Offer& offer = offers[rank];
    if (offer.host != own.host) throw CheckError(concat("rank ", rank, " is on another host"));
    void* address = offer.address;
    if (offer.pid == own.pid) {
      enable_access(own.device, offer.device);
    } else {
      MINISGL_CUDA_CHECK(cudaIpcOpenMemHandle(&address, offer.handle, cudaIpcMemLazyEnablePeerAccess));
      opened_.emplace_back(address);
    }
    group_.memory[rank] = static_cast<uint4*>(address);
  }
}

std::unique_ptr<PeerAllReduce> PeerAllReduce::make(Communicator& host, int device, std::int64_t max_one_shot_bytes,
                                                   std::int64_t max_two_shot_bytes, std::chrono::milliseconds timeout,
                                                   std::string& reason) {
  std::unique_ptr<PeerAllReduce> self(new PeerAllReduce);
  self->group_.limit_ns = static_cast<std::uint64_t>(std::chrono::nanoseconds(timeout).count());
  Offer own{};
  std::string own_reason;
  try {
    self->allocate(host, device, max_one_shot_bytes, max_two_shot_bytes);
    own = self->offer(device);
  } catch (const CheckError& error) {
    own_reason = error.what();
  }
  // Every rank makes both exchanges, also one that can't take part.
  std::vector<Offer> offers(static_cast<std::size_t>(host.size()));
  host.all_gather(&own, offers.data(), sizeof(Offer), 0);
  try {
    if (own_reason.empty()) self->open(offers, own);
  } catch (const CheckError& error) {
    own_reason = error.what();
    cudaGetLastError();  // nothing to report later
  }
  reason = agreed_reason(host, own_reason);
  if (!reason.empty()) self.reset();
  return self;
}

PeerAllReduce::~PeerAllReduce() {
  give_up();
}

bool PeerAllReduce::fits(PeerAlgorithm algorithm, std::int64_t num_bytes) const {
  return num_bytes <= (algorithm == PeerAlgorithm::one_shot ? max_one_shot_bytes_ : max_two_shot_bytes_);
}

void PeerAllReduce::all_reduce_sum(PeerAlgorithm algorithm, void* data, std::int64_t count, DType dtype,
                                   cudaStream_t stream) {
  MINISGL_CHECK(fits(algorithm, row_bytes(dtype, count)), "a sum of ", count, " ", dtype_info(dtype).name);
  if (count == 0) return;
  algorithm == PeerAlgorithm::one_shot ? cuda::one_shot_sum(group_, data, count, dtype, num_processors_, stream)
                                       : cuda::two_shot_sum(group_, data, count, dtype, num_processors_, stream);
}

bool PeerAllReduce::all_reduce_add_rms_norm(const SumAddRmsNorm& op, cudaStream_t stream) {
  return op.rows > 0 && fits(PeerAlgorithm::one_shot, op.rows * row_bytes(op.dtype, op.cols)) &&
         cuda::one_shot_sum_add_rms_norm(group_, op, stream);
}

void PeerAllReduce::give_up() {
  if (signal_) static_cast<volatile cuda::PeerSignal*>(signal_.get())->give_up = 1;
}

std::optional<int> PeerAllReduce::missing_rank() const {
  const std::uint32_t missing = static_cast<const volatile cuda::PeerSignal*>(signal_.get())->missing;
  return missing == 0 ? std::nullopt : std::optional(static_cast<int>(missing) - 1);
}

}  // namespace minisgl
