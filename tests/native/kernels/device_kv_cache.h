// One layer of a paged cache in a device's memory.
#pragma once

#include <span>
#include <vector>

#include "kernels/devices.h"
#include "kernels/kv_reference.h"

namespace minisgl::testing_support {

class DeviceKvCache {
 public:
  // keys and values: [num_pages, num_kv_heads, page_size, head_dim]. Without them every head reads as NaN.
  DeviceKvCache(Device& device, DType dtype, std::int64_t num_pages, const HeadShape& shape, int page_size,
                std::span<const float> keys = {}, std::span<const float> values = {})
      : device_(device),
        heads_(num_pages * shape.num_kv_heads * page_size),
        layer_{.keys = nullptr,
               .values = nullptr,
               .dtype = dtype,
               .num_kv_heads = shape.num_kv_heads,
               .page_size = page_size,
               .head_dim = shape.head_dim} {
    const std::vector<float> nothing(static_cast<std::size_t>(heads_ * shape.head_dim),
                                     std::numeric_limits<float>::quiet_NaN());
    layer_.keys = put(keys.empty() ? nothing : keys, layer_.key_scales);
    layer_.values = put(values.empty() ? nothing : values, layer_.value_scales);
  }
  const ops::KvLayer& layer() const { return layer_; }

  // What is read back.
  std::vector<float> keys() const { return read(layer_.keys, layer_.key_scales); }
  std::vector<float> values() const { return read(layer_.values, layer_.value_scales); }

 private:
  std::byte* upload(std::span<const std::byte> bytes) {
    buffers_.push_back(device_.allocate(bytes.size()));
    device_.upload(bytes, buffers_.back().data());
    return buffers_.back().data();
  }
  std::byte* put(std::span<const float> values, float*& scales) {
    if (!has_kv_scales(layer_.dtype)) return upload(stored(layer_.dtype, values));
    std::vector<std::uint8_t> bytes;
    std::vector<float> of_heads;
    for (std::int64_t head = 0; head < heads_; ++head) {
      const ScaledHead scaled = scaled_head(layer_.dtype, &values[head * layer_.head_dim], layer_.head_dim);
      bytes.insert(bytes.end(), scaled.bytes.begin(), scaled.bytes.end());
      of_heads.push_back(scaled.scale);
    }
    scales = reinterpret_cast<float*>(upload(std::as_bytes(std::span(of_heads))));
    return upload(std::as_bytes(std::span(bytes)));
  }
  std::vector<float> read(const std::byte* plane, const float* scales) const {
    std::vector<std::byte> bytes(heads_ * row_bytes(layer_.dtype, layer_.head_dim));
    device_.download(plane, bytes);
    if (scales == nullptr) return loaded(layer_.dtype, bytes);
    std::vector<float> of_heads(heads_), values;
    device_.download(reinterpret_cast<const std::byte*>(scales), std::as_writable_bytes(std::span(of_heads)));
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      const float scale = of_heads[i / layer_.head_dim];
      values.push_back(std::isfinite(scale) ? byte_value(layer_.dtype, static_cast<std::uint8_t>(bytes[i])) * scale
                                            : std::numeric_limits<float>::quiet_NaN());
    }
    return values;
  }

  Device& device_;
  std::int64_t heads_;
  ops::KvLayer layer_;
  std::vector<DeviceBuffer> buffers_;
};

}  // namespace minisgl::testing_support
