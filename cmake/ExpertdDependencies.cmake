# Every third-party package, found once, from the distribution. deploy/apt-packages.txt names the packages that provide them.
find_package(absl REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(CLI11 CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(OpenSSL REQUIRED)  # certificates are checked before gRPC gets them; hashes of tokens
# oneDNN's own CMake config asks for OpenCL headers that the CPU library does not need.
find_path(DNNL_INCLUDE_DIR dnnl.hpp REQUIRED)
find_library(DNNL_LIBRARY dnnl REQUIRED)
add_library(expertd_dnnl INTERFACE)
target_include_directories(expertd_dnnl SYSTEM INTERFACE ${DNNL_INCLUDE_DIR})
target_link_libraries(expertd_dnnl INTERFACE ${DNNL_LIBRARY})
find_path(XXHASH_INCLUDE_DIR xxhash.h REQUIRED)  # header-only use (XXH_INLINE_ALL); the package ships no CMake config
add_library(expertd_xxhash INTERFACE)
target_include_directories(expertd_xxhash SYSTEM INTERFACE ${XXHASH_INCLUDE_DIR})
target_compile_definitions(expertd_xxhash INTERFACE XXH_INLINE_ALL)

if(EXPERTD_BUILD_TESTS)
  find_package(GTest CONFIG REQUIRED)
  find_package(benchmark CONFIG REQUIRED)
endif()

set(EXPERTD_WITH_CUDA OFF)
if(NOT EXPERTD_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(EXPERTD_WITH_CUDA ON)
    # Machine code for Ampere (and Ada, which runs it) and Hopper; newer devices compile the PTX when they load it. That is Ampere's
    # too: our code tells no devices apart but by 90a, and PTX of its own would cost a quarter of nvcc's time.
    set(CMAKE_CUDA_ARCHITECTURES 80 90a-real CACHE STRING "CUDA targets")
    enable_language(CUDA)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")  # nvcc has it; CMake 3.25 does not know
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
      string(APPEND CMAKE_CUDA_FLAGS " --compress-mode=size")  # a quarter of the default's bytes, unpacked once at load
    endif()
    find_package(CUDAToolkit REQUIRED)
    # The CUDA runtime, linked in; shared where the kernels are, because a process must hold one of it.
    option(EXPERTD_CUDA_SHARED "Kernels as a shared library: one copy for many programs (tests/gpu/bundle.sh)" OFF)
    set(EXPERTD_CUDART CUDA::cudart_static)
    if(EXPERTD_CUDA_SHARED)
      set(EXPERTD_CUDART CUDA::cudart)
    endif()
  elseif(EXPERTD_CUDA STREQUAL "ON")
    message(FATAL_ERROR "EXPERTD_CUDA=ON, but no nvcc was found")
  endif()
endif()
message(STATUS "expertd: CUDA engine ${EXPERTD_WITH_CUDA}")
