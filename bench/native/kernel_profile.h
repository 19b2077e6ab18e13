// What ran on the GPU, kernel by kernel, through CUPTI's activity records. In a build without CUPTI, or where its
// library can't be loaded, there is no profile and available() says so.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if __has_include(<cupti.h>)
#include <cupti.h>
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdlib>
#define MINISGL_HAS_CUPTI
#endif

namespace minisgl {

struct KernelRun {
  std::string name;                // "kernel<arguments> blocks x threads"
  std::uint64_t start_ns, end_ns;  // of the GPU's clock
};

#ifdef MINISGL_HAS_CUPTI

// One at a time. Records from start() to stop().
class KernelProfile {
 public:
  KernelProfile() : library_(dlopen(library_name().c_str(), RTLD_NOW)) {}
  bool available() const { return library_ != nullptr; }

  void start() {
    runs().clear();
    call<decltype(cuptiActivityRegisterCallbacks)>("cuptiActivityRegisterCallbacks", give_buffer, take_buffer);
    call<decltype(cuptiActivityEnable)>("cuptiActivityEnable", CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
  }
  // In the order of their starts.
  std::vector<KernelRun> stop() {
    call<decltype(cuptiActivityFlushAll)>("cuptiActivityFlushAll", std::uint32_t{0});
    call<decltype(cuptiActivityDisable)>("cuptiActivityDisable", CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
    std::ranges::sort(runs(), {}, &KernelRun::start_ns);
    return std::move(runs());
  }

 private:
  using Record = CUpti_ActivityKernel9;  // later records begin as this one does
  static constexpr std::size_t kBufferBytes = std::size_t{8} << 20;

  static std::string library_name() { return "libcupti.so." + std::to_string(CUDA_VERSION / 1000); }
  static std::vector<KernelRun>& runs() {
    static std::vector<KernelRun> all;
    return all;
  }
  static KernelProfile*& current() {
    static KernelProfile* profile = nullptr;
    return profile;
  }

  template <typename Function, typename... Arguments>
  void call(const char* name, Arguments... arguments) {
    current() = this;
    auto* function = reinterpret_cast<Function*>(dlsym(library_, name));
    if (function == nullptr || function(arguments...) != CUPTI_SUCCESS) throw std::runtime_error(name);
  }

  static void CUPTIAPI give_buffer(std::uint8_t** buffer, std::size_t* size, std::size_t* most_records) {
    *buffer = static_cast<std::uint8_t*>(std::aligned_alloc(8, kBufferBytes));
    *size = kBufferBytes;
    *most_records = 0;  // as many as fit
  }
  static void CUPTIAPI take_buffer(CUcontext, std::uint32_t, std::uint8_t* buffer, std::size_t, std::size_t valid) {
    auto* next = reinterpret_cast<decltype(cuptiActivityGetNextRecord)*>(
        dlsym(current()->library_, "cuptiActivityGetNextRecord"));
    CUpti_Activity* record = nullptr;
    while (next(buffer, valid, &record) == CUPTI_SUCCESS) {
      if (record->kind != CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) continue;
      const auto& kernel = *reinterpret_cast<const Record*>(record);
      runs().push_back({label(kernel), kernel.start, kernel.end});
    }
    std::free(buffer);
  }

  static std::string label(const Record& kernel) {
    int status = 0;
    char* demangled = abi::__cxa_demangle(kernel.name, nullptr, nullptr, &status);
    std::string name = status == 0 ? demangled : kernel.name;
    std::free(demangled);
    for (const std::string_view noise : {"void ", "minisgl::", "cuda::", "(anonymous namespace)::", "(SkinnyOutput)"}) {
      for (std::size_t at; (at = name.find(noise)) != std::string::npos;) name.erase(at, noise.size());
    }
    name = name.substr(0, std::min(name.find('('), std::size_t{56}));
    return name + " " + std::to_string(kernel.gridX * kernel.gridY * kernel.gridZ) + " x " +
           std::to_string(kernel.blockX);
  }

  void* library_;
};

#else

class KernelProfile {
 public:
  bool available() const { return false; }
  void start() {}
  std::vector<KernelRun> stop() { return {}; }
};

#endif

// The mean of the steps in `runs` by kernel, those that take longest first. A kernel whose name begins with `last` ends
// a step; what lies before the first end and after the last is left out. A kernel's own time runs from the end of the
// kernels before it to its end: idle time before it included, overlap with them left out, so that own times add up to
// the step.
inline void print_profile(const std::vector<KernelRun>& runs, std::string_view last) {
  const auto ends_step = [&](const KernelRun& run) { return run.name.starts_with(last); };
  const auto begin = std::ranges::find_if(runs, ends_step);
  const auto end = std::find_if(runs.rbegin(), runs.rend(), ends_step).base();
  struct Total {
    double own_us = 0, span_us = 0, idle_us = 0;
    int count = 0;
  };
  std::map<std::string, Total> totals;
  int steps = 0;
  double own_us = 0, idle_us = 0;
  for (auto run = begin; run != runs.end() && ++run < end;) {
    const auto before = static_cast<double>(std::prev(run)->end_ns);
    const auto started = static_cast<double>(run->start_ns), ended = static_cast<double>(run->end_ns);
    Total& total = totals[run->name];
    const double idle = std::max(0.0, started - before) / 1e3;
    total.own_us += (ended - before) / 1e3;
    total.span_us += (ended - started) / 1e3;
    total.idle_us += idle;
    ++total.count;
    own_us += (ended - before) / 1e3;
    idle_us += idle;
    steps += ends_step(*run);
  }
  if (steps == 0) throw std::runtime_error("the profile holds no step");
  std::vector<std::pair<std::string, Total>> sorted(totals.begin(), totals.end());
  std::ranges::sort(sorted, std::greater(), [](const auto& entry) { return entry.second.own_us; });
  std::printf("%.1f us a step, %.1f of them idle; mean of %d steps, us:\n", own_us / steps, idle_us / steps, steps);
  std::printf("  %9s %6s %9s %9s %9s\n", "own", "calls", "own each", "span each", "idle each");
  for (const auto& [name, total] : sorted) {
    std::printf("  %9.1f %6.1f %9.2f %9.2f %9.2f  %s\n", total.own_us / steps, double(total.count) / steps,
                total.own_us / total.count, total.span_us / total.count, total.idle_us / total.count, name.c_str());
  }
}

}  // namespace minisgl
