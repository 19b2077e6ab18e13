// Pages that are copied between the device and the host's memory, beside the steps.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/page_allocator.h"

namespace minisgl {

struct PagePair {
  PageId source, destination;
};

// Copies that are made together, on every rank of its own part. No page is the destination of two, or the source of one
// and the destination of another.
struct TierCopies {
  std::uint64_t number = 0;  // from 1 on, in the order in which ranks begin them: one after the other
  bool to_host = false;      // else from there
  std::vector<PagePair> pages;
};

}  // namespace minisgl
