// Memory of the paged key/value cache.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/device.h"
#include "models/model_spec.h"

namespace minisgl {

// Keys and values of all layers, [num_layers][2][num_pages, num_kv_heads, page_size, head_dim] of dtype: of the KV
// heads that the device's rank has. Behind them lie the scales of a dtype that has such, [num_layers][2][num_pages,
// num_kv_heads, page_size] f32. On the CPU memory is mapped and untouched until written, so an idle cache costs no
// resident memory.
class KvCache {
 public:
  KvCache(Device& device, const ModelSpec& spec, DType dtype, std::int64_t num_pages, int page_size);
  ops::KvLayer layer(std::int64_t index) const;
  // Queues the copy of a page in all layers, before what is queued later.
  void copy_page(Hardware& device, std::int32_t source, std::int32_t destination);
  // Everything that a page holds.
  std::vector<PagePlane> planes() const;
  DType dtype() const { return dtype_; }
  std::int64_t num_pages() const { return num_pages_; }
  int page_size() const { return page_size_; }
  // On each of so many ranks.
  static std::int64_t bytes_per_page(const ModelSpec& spec, DType dtype, int page_size, int num_ranks = 1);

 private:
  // An array [num_pages][page_bytes] of one layer. Everything that a page holds lies in the planes.
  struct Plane {
    std::int64_t offset;  // in data_
    std::int64_t page_bytes;
  };

  DType dtype_;
  std::int64_t num_pages_;
  int page_size_;
  std::int64_t num_layers_;
  int num_kv_heads_, head_dim_;
  // Keys and values of layer i are planes 2 i and 2 i + 1; their scales, where the dtype has such, 2 num_layers later.
  std::vector<Plane> planes_;
  DeviceBuffer data_;
};

}  // namespace minisgl
