// A build without CUDA has no GPUs.
#include "kernels/cuda/backend.h"

#include "core/error.h"

namespace minisgl {

std::string cuda_pci_id(int) {
  return "";
}

std::unique_ptr<Device> make_cuda_device(int, int, std::shared_ptr<Communicator>, const std::string&, bool) {
  throw InputError("this build of minisgl has no CUDA; build it where the CUDA toolkit is found");
}

}  // namespace minisgl
