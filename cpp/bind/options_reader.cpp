// One row per option.
#include "bind/options_reader.h"

#include "bind/field_reader.h"

namespace minisgl {
namespace {

template <auto Member>
void into(const char* field, pybind11::handle value, EngineOptions& options) {
  read_field(field, value, options.*Member);
}

const FieldTable<EngineOptions>& readers() {
  static const FieldTable<EngineOptions> table{
      {"model_path", into<&EngineOptions::model_path>},
      {"device", into<&EngineOptions::device>},
      {"load_format", into<&EngineOptions::load_format>},
      {"expert_parallel", into<&EngineOptions::expert_parallel>},
      {"expert_folder", into<&EngineOptions::expert_folder>},
      {"quantize", into<&EngineOptions::quantize>},
      {"cache_dir", into<&EngineOptions::cache_dir>},
      {"packed_cache_bytes", into<&EngineOptions::packed_cache_bytes>},
      {"num_threads", into<&EngineOptions::num_threads>},
      {"kv_dtype", into<&EngineOptions::kv_dtype>},
      {"page_size", into<&EngineOptions::page_size>},
      {"kv_cache_tokens", into<&EngineOptions::kv_cache_tokens>},
      {"num_pages", into<&EngineOptions::num_pages>},
      {"kv_host_bytes", into<&EngineOptions::kv_host_bytes>},
      {"memory_fraction", into<&EngineOptions::memory_fraction>},
      {"max_model_len", into<&EngineOptions::max_model_len>},
      {"max_running", into<&EngineOptions::max_running>},
      {"max_penalized", into<&EngineOptions::max_penalized>},
      {"max_batch_tokens", into<&EngineOptions::max_batch_tokens>},
      {"max_waiting", into<&EngineOptions::max_waiting>},
      {"target_itl_ms", into<&EngineOptions::target_itl_ms>},
      {"speculate", into<&EngineOptions::speculate>},
      {"enable_lora", into<&EngineOptions::enable_lora>},
      {"max_loras", into<&EngineOptions::max_loras>},
      {"max_lora_rank", into<&EngineOptions::max_lora_rank>},
      {"disable_cuda_graph", into<&EngineOptions::disable_cuda_graph>},
      {"disable_overlap", into<&EngineOptions::disable_overlap>},
      {"disable_prefix_cache", into<&EngineOptions::disable_prefix_cache>},
      {"deterministic", into<&EngineOptions::deterministic>},
      {"report_blocks", into<&EngineOptions::report_blocks>},
  };
  return table;
}

}  // namespace

EngineOptions read_options(const pybind11::dict& fields) {
  EngineOptions options;
  read_fields("the engine's options", fields, readers(), options);
  return options;
}

}  // namespace minisgl
