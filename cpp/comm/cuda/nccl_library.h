// NCCL's functions, loaded when first needed: a CUDA build starts on machines that have no NCCL and no GPU.
#pragma once

#include <nccl.h>

#include <string>

namespace minisgl {

struct NcclLibrary {
  decltype(&ncclGetUniqueId) get_unique_id;
  decltype(&ncclCommInitRank) comm_init_rank;
  decltype(&ncclCommDestroy) comm_destroy;
  decltype(&ncclAllReduce) all_reduce;
  decltype(&ncclAllGather) all_gather;
  decltype(&ncclReduceScatter) reduce_scatter;
  decltype(&ncclBroadcast) broadcast;
  decltype(&ncclMemAlloc) mem_alloc;
  decltype(&ncclMemFree) mem_free;
  decltype(&ncclCommRegister) comm_register;
  decltype(&ncclCommDeregister) comm_deregister;
  decltype(&ncclGetErrorString) get_error_string;

  // `path` as in NcclOptions::library. Throws InputError where it can't be loaded or is too old. The library stays
  // loaded until the process ends: its threads outlive a communicator.
  static NcclLibrary load(const std::string& path);

  // Throws InputError with NCCL's words when `result` is a failure; `call` is what was tried.
  void check(ncclResult_t result, const char* call) const;
};

}  // namespace minisgl
