// Asks the processor once, and the environment once.
#include "core/cpu_features.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/error.h"

namespace minisgl {
namespace {

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
  if (has_avx2 && has_avx512 && __builtin_cpu_supports("avx512bf16")) isas.push_back(CpuIsa::avx512bf16);
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
