// NCCL in its non-blocking form: calls return at once, and its asynchronous error tells when they are through.
#include "comm/cuda/nccl_group.h"

#include <cstdio>
#include <cstring>
#include <thread>

#include "core/error.h"

namespace minisgl {
namespace {

// NCCL can be asked, but it doesn't tell. Only starting, connecting and ending ever take that long.
constexpr std::chrono::microseconds kAskAgain{100};
constexpr int kSymmetric = 1;  // NCCL_WIN_COLL_SYMMETRIC, which older headers lack

}  // namespace

NcclGroup::NcclGroup(const NcclLibrary& library, const NcclUniqueId& id, int rank, int size,
                     std::chrono::milliseconds timeout)
    : library_(library), timeout_(timeout) {
  ncclUniqueId nccl_id;
  static_assert(sizeof(nccl_id) == sizeof(id));
  std::memcpy(&nccl_id, id.data(), sizeof(nccl_id));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const std::lock_guard lock(mutex_);
  try {
    settle(library_.comm_init_rank_config(&comm_, size, nccl_id, rank, &config), "ncclCommInitRankConfig");
  } catch (...) {
    if (comm_) library_.comm_abort(comm_);
    throw;
  }
}

NcclGroup::~NcclGroup() {
  const std::lock_guard lock(mutex_);
  if (!comm_) return;
  try {
    settle(library_.comm_finalize(comm_), "ncclCommFinalize");
    library_.comm_destroy(comm_);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "minisgl: %s\n", error.what());
    library_.comm_abort(comm_);
  }
}

void NcclGroup::settle(ncclResult_t result, const char* name) {
  const auto deadline = std::chrono::steady_clock::now() + timeout_;
  // Some calls return success and go on in the background all the same.
  while (result == ncclInProgress || result == ncclSuccess) {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = library_.comm_get_async_error(comm_, &state);
    result = asked == ncclSuccess ? state : asked;
    if (result != ncclInProgress || aborted_.load(std::memory_order_relaxed)) break;
    if (std::chrono::steady_clock::now() > deadline)
      throw RankFailure(-1, concat("NCCL: ", name, " isn't through after ",
                                   static_cast<double>(timeout_.count()) / 1000.0, " s: a rank is missing"));
    std::this_thread::sleep_for(kAskAgain);
  }
  if (result == ncclRemoteError || result == ncclInProgress)
    throw RankFailure(-1, concat("NCCL: ", name, ": another rank has failed"));
  library_.check(result, name);
}

std::string NcclGroup::asynchronous_error() {
  const std::lock_guard lock(mutex_);
  ncclResult_t state = ncclSuccess;
  if (!comm_ || library_.comm_get_async_error(comm_, &state) != ncclSuccess) return "";
  return state == ncclSuccess || state == ncclInProgress ? "" : library_.get_error_string(state);
}

void NcclGroup::abort() {
  aborted_.store(true, std::memory_order_relaxed);  // ends a settle() under way
  const std::lock_guard lock(mutex_);
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
    std::fprintf(stderr, "minisgl: %s\n", error.what());
  }
}

}  // namespace minisgl
