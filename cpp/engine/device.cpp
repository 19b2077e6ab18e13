// Chooses among the devices that this build and this machine have.
#include "engine/device.h"

#include <utility>

#include "comm/nccl.h"
#include "core/error.h"
#include "engine/defaults.h"
#include "kernels/cpu/backend.h"
#include "kernels/cuda/backend.h"

namespace minisgl {

std::unique_ptr<Device> make_device(const std::string& name, std::int64_t num_threads,
                                    std::shared_ptr<Communicator> comm, const std::string& cache_folder,
                                    bool deterministic, const std::string& expert_folder) {
  if (name != "auto" && name != "cpu" && name != "cuda") {
    throw InputError("--device must be auto, cpu or cuda, got " + name);
  }
  const int threads = choose_num_threads(num_threads);
  const bool on_host = comm && comm->device() < 0;
  if (name == "cuda" && on_host)
    throw InputError(
        concat("--device cuda does not support ", comm->name(), " between ranks; use --comm auto, nccl or one-shot"));
  if (deterministic && comm && !comm->sums_by_rank()) {
    throw InputError("--deterministic needs sums in the order of ranks, which " + comm->name() +
                     " doesn't promise; use --comm auto");
  }
  if (name == "cuda" || (name == "auto" && !on_host && num_gpus() > 0)) {
    if (!expert_folder.empty()) {
      throw InputError(
          "--expert-folder is for CPUs: a GPU has experts in its own memory; use --device cpu, or leave it out");
    }
    const int gpu = comm ? comm->device() : 0;
    return make_cuda_device(gpu, threads, std::move(comm), cache_folder, deterministic);
  }
  return make_cpu_device(threads, std::move(comm), expert_folder);
}

}  // namespace minisgl
