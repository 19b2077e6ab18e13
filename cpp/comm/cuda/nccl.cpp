// Collectives through NCCL on the caller's stream.
#include "comm/nccl.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "comm/cuda/nccl_library.h"
#include "core/error.h"

namespace minisgl {
namespace {

void check_cuda(cudaError_t error, const char* call) {
  if (error != cudaSuccess) throw InputError(concat(call, " failed: ", cudaGetErrorString(error)));
}

// Makes `device` the calling thread's device and puts the old one back.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&previous_), "cudaGetDevice");
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

void log_failure(const NcclLibrary& nccl, ncclResult_t result, const char* call) {
  if (result != ncclSuccess) std::fprintf(stderr, "minisgl: %s failed: %s\n", call, nccl.get_error_string(result));
}

// The NCCL communicator's handle; destroyed with the object.
class CommHandle {
 public:
  CommHandle(const NcclLibrary& nccl, const NcclUniqueId& id, int rank, int size) : nccl_(nccl) {
    ncclUniqueId nccl_id;
    static_assert(sizeof(nccl_id) == sizeof(id));
    std::memcpy(&nccl_id, id.data(), sizeof(nccl_id));
    nccl_.check(nccl_.comm_init_rank(&comm_, size, nccl_id, rank), "ncclCommInitRank");
  }
  ~CommHandle() { log_failure(nccl_, nccl_.comm_destroy(comm_), "ncclCommDestroy"); }
  CommHandle(const CommHandle&) = delete;
  CommHandle& operator=(const CommHandle&) = delete;

  ncclComm_t get() const { return comm_; }

 private:
  NcclLibrary nccl_;
  ncclComm_t comm_ = nullptr;
};

// Device memory allocated by NCCL and registered with one communicator, which outlives it.
class RegisteredBuffer {
 public:
  RegisteredBuffer(const NcclLibrary& nccl, const CommHandle& comm, std::size_t size)
      : nccl_(nccl), comm_(comm.get()), size_(size) {
    if (size == 0) return;
    nccl_.check(nccl_.mem_alloc(&data_, size), "ncclMemAlloc");
    const ncclResult_t result = nccl_.comm_register(comm_, data_, size, &registration_);
    if (result != ncclSuccess) log_failure(nccl_, nccl_.mem_free(data_), "ncclMemFree");
    nccl_.check(result, "ncclCommRegister");
  }
  ~RegisteredBuffer() {
    if (!data_) return;
    log_failure(nccl_, nccl_.comm_deregister(comm_, registration_), "ncclCommDeregister");
    log_failure(nccl_, nccl_.mem_free(data_), "ncclMemFree");
  }
  RegisteredBuffer(const RegisteredBuffer&) = delete;
  RegisteredBuffer& operator=(const RegisteredBuffer&) = delete;

  void* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  NcclLibrary nccl_;
  ncclComm_t comm_;
  void* data_ = nullptr;
  void* registration_ = nullptr;
  std::size_t size_;
};

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::f32: return ncclFloat32;
    case DType::f16: return ncclFloat16;
    case DType::bf16: return ncclBfloat16;
    default: throw InputError(concat("NCCL can't sum ", dtype_info(dtype).name));
  }
}

class NcclCommunicator final : public Communicator {
 public:
  // With options.device as the calling thread's device.
  NcclCommunicator(const NcclLibrary& nccl, const NcclUniqueId& id, const NcclOptions& options)
      : nccl_(nccl),
        options_(options),
        comm_(nccl, id, options.rank, options.size),
        buffer_(nccl, comm_, static_cast<std::size_t>(options.max_buffer_bytes)),
        barrier_(nccl, comm_, sizeof(float)) {}

  std::string name() const override { return "NCCL"; }
  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  int device() const override { return options_.device; }

  void all_reduce_sum(void* data, std::int64_t count, DType dtype, StreamHandle stream) override {
    const DeviceGuard guard(options_.device);
    const auto cuda_stream = reinterpret_cast<cudaStream_t>(stream);
    const auto num_bytes = static_cast<std::size_t>(row_bytes(dtype, count));
    const bool through_buffer = num_bytes <= buffer_.size();
    void* place = through_buffer ? buffer_.data() : data;
    if (through_buffer) copy(place, data, num_bytes, cuda_stream);
    nccl_.check(nccl_.all_reduce(place, place, static_cast<std::size_t>(count), nccl_type(dtype), ncclSum, comm_.get(),
                                 cuda_stream),
                "ncclAllReduce");
    if (through_buffer) copy(data, place, num_bytes, cuda_stream);
  }

  void all_gather(const void* input, void* output, std::int64_t num_bytes, StreamHandle stream) override {
    const DeviceGuard guard(options_.device);
    nccl_.check(nccl_.all_gather(input, output, static_cast<std::size_t>(num_bytes), ncclInt8, comm_.get(),
                                 reinterpret_cast<cudaStream_t>(stream)),
                "ncclAllGather");
  }

  void reduce_scatter_sum(const void* input, void* output, std::int64_t count, DType dtype,
                          StreamHandle stream) override {
    const DeviceGuard guard(options_.device);
    nccl_.check(nccl_.reduce_scatter(input, output, static_cast<std::size_t>(count), nccl_type(dtype), ncclSum,
                                     comm_.get(), reinterpret_cast<cudaStream_t>(stream)),
                "ncclReduceScatter");
  }

  void broadcast(void* data, std::int64_t num_bytes, int root, StreamHandle stream) override {
    const DeviceGuard guard(options_.device);
    nccl_.check(nccl_.broadcast(data, data, static_cast<std::size_t>(num_bytes), ncclInt8, root, comm_.get(),
                                reinterpret_cast<cudaStream_t>(stream)),
                "ncclBroadcast");
  }

  void barrier(StreamHandle stream) override { all_reduce_sum(barrier_.data(), 1, DType::f32, stream); }

 private:
  static void copy(void* to, const void* from, std::size_t num_bytes, cudaStream_t stream) {
    check_cuda(cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
  }

  NcclLibrary nccl_;
  NcclOptions options_;
  CommHandle comm_;
  RegisteredBuffer buffer_;
  RegisteredBuffer barrier_;  // f32 that nobody reads
};

}  // namespace

NcclUniqueId make_nccl_unique_id(const std::string& library) {
  const NcclLibrary nccl = NcclLibrary::load(library);
  ncclUniqueId nccl_id;
  nccl.check(nccl.get_unique_id(&nccl_id), "ncclGetUniqueId");
  NcclUniqueId id;
  std::memcpy(id.data(), &nccl_id, id.size());
  return id;
}

std::unique_ptr<Communicator> make_nccl_communicator(const NcclUniqueId& id, const NcclOptions& options) {
  check_rank(options.rank, options.size);
  if (options.max_buffer_bytes < 0)
    throw InputError(concat("max_buffer_bytes must not be negative, got ", options.max_buffer_bytes));
  const NcclLibrary nccl = NcclLibrary::load(options.library);
  const DeviceGuard guard(options.device);
  return std::make_unique<NcclCommunicator>(nccl, id, options);
}

int num_gpus() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver or no GPU: nothing to report later
  return 0;
}

}  // namespace minisgl
