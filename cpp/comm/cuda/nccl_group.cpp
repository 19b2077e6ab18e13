// Start and end wait for the other ranks, so a thread of their own makes them: it can be left behind. (NCCL's own
// non-blocking form starts a thread for every collective.)
#include "comm/cuda/nccl_group.h"

#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <thread>

#include "core/cuda/runtime.h"
#include "core/error.h"
#include "core/log.h"

namespace minisgl {
namespace {

constexpr int kSymmetric = 1;  // NCCL_WIN_COLL_SYMMETRIC, which older headers lack
// A call under way has this long to end before the communicator is given up all the same.
constexpr std::chrono::seconds kAbortPatience{1};

// The function's result. After the time limit it is left to itself, so it owns all that it uses.
ncclResult_t within(std::chrono::milliseconds timeout, const char* name, std::function<ncclResult_t()> function) {
  int device = 0;
  MINISGL_CUDA_CHECK(cudaGetDevice(&device));
  std::packaged_task<ncclResult_t()> task([device, function = std::move(function)] {
    MINISGL_CUDA_CHECK(cudaSetDevice(device));
    return function();
  });
  std::future<ncclResult_t> result = task.get_future();
  std::thread(std::move(task)).detach();
  if (result.wait_for(timeout) != std::future_status::ready)
    throw RankFailure(-1, concat("NCCL: ", name, " isn't through after ", static_cast<double>(timeout.count()) / 1000.0,
                                 " s: a rank is missing"));
  return result.get();
}

}  // namespace

NcclGroup::NcclGroup(const NcclLibrary& library, const NcclUniqueId& id, int rank, int size,
                     std::chrono::milliseconds timeout)
    : library_(library), timeout_(timeout) {
  ncclUniqueId nccl_id;
  static_assert(sizeof(nccl_id) == sizeof(id));
  std::memcpy(&nccl_id, id.data(), sizeof(nccl_id));
  const auto comm = std::make_shared<ncclComm_t>();
  const auto initialize = [library, comm, size, nccl_id, rank] {
    return library.comm_init_rank(comm.get(), size, nccl_id, rank);
  };
  check(within(timeout, "ncclCommInitRank", initialize), "ncclCommInitRank");
  comm_ = *comm;
}

NcclGroup::~NcclGroup() {
  const std::lock_guard lock(mutex_);
  if (!comm_) return;
  try {
    const auto destroy = [library = library_, comm = comm_] { return library.comm_destroy(comm); };
    check(within(timeout_, "ncclCommDestroy", destroy), "ncclCommDestroy");
  } catch (const std::exception& error) {
    log_line(LogLevel::warning, error.what());
  }
}

void NcclGroup::check(ncclResult_t result, const char* name) const {
  if (result == ncclRemoteError) throw RankFailure(-1, concat("NCCL: ", name, ": another rank has failed"));
  library_.check(result, name);
}

std::string NcclGroup::asynchronous_error() {
  const std::lock_guard lock(mutex_);
  ncclResult_t state = ncclSuccess;
  if (!comm_ || library_.comm_get_async_error(comm_, &state) != ncclSuccess) return "";
  return state == ncclSuccess || state == ncclInProgress ? "" : library_.get_error_string(state);
}

void NcclGroup::abort() {
  if (aborted_.exchange(true)) return;
  // A call that connects to a rank that is stopped doesn't come back by itself: then without the lock.
  const std::unique_lock lock(mutex_, kAbortPatience);
  if (comm_) library_.comm_abort(comm_);
  comm_ = nullptr;
}

NcclBuffer::NcclBuffer(NcclGroup& group, std::size_t size) : group_(group), size_(size) {
  if (size == 0) return;
  const NcclLibrary& nccl = group.library();
  nccl.check(nccl.mem_alloc(&data_, size), "ncclMemAlloc");
  try {
    if (nccl.window_register)
      group.call("ncclCommWindowRegister", [&](const NcclLibrary& library, ncclComm_t comm) {
        return library.window_register(comm, data_, size, &window_, kSymmetric);
      });
    if (!window_)
      group.call("ncclCommRegister", [&](const NcclLibrary& library, ncclComm_t comm) {
        return library.comm_register(comm, data_, size, &registration_);
      });
  } catch (...) {
    nccl.mem_free(data_);
    throw;
  }
}

NcclBuffer::~NcclBuffer() {
  if (!data_) return;
  try {
    if (window_ && !group_.is_aborted())
      group_.call("ncclCommWindowDeregister", [&](const NcclLibrary& library, ncclComm_t comm) {
        return library.window_deregister(comm, window_);
      });
    if (registration_ && !group_.is_aborted())
      group_.call("ncclCommDeregister", [&](const NcclLibrary& library, ncclComm_t comm) {
        return library.comm_deregister(comm, registration_);
      });
    group_.library().check(group_.library().mem_free(data_), "ncclMemFree");
  } catch (const std::exception& error) {
    log_line(LogLevel::warning, error.what());
  }
}

}  // namespace minisgl
