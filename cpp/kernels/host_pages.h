// Pages of a cache in the host's memory, that a device copies to and from beside its steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace minisgl {

// One of the arrays on the device that hold a part of every page: [num_pages][page_bytes].
struct PagePlane {
  std::byte* data;
  std::int64_t page_bytes;
};

struct HostPagesOptions {
  std::vector<PagePlane> planes;      // they outlive the host's pages
  std::int64_t num_device_pages = 0;  // of each plane
  std::int64_t num_pages = 0;         // of the host
  // Called by any thread when copies are done or more pages are ready: not for long, and without a call of the device.
  std::function<void()> on_change;
};

// Copies are made one after the other, in the order of the calls, while the device works on steps. The thread that
// makes steps makes the calls, but for num_ready() and num_done().
class HostPages {
 public:
  virtual ~HostPages() = default;

  // How long a page takes from the host to the device, measured now: overwrites pages of the device.
  virtual double measure_page_seconds() = 0;
  // Begins to get the pages that aren't ready.
  virtual void start() = 0;
  // The first so many are quick to copy. Others are copied while the call waits.
  virtual std::int64_t num_ready() const = 0;

  virtual void copy_out(std::int32_t device_page, std::int32_t host_page) = 0;
  virtual void copy_in(std::int32_t host_page, std::int32_t device_page) = 0;
  // The copies queued since the last call have this number; numbers grow.
  virtual void end_copies(std::uint64_t number) = 0;
  // Copies up to this number are done.
  virtual std::uint64_t num_done() const = 0;
  // What is queued for steps from now on begins when the copies up to this number are done.
  virtual void hold_steps(std::uint64_t number) = 0;
};

}  // namespace minisgl
