// Text of a config.json.
#include "io/json_text.h"
#include "refused_or_read.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace minisgl;
  testing::read_or_refuse([&] {
    nlohmann::json config = parse_json(std::as_bytes(std::span(data, size)), "'config.json'");
    if (config.is_object()) testing::read_spec(std::move(config));
  });
  return 0;
}
