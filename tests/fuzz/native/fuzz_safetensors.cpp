// Safetensors files.
#include "io/safetensors_file.h"
#include "refused_or_read.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace minisgl;
  testing::read_or_refuse([&] {
    for (const auto& [name, entry] : parse_safetensors(std::as_bytes(std::span(data, size)), "m.safetensors")) {
      testing::touch(entry.bytes);
    }
  });
  return 0;
}
