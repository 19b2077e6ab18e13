// From a path to a model that can compute.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"
#include "io/weight_source.h"
#include "models/decoder.h"
#include "models/decoder_weights.h"
#include "models/registry.h"
#include "models/weight_loader.h"

namespace minisgl {
namespace {

// GGUF files of Llama 3.1 and later carry llama3 scaling as divisors of the frequencies.
void read_frequency_factors(const WeightSource& source, WeightLoader& loader, RopeSpec& rope) {
  constexpr const char* name = "rope_freqs.weight";
  if (!source.contains(name)) return;
  rope.freq_factors = loader.vector(name, rope.rotary_dim / 2);
  for (const float factor : rope.freq_factors) {
    if (!(factor > 0.0f && factor < 1e6f)) {
      throw InputError(
          concat("'", source.path(), "': tensor '", name, "' holds ", factor, ", which can't divide a frequency"));
    }
  }
}

}  // namespace

std::unique_ptr<Model> load_model(const std::string& path, Ops& device, const LoadProgress& progress,
                                  LoadFormat format) {
  const bool dummy = format == LoadFormat::dummy;
  const std::unique_ptr<WeightSource> source = open_weights(path, !dummy);
  ModelSpec spec = read_model_spec(*source);

  std::int64_t total = 0;
  if (!dummy) {
    WeightLoader check(*source, device, WeightLoader::Pass::check, [&](std::int64_t bytes) { total += bytes; });
    load_decoder_weights(spec, check);
  }

  std::int64_t done = 0;
  WeightLoader load(*source, device, dummy ? WeightLoader::Pass::dummy : WeightLoader::Pass::load,
                    [&](std::int64_t bytes) {
                      done += bytes;
                      if (progress && !dummy) progress(std::min(done, total), total);
                    });
  DecoderWeights weights = load_decoder_weights(spec, load);
  if (!dummy) read_frequency_factors(*source, load, spec.rope);
  return make_decoder(std::move(spec), std::move(weights), device);
}

}  // namespace minisgl
