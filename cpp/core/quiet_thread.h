// A thread that leaves every signal to the others.
#pragma once

#include <pthread.h>

#include <csignal>
#include <thread>
#include <utility>

namespace minisgl {

template <typename Body>
std::thread start_quiet_thread(Body body) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(std::move(body));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

}  // namespace minisgl
