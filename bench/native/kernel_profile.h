// What ran on the GPU, kernel by kernel, through CUPTI's activity records. In a build without CUPTI, or where its
// library can't be loaded, there is no profile and available() says so.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#if __has_include(<cupti.h>)
#include <cupti.h>
#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string_view>
#include <utility>
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
    for (const std::string_view noise : {"void ", "minisgl::", "cuda::", "(anonymous namespace)::", "__nv_"}) {
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

}  // namespace minisgl
