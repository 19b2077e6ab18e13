# Finds nlohmann/json.hpp: the system's, or the one in PyPI's package nlohmann-json. Defines nlohmann_json::nlohmann_json.
if(Python_EXECUTABLE)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
            "import importlib.util as u; print(u.find_spec('nlohmann_json').submodule_search_locations[0])"
    OUTPUT_VARIABLE package_folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
# Not cached: the isolated environment that pip builds in is another one each time.
find_path(NlohmannJson_INCLUDE_DIR nlohmann/json.hpp HINTS ${package_folder}/include NO_CACHE)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NlohmannJson REQUIRED_VARS NlohmannJson_INCLUDE_DIR REASON_FAILURE_MESSAGE
                                  "install PyPI's nlohmann-json or Debian's nlohmann-json3-dev")
if(NlohmannJson_FOUND AND NOT TARGET nlohmann_json::nlohmann_json)
  add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED)
  target_include_directories(nlohmann_json::nlohmann_json INTERFACE ${NlohmannJson_INCLUDE_DIR})
endif()
