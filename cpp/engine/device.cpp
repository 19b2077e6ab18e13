// Chooses among the devices that this build and this machine have.
#include "engine/device.h"

#include "core/error.h"
#include "engine/defaults.h"
#include "kernels/cpu_backend.h"
#include "kernels/cuda_backend.h"

namespace minisgl {

std::unique_ptr<Ops> make_device(const std::string& name, std::int64_t num_threads) {
  if (name != "auto" && name != "cpu" && name != "cuda") {
    throw InputError("--device must be auto, cpu or cuda, got " + name);
  }
  const int threads = choose_num_threads(num_threads);
  if (name == "cuda" || (name == "auto" && num_cuda_devices() > 0)) return make_cuda_ops(0, threads);
  return make_cpu_ops(threads);
}

}  // namespace minisgl
