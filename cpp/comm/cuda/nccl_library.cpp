// Loads libnccl.so.2 and looks its functions up.
#include "comm/cuda/nccl_library.h"

#include <dlfcn.h>

#include "core/error.h"

namespace minisgl {
namespace {

constexpr int kFirstWithWindows = 22700;

template <typename Function>
void look_up(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (!function) throw InputError(concat("the NCCL library has no ", name, "; NCCL 2.19 or later is needed"));
}

}  // namespace

NcclLibrary NcclLibrary::load(const std::string& path) {
  void* library = dlopen(path.empty() ? "libnccl.so.2" : path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!library) throw InputError(concat("NCCL could not be loaded: ", dlerror()));
  NcclLibrary nccl{};
  look_up(library, "ncclGetVersion", nccl.get_version);
  look_up(library, "ncclGetUniqueId", nccl.get_unique_id);
  look_up(library, "ncclCommInitRank", nccl.comm_init_rank);
  look_up(library, "ncclCommGetAsyncError", nccl.comm_get_async_error);
  look_up(library, "ncclCommDestroy", nccl.comm_destroy);
  look_up(library, "ncclCommAbort", nccl.comm_abort);
  look_up(library, "ncclAllReduce", nccl.all_reduce);
  look_up(library, "ncclAllGather", nccl.all_gather);
  look_up(library, "ncclReduceScatter", nccl.reduce_scatter);
  look_up(library, "ncclBroadcast", nccl.broadcast);
  look_up(library, "ncclMemAlloc", nccl.mem_alloc);
  look_up(library, "ncclMemFree", nccl.mem_free);
  look_up(library, "ncclCommRegister", nccl.comm_register);
  look_up(library, "ncclCommDeregister", nccl.comm_deregister);
  look_up(library, "ncclGetErrorString", nccl.get_error_string);
  nccl.check(nccl.get_version(&nccl.version), "ncclGetVersion");
  if (nccl.version >= kFirstWithWindows) {
    look_up(library, "ncclCommWindowRegister", nccl.window_register);
    look_up(library, "ncclCommWindowDeregister", nccl.window_deregister);
  }
  return nccl;
}

void NcclLibrary::check(ncclResult_t result, const char* call) const {
  if (result != ncclSuccess) throw InputError(concat(call, " failed: ", get_error_string(result)));
}

std::string NcclLibrary::version_text() const {
  return concat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

}  // namespace minisgl
