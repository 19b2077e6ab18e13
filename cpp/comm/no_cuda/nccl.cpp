// The GPU communicators of a build without CUDA: the same symbols, one clear error.
#include "comm/nccl.h"

#include "core/error.h"

namespace minisgl {
namespace {

[[noreturn]] void refuse() {
  throw InputError(
      "this build of minisgl has no CUDA, so it has no NCCL; reinstall it where the CUDA toolkit, cuBLAS "
      "and NCCL headers are found (MINISGL_CUDA=ON says which part is missing)");
}

}  // namespace

NcclUniqueId make_nccl_unique_id(const std::string&) {
  refuse();
}
std::unique_ptr<Communicator> make_gpu_communicator(const NcclOptions&, Communicator&) {
  refuse();
}
int num_gpus() {
  return 0;
}

}  // namespace minisgl
