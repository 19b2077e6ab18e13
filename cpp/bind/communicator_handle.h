// How communicators travel between Python and the engine.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace minisgl {

// minisgl._native.Communicator; its subclasses differ in how they are made only.
struct CommunicatorHandle {
  std::shared_ptr<Communicator> communicator;
};

}  // namespace minisgl
