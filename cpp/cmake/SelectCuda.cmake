# Decides whether this is a CUDA build, by MINISGL_CUDA and by what is found. Sets
#   MINISGL_WITH_CUDA      ON or OFF
#   MINISGL_CUDA_VERSION   the toolkit's version, "13.0"; empty in a CPU-only build
#   MINISGL_NCCL_VERSION   the version of the NCCL headers, "2.27.3"; empty in a CPU-only build
#   MINISGL_BUILD_SUMMARY  one line: what is built, or which part of CUDA was missing
# and defines the target minisgl_cuda (CUDA runtime, linked statically; headers of NCCL and cuBLAS). MINISGL_CUBLAS_ROOT and
# MINISGL_NCCL_ROOT name folders with include/ and lib/; NVIDIA's wheels in the building Python are found by themselves.
# NCCL and cuBLAS themselves are loaded when a program first needs them, so only their headers are wanted here.
set(MINISGL_WITH_CUDA OFF)
set(MINISGL_CUDA_VERSION "")
set(MINISGL_NCCL_VERSION "")
if(NOT MINISGL_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "MINISGL_CUDA must be AUTO, ON or OFF, got '${MINISGL_CUDA}'")
endif()
if(MINISGL_CUDA STREQUAL "OFF")
  set(MINISGL_BUILD_SUMMARY "CPU-only build: MINISGL_CUDA=OFF")
  return()
endif()

find_package(CUDAToolkit QUIET)
set(cuda_missing "")
if(NOT CUDAToolkit_FOUND)
  set(cuda_missing "no CUDA toolkit was found")
elseif(NOT CUDAToolkit_NVCC_EXECUTABLE)
  set(cuda_missing "nvcc was not found")
elseif(NOT TARGET CUDA::cudart_static)
  set(cuda_missing "the static CUDA runtime (libcudart_static.a) was not found")
else()
  if(Python_EXECUTABLE)  # NVIDIA's wheels: nvidia/cu13 (all of CUDA 13), nvidia/cublas (CUDA 12), nvidia/nccl
    execute_process(COMMAND ${Python_EXECUTABLE} -c "import nvidia; print(*nvidia.__path__, sep=';')"
                    OUTPUT_VARIABLE wheel_folders OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  set(cublas_hints ${MINISGL_CUBLAS_ROOT} $ENV{MINISGL_CUBLAS_ROOT} ${CUDAToolkit_LIBRARY_ROOT})
  set(nccl_hints ${MINISGL_NCCL_ROOT} $ENV{MINISGL_NCCL_ROOT})
  foreach(folder IN LISTS wheel_folders)
    list(APPEND cublas_hints ${folder}/cu${CUDAToolkit_VERSION_MAJOR} ${folder}/cublas)
    list(APPEND nccl_hints ${folder}/nccl)
  endforeach()
  find_path(cublas_include cublasLt.h HINTS ${cublas_hints} ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include NO_CACHE)
  find_library(cublas_library NAMES cublasLt libcublasLt.so.${CUDAToolkit_VERSION_MAJOR}
               HINTS ${cublas_hints} ${CUDAToolkit_LIBRARY_DIR} PATH_SUFFIXES lib lib64 NO_CACHE)
  find_path(nccl_include nccl.h HINTS ${nccl_hints} ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include NO_CACHE)
  if(NOT cublas_include)
    set(cuda_missing "cuBLAS headers were not found (set MINISGL_CUBLAS_ROOT)")
  elseif(NOT cublas_library)
    set(cuda_missing "the cuBLAS library for CUDA ${CUDAToolkit_VERSION_MAJOR} was not found (set MINISGL_CUBLAS_ROOT)")
  elseif(NOT nccl_include)
    set(cuda_missing "NCCL headers were not found (set MINISGL_NCCL_ROOT)")
  endif()
  if(cuda_missing)
    string(APPEND cuda_missing "; CUDA toolkit ${CUDAToolkit_VERSION} at ${CUDAToolkit_TARGET_DIR}")
  endif()
endif()

if(cuda_missing)
  if(MINISGL_CUDA STREQUAL "ON")
    message(FATAL_ERROR "MINISGL_CUDA=ON, but ${cuda_missing}")
  endif()
  set(MINISGL_BUILD_SUMMARY "CPU-only build: ${cuda_missing}")
  return()
endif()

file(STRINGS ${nccl_include}/nccl.h nccl_numbers REGEX "^#define NCCL_(MAJOR|MINOR|PATCH) ")
list(TRANSFORM nccl_numbers REPLACE "^#define NCCL_[A-Z]+ +([0-9]+).*" "\\1")
list(JOIN nccl_numbers "." MINISGL_NCCL_VERSION)
set(MINISGL_CUDA_VERSION "${CUDAToolkit_VERSION_MAJOR}.${CUDAToolkit_VERSION_MINOR}")
set(MINISGL_WITH_CUDA ON)
add_library(minisgl_cuda INTERFACE)
target_include_directories(minisgl_cuda SYSTEM INTERFACE ${nccl_include} ${cublas_include} ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(minisgl_cuda INTERFACE CUDA::cudart_static ${CMAKE_DL_LIBS})
set(MINISGL_BUILD_SUMMARY "CUDA build: CUDA ${MINISGL_CUDA_VERSION}, NCCL headers ${MINISGL_NCCL_VERSION}")
