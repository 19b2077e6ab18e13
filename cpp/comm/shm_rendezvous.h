// How the ranks of one host find each other and get memory that they share.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include "comm/file_descriptor.h"

namespace minisgl {

struct SharedGroup {
  FileDescriptor memory;    // zeroed; the same on every rank
  std::vector<pid_t> pids;  // rank by rank
};

// Waits until all ranks have called it with the same name (at most 64 characters). The rank that comes first takes an
// abstract socket of that name, gathers the others, and hands them a memfd of num_bytes; neither has a place in the
// file system. Only processes of this user are let in. Throws RankFailure where a rank doesn't come within the time
// limit or ends meanwhile, InputError where ranks don't fit together.
SharedGroup gather_ranks(const std::string& name, int rank, int size, std::size_t num_bytes,
                         std::chrono::milliseconds timeout);

}  // namespace minisgl
