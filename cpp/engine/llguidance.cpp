// Loads llguidance's extension and looks its functions up.
#include "engine/llguidance.h"

#include <dlfcn.h>

#include <string_view>

#include "core/error.h"

namespace minisgl {
namespace {

template <typename Function>
void look_up(void* library, const std::string& path, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function) return;
  throw InputError(concat(path, " has no function ", name, ": pip install llguidance==", kLlguidanceVersion,
                          " brings one that has"));
}

}  // namespace

LlguidanceLibrary LlguidanceLibrary::load(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!library) throw InputError(concat("llguidance could not be loaded: ", dlerror()));
  LlguidanceLibrary llguidance{};
  const auto find = [&](const char* name, auto& function) { look_up(library, path, name, function); };
  find("llg_get_version", llguidance.get_version);
  const std::string_view version = llguidance.get_version();  // "llguidance@1.9.1 ..."
  if (!version.starts_with(concat("llguidance@", kLlguidanceVersion, " "))) {
    throw InputError(concat(path, " is ", version, ", and ", kLlguidanceVersion,
                            " is needed: pip install llguidance==", kLlguidanceVersion));
  }
  find("llg_new_tokenizer_v2", llguidance.new_tokenizer);
  find("llg_free_tokenizer", llguidance.free_tokenizer);
  find("llg_constraint_init_set_defaults", llguidance.set_defaults);
  find("llg_new_matcher", llguidance.new_matcher);
  find("llg_clone_matcher", llguidance.clone_matcher);
  find("llg_free_matcher", llguidance.free_matcher);
  find("llg_matcher_compute_mask_into", llguidance.compute_mask);
  find("llg_matcher_consume_tokens", llguidance.consume);
  find("llg_matcher_compute_ff_tokens", llguidance.compute_forced);
  find("llg_matcher_is_stopped", llguidance.is_stopped);
  find("llg_matcher_get_error", llguidance.get_error);
  find("llg_matcher_get_cancellation_handle", llguidance.get_cancellation);
  find("llg_cancel", llguidance.cancel);
  find("llg_free_cancellation_handle", llguidance.free_cancellation);
  return llguidance;
}

}  // namespace minisgl
