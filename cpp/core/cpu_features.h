// The instruction sets that kernels are compiled for, and the one that this process uses.
#pragma once

#include <span>
#include <string_view>

// f(portable) f(avx2) ...: the sets that this build compiles kernels for (MINISGL_ISAS in cpp/CMakeLists.txt).
#if defined(__x86_64__)
#define MINISGL_FOR_EACH_ISA(f) f(portable) f(avx2) f(avx512vnni)
#else
#define MINISGL_FOR_EACH_ISA(f) f(portable)
#endif

namespace minisgl {

enum class CpuIsa { portable, avx2, avx512vnni };  // from the least to the most

constexpr std::string_view cpu_isa_label(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::portable: return "portable";
    case CpuIsa::avx2: return "avx2";
    case CpuIsa::avx512vnni: return "avx512vnni";
  }
  return "?";
}

// What this processor and its operating system can run, from the least to the most; portable is always there.
//   avx2:       AVX2, FMA, F16C
//   avx512vnni: these and AVX-512 F, BW, VL, VNNI
std::span<const CpuIsa> supported_cpu_isas();

// The best of them, or the one that the environment variable MINISGL_CPU_ISA names. Chosen once a process.
// Throws InputError for a name that is unknown or not supported here.
CpuIsa cpu_isa();

}  // namespace minisgl
