// Collectives between ranks on one host, through memory that they share.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace minisgl {

struct ShmOptions {
  std::string name;  // the same on every rank, unlike every other group's on this host; at most 64 characters
  int rank = 0;
  int size = 1;
  // How long a rank waits for the others at the start, and in a collective until set_time_limit().
  std::chrono::milliseconds timeout{30'000};
};

// Waits until every rank has called it with the same name. The ranks find each other by an abstract socket and share
// memory without a name, so nothing is left behind however they end. A rank whose process dies ends the collectives of
// the others at once. Throws RankFailure where a rank doesn't come, InputError for ranks that don't fit together.
std::unique_ptr<Communicator> make_shm_communicator(const ShmOptions& options);

// The same between threads of this process: one communicator a thread, rank by rank.
std::vector<std::unique_ptr<Communicator>> make_shm_communicators(
    int size, std::chrono::milliseconds timeout = std::chrono::milliseconds(30'000));

}  // namespace minisgl
