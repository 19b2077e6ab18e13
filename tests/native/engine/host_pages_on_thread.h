// The host tier of a device that isn't one: plain memory, and a thread that copies as a GPU's copy engine does, in
// order and beside the steps. What isn't copied yet holds nonsense.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/host_pages.h"

namespace minisgl::testing_support {

class HostPagesOnThread final : public HostPages {
 public:
  // `dawdles`: copies take a while. `queue_step`: queues a wait on the device's stream.
  HostPagesOnThread(HostPagesOptions options, bool dawdles, double page_seconds,
                    std::function<void(std::function<void()>)> queue_step)
      : options_(std::move(options)),
        dawdles_(dawdles),
        page_seconds_(page_seconds),
        queue_step_(std::move(queue_step)),
        num_ready_(options_.num_pages / 2) {
    for (const PagePlane& plane : options_.planes) page_bytes_ += plane.page_bytes;
    memory_.resize(static_cast<std::size_t>(options_.num_pages * page_bytes_));
    worker_ = std::thread([this] { work(); });
  }
  ~HostPagesOnThread() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    worker_.join();
  }

  double measure_page_seconds() override { return page_seconds_; }
  void start() override {
    push([this] {
      {
        const std::lock_guard lock(mutex_);
        num_ready_ = options_.num_pages;
      }
      options_.on_change();
    });
  }
  std::int64_t num_ready() const override {
    const std::lock_guard lock(mutex_);
    return num_ready_;
  }
  void copy_out(std::int32_t device_page, std::int32_t host_page) override {
    push([this, device_page, host_page] { copy(device_page, host_page, true); });
  }
  void copy_in(std::int32_t host_page, std::int32_t device_page) override {
    push([this, device_page, host_page] { copy(device_page, host_page, false); });
  }
  void end_copies(std::uint64_t number) override {
    push([this, number] {
      {
        const std::lock_guard lock(mutex_);
        num_done_ = number;
      }
      changed_.notify_all();
      options_.on_change();
    });
  }
  std::uint64_t num_done() const override {
    const std::lock_guard lock(mutex_);
    return num_done_;
  }
  void hold_steps(std::uint64_t number) override {
    queue_step_([this, number] {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return num_done_ >= number; });
    });
  }

 private:
  void push(std::function<void()> task) {
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    changed_.notify_all();
  }

  void copy(std::int32_t device_page, std::int32_t host_page, bool out) {
    std::byte* host = memory_.data() + host_page * page_bytes_;
    const auto each = [&](const auto& action) {
      std::byte* at = host;
      for (const auto& [data, bytes] : options_.planes) {
        std::byte* device = data + device_page * bytes;
        action(out ? device : at, out ? at : device, bytes);
        at += bytes;
      }
    };
    each([](const std::byte*, std::byte* to, std::int64_t bytes) {
      const float nonsense = 1e6f;
      for (std::int64_t i = 0; i < bytes; i += 4) std::memcpy(to + i, &nonsense, 4);
    });
    if (dawdles_ && random_() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random_() % 200));
    each([](const std::byte* from, std::byte* to, std::int64_t bytes) {
      std::memcpy(to, from, static_cast<std::size_t>(bytes));
    });
  }

  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return !tasks_.empty() || stopping_; });
      if (tasks_.empty()) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
  }

  const HostPagesOptions options_;
  const bool dawdles_;
  const double page_seconds_;
  const std::function<void(std::function<void()>)> queue_step_;
  std::int64_t page_bytes_ = 0;
  std::vector<std::byte> memory_;
  std::mt19937 random_{9};

  mutable std::mutex mutex_;  // guards the rest
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::int64_t num_ready_;
  std::uint64_t num_done_ = 0;
  bool stopping_ = false;
  std::thread worker_;
};

}  // namespace minisgl::testing_support
