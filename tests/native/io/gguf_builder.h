// Writes GGUF files byte by byte, truthful or lying, for the tests of the reader.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace minisgl::testing {

// Little-endian bytes in the order of the calls.
class Bytes {
 public:
  template <typename T>
  Bytes& put(T value) {
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    data_.append(raw, sizeof(T));
    return *this;
  }
  Bytes& raw(std::string_view text) {
    data_.append(text);
    return *this;
  }
  Bytes& string(std::string_view text) { return put<std::uint64_t>(text.size()).raw(text); }
  Bytes& align(std::size_t alignment) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    return *this;
  }
  const std::string& data() const { return data_; }

 private:
  std::string data_;
};

constexpr std::uint32_t gguf_u32 = 4, gguf_f32 = 6, gguf_bool = 7, gguf_string = 8, gguf_array = 9, gguf_u64 = 10;

struct GgufTensor {
  std::string name;
  std::vector<std::uint64_t> dims;  // fastest first, as the file has them
  std::uint32_t type = 0;
  std::uint64_t offset = 0;
};

struct GgufBuilder {
  std::uint32_t version = 3;
  std::uint64_t num_metadata = 0;
  Bytes metadata;
  std::vector<GgufTensor> tensors;
  std::string data;

  Bytes& key(std::string_view name, std::uint32_t type) {
    ++num_metadata;
    return metadata.string(name).put(type);
  }
  void add_u32(std::string_view name, std::uint32_t value) { key(name, gguf_u32).put(value); }
  void add_f32(std::string_view name, float value) { key(name, gguf_f32).put(value); }
  void add_string(std::string_view name, std::string_view value) { key(name, gguf_string).string(value); }

  std::string build() const { return build(tensors.size(), num_metadata); }
  std::string build(std::uint64_t claimed_tensors, std::uint64_t claimed_metadata) const {
    Bytes file;
    file.raw("GGUF").put(version).put(claimed_tensors).put(claimed_metadata).raw(metadata.data());
    for (const GgufTensor& tensor : tensors) {
      file.string(tensor.name).put<std::uint32_t>(tensor.dims.size());
      for (const std::uint64_t dim : tensor.dims) file.put(dim);
      file.put(tensor.type).put(tensor.offset);
    }
    file.align(32).raw(data);
    return file.data();
  }
};

// A small truthful file of the llama family: two tensors, several kinds of metadata.
inline GgufBuilder small_gguf() {
  GgufBuilder builder;
  builder.add_string("general.architecture", "llama");
  builder.add_u32("llama.block_count", 1);
  builder.add_f32("llama.rope.freq_base", 5000.0f);
  builder.add_u32("llama.attention.head_count", 4);
  builder.key("tokenizer.ggml.tokens", gguf_array).put(gguf_string).put<std::uint64_t>(2).string("a").string("bc");
  builder.key("llama.numbers", gguf_array)
      .put(gguf_u32)
      .put<std::uint64_t>(2)
      .put<std::uint32_t>(7)
      .put<std::uint32_t>(8);
  builder.tensors = {{"token_embd.weight", {8, 3}, 0, 0}, {"blk.0.attn_q.weight", {32, 2}, 8, 96}};
  builder.data = std::string(96 + 2 * 34, 'x');
  return builder;
}

}  // namespace minisgl::testing
