// Asks the processor once, and the environment once.
#include "core/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/error.h"

namespace minisgl {
namespace {

#if defined(__x86_64__)
// Whether tiles of bf16 and int8 can be used. The kernel gives the registers to processes that ask, unless a thread of
// theirs handles signals on a stack that is too small to save them.
bool obtain_amx() {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned bf16_tile_and_int8 = 1u << 22 | 1u << 24 | 1u << 25;
  if ((edx & bf16_tile_and_int8) != bf16_tile_and_int8) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));  // what the system saves at a switch of threads
  constexpr unsigned tile_state = 1u << 17 | 1u << 18;
  if ((low & tile_state) != tile_state) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#endif

std::vector<CpuIsa> detect() {
  std::vector<CpuIsa> isas{CpuIsa::portable};
#if defined(__x86_64__)
  // Every processor with AVX2 and FMA has F16C; the builtin also asks whether the system saves the registers.
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  if (has_avx2) isas.push_back(CpuIsa::avx2);
  if (has_avx2 && has_avx512) isas.push_back(CpuIsa::avx512vnni);
  if (has_avx2 && has_avx512 && __builtin_cpu_supports("avx512bf16")) {
    isas.push_back(CpuIsa::avx512bf16);
    if (obtain_amx()) isas.push_back(CpuIsa::amx);
  }
#elif defined(__aarch64__)
  constexpr unsigned long has_dotprod = 1ul << 20;  // HWCAP_ASIMDDP
  if (getauxval(AT_HWCAP) & has_dotprod) isas.push_back(CpuIsa::dotprod);
#endif
  return isas;
}

CpuIsa choose() {
  const std::span<const CpuIsa> supported = supported_cpu_isas();
  const char* wanted = std::getenv("MINISGL_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return supported.back();
  std::string names;
  for (CpuIsa isa : supported) {
    if (cpu_isa_label(isa) == wanted) return isa;
    names += (names.empty() ? "" : ", ") + std::string(cpu_isa_label(isa));
  }
  throw InputError(concat("MINISGL_CPU_ISA is '", wanted, "', but this processor has: ", names));
}

}  // namespace

std::span<const CpuIsa> supported_cpu_isas() {
  static const std::vector<CpuIsa> isas = detect();
  return isas;
}

std::span<const CpuIsa> supported_base_isas() {
  const std::span<const CpuIsa> isas = supported_cpu_isas();
  return {isas.begin(), std::find_if(isas.begin(), isas.end(), [](CpuIsa isa) { return isa != base_isa(isa); })};
}

CpuIsa cpu_isa() {
  static const CpuIsa isa = choose();
  return isa;
}

}  // namespace minisgl
