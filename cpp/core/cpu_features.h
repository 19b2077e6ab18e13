// The instruction sets that kernels are compiled for, and the one that this process uses.
#pragma once

#include <span>
#include <string_view>

// f(portable) f(avx2) ...: the sets that this build compiles all kernels for (MINISGL_ISAS in cpp/CMakeLists.txt); and
// those that add some kernels to the last of them (MINISGL_MORE_ISAS).
#if defined(__x86_64__)
#define MINISGL_FOR_EACH_ISA(f) f(portable) f(avx2) f(avx512vnni)
#define MINISGL_FOR_EACH_MORE_ISA(f) f(avx512bf16) f(amx)
#elif defined(__aarch64__)
#define MINISGL_FOR_EACH_ISA(f) f(portable) f(dotprod)
#define MINISGL_FOR_EACH_MORE_ISA(f)
#else
#define MINISGL_FOR_EACH_ISA(f) f(portable)
#define MINISGL_FOR_EACH_MORE_ISA(f)
#endif

namespace minisgl {

enum class CpuIsa { portable, dotprod, avx2, avx512vnni, avx512bf16, amx };  // from the least to the most

constexpr std::string_view cpu_isa_label(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::portable: return "portable";
    case CpuIsa::dotprod: return "dotprod";
    case CpuIsa::avx2: return "avx2";
    case CpuIsa::avx512vnni: return "avx512vnni";
    case CpuIsa::avx512bf16: return "avx512bf16";
    case CpuIsa::amx: return "amx";
  }
  return "?";
}

// The set whose kernels run where `isa` adds none.
constexpr CpuIsa base_isa(CpuIsa isa) {
  return isa > CpuIsa::avx512vnni ? CpuIsa::avx512vnni : isa;
}

// What this processor and its operating system can run, from the least to the most; portable is always there.
//   dotprod:    NEON and its dot products of bytes (aarch64)
//   avx2:       AVX2, FMA, F16C
//   avx512vnni: these and AVX-512 F, BW, VL, VNNI
//   avx512bf16: these and AVX-512 BF16, for products of bf16 by bf16
//   amx:        these and AMX tiles of BF16 and INT8, for products of many rows; the first call asks the kernel for the
//               tile registers
std::span<const CpuIsa> supported_cpu_isas();

// Those of them that all kernels are compiled for.
std::span<const CpuIsa> supported_base_isas();

// The best that this processor can run, or the one that the environment variable MINISGL_CPU_ISA names. Chosen once a
// process. Throws InputError for a name that is unknown or not supported here.
CpuIsa cpu_isa();

}  // namespace minisgl
