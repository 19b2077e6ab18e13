// GGUF files: the structure, and what their metadata says of the model.
#include "io/gguf_file.h"
#include "io/gguf_vocabulary.h"
#include "refused_or_read.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace minisgl;
  testing::read_or_refuse([&] {
    const GgufFile file = parse_gguf(std::as_bytes(std::span(data, size)), "m.gguf");
    for (const auto& [name, tensor] : file.tensors) {
      testing::touch(tensor.bytes);
      huggingface_tensor_name(name, "gemma3");
    }
    testing::read_spec(huggingface_config(file, "m.gguf"));
  });
  return 0;
}
