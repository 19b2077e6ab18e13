// A thread that leaves every signal to the others.
#pragma once

#include <pthread.h>

#include <csignal>
#include <system_error>
#include <thread>
#include <utility>

#include "core/error.h"

namespace minisgl {

// Throws InputError where the system has no thread for it.
template <typename Body>
std::thread start_quiet_thread(Body body) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread;
  bool refused = false;
  try {
    thread = std::thread(std::move(body));
  } catch (const std::system_error&) {
    refused = true;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (refused) {
    throw InputError(
        "no more threads can be started: raise the limit (ulimit -u, or a container's limit of processes), or set "
        "fewer --threads");
  }
  return thread;
}

}  // namespace minisgl
